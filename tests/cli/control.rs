//! `--controlnet` and the flags behind it.

use super::{Place, Png, code, root, stderr};

fn fixture(path: &str) -> String {
    root().join("tests/fixtures").join(path).display().to_string()
}

/// Runs the model of a family with a ControlNet of its own and more flags.
fn steer(place: &Place, model: &str, flags: &[&str]) -> std::process::Output {
    let (model, net) = (fixture(&format!("families/{model}")), fixture(&format!("controlnets/{model}")));
    let base = ["run", "-m", &model, "--device", "cpu", "-p", "a boat", "--steps", "2", "--seed", "3"];
    let flags: Vec<&str> = flags.iter().map(|&flag| if flag == "NET" { &*net } else { flag }).collect();
    place.sdrt(&[&base[..], &flags].concat())
}

/// A place with hint.png, a picture of 32x24.
fn place_with_hint() -> Place {
    let place = Place::new();
    let model = fixture("families/sd2");
    let size = ["-W", "32", "-H", "24", "--steps", "1", "--seed", "1", "-o", "hint.png"];
    let output = place.sdrt(&[&["run", "-m", &model, "--device", "cpu", "-p", "x"][..], &size].concat());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    place
}

#[test]
fn a_picture_takes_the_size_of_its_control_image_and_follows_its_flags() {
    let place = place_with_hint();
    let mut pictures = Vec::new();
    for flags in [
        &["--control-strength", "1"][..],
        &["--control-strength", "0.2"],
        &["--control-start", "0.5"],
        &["--control-end", "0.5"],
        &[],
    ] {
        let control = ["--controlnet", "NET", "--control-image", "hint.png"];
        let output = steer(&place, "sd2", &[&control[..], flags].concat());
        assert_eq!(code(&output), 0, "{flags:?}: {}", stderr(&output));
        assert_eq!(Png::read(&place.path("sdrt.png")).size, (32, 24));
        pictures.push(place.rgb("sdrt.png"));
    }
    assert!(pictures[0] == pictures[4], "a strength of 1 is the default");
    for i in 0..4 {
        assert!(!pictures[..i].contains(&pictures[i]), "the flags of picture {i} have no effect");
    }
}

#[test]
fn flags_belong_to_the_controlnet_before_them() {
    let place = place_with_hint();
    let two = |first: &str, second: &str| {
        let flags = [
            &["--controlnet", "NET", "--control-image", "hint.png", "--control-strength", first][..],
            &["--controlnet", "NET", "--control-image", "hint.png", "--control-strength", second],
        ];
        let output = steer(&place, "sd2", &flags.concat());
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        place.rgb("sdrt.png")
    };
    let both = two("0.5", "0.5");
    assert!(two("0.5", "0") != both && two("0", "0.5") != both);
    assert!(two("0.5", "0") == two("0", "0.5"), "twice the same ControlNet");
}

#[test]
fn flags_that_say_too_little_are_refused_in_a_sentence() {
    let place = place_with_hint();
    let net = fixture("controlnets/sd2");
    let no_image = format!("--controlnet {net}: expected a --control-image behind it");
    for (flags, exit_code, sentence) in [
        (&["--controlnet", "NET"][..], 2, &*no_image),
        (&["--control-image", "hint.png"], 2, "--control-image: expected behind the --controlnet"),
        (
            &["--control-strength", "1", "--controlnet", "NET", "--control-image", "hint.png"],
            2,
            "--control-strength: expected behind the --controlnet",
        ),
        (
            &["--controlnet", "NET", "--control-image", "hint.png", "--control-image", "hint.png"],
            2,
            "--control-image: given twice for one --controlnet",
        ),
        (&["--controlnet", "NET", "--control-image", "none.png"], 1, "none.png: cannot be read"),
        (&["--controlnet", "nowhere", "--control-image", "hint.png"], 1, "nowhere: "),
        (&["--controlnet", "NET", "--control-image", "text.png"], 1, "text.png: is not a picture"),
    ] {
        std::fs::write(place.path("text.png"), "no picture").unwrap();
        let output = steer(&place, "sd2", flags);
        assert_eq!(code(&output), exit_code, "{flags:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(sentence), "{flags:?}: {}", stderr(&output));
    }
}
