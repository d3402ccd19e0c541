//! Where prompts come from: the flag, a file with one a line, stdin.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::{Place, Png, code, json, stderr, stdout, tiny};

const FLAGS: &[&str] = &["run", "--device", "cpu", "--steps", "2", "--width", "64", "--height", "64"];

fn paint(place: &Place, flags: &[&str]) -> Output {
    place.sdrt(&[FLAGS, &["--model", &tiny()], flags].concat())
}

fn paint_from_stdin(place: &Place, flags: &[&str], input: &[u8]) -> Output {
    let mut command = place.command(&[FLAGS, &["--model", &tiny()], flags].concat());
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

fn objects(output: &Output) -> Vec<Value> {
    stdout(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_prompt_file_paints_a_picture_for_every_line() {
    let place = Place::new();
    let text = "\u{feff}a fox\r\n\n# comment\n  \t\n  \u{732b}, (asleep)  \na cat";
    fs::write(place.path("prompts.txt"), text).unwrap();
    let output = paint(&place, &["--prompt-file", "prompts.txt", "--seed", "5", "-n", "fog"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(place.files(), ["prompts.txt", "sdrt-0.png", "sdrt-1.png", "sdrt-2.png"]);
    for i in 0..3 {
        let line = format!("sdrt-{i}.png (64x64, seed {})\n", 5 + i);
        assert!(stdout(&output).contains(&line), "{}", stdout(&output));
    }
    assert_eq!(stdout(&output).matches("\ndenoise  ").count(), 1, "{}", stdout(&output));

    for (i, prompt) in ["a fox", "\u{732b}, (asleep)", "a cat"].iter().enumerate() {
        let seed = (5 + i).to_string();
        paint(&place, &["--prompt", prompt, "--seed", &seed, "-n", "fog", "-o", "alone.png"]);
        let same = Png::read(&place.path(&format!("sdrt-{i}.png")));
        let alone = Png::read(&place.path("alone.png"));
        assert!(same.rgb == alone.rgb && same.parameters == alone.parameters, "{prompt}");
    }
}

#[test]
fn every_line_has_a_line_of_json() {
    let place = Place::new();
    fs::write(place.path("prompts.txt"), "a fox\na cat\n").unwrap();
    let flags = ["--prompt-file", "prompts.txt", "-s", "18446744073709551614", "-b", "2", "-o", "a.png"];
    let objects = objects(&paint(&place, &[&flags[..], &["--json"]].concat()));
    let part = |key: &str| objects.iter().map(|object| object[key].clone()).collect::<Vec<_>>();
    assert_eq!(part("prompt"), ["a fox", "a cat"]);
    assert_eq!(part("files"), [["a-0.png", "a-1.png"].as_slice(), &["a-2.png", "a-3.png"]].map(Value::from));
    assert_eq!(part("seeds"), [vec![u64::MAX - 1, u64::MAX], vec![0, 1]].map(Value::from));
    let load = |i: usize| objects[i]["times_ms"]["load"].as_f64().unwrap();
    assert!(load(0) > 0.0 && load(1) == 0.0, "the model is loaded once");
}

#[test]
fn prompts_come_from_stdin() {
    let place = Place::new();
    let output = paint_from_stdin(&place, &["--prompt", "-", "--json"], "a fox\nat dawn\n".as_bytes());
    assert_eq!(json(&output)["prompt"], "a fox\nat dawn", "{}", stderr(&output));
    let output = paint_from_stdin(&place, &["--prompt-file", "-", "--json"], b"a fox\n#\na cat");
    let prompts: Vec<Value> = objects(&output).iter().map(|object| object["prompt"].clone()).collect();
    assert_eq!(prompts, ["a fox", "a cat"], "{}", stderr(&output));
    // One line is one picture, with the name as it is.
    let output = paint_from_stdin(&place, &["--prompt-file", "-", "-o", "one.png"], b"a fox");
    assert!(stdout(&output).starts_with("one.png ("), "{}", stdout(&output));
}

#[test]
fn a_warning_names_its_line() {
    let place = Place::new();
    fs::write(place.path("prompts.txt"), format!("a fox\n\n{}\n", "word ".repeat(80))).unwrap();
    let flags = ["--prompt-file", "prompts.txt", "--guidance-scale", "1", "-n", "fog", "--quiet"];
    let output = paint(&place, &flags);
    let lines: Vec<&str> = std::str::from_utf8(&output.stderr).unwrap().lines().collect();
    assert!(lines[0].starts_with("warning: the negative prompt has no effect"), "{lines:?}");
    assert!(lines[1].starts_with("warning: prompts.txt, line 3: the prompt has more than 75"), "{lines:?}");
    assert_eq!(lines.len(), 2);
}

#[test]
fn unusable_prompts_are_sentences_and_leave_nothing_behind() {
    let place = Place::new();
    let from_stdin = |flags: &[&str], input: &[u8]| paint_from_stdin(&place, flags, input);
    let refused = |output: Output, expected: i32, sentence: &str| {
        let message = stderr(&output);
        assert_eq!(code(&output), expected, "{message}");
        assert!(message.starts_with("error: ") && message.contains(sentence), "{message}");
        assert_eq!(place.files(), [""; 0]);
    };
    refused(paint(&place, &["--prompt-file", "no.txt"]), 1, "no.txt: no such file");
    refused(paint(&place, &["--prompt-file", "."]), 1, ".: cannot be read");
    refused(paint(&place, &["--prompt-file", "a", "--prompt", "b"]), 2, "cannot be used with");
    refused(from_stdin(&["--prompt-file", "-"], b"# \n\n"), 2, "--prompt-file -: has no prompts");
    refused(from_stdin(&["--prompt-file", "-"], b"\xff\n"), 2, "--prompt-file -: stdin is not text in UTF-8");
    refused(from_stdin(&["--prompt", "-"], b"\xff"), 2, "--prompt -: stdin is not text in UTF-8");
    refused(from_stdin(&["--prompt-file", "-", "-b", "0"], b"a\nb"), 2, "--num-images 0");
}

#[test]
fn ctrl_c_keeps_the_pictures_that_are_done() {
    let place = Place::new();
    fs::write(place.path("prompts.txt"), "a fox\n".repeat(50)).unwrap();
    let model = tiny();
    let mut args = [FLAGS, &["--model", &model, "--prompt-file", "prompts.txt"]].concat();
    args[4] = "100";
    let mut child = place.command(&args).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    lines.read_line(&mut first).unwrap();
    assert!(first.starts_with("sdrt-0.png"), "{first}");
    let kill = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(kill.success());
    let mut message = String::new();
    child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{message}");
    assert!(message.contains("error: prompts.txt, line "), "{message}");
    assert!(message.contains(": cancelled after ") && message.contains(" of 100 steps"), "{message}");
    assert!(place.path("sdrt-0.png").is_file() && !place.path("sdrt-49.png").exists());
}
