//! `sdrt run`: pictures, flags, JSON.

use std::fs;

use super::{Place, Png, code, json, stderr, stdout, tiny};

#[test]
fn a_prompt_becomes_a_png_that_says_how_it_was_painted() {
    let place = Place::new();
    let output = place.paint(&["--seed", "0", "--negative-prompt", "fog, rain", "--sampler", "euler_a"]);
    assert_eq!(place.files(), ["sdrt.png"]);
    assert!(stdout(&output).starts_with("sdrt.png (64x128, seed 0)\n"), "{}", stdout(&output));
    for stage in ["load", "text", "denoise", "decode", "save", "image"] {
        assert!(stdout(&output).contains(&format!("\n{stage}  ")), "{stage}: {}", stdout(&output));
    }
    let png = Png::read(&place.path("sdrt.png"));
    assert_eq!(png.size, (64, 128));
    assert!(png.rgb.iter().any(|&x| x != png.rgb[0]), "one colour only");
    let expected = format!(
        "a lighthouse at dawn\nNegative prompt: fog, rain\nSteps: 2, Sampler: Euler a, Schedule type: \
         Automatic, CFG scale: 7.5, Seed: 0, Size: 64x128, Model: tiny, RNG: CPU, Device: CPU, Precision: f32, \
         Version: sdrt {}",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(png.parameters, expected);
}

#[test]
fn text_that_is_not_latin_1_arrives() {
    let place = Place::new();
    place.paint(&["--negative-prompt", "猫 🦀"]);
    let parameters = Png::read(&place.path("sdrt.png")).parameters;
    assert!(parameters.contains("\nNegative prompt: 猫 🦀\n"), "{parameters}");
}

#[test]
fn a_seed_decides_the_bytes() {
    let place = Place::new();
    for (name, seed) in [("a.png", "7"), ("b.png", "7"), ("c.png", "8")] {
        place.paint(&["--seed", seed, "-o", name]);
    }
    let [a, b, c] = ["a.png", "b.png", "c.png"].map(|name| fs::read(place.path(name)).unwrap());
    assert!(a == b, "the same seed painted another picture");
    assert!(a != c, "another seed painted the same picture");
    place.paint(&["--seed", "7", "--rng", "cuda", "-o", "d.png"]);
    assert!(place.rgb("d.png") != place.rgb("a.png"));
}

#[test]
fn without_a_seed_a_random_one_is_told() {
    let place = Place::new();
    let seeds = [(); 2].map(|()| json(&place.paint(&["--json"]))["seeds"][0].as_u64().unwrap());
    assert_ne!(seeds[0], seeds[1]);
    let last = place.rgb("sdrt.png");
    place.paint(&["--seed", &seeds[1].to_string(), "-o", "again.png"]);
    assert!(place.rgb("again.png") == last);
}

#[test]
fn flags_act_on_the_picture() {
    let place = Place::new();
    let flags: &[&[&str]] = &[
        &[],
        &["--negative-prompt", "fog"],
        &["--cfg-scale", "3"],
        &["--guidance-scale", "1"],
        &["--steps", "3"],
        &["--sampler", "dpm++2m-sde"],
        &["--sampler", "dpm++2m-sde", "--eta", "0.5"],
        &["--sampler", "dpm++2m", "--sigmas", "14,5,0"],
        &["--sampler", "dpm++2m", "--schedule", "beta"],
        &["--guidance-rescale", "0.7"],
        &["--sampler", "dpm++2m", "--schedule", "karras"],
        &["--prompt", "a fox"],
    ];
    let mut pictures = Vec::new();
    for flags in flags {
        // Of a flag that is given twice, clap takes none: the last prompt replaces the first by hand.
        let model = tiny();
        let mut args = place.run_flags(&model, &["--seed", "1"]);
        for pair in flags.chunks(2) {
            match args.iter().position(|arg| *arg == pair[0]) {
                Some(i) => args[i + 1] = pair[1],
                None => args.extend(pair),
            }
        }
        let output = place.sdrt(&args);
        assert_eq!(code(&output), 0, "{flags:?}: {}", stderr(&output));
        pictures.push(place.rgb("sdrt.png"));
    }
    for i in 0..flags.len() {
        for j in 0..i {
            assert!(pictures[i] != pictures[j], "{:?} and {:?} painted the same", flags[i], flags[j]);
        }
    }
}

#[test]
fn several_pictures_are_numbered_and_equal_single_ones() {
    let place = Place::new();
    let output = place.paint(&["--seed", "5", "-b", "3", "-o", "many.png", "--sampler", "euler-a", "--json"]);
    assert_eq!(place.files(), ["many-0.png", "many-1.png", "many-2.png"]);
    let object = json(&output);
    assert_eq!(object["files"], serde_json::json!(["many-0.png", "many-1.png", "many-2.png"]));
    assert_eq!(object["seeds"], serde_json::json!([5, 6, 7]));
    for i in 0..3 {
        place.paint(&["--seed", &(5 + i).to_string(), "-o", "one.png", "--sampler", "euler-a"]);
        let (many, one) =
            (Png::read(&place.path(&format!("many-{i}.png"))), Png::read(&place.path("one.png")));
        assert_eq!(many.parameters.replace(&format!(", Batch size: 3, Batch pos: {i}"), ""), one.parameters);
        // Products of other sizes are summed in another order.
        let difference = many.rgb.iter().zip(&one.rgb).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(difference <= Some(1), "picture {i} differs by {difference:?}");
    }
}

#[test]
fn json_is_one_object_with_everything() {
    let place = Place::new();
    let long = "word ".repeat(100);
    let output = place.paint(&["--json", "-s", "3", "--negative-prompt", &long, "--sampler", "heun"]);
    let object = json(&output);
    assert_eq!(object["steps"], 2);
    assert_eq!(object["evaluations"], 3);
    assert_eq!((&object["width"], &object["height"]), (&64.into(), &128.into()));
    assert_eq!((&object["sampler"], &object["schedule"]), (&"heun".into(), &"model".into()));
    assert_eq!((&object["dtype"], &object["guidance_scale"]), (&"f32".into(), &7.5.into()));
    for stage in ["load", "record", "text", "denoise", "decode", "save", "image"] {
        assert!(object["times_ms"][stage].as_f64().unwrap() >= 0.0, "{stage}");
    }
    let warning = object["warnings"][0].as_str().unwrap();
    assert!(warning.contains("negative prompt") && warning.contains("word"), "{warning}");
    assert!(stderr(&output).contains(warning), "{}", stderr(&output));
}

#[cfg(unix)]
#[test]
fn json_tells_of_files_whose_names_are_not_utf_8() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let model = tiny();
    let mut command = place.command(&place.run_flags(&model, &["--json", "-o"]));
    let output = command.arg(std::ffi::OsStr::from_bytes(b"\xff.png")).output().unwrap();
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(json(&output)["files"][0], "\u{fffd}.png");
}

#[test]
fn quiet_says_warnings_only() {
    let place = Place::new();
    let output = place.paint(&["--quiet"]);
    assert_eq!((stdout(&output), stderr(&output)), (String::new(), String::new()));
    let unguided = ["--guidance-scale", "0.5", "--negative-prompt", "fog", "--guidance-rescale", "0.7"];
    let output = place.paint(&[&["--quiet"], &unguided[..]].concat());
    assert_eq!(stdout(&output), "");
    for what in ["the negative prompt", "--guidance-rescale"] {
        assert!(stderr(&output).contains(&format!("{what} has no effect")), "{}", stderr(&output));
    }
}

#[test]
fn auto_finds_a_device_or_says_why_not() {
    let place = Place::new();
    let args = ["run", "-m", &tiny(), "-p", "", "--steps", "1", "-W", "64", "-H", "64", "--json"];
    let output = place.sdrt(&args);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let object = json(&output);
    if object["device"].as_str().unwrap().starts_with("CPU") {
        let notice = object["warnings"][0].as_str().unwrap();
        assert!(notice.starts_with("running on the CPU: "), "{notice}");
    } else {
        assert_eq!(object["warnings"], serde_json::json!([]));
    }
}
