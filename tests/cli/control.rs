//! `--controlnet` and the flags behind it.

use std::fs;

use super::{Place, Png, code, copy_folder, root, stderr};

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
        fs::write(place.path("text.png"), "no picture").unwrap();
        let output = steer(&place, "sd2", flags);
        assert_eq!(code(&output), exit_code, "{flags:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(sentence), "{flags:?}: {}", stderr(&output));
    }
}

#[test]
fn a_picture_repeats_its_controlnets_or_says_what_it_needs() {
    let place = place_with_hint();
    let model = fixture("families/sdxl");
    for net in ["sdxl", "sdxl_small"] {
        copy_folder(&root().join("tests/fixtures/controlnets").join(net), &place.path(net));
    }
    fs::copy(place.path("hint.png"), place.path("other.png")).unwrap();
    let run = ["run", "-m", &model, "--device", "cpu", "-q"];
    let prompt = ["-p", "a boat", "--steps", "3", "--seed", "3", "-o", "a.png"];
    let first = ["--controlnet", "sdxl", "--control-image", "hint.png", "--control-strength", "0.7"];
    let second = ["--controlnet", "./sdxl_small", "--control-image", "other.png", "--control-start", "0.3"];
    let output = place.sdrt(&[&run[..], &prompt, &first, &second, &["--control-end", "0.8"]].concat());
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
    let painted = Png::read(&place.path("a.png"));
    for setting in [
        "ControlNet 0: \"Module: none, Model: sdxl [",
        "], Weight: 0.7, Resize Mode: Just Resize, Guidance Start: 0, Guidance End: 1, Control Mode: Balanced\"",
        "Control model 0: sdxl, Control image 0: hint.png, Control image hash 0: ",
        "Weight: 1, Resize Mode: Just Resize, Guidance Start: 0.3, Guidance End: 0.8,",
        "Control model 1: ./sdxl_small, Control image 1: other.png,",
    ] {
        assert!(painted.parameters.contains(setting), "{setting}: {}", painted.parameters);
    }

    let repeat =
        |flags: &[&str]| place.sdrt(&[&run[..], &["--from", "a.png", "-o", "b.png"], flags].concat());
    let output = repeat(&[]);
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
    assert!(fs::read(place.path("b.png")).unwrap() == fs::read(place.path("a.png")).unwrap());

    // The picture says what flags leave open.
    fs::create_dir(place.path("moved")).unwrap();
    fs::rename(place.path("hint.png"), place.path("moved/hint.png")).unwrap();
    let output = repeat(&[]);
    let sentence = "error: --from: the picture was steered by hint.png, which is not there; say where it is with \
                    --controlnet sdxl --control-image FILE\n";
    assert_eq!((code(&output), &*stderr(&output)), (2, sentence));
    let flags = ["--controlnet", "sdxl", "--control-image", "moved/hint.png", "--controlnet", "sdxl_small"];
    let output = repeat(&flags);
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
    assert!(Png::read(&place.path("b.png")).rgb == painted.rgb);

    fs::copy(place.path("a.png"), place.path("moved/hint.png")).unwrap();
    let output = repeat(&flags);
    let sentence = "a.png was steered by another picture than moved/hint.png: hint.png, whose";
    assert!(stderr(&output).contains(sentence), "{}", stderr(&output));
    fs::rename(place.path("sdxl_small"), place.path("moved/small")).unwrap();
    fs::rename(place.path("moved/hint.png"), place.path("hint.png")).unwrap();
    let output = repeat(&[]);
    assert!(
        stderr(&output)
            .contains("the ControlNet sdxl_small, and there is no ./sdxl_small; say where it is with")
    );
}

#[test]
fn pictures_do_not_tell_where_files_outside_the_working_directory_are() {
    let place = place_with_hint();
    fs::create_dir(place.path("in")).unwrap();
    fs::rename(place.path("hint.png"), place.path("in/hint.png")).unwrap();
    let absolute = place.path("in/hint.png").display().to_string();
    for (image, told) in
        [(&*absolute, "hint.png"), ("in/../in/hint.png", "hint.png"), ("in/hint.png", "in/hint.png")]
    {
        let output = steer(&place, "sd2", &["--controlnet", "NET", "--control-image", image]);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let parameters = Png::read(&place.path("sdrt.png")).parameters;
        let expected = format!("Control model 0: sd2, Control image 0: {told}, ");
        assert!(parameters.contains(&expected), "{parameters}");
    }
}
