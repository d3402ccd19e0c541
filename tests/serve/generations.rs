//! `/v1/images/generations` and `/v1/models`.

use std::fs;

use serde_json::{Value, json};

use super::{Png, Server, file, sdrt, tiny};

#[test]
fn pictures_have_the_bytes_of_the_command_line() {
    let server = Server::start(&[]);
    let answer =
        server.generate(json!({ "n": 2, "seed": 5, "negative_prompt": "fog", "sampler": "euler-a" })).ok();
    assert_eq!((&answer["size"], &answer["output_format"]), (&json!("64x64"), &json!("png")));
    let seeds = [0, 1].map(|i| answer["data"][i]["seed"].as_u64().unwrap());
    assert_eq!((seeds, answer["data"].as_array().unwrap().len()), ([5, 6], 2));
    assert!(answer["data"][0].get("revised_prompt").is_none() && answer["data"][0].get("url").is_none());

    let folder = tempfile::tempdir().unwrap();
    for i in [0, 1] {
        let [from, ours, theirs] =
            ["from", "ours", "theirs"].map(|name| folder.path().join(format!("{name}.png")));
        fs::write(&ours, file(&answer["data"][i]["b64_json"])).unwrap();
        let seed = seeds[i].to_string();
        let (model, size) = (["--model", &tiny(), "--device", "cpu"], ["--width", "64", "--height", "64"]);
        let asked =
            ["-p", "a lighthouse at dawn", "-n", "fog", "--steps", "2", "--sampler", "euler-a", "-s", &seed];
        let run = |flags: &[&str], to: &std::path::Path| {
            let output = sdrt().arg("run").args(model).args(flags).arg("-o").arg(to).output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        };
        run(&[&size[..], &asked].concat(), &theirs);
        run(&["--from", ours.to_str().unwrap()], &from);
        for path in [&from, &theirs] {
            assert!(fs::read(&ours).unwrap() == fs::read(path).unwrap(), "{i}: {}", path.display());
        }
    }
}

#[test]
fn addresses_lead_to_pictures_of_every_format() {
    let server = Server::start(&[]);
    for (format, magic, content_type) in [
        ("png", &b"\x89PNG"[..], "image/png"),
        ("jpeg", b"\xff\xd8\xff", "image/jpeg"),
        ("webp", b"RIFF", "image/webp"),
    ] {
        let fields = json!({ "response_format": "url", "output_format": format, "seed": 1 });
        let answer = server.generate(fields).ok();
        let url = answer["data"][0]["url"].as_str().unwrap();
        let path = url.strip_prefix(&server.url("")).unwrap();
        let picture = server.get(path);
        assert_eq!((picture.status, picture.header("content-type")), (200, Some(content_type)));
        assert!(picture.body.starts_with(magic), "{format}");
        let text = sdrt::image::read_text(&picture.body).unwrap();
        assert!(text.contains("Seed: 1, Size: 64x64, Model: tiny"), "{text}");
    }
    server.get("/pictures/0c").refused(404, None, "no such picture");
}

#[test]
fn what_is_left_out_is_the_models_own() {
    let server = Server::start(&[]);
    let model = server.get("/v1/models").ok()["data"][0].clone();
    assert_eq!((&model["id"], &model["object"]), (&json!("tiny"), &json!("model")));
    assert_eq!(server.get("/v1/models/tiny").ok(), model);
    let fields = json!({ "prompt": "a", "num_inference_steps": 1, "model": "tiny", "size": "auto" });
    let answer = server.post("/v1/images/generations", &fields).ok();
    assert_eq!(answer["size"], model["sdrt"]["default_size"]);
    let seeds = [(); 2].map(|()| server.generate(json!({})).ok()["data"][0]["seed"].clone());
    assert_ne!(seeds[0], seeds[1]);
    server.get("/v1/models/dall-e-3").refused(404, Some("model"), "this server has \"tiny\"");
}

#[test]
fn streams_show_previews_and_progress() {
    let server = Server::start(&[]);
    let fields = json!({
        "stream": true, "partial_images": 2, "progress": true, "n": 2, "num_inference_steps": 6, "seed": 3
    });
    let events = server.generate(fields).events();
    for index in [0, 1] {
        let of: Vec<&(String, Value)> = events.iter().filter(|(_, data)| data["index"] == index).collect();
        let named = |name: &str| -> Vec<&Value> {
            of.iter().filter(|(other, _)| other == name).map(|(_, data)| data).collect()
        };
        let steps: Vec<u64> =
            named("sdrt.progress").iter().map(|data| data["step"].as_u64().unwrap()).collect();
        assert!(steps.is_sorted() && steps.last() == Some(&6), "{steps:?}");
        let previews = named("image_generation.partial_image");
        assert!(previews.len() <= 2, "{}", previews.len());
        for (i, preview) in previews.iter().enumerate() {
            assert_eq!(preview["partial_image_index"], i);
            Png::read(&file(&preview["b64_json"]));
        }
        let [done] = named("image_generation.completed")[..] else { panic!("{of:?}") };
        assert_eq!(
            (&done["seed"], &done["size"], &done["type"]),
            (&json!(3 + index), &json!("64x64"), &json!("image_generation.completed"))
        );
        let whole = server.generate(json!({ "seed": 3 + index, "num_inference_steps": 6 })).ok();
        assert_eq!(done["b64_json"], whole["data"][0]["b64_json"]);
        assert_eq!(of.last().unwrap().0, "image_generation.completed");
    }
    let plain = server.generate(json!({ "stream": true })).events();
    let names: Vec<&str> = plain.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["image_generation.completed"]);
}

#[test]
fn fields_act() {
    let server = Server::start(&[]);
    let picture = |fields: Value| {
        let mut body = json!({ "seed": 1 });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        Png::read(&file(&server.generate(body).ok()["data"][0]["b64_json"]))
    };
    let plain = picture(json!({}));
    for fields in [
        json!({ "prompt": "another" }),
        json!({ "negative_prompt": "fog" }),
        json!({ "num_inference_steps": 3 }),
        json!({ "guidance_scale": 2.5 }),
        json!({ "guidance_rescale": 0.7 }),
        json!({ "sampler": "dpm++2m" }),
        json!({ "sampler": "euler", "schedule": "karras" }),
        json!({ "eta": 1.0 }),
        json!({ "sampler": "euler", "sigmas": "10,3,0" }),
        json!({ "clip_skip": 2 }),
        json!({ "prompt": "a (lighthouse:1.4) at dawn", "prompt_style": "a1111" }),
        json!({ "rng": "cuda" }),
    ] {
        assert!(picture(fields.clone()).rgb != plain.rgb, "{fields}");
    }
    assert_eq!(picture(json!({ "hires_scale": 2.0, "hires_strength": 0.5 })).size, (128, 128));
    assert!(
        picture(json!({ "quality": "hd", "style": "vivid", "user": "me", "background": "auto" })).rgb
            == plain.rgb
    );
}

#[test]
fn what_cannot_be_used_is_named() {
    let server = Server::start(&["--max-images", "2", "--max-pixels", "16384", "--max-steps", "20"]);
    for (fields, param, words) in [
        (json!({ "prompt": null }), Some("prompt"), "prompt"),
        (json!({ "sice": "64x64" }), Some("sice"), "there is no field `sice`, expected one of `prompt`"),
        (json!({ "sice": "64x64" }), Some("sice"), "`num_inference_steps`"),
        (json!({ "n": 3 }), Some("n"), "n 3: expected 1 to 2"),
        (json!({ "n": 0 }), Some("n"), "expected 1 to 2"),
        (json!({ "n": "two" }), Some("n"), "n: invalid type: string"),
        (json!({ "size": "65x64" }), Some("size"), "expected a multiple of 8; try 64"),
        (json!({ "size": "large" }), Some("size"), "expected auto, or WIDTHxHEIGHT"),
        (json!({ "size": "256x256" }), Some("size"), "expected at most 16384 pixels"),
        (json!({ "size": "64x128", "hires_scale": 2.0 }), Some("size"), "128x256 is too large"),
        (json!({ "num_inference_steps": 21 }), Some("num_inference_steps"), "at most 20"),
        (json!({ "num_inference_steps": 0 }), Some("num_inference_steps"), "0"),
        (json!({ "sampler": "magic" }), Some("sampler"), "there are ddim"),
        (json!({ "clip_skip": 99 }), Some("clip_skip"), "clip_skip 99: expected 1"),
        (json!({ "guidance_rescale": 2 }), Some("guidance_rescale"), "from 0 to 1"),
        (
            json!({ "guidance_start": 2 }),
            Some("guidance_start"),
            "guidance_start 2: expected a number from 0 to 1",
        ),
        (
            json!({ "guidance_end": 0 }),
            Some("guidance_start"),
            "guidance_end 0: expected the start below the end",
        ),
        (json!({ "prompt": "x".repeat(4001) }), Some("prompt"), "at most 4000"),
        (json!({ "prompt": "a <lora:style:1>" }), Some("prompt"), "LoRAs are not served"),
        (json!({ "partial_images": 1 }), Some("partial_images"), "needs `stream`"),
        (json!({ "partial_images": 11, "stream": true }), Some("partial_images"), "0 to 10"),
        (json!({ "response_format": "url", "stream": true }), Some("response_format"), "b64_json"),
        (json!({ "response_format": "gif" }), Some("response_format"), "unknown variant `gif`"),
        (json!({ "strength": 0.5 }), Some("strength"), "/v1/images/edits"),
        (json!({ "hires_scale": 2, "hires_steps": 0 }), Some("hires_steps"), "expected at least 1"),
        (json!({ "hires_steps": 5 }), Some("hires_steps"), "needs `hires_scale`"),
        (json!({ "deadline": -1 }), Some("deadline"), "expected seconds above 0"),
    ] {
        println!("{fields}");
        server.generate(fields).refused(400, param, words);
    }
    server.generate(json!({ "model": "dall-e-3" })).refused(404, Some("model"), "there is no \"dall-e-3\"");
    server.generate(json!({})).ok();
}
