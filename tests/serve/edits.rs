//! `/v1/images/edits`.

use serde_json::json;

use super::{Answer, Png, Server, file, fixture, png_of};

const TEXTS: [(&str, &str); 3] = [("prompt", "a boat"), ("seed", "1"), ("num_inference_steps", "3")];

fn picture(answer: Answer) -> Png {
    Png::read(&file(&answer.ok()["data"][0]["b64_json"]))
}

fn gradient() -> Vec<u8> {
    png_of(72, 128, |x, y| [3 * x as u8, 2 * y as u8, 99, 255])
}

#[test]
fn a_picture_is_painted_anew() {
    let server = Server::start(&[]);
    let edit = |texts: &[(&str, &str)]| {
        picture(server.edit(&[&TEXTS[..], texts].concat(), &[("image", &gradient())]))
    };
    let whole = edit(&[]);
    assert_eq!(whole.size, (72, 128), "the picture's own size");
    assert!(edit(&[("strength", "0.4")]).rgb != whole.rgb);
    assert_eq!(edit(&[("size", "64x64"), ("n", "1"), ("guidance_scale", "7.5")]).size, (64, 64));
}

#[test]
fn a_mask_is_painted_where_it_is_transparent_or_light() {
    let server = Server::start(&[]);
    let mask = |opaque: bool| {
        png_of(72, 128, move |x, _| match (x < 32, opaque) {
            (true, true) => [255; 4],
            (true, false) => [0; 4],
            (false, true) => [0, 0, 0, 255],
            (false, false) => [255, 255, 255, 255],
        })
    };
    let edit = |mask: &[u8]| picture(server.edit(&TEXTS, &[("image", &gradient()), ("mask", mask)]));
    let [light, transparent] = [true, false].map(|opaque| edit(&mask(opaque)));
    assert!(light.rgb == transparent.rgb);
    assert!(light.rgb != picture(server.edit(&TEXTS, &[("image", &gradient())])).rgb);
}

#[test]
fn edits_stream_under_their_own_names() {
    let server = Server::start(&[]);
    let texts = [&TEXTS[..], &[("stream", "true"), ("partial_images", "1")]].concat();
    let events = server.edit(&texts, &[("image[]", &gradient())]).events();
    assert_eq!(events.last().unwrap().0, "image_edit.completed");
    assert!(events.iter().all(|(name, _)| name.starts_with("image_edit.")));
}

#[test]
fn what_cannot_be_used_is_named() {
    let server = Server::start(&["--max-pixels", "16384"]);
    let refused = |texts: &[(&str, &str)], files: &[(&str, &[u8])], param, words| {
        server.edit(texts, files).refused(400, Some(param), words);
    };
    let image = gradient();
    refused(&TEXTS, &[], "image", "is missing");
    refused(&TEXTS, &[("image", b"no picture")], "image", "expected PNG, JPEG or WebP");
    refused(&TEXTS, &[("image", &image[..image.len() / 2])], "image", "is not a picture that can be read");
    refused(&TEXTS, &[("image", &image), ("image", &image)], "image", "is there twice");
    refused(&TEXTS, &[("image", &image), ("mask", b"")], "mask", "is not a picture");
    refused(&TEXTS, &[("image", &image), ("photo", &image)], "photo", "no such file");
    refused(&[("prompt", "a"), ("strength", "2")], &[("image", &image)], "strength", "above 0, up to 1");
    refused(&[("prompt", "a"), ("n", "many")], &[("image", &image)], "n", "invalid digit");
    let huge = png_of(1024, 1024, |_, _| [0; 4]);
    refused(&TEXTS, &[("image", &huge)], "image", "is not a picture that can be read");
    assert_eq!(server.edit(&TEXTS, &[("image", &image)]).status, 200);
}

#[test]
fn an_edit_model_edits_an_image_with_two_guidances() {
    let server = Server::start_with(&fixture("siblings/pix2pix"), &[]);
    let edit = |texts: &[(&str, &str)]| {
        picture(server.edit(&[&TEXTS[..], texts].concat(), &[("image", &gradient())]))
    };
    let own = edit(&[]);
    assert!(own.rgb == edit(&[("image_guidance_scale", "1.5")]).rgb);
    assert!(edit(&[("image_guidance_scale", "4")]).rgb != own.rgb);
    let wrong = [&TEXTS[..], &[("image_guidance_scale", "0.5")]].concat();
    server.edit(&wrong, &[("image", &gradient())]).refused(
        400,
        Some("image_guidance_scale"),
        "from 1 to 100",
    );
    let none = server.post("/v1/images/generations", &json!({ "prompt": "a boat" }));
    none.refused(400, None, "give it an image to edit with image");
    let masked = server.edit(&TEXTS, &[("image", &gradient()), ("mask", &gradient())]);
    masked.refused(400, Some("mask"), "edits the whole image");
    let other = Server::start(&[]);
    let refused =
        other.edit(&[&TEXTS[..], &[("image_guidance_scale", "2")]].concat(), &[("image", &gradient())]);
    refused.refused(400, Some("image_guidance_scale"), "supported by InstructPix2Pix models only");
}
