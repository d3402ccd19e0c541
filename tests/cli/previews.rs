//! `sdrt run --preview`, `--vae` with a tiny VAE, and `--vae-tiling`.

use std::fs;

use super::{Place, Png, code, json, root, stderr, tiny};

fn tiny_vae() -> String {
    root().join("tests/fixtures/tiles/tiny_vae").display().to_string()
}

#[test]
fn previews_are_pictures_beside_the_output_which_stays_the_same() {
    let place = Place::new();
    let flags = ["--seed", "1", "-o", "a.png"];
    place.paint(&flags);
    let plain = fs::read(place.path("a.png")).unwrap();
    place.paint(&[&flags[..], &["--preview", "1"]].concat());
    assert_eq!(place.files(), ["a-preview.png", "a.png"]);
    assert!(fs::read(place.path("a.png")).unwrap() == plain, "previews changed the picture");
    let preview = Png::read(&place.path("a-preview.png"));
    assert_eq!(preview.size, (64, 128));
    assert!(preview.rgb != place.rgb("a.png"), "the preview is not the picture");

    let two = ["--num-images", "2", "--preview", "1", "--preview-path", "b.png", "--quiet"];
    place.paint(&[&flags[..], &two].concat());
    let all = ["a-0.png", "a-1.png", "a-preview.png", "a.png", "b-0.png", "b-1.png"];
    assert_eq!(place.files(), all);
}

#[test]
fn previews_come_from_a_tiny_vae_where_that_decodes() {
    let place = Place::new();
    place.paint(&["--preview", "1", "--vae", &tiny_vae()]);
    assert_eq!(Png::read(&place.path("sdrt-preview.png")).size, (64, 128));
    assert!(place.rgb("sdrt.png").iter().any(|&x| x != 0));
}

#[test]
fn a_vae_for_previews_leaves_the_picture_as_it_is() {
    let place = Place::new();
    let flags = ["--seed", "1", "-o", "a.png"];
    place.paint(&flags);
    let plain = fs::read(place.path("a.png")).unwrap();
    place.paint(&[&flags[..], &["--preview", "1"]].concat());
    let own = place.rgb("a-preview.png");
    place.paint(&[&flags[..], &["--preview", "1", "--preview-vae", &tiny_vae()]].concat());
    assert!(fs::read(place.path("a.png")).unwrap() == plain, "previews changed the picture");
    assert_eq!(Png::read(&place.path("a-preview.png")).size, (64, 128));
    assert!(place.rgb("a-preview.png") != own, "the preview is not the model's own");
}

#[test]
fn previews_that_cannot_be_made_are_refused() {
    let place = Place::new();
    for (flags, sentence) in [
        (&["--preview", "0"][..], "--preview"),
        (&["--preview", "1", "--preview-path", "a.jpg"], "previews are written as PNG; try a.png"),
        (&["--preview", "1", "--preview-path", "sdrt.png"], "a picture goes to sdrt.png; name another file"),
        (&["--preview", "1", "--preview-path", "no/a.png"], "no: no such folder to write to"),
        (&["--preview", "1", "--preview-method", "taste"], "--preview-method taste: expected proj or vae"),
        (&["--preview", "1", "--preview-method", "proj"], "not for this model's; try vae"),
        (&["--preview-method", "vae"], "--preview <N>"),
        (&["--preview-vae", &tiny_vae()], "--preview <N>"),
        (&["--preview", "1", "--preview-vae", &tiny()], "previews want a tiny one"),
        (
            &["--preview", "1", "--preview-vae", &tiny_vae(), "--preview-method", "proj"],
            "cannot be used with '--preview-method",
        ),
    ] {
        let output = place.sdrt(&place.run_flags(&tiny(), flags));
        assert_ne!(code(&output), 0, "{flags:?}");
        assert!(stderr(&output).contains(sentence), "{flags:?}: {}", stderr(&output));
        assert_eq!(place.files(), [""; 0], "{flags:?}");
    }
}

#[test]
fn tiles_are_asked_for_by_flags() {
    let place = Place::new();
    let seed = ["--seed", "1"];
    place.paint(&[&seed[..], &["-o", "whole.png"]].concat());
    place.paint(&[&seed[..], &["-o", "tiled.png", "--vae-tiling", "on", "--vae-tile-size", "8"]].concat());
    place.paint(&[&seed[..], &["-o", "off.png", "--vae-tiling", "off", "--vae-tile-size", "8"]].concat());
    assert!(place.rgb("tiled.png") != place.rgb("whole.png"));
    assert!(place.rgb("off.png") == place.rgb("whole.png"));
    for (flags, sentence) in [
        (["--vae-tiling", "often"], "--vae-tiling often: expected auto, on or off"),
        (["--vae-tile-size", "7"], "--vae-tile-size 7: expected at least 8"),
    ] {
        let output = place.sdrt(&place.run_flags(&tiny(), &flags));
        assert_eq!(code(&output), 2);
        assert!(stderr(&output).contains(sentence), "{}", stderr(&output));
    }
    let info = |flags: &[&str]| {
        let size = ["info", "--random-weights", "sd15", "--json", "-W", "1024", "-H", "1024"];
        json(&place.sdrt(&[&size[..], flags].concat()))["stages"][2]["arena_bytes"].as_u64().unwrap()
    };
    assert!(info(&["--vae-tiling"]) < info(&[]) / 2);
}
