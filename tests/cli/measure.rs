//! `sdrt info`, `sdrt bench` and `sdrt profile`.

use std::fs;

use super::{Place, code, json, json_lines, root, stderr, stdout, tiny};

#[test]
fn info_counts_without_running() {
    let place = Place::new();
    let output = place.sdrt(&["info", &tiny(), "-W", "64", "-H", "64", "-b", "2"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    for words in ["U-Net", "scheduler", "2 pictures of 64x64, U-Net batch 4", "step", "weights, f16"] {
        assert!(stdout(&output).contains(words), "{words}: {}", stdout(&output));
    }
    let one = json(&place.sdrt(&["info", &tiny(), "--json", "--tensors"]));
    let two = json(&place.sdrt(&["info", &tiny(), "--json", "-b", "2", "--dtype", "f32"]));
    let [half, full] = [&one, &two].map(|info| info["weight_bytes"].as_f64().unwrap());
    // Every tensor starts on a boundary of its own.
    assert!((1.9..=2.0).contains(&(full / half)), "{half} and {full}");
    assert_eq!(2 * one["stages"][1]["flops"].as_u64().unwrap(), two["stages"][1]["flops"].as_u64().unwrap());
    let tensors = one["tensors"].as_array().unwrap();
    assert!(tensors.iter().any(|t| t["key"] == "conv_in.weight" && t["component"] == "unet"));

    let sd15 = json(&place.sdrt(&["info", "--random-weights", "sd15", "--json"]));
    let parameters = sd15["components"][1]["bytes"].as_u64().unwrap() / 2;
    assert_eq!(parameters, 859_520_964, "parameters of the U-Net of Stable Diffusion 1.5");
}

#[test]
fn bench_measures_every_stage() {
    let place = Place::new();
    let model = tiny();
    let base = ["bench", "--model", &model, "--device", "cpu", "--steps", "2", "-W", "64", "-H", "64"];
    let output = place.sdrt(&[&base[..], &["--images", "1,2", "--json", "rows.jsonl"]].concat());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let rows = json_lines(&place.path("rows.jsonl"));
    let found: Vec<_> =
        rows.iter().map(|row| (row["stage"].as_str().unwrap(), row["images"].as_u64().unwrap())).collect();
    let stages = ["text_encode", "unet_step", "denoise", "vae_decode", "image"];
    let mut expected = vec![("load", 0)];
    expected.extend([1, 2].into_iter().flat_map(|images| stages.map(|stage| (stage, images))));
    assert_eq!(found, expected);
    for row in &rows {
        let [min, median, max] = ["min_ms", "median_ms", "max_ms"].map(|key| row[key].as_f64().unwrap());
        assert!(0.0 < min && min <= median && median <= max, "{row}");
        assert_eq!(row["unet_batch"].as_u64().unwrap(), 2 * row["images"].as_u64().unwrap());
        assert!(stdout(&output).contains(row["stage"].as_str().unwrap()), "{}", stdout(&output));
    }

    let output = place.sdrt(&[&base[..], &["--against", "rows.jsonl"]].concat());
    assert!(stdout(&output).contains("before ms"), "{}", stdout(&output));
    fs::write(place.path("other.jsonl"), "{}\n").unwrap();
    let output = place.sdrt(&[&base[..], &["--against", "other.jsonl"]].concat());
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("other.jsonl: line 1: "), "{}", stderr(&output));
}

#[test]
fn bench_says_with_what_it_measured() {
    let place = Place::new();
    let fixture = |path: &str| root().join("tests/fixtures").join(path).display().to_string();
    let (model, net) = (fixture("families/sd2"), fixture("controlnets/sd2"));
    let base = ["bench", "--model", &model, "--device", "cpu", "--steps", "1", "-W", "16", "-H", "16"];
    let bench = |flags: &[&str]| {
        let output = place.sdrt(&[&base[..], &["--json", "rows.jsonl"], flags].concat());
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        (json_lines(&place.path("rows.jsonl")), stdout(&output))
    };
    let (plain, heading) = bench(&[]);
    assert!(heading.contains("16x16, guidance scale 7.5, 1 step\n"), "{heading}");
    assert_eq!((&plain[2]["guidance_scale"], &plain[2]["controlnets"]), (&7.5.into(), &0.into()));
    let before = fs::read_to_string(place.path("rows.jsonl")).unwrap();
    fs::write(place.path("before.jsonl"), before.replace(",\"controlnets\":0", "")).unwrap();

    let flags = ["--guidance-scale", "1", "--images", "2", "--against", "before.jsonl"];
    let (unguided, heading) = bench(&flags);
    assert!(heading.contains("16x16, no guidance, 1 step\n"), "{heading}");
    assert_eq!((&unguided[2]["guidance_scale"], &unguided[2]["unet_batch"]), (&1.0.into(), &2.into()));

    let (steered, heading) =
        bench(&["--controlnet", &net, "--controlnet", &net, "--against", "before.jsonl"]);
    assert!(heading.contains(", guidance scale 7.5, 2 ControlNets, 1 step\n"), "{heading}");
    assert!(steered.iter().all(|row| row["controlnets"] == 2));
    let compared = |heading: &str| heading.lines().last().unwrap().split_whitespace().count();
    let columns = compared(&heading);
    assert_eq!(compared(&bench(&["--against", "before.jsonl"]).1), columns + 2, "{heading}");

    for (flags, sentence) in [
        (&["--random-controlnets", "1"][..], "cannot be used with"),
        (&["--guidance-scale", "nan"], "--guidance-scale NaN: expected a finite number"),
    ] {
        let output = place.sdrt(&[&base[..], flags].concat());
        assert!(code(&output) == 2 && stderr(&output).contains(sentence), "{}", stderr(&output));
    }
    let profile = ["profile", "--model", &model, "--device", "cpu", "-W", "16", "-H", "16", "--repeat", "1"];
    let output = place.sdrt(&[&profile[..], &["--controlnet", &net, "--guidance-scale", "1"]].concat());
    assert!(
        stdout(&output).contains("\n1 picture of 16x16, no guidance, 1 ControlNet\n"),
        "{}",
        stdout(&output)
    );
    assert!(stdout(&output).contains("accumulate"), "{}", stdout(&output));
}

#[test]
fn profile_measures_every_verb() {
    let place = Place::new();
    let model = tiny();
    let base = ["profile", "--model", &model, "--device", "cpu", "-W", "64", "-H", "64"];
    for (stage, verb) in [("encode", "embed"), ("denoise", "sampler_step"), ("decode", "to_rgb8")] {
        let flags = ["--stage", stage, "--repeat", "1", "--json", "entries.jsonl"];
        let output = place.sdrt(&[&base[..], &flags].concat());
        assert_eq!(code(&output), 0, "{stage}: {}", stderr(&output));
        assert!(stdout(&output).contains(verb), "{stage}: {}", stdout(&output));
        let entries = json_lines(&place.path("entries.jsonl"));
        assert!(entries.iter().any(|entry| entry["verb"] == verb && entry["stage"] == stage));
        let totals: Vec<f64> = entries.iter().map(|entry| entry["total_ms"].as_f64().unwrap()).collect();
        assert!(totals.is_sorted_by(|a, b| a >= b) && totals.iter().all(|&ms| ms > 0.0), "{totals:?}");
    }
    let output = place.sdrt(&[&base[..], &["--trace", "2"]].concat());
    assert_eq!((code(&output), stdout(&output)), (0, String::new()), "{}", stderr(&output));
}
