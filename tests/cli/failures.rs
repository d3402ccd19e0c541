//! What goes wrong: sentences, exit codes, and what is left behind.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use super::{Place, code, copy_folder, root, stderr, stdout, tiny};

#[test]
fn wrong_flags_are_sentences_and_leave_nothing_behind() {
    let place = Place::new();
    let model = tiny();
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--width", "100"], 2, "--width 100: expected a multiple of 8; try 104"),
        (&["--height", "0"], 2, "--height 0: expected a multiple of 8; try 8"),
        (&["--width", "8000000"], 2, "--width 8000000: too many pixels; expected at most 16384"),
        (&["--width", "18446744073709551608"], 2, "too many pixels"),
        (&["--width", "-8"], 2, "--width"),
        (&["--num-images", "0"], 2, "--num-images 0: expected at least 1"),
        (&["--num-images", "9999999999"], 2, "9999999999 pictures at once of 64x128: too many pixels"),
        (&["--steps", "0"], 2, "--steps 0: expected 1 to 1000"),
        (&["--steps", "1000000000000"], 2, "expected 1 to 1000"),
        (&["--steps", "many"], 2, "--steps"),
        (&["--guidance-scale", "nan"], 2, "--guidance-scale NaN: expected a finite number"),
        (&["--guidance-scale", "strong"], 2, "--guidance-scale"),
        (&["--sampler", "magic"], 2, "--sampler magic: no such sampler; there are ddim,"),
        (&["--schedule", "bus"], 2, "--schedule bus: no such schedule; there are model,"),
        (&["--prompt-style", "comfy"], 2, "--prompt-style comfy: expected plain or a1111"),
        (&["--long-prompt", "fold"], 2, "--long-prompt fold: expected chunk or truncate"),
        (&["--clip-skip", "0"], 2, "--clip-skip 0: expected 1, for the last layer of the text encoder, to"),
        (&["--clip-skip", "99"], 2, "--clip-skip 99: expected 1"),
        (&["--embedding", ":x"], 2, "--embedding :x: expected FILE or FILE:NAME"),
        (&["--guidance-rescale", "1.5"], 2, "--guidance-rescale 1.5: expected a number from 0 to 1"),
        (&["--guidance-rescale", "-1"], 2, "--guidance-rescale -1: expected a number from 0 to 1"),
        (&["--guidance-start", "2"], 2, "--guidance-start 2: expected a number from 0 to 1"),
        (&["--guidance-end", "0"], 2, "--guidance-end 0: expected the start below the end"),
        (&["--eta", "2"], 2, "--eta 2: "),
        (&["--sigmas", "1,2"], 2, "--sigmas: 2 does not come below 1"),
        (&["--rng", "dice"], 2, "--rng dice: no such generator; there are cpu and cuda"),
        (&["--seed", "-1"], 2, "--seed -1: expected a whole number from 0"),
        (&["--seed", "18446744073709551616"], 2, "expected a whole number from 0"),
        (&["--dtype", "f8"], 2, "--dtype f8: expected f16, bf16 or f32"),
        (&["--dtype", "f16"], 2, "the CPU computes in f32 only"),
        (&["--device", "tpu"], 2, "--device tpu: expected auto, cpu, cuda or cuda:N"),
        (&["--output", "a.gif"], 2, "--output a.gif: pictures are written as .png, .jpg or .webp; try a.png"),
        (&["--output", "there/"], 2, "pictures are written as .png, .jpg or .webp; try there.png"),
        (&["--quality", "90"], 2, "--quality 90: sdrt.png loses nothing; leave it out, or write a .jpg"),
        (&["--from", "nothing.png"], 1, "nothing.png: no such picture"),
        (&["--from", "/etc/passwd"], 1, "/etc/passwd: expected a picture, in PNG, JPEG or WebP"),
        (&["--from", "."], 1, ".: is a folder; name a picture in it"),
        (&["--output", ""], 2, "a value is required for '--output <FILE>'"),
        (&["--output", "no/such/a.png"], 1, "no/such: no such folder to write to"),
        (&["--output", "/proc/a.png"], 1, "/proc/a.png: cannot be written"),
        (&["--model", "nowhere"], 1, "nowhere: no such model"),
        (&["--model", "/etc/passwd"], 1, "/etc/passwd: not a model"),
        (&["--init-image", "no.png"], 1, "no.png: cannot be read"),
        (&["--init-image", "/etc/passwd"], 1, "expected PNG, JPEG or WebP"),
        (&["--strength", "0.5"], 2, "--init-image"),
        (&["--mask", "mask.png"], 2, "--init-image"),
        (&["--hires-steps", "3"], 2, "--hires-scale"),
        (&["--hires-scale", "0.5"], 2, "--hires-scale 0.5: expected a number above 1"),
        (&["--wings", "2"], 2, "unexpected argument '--wings'"),
    ];
    for (flags, expected, sentence) in cases {
        let mut args = place.run_flags(&model, &[]);
        match args.iter().position(|arg| *arg == flags[0]) {
            Some(i) => args[i + 1] = flags[1],
            None => args.extend(*flags),
        }
        let output = place.sdrt(&args);
        let message = stderr(&output);
        assert_eq!(code(&output), *expected, "{flags:?}: {message}");
        assert!(message.starts_with("error: ") && message.contains(sentence), "{flags:?}: {message}");
        assert!(!message.contains("panicked"), "{flags:?}: {message}");
        assert_eq!(stdout(&output), "", "{flags:?}");
        assert_eq!(place.files(), [""; 0], "{flags:?}");
    }
}

#[test]
fn flags_that_would_do_nothing_are_refused() {
    let place = Place::new();
    for (args, sentence) in [
        (&["info", "--embedding", "a.safetensors"][..], "unexpected argument '--embedding'"),
        (&["info", "--controlnet", "a"], "unexpected argument '--controlnet'"),
        (&["info", "--random-weights", "sd15", "--vae", "a"], "cannot be used with '--vae"),
        (&["bench", "--random-weights", "sdxl", "--prediction", "v"], "cannot be used with '--prediction"),
    ] {
        let output = place.sdrt(args);
        assert_eq!(code(&output), 2, "{args:?}");
        assert!(stderr(&output).contains(sentence), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn what_is_missing_is_asked_for() {
    let place = Place::new();
    for (args, sentence) in [
        (&["run"][..], "--prompt <TEXT>"),
        (&["run", "--model", &tiny()], "--prompt <TEXT>"),
        (&[], "Usage: sdrt"),
    ] {
        let output = place.sdrt(args);
        assert_eq!(code(&output), 2, "{args:?}");
        assert!(stderr(&output).contains(sentence), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn a_tokenizer_may_be_shorter_than_the_text_encoder() {
    let place = Place::new();
    copy_folder(&root().join("models/tiny"), &place.path("short"));
    let config = r#"{"model_max_length": 20}"#;
    fs::write(place.path("short/tokenizer/tokenizer_config.json"), config).unwrap();
    let prompt = "word ".repeat(30);
    let output = place.sdrt(&place.run_flags("short", &["--negative-prompt", &prompt, "--quiet"]));
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stderr(&output).contains("has more than 18 tokens"), "{}", stderr(&output));
}

#[test]
fn a_good_picture_survives_a_run_that_fails() {
    let place = Place::new();
    place.paint(&["-o", "good.png"]);
    let good = fs::read(place.path("good.png")).unwrap();
    copy_folder(&root().join("models/tiny"), &place.path("broken"));
    let weights = place.path("broken/unet/diffusion_pytorch_model.safetensors");
    let file = fs::OpenOptions::new().write(true).open(&weights).unwrap();
    file.set_len(fs::metadata(&weights).unwrap().len() - 1).unwrap();

    let output = place.sdrt(&place.run_flags("broken", &["-o", "good.png"]));
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("diffusion_pytorch_model.safetensors: "), "{}", stderr(&output));
    assert!(stderr(&output).contains("cut short"), "{}", stderr(&output));
    assert!(fs::read(place.path("good.png")).unwrap() == good);
    assert_eq!(place.files(), ["broken", "good.png"]);
}

#[test]
fn ctrl_c_cancels_and_writes_nothing() {
    let place = Place::new();
    let model = tiny();
    let mut args = place.run_flags(&model, &["-v"]);
    let steps = args.iter().position(|arg| *arg == "--steps").unwrap();
    args[steps + 1] = "900";
    let mut child = place.command(&args).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("recorded a step") {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "it ended before it painted");
    }
    let kill = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(kill.success());
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest}");
    assert!(rest.contains("error: cancelled after ") && rest.contains(" of 900 steps"), "{rest}");
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let place = Place::new();
    let mut child = place
        .command(&["info", &tiny(), "--tensors"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
}

/// A limit on the size of files stands for a disk that is full: what is beyond it is not written.
#[cfg(unix)]
#[test]
fn a_full_disk_keeps_the_picture_that_is_there() {
    let place = Place::new();
    fs::write(place.path("a.png"), "an older picture").unwrap();
    let model = tiny();
    let flags = place.run_flags(&model, &["--output", "a.png"]);
    let sdrt = place.command(&flags);
    // An ignored signal stays ignored in the program that takes the shell's place.
    let limited = Command::new("bash")
        .args(["-c", r#"trap "" XFSZ; ulimit -f 1; exec "$@""#, "bash"])
        .arg(sdrt.get_program())
        .args(&flags)
        .current_dir(place.path(""))
        .output()
        .unwrap();
    assert_eq!(code(&limited), 1, "{}", stderr(&limited));
    assert!(stderr(&limited).contains("a.png: cannot be written"), "{}", stderr(&limited));
    assert_eq!(fs::read_to_string(place.path("a.png")).unwrap(), "an older picture");
    assert_eq!(fs::read_dir(place.path("")).unwrap().count(), 1);
}
