//! LoRAs on the command line: files with weights, tags in prompts.

use std::fs;
use std::process::Output;

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};

use super::{Place, Png, code, root, stderr};

fn model() -> String {
    root().join("tests/fixtures/families/sd2").display().to_string()
}

fn file(name: &str) -> String {
    root().join(format!("tests/fixtures/lora/files/{name}.safetensors")).display().to_string()
}

fn try_to_paint(place: &Place, flags: &[&str]) -> Output {
    let small = ["--steps", "2", "--width", "32", "--height", "24", "--device", "cpu"];
    let seed: &[&str] = if flags.contains(&"--seed") { &[] } else { &["--seed", "3"] };
    place.sdrt(&[&["run", "--model", &model()], &small[..], seed, flags].concat())
}

fn paint(place: &Place, flags: &[&str]) -> Png {
    let output = try_to_paint(place, &[flags, &["--output", "a.png"]].concat());
    assert_eq!(code(&output), 0, "{flags:?}: {}", stderr(&output));
    assert_eq!(stderr(&output).matches("warning").count(), 0, "{}", stderr(&output));
    Png::read(&place.path("a.png"))
}

/// A folder of LoRAs, one of them in a folder below.
fn with_folder(place: &Place) {
    fs::create_dir_all(place.path("loras/styles")).unwrap();
    fs::copy(file("sd2-kohya"), place.path("loras/Fog.safetensors")).unwrap();
    fs::copy(file("sd2-peft"), place.path("loras/styles/glass.safetensors")).unwrap();
}

#[test]
fn tags_do_what_flags_do_and_stay_in_the_parameters() {
    let place = Place::new();
    with_folder(&place);
    let plain = paint(&place, &["-p", "a fox"]);
    let fog = format!("{}:0.5", file("sd2-kohya"));
    let glass = format!("{}:-0.25", file("sd2-peft"));
    let by_flag = paint(&place, &["-p", "a fox", "--lora", &glass, "--lora", &fog]);
    assert!(by_flag.rgb != plain.rgb);
    let prompt = "<lora:fog:0.5>a fox<lora:Glass:-0.25>";
    let by_tag = paint(&place, &["-p", prompt, "--lora-dir", "loras"]);
    assert!(by_tag.rgb == by_flag.rgb);
    assert!(by_tag.parameters.starts_with(&format!("{prompt}\n")), "{}", by_tag.parameters);

    // The weights of the text encoder and the U-Net.
    let both = paint(&place, &["-p", "<lora:fog:1:0.5>a fox", "--lora-dir", "loras"]);
    let swapped = paint(&place, &["-p", "<lora:fog:0.5:1>a fox", "--lora-dir", "loras"]);
    assert!(both.rgb != swapped.rgb && both.rgb != by_tag.rgb);
    let none = paint(&place, &["-p", "<lora:fog:0>a fox", "--lora-dir", "loras"]);
    assert!(none.rgb == plain.rgb);
}

#[test]
fn every_line_of_a_prompt_file_has_its_own() {
    let place = Place::new();
    with_folder(&place);
    let lines = ["a fox", "a fox <lora:fog>", "a fox <lora:glass>", "a fox"];
    fs::write(place.path("prompts.txt"), lines.join("\n")).unwrap();
    let flags = ["--prompt-file", "prompts.txt", "--lora-dir", "loras", "--output", "b.png"];
    let output = try_to_paint(&place, &flags);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    for (i, line) in lines.iter().enumerate() {
        let seed = (3 + i).to_string();
        let alone = paint(&place, &["-p", line, "--lora-dir", "loras", "--seed", &seed]);
        assert!(alone.rgb == Png::read(&place.path(&format!("b-{i}.png"))).rgb, "{line}");
    }
}

#[test]
fn a_picture_repeats_its_loras_or_says_what_it_needs() {
    let place = Place::new();
    with_folder(&place);
    fs::copy(file("sd2-dora"), place.path("water.safetensors")).unwrap();
    let flags = ["--lora", "water.safetensors:0.7", "--lora", "loras/styles/glass.safetensors:-0.3"];
    let tagged = ["-p", "<lora:fog:0.5:1>a fox", "--lora-dir", "loras"];
    let first = paint(&place, &[&tagged[..], &flags].concat());
    let bytes = fs::read(place.path("a.png")).unwrap();
    let parameters = &first.parameters;
    for setting in [
        "Lora hashes: \"fog: ",
        "AddNet Module 1: LoRA, AddNet Model 1: water(",
        "AddNet Weight A 1: 0.7, AddNet Weight B 1: 0.7, Lora file 1: water.safetensors,",
        "Lora file 2: loras/styles/glass.safetensors,",
    ] {
        assert!(parameters.contains(setting), "{setting}: {parameters}");
    }

    let repeat = |flags: &[&str]| {
        let from = ["run", "--from", "a.png", "--model", &model(), "--device", "cpu", "-o", "b.png", "-q"];
        place.sdrt(&[&from[..], flags].concat())
    };
    let output = repeat(&["--lora-dir", "loras"]);
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
    assert!(fs::read(place.path("b.png")).unwrap() == bytes);

    // A file that has moved is found by its name.
    fs::rename(place.path("water.safetensors"), place.path("loras/styles/Water.safetensors")).unwrap();
    let output = repeat(&["--prompt", "a fox"]);
    let sentence = "error: --from: the picture was painted with the LoRA water, and there is no \
                    water.safetensors; say with --lora-dir where its file is, or name the file with --lora\n";
    assert_eq!((code(&output), &*stderr(&output)), (2, sentence));
    let output = repeat(&["--lora-dir", "loras"]);
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
    let second = Png::read(&place.path("b.png"));
    assert!(second.rgb == first.rgb);
    assert!(second.parameters.contains("Lora file 1: loras/styles/Water.safetensors,"));
    let output = repeat(&["--lora-dir", "loras/styles"]);
    assert!(stderr(&output).contains("<lora:fog> in the prompt: --lora-dir loras/styles has no"));

    // Another file of the same name is not the picture's, and flags win.
    fs::copy(file("sd2-old"), place.path("loras/styles/Water.safetensors")).unwrap();
    let output = repeat(&["--lora-dir", "loras"]);
    assert!(
        stderr(&output).contains("a.png was painted with another LoRA water (hash "),
        "{}",
        stderr(&output)
    );
    assert!(Png::read(&place.path("b.png")).rgb != first.rgb);
    let output = repeat(&["--lora-dir", "loras", "--lora", "loras/styles/glass.safetensors:0"]);
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
    assert!(!Png::read(&place.path("b.png")).parameters.contains("AddNet Model 2"));
}

#[test]
fn hashes_are_those_of_a1111() {
    let place = Place::new();
    let hash_of = |metadata: Option<std::collections::HashMap<String, String>>| {
        let numbers = [0u8; 4 * 16];
        let scales = TensorView::new(Dtype::F32, vec![16], &numbers).unwrap();
        serialize_to_file([("unet.conv_norm_out.w_norm", scales)], metadata, &place.path("a.safetensors"))
            .unwrap();
        let parameters = paint(&place, &["-p", "a fox", "--lora", "a.safetensors"]).parameters;
        let (_, model) = parameters.split_once("AddNet Model 1: a(").unwrap();
        model.split_once(')').unwrap().0.to_string()
    };
    // SHA-256 of 64 zeros.
    assert_eq!(hash_of(None), "f5a5fd42d16a");
    let stated = |hash: &str| Some([("sshs_model_hash".to_string(), hash.to_string())].into());
    assert_eq!(hash_of(stated("0123456789abcdef")), "0123456789ab");
    assert_eq!(hash_of(stated("not a hash at all")), "f5a5fd42d16a");
}

#[test]
fn loras_that_cannot_be_used_are_sentences_and_leave_nothing_behind() {
    let place = Place::new();
    with_folder(&place);
    let fog = file("sd2-kohya");
    let xl = file("sdxl-kohya");
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--lora", "no.safetensors:2"], 1, "no.safetensors: no such file"),
        (&["--lora", &format!("{fog}:strong")], 2, "expected FILE or FILE:WEIGHT with a number"),
        (&["--lora", &format!("{fog}:nan")], 2, "expected FILE or FILE:WEIGHT with a number"),
        (&["--lora", &xl], 1, "sdxl-kohya.safetensors: "),
        (&["-p", "<lora:fog>"], 2, "<lora:fog> in the prompt: say with --lora-dir where its file is"),
        (&["-p", "<lora:fo>", "--lora-dir", "loras"], 2, "has no fo.safetensors; near it are Fog"),
        (&["-p", "<lora:fog:x>", "--lora-dir", "loras"], 2, "\"x\" is not a weight"),
        (&["-p", "a", "--lora-dir", "none"], 1, "none: no such file"),
    ];
    for (flags, expected, sentence) in cases {
        let prompt: &[&str] = if flags.contains(&"-p") { &[] } else { &["-p", "a fox"] };
        let output = try_to_paint(&place, &[prompt, flags].concat());
        let message = stderr(&output);
        assert_eq!(code(&output), *expected, "{flags:?}: {message}");
        assert!(message.starts_with("error: ") && message.contains(sentence), "{message}");
        assert_eq!(place.files(), ["loras"]);
    }
    fs::copy(&fog, place.path("loras/styles/fog.safetensors")).unwrap();
    let output = try_to_paint(&place, &["-p", "<lora:FOG>", "--lora-dir", "loras"]);
    assert!(stderr(&output).contains("fog.safetensors; rename one"), "{}", stderr(&output));
}
