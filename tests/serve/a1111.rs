//! `/sdapi/v1`.

use std::thread;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::{Png, Server, file, fixture, png_of};

fn small(fields: Value) -> Value {
    let mut body = json!({ "prompt": "a (boat:1.2)", "steps": 2, "width": 64, "height": 64, "seed": 4 });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn info(answer: &Value) -> Value {
    serde_json::from_str(answer["info"].as_str().unwrap()).unwrap()
}

#[test]
fn pictures_from_prompts() {
    let server = Server::start(&[]);
    let paint = |fields| server.post("/sdapi/v1/txt2img", &small(fields)).ok();
    let answer =
        paint(json!({ "batch_size": 2, "n_iter": 2, "sampler_name": "DPM++ 2M Karras", "cfg_scale": 5 }));
    assert_eq!(answer["images"].as_array().unwrap().len(), 4);
    assert_eq!(answer["parameters"]["cfg_scale"], 5);
    let info = info(&answer);
    assert_eq!(info["all_seeds"], json!([4, 5, 6, 7]));
    assert_eq!((&info["sampler_name"], &info["scheduler"]), (&json!("DPM++ 2M"), &json!("Karras")));
    let said = sdrt::image::read_text(&file(&answer["images"][1])).unwrap();
    assert_eq!(said, info["infotexts"][1]);
    assert!(
        said.contains("Seed: 5") && said.contains("Prompt style: a1111") && said.contains("RNG: NV"),
        "{said}"
    );

    let by_sampler = self::info(&paint(json!({ "sampler_name": "Euler a", "scheduler": "automatic" })));
    assert_eq!(by_sampler["scheduler"], "Linspace");
    let random = [(); 2].map(|()| self::info(&paint(json!({ "seed": -1 })))["seed"].clone());
    assert_ne!(random[0], random[1]);
    let hires = paint(json!({ "enable_hr": true, "hr_scale": 2, "denoising_strength": 0.5 }));
    assert_eq!(Png::read(&file(&hires["images"][0])).size, (128, 128));
    let overrides =
        json!({ "CLIP_stop_at_last_layers": 2, "randn_source": "CPU", "sd_model_checkpoint": "tiny" });
    let overridden = paint(json!({ "override_settings": overrides }));
    let text = self::info(&overridden)["infotexts"][0].as_str().unwrap().to_string();
    assert!(text.contains("Clip skip: 2") && text.contains("RNG: CPU"), "{text}");
}

#[test]
fn pictures_from_pictures() {
    let server = Server::start(&[]);
    let picture = BASE64_STANDARD.encode(png_of(64, 64, |x, y| [x as u8, y as u8, 0, 255]));
    let mask = BASE64_STANDARD.encode(png_of(64, 64, |x, _| if x < 32 { [255; 4] } else { [0, 0, 0, 255] }));
    let paint = |fields: Value| {
        let mut body =
            small(json!({ "init_images": [format!("data:image/png;base64,{picture}")], "steps": 4 }));
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let answer = server.post("/sdapi/v1/img2img", &body).ok();
        assert!(answer["parameters"]["init_images"].is_null());
        Png::read(&file(&answer["images"][0])).rgb
    };
    let whole = paint(json!({}));
    let masked = paint(json!({ "mask": mask }));
    let inverted = paint(json!({ "mask": mask, "inpainting_mask_invert": 1 }));
    assert!(whole != masked && masked != inverted && whole != inverted);
    assert!(paint(json!({ "denoising_strength": 0.3 })) != whole);
    let none = server.post("/sdapi/v1/img2img", &small(json!({ "init_images": [] })));
    none.refused(400, Some("init_images"), "expected one picture");
    let broken = server.post("/sdapi/v1/img2img", &small(json!({ "init_images": ["?"] })));
    broken.refused(400, Some("init_images"), "in Base64");
}

#[test]
fn progress_is_told_and_ends_by_interruption() {
    let server = Server::start(&["--max-steps", "1000"]);
    let idle = server.get("/sdapi/v1/progress").ok();
    assert_eq!((&idle["progress"], &idle["state"]["job_count"]), (&json!(0.0), &json!(0)));
    thread::scope(|scope| {
        let fields = json!({ "steps": 900, "batch_size": 2, "width": 128, "height": 128 });
        let painted = scope.spawn(|| server.post("/sdapi/v1/txt2img", &small(fields)).ok());
        server.wait_for("a step", |server| server.get("/sdapi/v1/progress").ok()["progress"] != 0.0);
        let progress = server.get("/sdapi/v1/progress?skip_current_image=true").ok();
        assert_eq!(progress["state"]["sampling_steps"], 900);
        assert!(progress["eta_relative"].as_f64().unwrap() > 0.0 && progress["current_image"].is_null());
        server.post("/sdapi/v1/interrupt", &json!({})).ok();
        let answer = painted.join().unwrap();
        assert_eq!((&answer["images"], &info(&answer)["all_seeds"]), (&json!([]), &json!([])));
    });
    server.wait_for("both cancelled", |server| server.metric("sdrt_cancellations_total") == 2.0);
    assert_eq!(server.get("/sdapi/v1/progress").ok()["state"]["job_count"], 0);
    server.post("/sdapi/v1/txt2img", &small(json!({}))).ok();
}

#[test]
fn there_is_information() {
    let server = Server::start(&[]);
    let samplers = server.get("/sdapi/v1/samplers").ok();
    assert!(samplers.as_array().unwrap().iter().any(|sampler| sampler["name"] == "DPM++ 2M SDE"));
    for item in server.get("/sdapi/v1/schedulers").ok().as_array().unwrap() {
        let fields = json!({ "scheduler": item["name"], "sampler_name": "Euler", "steps": 1 });
        if item["name"] != "leading" {
            server.post("/sdapi/v1/txt2img", &small(fields)).ok();
        }
    }
    assert_eq!(server.get("/sdapi/v1/sd-models").ok()[0]["title"], "tiny");
    assert_eq!(server.get("/sdapi/v1/options").ok()["sd_model_checkpoint"], "tiny");
    server.post("/sdapi/v1/options", &json!({ "sd_model_checkpoint": "tiny" })).ok();
    server.post("/sdapi/v1/options", &json!({ "sd_model_checkpoint": "other" })).refused(
        404,
        Some("model"),
        "other",
    );
    assert_eq!(server.get("/sdapi/v1/scripts").ok()["txt2img"], json!([]));

    let picture = server.post("/sdapi/v1/txt2img", &small(json!({ "negative_prompt": "fog" }))).ok();
    let said = server.post("/sdapi/v1/png-info", &json!({ "image": picture["images"][0] })).ok();
    assert_eq!(said["info"], info(&picture)["infotexts"][0]);
    assert_eq!(
        (&said["parameters"]["Steps"], &said["parameters"]["Negative prompt"]),
        (&json!("2"), &json!("fog"))
    );
    let silent = BASE64_STANDARD.encode(png_of(8, 8, |_, _| [0; 4]));
    let silent = server.post("/sdapi/v1/png-info", &json!({ "image": silent }));
    silent.refused(400, Some("image"), "does not say how it was painted");
}

#[test]
fn what_would_change_the_picture_and_is_not_there_is_refused() {
    let server = Server::start(&[]);
    for (fields, param) in [
        (json!({ "restore_faces": true }), "restore_faces"),
        (json!({ "tiling": true }), "tiling"),
        (json!({ "styles": ["a"] }), "styles"),
        (json!({ "script_name": "X/Y/Z plot" }), "script_name"),
        (json!({ "alwayson_scripts": { "ControlNet": { "args": [] } } }), "alwayson_scripts"),
        (json!({ "subseed_strength": 0.5 }), "subseed_strength"),
        (json!({ "override_settings": { "eta_noise_seed_delta": 31337 } }), "override_settings"),
        (json!({ "override_settings": { "randn_source": "dice" } }), "override_settings"),
        (json!({ "enable_hr": true, "hr_upscaler": "R-ESRGAN 4x+" }), "hr_upscaler"),
        (json!({ "sampler_name": "Magic" }), "sampler_name"),
        (json!({ "guidance_end": 1.5 }), "guidance_end"),
        (json!({ "width": 65 }), "width"),
        (json!({ "cfg_scale": "high" }), "cfg_scale"),
    ] {
        println!("{fields}");
        server.post("/sdapi/v1/txt2img", &small(fields)).refused(400, Some(param), "");
    }
    server.post("/sdapi/v1/txt2img", &small(json!({ "save_images": false, "s_churn": 0 }))).ok();
}

#[test]
fn a_refiner_of_the_server_takes_over_where_it_is_asked_to() {
    let refiner = fixture("siblings/refiner");
    let server = Server::start_with(&fixture("families/sdxl"), &["--refiner", &refiner]);
    let paint = |fields: Value| server.post("/sdapi/v1/txt2img", &small(fields)).ok();
    let infotext = |answer: &Value| info(answer)["infotexts"][0].as_str().unwrap().to_string();
    let own = paint(json!({ "steps": 6 }));
    assert!(infotext(&own).contains(", Refiner: refiner, Refiner switch at: 0.8"), "{}", infotext(&own));
    let early = paint(json!({ "steps": 6, "refiner_checkpoint": "refiner", "refiner_switch_at": 0.5 }));
    assert!(own["images"] != early["images"]);
    let without = paint(json!({ "steps": 6, "seed": 5, "refiner_checkpoint": "None" }));
    let never = paint(json!({ "steps": 6, "seed": 5, "refiner_switch_at": 1 }));
    let with = paint(json!({ "steps": 6, "seed": 5 }));
    assert!(without["images"] == never["images"] && without["images"] != with["images"]);
    let other = json!({ "refiner_checkpoint": "sd_xl_refiner_1.0" });
    let other = server.post("/sdapi/v1/txt2img", &small(other));
    other.refused(400, Some("refiner_checkpoint"), "this server has refiner");
    // As clients of A1111 send them to every server.
    let plain = Server::start(&[]);
    let fields = json!({ "refiner_checkpoint": null, "refiner_switch_at": 0.8, "image_cfg_scale": 1.5 });
    plain.post("/sdapi/v1/txt2img", &small(fields)).ok();
    let named = json!({ "refiner_checkpoint": "sd_xl_refiner_1.0" });
    let named = plain.post("/sdapi/v1/txt2img", &small(named));
    named.refused(400, Some("refiner_checkpoint"), "this server has no refiner");
    let of_openai = json!({ "prompt": "a", "refiner_start": 0.5 });
    let of_openai = plain.post("/v1/images/generations", &of_openai);
    of_openai.refused(400, Some("refiner_start"), "there is no refiner");
}
