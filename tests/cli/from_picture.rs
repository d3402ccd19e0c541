//! `sdrt run` from a picture, into a picture, and in two passes.

use std::fs;

use super::{Place, Png, code, copy_folder, json, root, stderr, stdout, tiny};

/// With a picture of the model inside sdrt, `first.png` of 64x96, and a mask of it whose upper half is light.
fn with_pictures() -> Place {
    let place = Place::new();
    let output = place.sdrt(&small(
        "emoji",
        "fox on a blue background",
        &["-o", "first.png", "-W", "64", "-H", "96", "--seed", "1"],
    ));
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let mut encoder = png::Encoder::new(fs::File::create(place.path("mask.png")).unwrap(), 64, 96);
    encoder.set_color(png::ColorType::Grayscale);
    let light: Vec<u8> = (0..64 * 96).map(|i| if i < 64 * 48 { 255 } else { 0 }).collect();
    encoder.write_header().unwrap().write_image_data(&light).unwrap();
    place
}

fn small<'a>(model: &'a str, prompt: &'a str, flags: &[&'a str]) -> Vec<&'a str> {
    let base = ["run", "--model", model, "--device", "cpu", "--steps", "4", "-p", prompt];
    [&base[..], flags].concat()
}

fn distance(a: &[u8], b: &[u8]) -> u64 {
    a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b))).sum()
}

impl Place {
    fn paint_from_first(&self, flags: &[&str]) -> Png {
        let from = ["-s", "2", "-i", "first.png", "-o", "next.png"];
        let output = self.sdrt(&small("emoji", "fox on a yellow background", &[&from[..], flags].concat()));
        assert_eq!(code(&output), 0, "{flags:?}: {}", stderr(&output));
        Png::read(&self.path("next.png"))
    }
}

#[test]
fn a_picture_decides_size_and_content() {
    let place = with_pictures();
    let own = place.paint_from_first(&[]);
    assert_eq!(own.size, (64, 96));
    assert!(own.parameters.contains(", Denoising strength: 0.8,"), "{}", own.parameters);
    assert!(own.rgb == place.paint_from_first(&["--strength", "0.8"]).rgb);
    assert!(own.rgb != place.paint_from_first(&["--strength", "0.5"]).rgb);
    for (flags, size) in
        [(&["-W", "32"][..], (32, 48)), (&["-H", "48"], (32, 48)), (&["-W", "40", "-H", "40"], (40, 40))]
    {
        assert_eq!(place.paint_from_first(flags).size, size, "{flags:?}");
    }
}

#[test]
fn a_mask_keeps_what_is_dark() {
    let place = with_pictures();
    let part = place.paint_from_first(&["--mask", "mask.png"]);
    assert!(part.parameters.contains(", Denoising strength: 1,"), "{}", part.parameters);
    let first = place.rgb("first.png");
    let middle = first.len() / 2;
    let painted = distance(&part.rgb[..middle], &first[..middle]);
    let kept = distance(&part.rgb[middle..], &first[middle..]);
    assert!(3 * kept < painted, "{kept} and {painted}");
}

#[test]
fn hires_fix_paints_larger() {
    let place = Place::new();
    let model = tiny();
    let flags = ["-W", "24", "-H", "32", "--hires-scale", "2", "--hires-steps", "6", "--json"];
    let output = place.sdrt(&small(&model, "a fox", &flags));
    let object = json(&output);
    assert_eq!((&object["width"], &object["height"]), (&48.into(), &64.into()));
    assert_eq!(object["evaluations"], 4 + 4);
    assert_eq!(object["hires"], serde_json::json!({ "scale": 2.0, "strength": 0.7, "steps": 6 }));
    let png = Png::read(&place.path("sdrt.png"));
    assert_eq!(png.size, (48, 64));
    assert!(
        png.parameters.contains("Size: 24x32") && png.parameters.contains("Hires upscale: 2"),
        "{}",
        png.parameters
    );
}

#[test]
fn flags_that_do_not_go_together_are_refused() {
    let place = with_pictures();
    let model = tiny();
    for (flags, sentence) in [
        (&["--strength", "0"][..], "--strength 0: expected a number above 0"),
        (&["--strength", "0.2"], "--strength 0.2: of 4 steps it leaves none to denoise"),
        (&["--hires-scale", "2"], "--hires-scale"),
        (&["--mask", "none.png"], "none.png: cannot be read"),
    ] {
        let output = place.sdrt(&small(&model, "a fox", &[&["-i", "first.png"], flags].concat()));
        assert!(code(&output) != 0 && stderr(&output).contains(sentence), "{flags:?}: {}", stderr(&output));
    }
}

#[test]
fn an_inpainting_model_wants_a_picture_and_a_mask() {
    let place = with_pictures();
    let folder = place.path("inpaint");
    copy_folder(&root().join("tests/fixtures/families/sd2"), &folder);
    fs::remove_dir_all(folder.join("unet")).unwrap();
    copy_folder(&root().join("tests/fixtures/from_picture/inpaint/unet"), &folder.join("unet"));
    for (flags, sentence) in [
        (&[][..], "give it an image with --init-image and --mask"),
        (&["-i", "first.png"], "--mask: missing"),
    ] {
        let output = place.sdrt(&small("inpaint", "a fox", flags));
        assert!(code(&output) == 2 && stderr(&output).contains(sentence), "{flags:?}: {}", stderr(&output));
    }
    let output = place.sdrt(&small("inpaint", "a fox", &["-i", "first.png", "--mask", "mask.png"]));
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let output = place.sdrt(&["info", "inpaint"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
}

#[test]
fn an_edit_model_wants_an_image_and_no_mask() {
    let place = with_pictures();
    let model = root().join("tests/fixtures/siblings/pix2pix").display().to_string();
    for (flags, sentence) in [
        (&[][..], "is an InstructPix2Pix model; give it an image to edit with --init-image"),
        (
            &["-i", "first.png", "--mask", "mask.png"],
            "--mask: an InstructPix2Pix model edits the whole image",
        ),
        (&["-i", "first.png", "--image-guidance-scale", "0.9"], "expected a number from 1 to 100"),
    ] {
        let output = place.sdrt(&small(&model, "a fox", flags));
        assert!(code(&output) == 2 && stderr(&output).contains(sentence), "{flags:?}: {}", stderr(&output));
    }
    let edit = ["-i", "first.png", "--seed", "4", "--image-guidance-scale", "2", "--json"];
    let object = json(&place.sdrt(&small(&model, "a fox", &edit)));
    assert_eq!((&object["strength"], &object["image_guidance_scale"]), (&1.0.into(), &2.0.into()));
    let png = Png::read(&place.path("sdrt.png"));
    assert_eq!(png.size, (64, 96));
    assert!(png.parameters.contains(", Image CFG scale: 2,"), "{}", png.parameters);
    for model in ["pix2pix", "cosxl_edit", "refiner"] {
        let folder = root().join("tests/fixtures/siblings").join(model).display().to_string();
        let output = place.sdrt(&["info", &folder]);
        assert_eq!(code(&output), 0, "{model}: {}", stderr(&output));
        let edits = stdout(&output).contains(", for edits of an image (InstructPix2Pix)");
        assert_eq!(edits, model != "refiner", "{model}");
    }
}
