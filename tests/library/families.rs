//! Pictures of the families of Stable Diffusion on the CPU against diffusers' (tools/fixtures/families.py).

use crate::common::pictures::{equals_diffusers, paint};
use crate::common::{load_pipeline, root};
use sdrt::location::Location;
use sdrt::ops::cpu::Cpu;
use sdrt::pipeline::{Distillation, Family, ModelFiles, Pipeline, Request};
use sdrt::text::{Embedding, LongPrompt, PromptStyle};

fn pipeline(model: &str) -> Pipeline {
    load_pipeline(&format!("tests/fixtures/families/{model}"), Cpu::new())
}

/// Stable Diffusion 2 with its textual inversion.
fn with_embedding() -> Pipeline {
    let folder = root().join("tests/fixtures/families");
    let embedding = Embedding { file: folder.join("sd2-embedding.safetensors"), name: None };
    let files = ModelFiles { embeddings: vec![embedding], ..Location::from(folder.join("sd2")).into() };
    Pipeline::load(&files, Box::new(Cpu::new()), &mut |_, _| {}).expect("sd2")
}

#[test]
fn pictures_of_stable_diffusion_2_equal_those_of_diffusers() {
    equals_diffusers(&mut with_embedding(), "families", "sd2");
}

#[test]
fn pictures_of_a_model_that_takes_the_guidance_scale_as_an_input_equal_those_of_diffusers() {
    equals_diffusers(&mut pipeline("lcm"), "families", "lcm");
}

#[test]
fn pictures_of_xl_equal_those_of_diffusers() {
    equals_diffusers(&mut pipeline("sdxl"), "families", "sdxl");
}

#[test]
fn families_are_recognised_and_suggest_their_own() {
    let defaults = |model: &str| {
        let pipeline = pipeline(model);
        let Request { steps, guidance_scale, .. } = pipeline.defaults().unwrap();
        let description = pipeline.description();
        (description.family, description.distillation, steps, guidance_scale)
    };
    assert_eq!(defaults("lcm"), (Family::SD1, Distillation::Consistency, 4, 8.5));
    assert_eq!(defaults("sdxl"), (Family::XL, Distillation::None, 30, 5.0));
}

#[test]
fn a_plain_prompt_may_be_of_any_length() {
    let mut pipeline = pipeline("sd2");
    let defaults = pipeline.defaults().unwrap();
    let short = Request { prompt: "seven small boats".into(), steps: 2, ..defaults };
    let chunked = Request { long_prompt: Some(LongPrompt::Chunk), ..short.clone() };
    assert!(paint(&mut pipeline, &chunked).pictures == paint(&mut pipeline, &short).pictures);
    let long = Request { prompt: "seven small boats ".repeat(8) + "? 0123456789!", ..chunked };
    let painting = paint(&mut pipeline, &long);
    assert_eq!(painting.warnings, [""; 0]);
    let cut = Request { long_prompt: None, ..long };
    let truncated = paint(&mut pipeline, &cut);
    assert!(truncated.warnings[0].contains("left out"), "{:?}", truncated.warnings);
    assert!(truncated.pictures != painting.pictures);
}

#[test]
fn weights_of_one_change_nothing() {
    let mut pipeline = pipeline("sd2");
    let plain = Request { prompt: "two boats".into(), steps: 2, ..pipeline.defaults().unwrap() };
    let weighted =
        Request { prompt: "(two:1.0) (boats:1)".into(), prompt_style: PromptStyle::A1111, ..plain.clone() };
    assert!(paint(&mut pipeline, &weighted).pictures == paint(&mut pipeline, &plain).pictures);
}

#[test]
fn an_embedding_that_no_prompt_names_is_told_of() {
    let mut pipeline = with_embedding();
    let request = Request { prompt: "two boats".into(), steps: 1, ..pipeline.defaults().unwrap() };
    let warnings = paint(&mut pipeline, &request).warnings;
    assert_eq!(warnings, ["the embedding \"<boat>\" has no effect: no prompt has its name"]);
}
