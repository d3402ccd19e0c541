//! `sdrt info`, `sdrt bench` and `sdrt profile`.

use std::fs;

use super::{Place, code, json, json_lines, stderr, stdout, tiny};

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
