//! What pictures say of themselves, against Pillow, piexif and A1111's rules.

use std::fs;
use std::path::PathBuf;

use crate::common::root;
use sdrt::image::{Parameters, read, read_text};
use serde_json::Value;

fn folder() -> PathBuf {
    root().join("tests/fixtures/record")
}

fn record() -> Value {
    serde_json::from_str(&fs::read_to_string(folder().join("record.json")).unwrap()).unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[test]
fn texts_are_found_wherever_other_programs_put_them() {
    let record = record();
    let files = record["files"].as_object().unwrap();
    assert_eq!(files.len(), 10);
    for (name, expected) in files {
        assert_eq!(read(&folder().join(name)).unwrap(), text(expected), "{name}");
    }
}

#[test]
fn pictures_without_parameters_say_what_they_are() {
    for (name, sentence) in [
        ("comfyui.png", "made with ComfyUI, whose workflow sdrt does not read; give --prompt"),
        ("invokeai.png", "made with InvokeAI, whose metadata sdrt does not read"),
        ("silent.png", "does not say how it was painted"),
        ("silent.jpg", "does not say how it was painted"),
        ("silent.webp", "does not say how it was painted"),
        ("picture.gif", "expected a picture, in PNG, JPEG or WebP"),
        ("record.json", "expected a picture, in PNG, JPEG or WebP"),
        ("nothing.png", "no such picture"),
        ("", "is a folder"),
    ] {
        let message = read(&folder().join(name)).unwrap_err().to_string();
        assert!(message.contains(sentence) && message.contains(name), "{message}");
    }
}

#[test]
fn texts_mean_what_a1111_takes_them_for() {
    let record = record();
    for case in record["texts"].as_array().unwrap() {
        let read = Parameters::parse(text(&case["text"]));
        for (key, value) in case["read"].as_object().unwrap() {
            let ours = match key.as_str() {
                "Prompt" => Some(read.prompt.as_str()),
                "Negative prompt" => Some(read.negative_prompt.as_str()),
                key => read.get(key),
            };
            assert_eq!(ours, Some(text(value)), "{key} of {}", case["text"]);
        }
        let known = |key: &str| case["read"].get(key).is_some();
        assert!(read.settings.iter().all(|(key, _)| known(key)), "{read:?}");
    }
}

#[test]
fn texts_are_written_as_a1111_writes_them() {
    let record = record();
    for case in record["written"].as_array().unwrap() {
        let settings = case["settings"].as_array().unwrap();
        let parameters = Parameters {
            prompt: text(&case["prompt"]).into(),
            negative_prompt: text(&case["negative_prompt"]).into(),
            settings: settings.iter().map(|pair| (text(&pair[0]).into(), text(&pair[1]).into())).collect(),
        };
        assert_eq!(parameters.to_string(), text(&case["text"]));
    }
}

#[test]
fn a_civitai_picture_keeps_its_resources_whole() {
    let parameters = Parameters::parse(&read(&folder().join("civitai.jpg")).unwrap());
    let resources: Value = serde_json::from_str(parameters.get("Civitai resources").unwrap()).unwrap();
    assert_eq!(resources[0]["modelName"], "DreamShaper");
    assert_eq!(parameters.get("Civitai metadata"), Some(r#"{"remixOfId":1}"#));
    assert_eq!((parameters.get("Seed"), parameters.get("weight")), (Some("3735928559"), None));
}

#[test]
fn broken_files_are_refused_or_read_but_end_nothing() {
    for file in fs::read_dir(folder()).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        for end in 0..bytes.len().min(2000) {
            let _ = read_text(&bytes[..end]);
        }
        for at in 0..bytes.len().min(2000) {
            for flip in [0xff, 0x80, 0x01] {
                let mut broken = bytes.clone();
                broken[at] ^= flip;
                if let Ok(text) = read_text(&broken) {
                    Parameters::parse(&text);
                }
            }
        }
    }
}
