//! The model inside `sdrt`.

use std::fs;
use std::process::Output;

use super::{Place, Png, code, copy_folder, json, json_lines, root, stderr, stdout};

/// Few steps of a small picture on the CPU.
const QUICK: [&str; 10] = ["--device", "cpu", "--seed", "3", "--steps", "2", "-W", "64", "-H", "64"];

fn run(place: &Place, flags: &[&str]) -> Output {
    let output = place.sdrt(&[&["run", "--prompt", "fox on a purple background"], flags].concat());
    assert_eq!(code(&output), 0, "{flags:?}: {}", stderr(&output));
    output
}

fn models_emoji() -> String {
    root().join("models/emoji").display().to_string()
}

#[test]
fn it_paints_where_no_model_is() {
    let place = Place::new();
    let object = json(&run(&place, &["--device", "cpu", "--steps", "1", "--json"]));
    assert_eq!(object["model"], "emoji");
    assert_eq!(place.files(), ["sdrt.png"]);
    let png = Png::read(&place.path("sdrt.png"));
    assert_eq!(png.size, (256, 256));
    assert!(png.parameters.contains(", CFG scale: 4.0, ") && png.parameters.contains(", Model: emoji, "));
}

#[test]
fn it_is_the_folder_of_its_name_in_the_repository() {
    let place = Place::new();
    let folder = models_emoji();
    let models: [&[&str]; 3] = [&[], &["--model", "emoji"], &["--model", &folder]];
    let pictures = models.map(|model| {
        run(&place, &[&QUICK, model].concat());
        fs::read(place.path("sdrt.png")).unwrap()
    });
    assert!(pictures[0] == pictures[1], "--model emoji is another model than none");
    assert!(pictures[0] == pictures[2], "models/emoji is another model than the one inside");
}

#[test]
fn a_folder_called_emoji_is_reached_by_a_path() {
    let place = Place::new();
    copy_folder(&root().join("models/tiny"), &place.path("emoji"));
    for (model, guidance_scale) in [("emoji", 4.0), ("./emoji", 7.5), ("emoji/", 7.5)] {
        let object = json(&run(&place, &[&QUICK[..], &["--json", "--model", model]].concat()));
        assert_eq!((&object["model"], &object["guidance_scale"]), (&model.into(), &guidance_scale.into()));
    }
}

#[test]
fn it_says_its_defaults_and_what_it_is() {
    let place = Place::new();
    let output = place.sdrt(&["info"]);
    for words in ["emoji\n", "Fluent Emoji", "MIT", "MB inside sdrt", "--steps 20 --guidance-scale 4\n"] {
        assert!(stdout(&output).contains(words), "{words}: {}", stdout(&output));
    }
    let folder = models_emoji();
    let [inside, named, folder] = [&[][..], &["emoji"], &[&folder]]
        .map(|model| json(&place.sdrt(&[&["info", "--json"], model].concat())));
    assert_eq!(inside, named);
    assert_eq!((&inside["steps"], &inside["guidance_scale"]), (&20.into(), &4.0.into()));
    assert_eq!((&inside["width"], &inside["height"]), (&256.into(), &256.into()));
    assert_eq!(inside["stages"], folder["stages"]);
    assert!(folder["about"].is_null());
}

#[test]
fn it_is_measured_where_no_model_is_named() {
    let place = Place::new();
    let quick = ["--device", "cpu", "-W", "64", "-H", "64", "--json", "rows.jsonl"];
    for command in [&["bench", "--steps", "1"][..], &["profile", "--stage", "encode", "--repeat", "1"]] {
        let output = place.sdrt(&[command, &quick].concat());
        assert_eq!(code(&output), 0, "{command:?}: {}", stderr(&output));
        assert!(stdout(&output).starts_with("emoji\nCPU"), "{}", stdout(&output));
        assert!(!json_lines(&place.path("rows.jsonl")).is_empty());
    }
    let output = place.sdrt(&["info", "emoji", "--random-weights", "sd15"]);
    assert_eq!(code(&output), 2, "{}", stdout(&output));
}
