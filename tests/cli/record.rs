//! `--from`, the formats of `--output`, and `--show`.

use std::fs;
use std::process::Output;

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use sdrt::image::{Parameters, read};

use super::{Place, Png, code, json, root, stderr, stdout, tiny};

/// Repeats a picture with models/tiny on the CPU.
fn repeat(place: &Place, picture: &str, flags: &[&str]) -> Output {
    let model = tiny();
    let repeat = ["run", "--from", picture, "--model", &model, "--device", "cpu"];
    let output = place.sdrt(&[&repeat, flags].concat());
    assert_eq!(code(&output), 0, "{picture} {flags:?}: {}", stderr(&output));
    output
}

fn fixture(name: &str) -> String {
    root().join("tests/fixtures/record").join(name).display().to_string()
}

#[test]
fn a_picture_is_repeated_to_the_byte() {
    let place = Place::new();
    let flags: &[&[&str]] = &[
        &[],
        &["--seed", "18446744073709551615", "--rng", "cuda", "--negative-prompt", "fog, \"rain\": 猫"],
        &["--sampler", "dpm++2m", "--schedule", "karras", "--cfg-scale", "3.3333333"],
        &["--sampler", "euler", "--schedule", "trailing", "--guidance-scale", "1"],
        &["--sampler", "euler-a", "--negative-prompt", "a\nNegative prompt: b\nSteps: 1, Seed: 2, Size: 1x1"],
    ];
    for flags in flags {
        place.paint(&[*flags, &["-o", "first.png"]].concat());
        let output = repeat(&place, "first.png", &["-o", "second.png", "--quiet"]);
        assert_eq!(stderr(&output), "", "{flags:?}");
        let [first, second] = ["first.png", "second.png"].map(|name| fs::read(place.path(name)).unwrap());
        assert!(first == second, "{flags:?}");
    }
}

#[test]
fn every_format_repeats_the_picture() {
    let place = Place::new();
    place.paint(&["--seed", "3", "-n", "犬", "-o", "a.png"]);
    let png = Png::read(&place.path("a.png"));
    let mut before = "a.png";
    for (name, magic) in [
        ("b.jpg", &b"\xff\xd8\xff"[..]),
        ("c.webp", b"RIFF"),
        ("d.JPEG", b"\xff\xd8\xff"),
        ("e.png", b"\x89PNG"),
    ] {
        repeat(&place, before, &["-o", name, "--quiet"]);
        assert!(fs::read(place.path(name)).unwrap().starts_with(magic), "{name}");
        assert_eq!(read(&place.path(name)).unwrap(), png.parameters, "{name}");
        before = name;
    }
    assert!(fs::read(place.path("e.png")).unwrap() == fs::read(place.path("a.png")).unwrap());
}

#[test]
fn quality_is_of_a_jpeg() {
    let place = Place::new();
    let sizes = ["10", "90", "100"].map(|quality| {
        place.paint(&["--seed", "3", "-o", "a.jpg", "--quality", quality]);
        fs::metadata(place.path("a.jpg")).unwrap().len()
    });
    assert!(sizes.is_sorted_by(|a, b| a < b), "{sizes:?}");
    place.paint(&["--seed", "3", "-o", "a.jpg", "-b", "2"]);
    assert_eq!(place.files(), ["a-0.jpg", "a-1.jpg", "a.jpg"]);
}

#[test]
fn a_prompt_too_long_for_a_jpeg_is_refused_before_it_is_painted() {
    let place = Place::new();
    let long = "word ".repeat(7000);
    let model = tiny();
    let output = place.sdrt(&place.run_flags(&model, &["-n", &long, "-o", "a.jpg"]));
    assert_eq!(code(&output), 2);
    assert!(
        stderr(&output).contains("a JPEG has no room for a prompt of this length"),
        "{}",
        stderr(&output)
    );
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn flags_win_over_the_picture() {
    let place = Place::new();
    place.paint(&["--seed", "3", "-n", "fog"]);
    let output =
        repeat(&place, "sdrt.png", &["--json", "--seed", "4", "-n", "", "-W", "72", "--prompt", "a fox"]);
    let object = json(&output);
    assert_eq!((&object["seeds"][0], &object["steps"]), (&4.into(), &2.into()));
    assert_eq!((&object["width"], &object["height"]), (&72.into(), &128.into()));
    assert_eq!((&object["prompt"], &object["negative_prompt"]), (&"a fox".into(), &"".into()));
}

#[test]
fn pictures_of_other_programs_are_painted_anew() {
    let place = Place::new();
    let refused = place.sdrt(&["run", "--from", &fixture("a1111.png"), "--model", &tiny()]);
    assert!(stderr(&refused).contains("<lora:style> in the prompt: say with --lora-dir"));
    let scales = TensorView::new(Dtype::F32, vec![32], &[0; 4 * 32]).unwrap();
    serialize_to_file([("unet.conv_norm_out.w_norm", scales)], None, &place.path("style.safetensors"))
        .unwrap();
    let flags = ["--json", "--steps", "2", "--lora-dir", "."];
    let object = json(&repeat(&place, &fixture("a1111.png"), &flags));
    assert_eq!(object["prompt"], "a photo of a cat, (masterpiece:1.2), <lora:style:0.8>");
    assert_eq!(object["negative_prompt"], "lowres, bad hands");
    assert_eq!((&object["sampler"], &object["schedule"]), (&"euler-a".into(), &"linspace".into()));
    assert_eq!((&object["seeds"][0], &object["guidance_scale"]), (&965400086.into(), &7.0.into()));
    assert_eq!(
        (&object["width"], &object["height"], &object["rng"]),
        (&128.into(), &192.into(), &"cpu".into())
    );
    assert_eq!(object["hires"], serde_json::json!({ "scale": 2.0, "strength": 0.7, "steps": 2 }));
    let warnings: Vec<&str> =
        object["warnings"].as_array().unwrap().iter().map(|warning| warning.as_str().unwrap()).collect();
    let model = "was painted with v1-5-pruned-emaonly (hash 6ce0161689), this is tiny";
    assert!(warnings.iter().any(|warning| warning.contains(model)), "{warnings:?}");
    assert!(!warnings.iter().any(|warning| warning.contains("Hires")), "{warnings:?}");
    let object = json(&repeat(&place, &fixture("civitai.jpg"), &["--json", "--steps", "2"]));
    assert!(object["warnings"][0].as_str().unwrap().contains("painted with DreamShaper, this is tiny"));
    assert!(object["warnings"][1].as_str().unwrap().contains("left out here: lora model version 87153"));
    assert_eq!((&object["sampler"], &object["schedule"]), (&"dpm++2m".into(), &"karras".into()));
    assert_eq!((&object["seeds"][0], &object["rng"]), (&3735928559u32.into(), &"cuda".into()));
    for name in ["old_ztxt.png", "unicode.webp", "exif.png", "ascii.jpg"] {
        repeat(&place, &fixture(name), &["--steps", "2", "-W", "64", "-H", "64", "--lora-dir", "."]);
    }
}

#[test]
fn a_model_that_is_not_here_is_asked_for() {
    let place = Place::new();
    place.paint(&[]);
    let output = place.sdrt(&["run", "--from", "sdrt.png", "--device", "cpu"]);
    assert_eq!(code(&output), 2);
    let sentence = "--from: the picture was painted with tiny; say where that model is with --model";
    assert!(stderr(&output).contains(sentence), "{}", stderr(&output));
}

#[test]
fn what_the_picture_asks_and_sdrt_has_not_is_a_flag_away() {
    let place = Place::new();
    place.paint(&["--sampler", "pndm"]);
    let text = read(&place.path("sdrt.png")).unwrap().replace("Sampler: PLMS", "Sampler: Restart");
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
    encoder.add_text_chunk("parameters".into(), text).unwrap();
    encoder.write_header().unwrap().write_image_data(&[0]).unwrap();
    fs::write(place.path("restart.png"), bytes).unwrap();
    let model = tiny();
    let output = place.sdrt(&["run", "--from", "restart.png", "--model", &model, "--device", "cpu"]);
    assert_eq!(code(&output), 2);
    let message = stderr(&output);
    let sentence = "error: --from restart.png: --sampler Restart: no such sampler; there are ddim, ";
    assert!(message.starts_with(sentence) && message.contains("the flag wins"), "{message}");
    repeat(&place, "restart.png", &["--sampler", "heun"]);
    let again = Parameters::parse(&read(&place.path("sdrt.png")).unwrap());
    assert_eq!(again.get("Sampler"), Some("Heun"));
}

#[test]
fn show_draws_in_terminals_only() {
    let place = Place::new();
    let output = place.paint(&["--show", "--quiet"]);
    assert_eq!(stdout(&output), "");
    assert_eq!(stderr(&output), "warning: --show: nothing is drawn, stdout is not a terminal\n");
    let object = json(&place.paint(&["--show", "--json"]));
    assert_eq!(object["warnings"], serde_json::json!(["--show: nothing is drawn beside --json"]));
}

#[test]
fn a_refined_image_is_repeated_with_its_refiner_alone() {
    let place = Place::new();
    let fixture = |name: &str| root().join("tests/fixtures").join(name).display().to_string();
    let (model, refiner) = (fixture("families/sdxl"), fixture("siblings/refiner"));
    let base = ["run", "--model", &model, "--device", "cpu", "-W", "40", "-H", "32"];
    let refined = ["--refiner", &refiner, "--refiner-start", "0.5"];
    let ask = ["-p", "a fox", "--steps", "6", "--seed", "2", "-o", "first.png", "--json"];
    let object = json(&place.sdrt(&[&base[..], &refined[..], &ask[..]].concat()));
    assert_eq!((&object["refiner_start"], &object["evaluations"]), (&0.5.into(), &6.into()));
    let first = Png::read(&place.path("first.png"));
    assert!(first.parameters.contains(", Refiner: refiner, Refiner switch at: 0.5,"), "{}", first.parameters);

    let again = |flags: &[&str]| {
        let from = ["--from", "first.png", "-o", "second.png", "--quiet"];
        let output = place.sdrt(&[&base[..5], &from[..], flags].concat());
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        (fs::read(place.path("second.png")).unwrap(), stderr(&output))
    };
    let (bytes, said) = again(&["--refiner", &refiner]);
    assert_eq!(said, "");
    assert!(bytes == fs::read(place.path("first.png")).unwrap());
    let (bytes, said) = again(&[]);
    assert!(bytes != fs::read(place.path("first.png")).unwrap());
    assert!(said.contains("left out here: Refiner: refiner, Refiner switch at: 0.5"), "{said}");
    let (_, said) = again(&["--refiner", &model]);
    assert_eq!(said, "warning: first.png was refined with refiner, this is sdxl\n");

    let alone = place.sdrt(&[&base[..], &["-p", "a fox", "--refiner-start", "0.5"]].concat());
    let sentence = "--refiner-start 0.5: there is no refiner; give one with --refiner, or leave it out";
    assert!(code(&alone) == 2 && stderr(&alone).contains(sentence), "{}", stderr(&alone));
}
