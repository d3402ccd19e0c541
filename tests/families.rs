//! Pictures of the families of Stable Diffusion on the CPU against diffusers' (tools/fixtures/families.py).

mod common;

use common::load_pipeline;
use common::pictures::equals_diffusers;
use sdrt::ops::cpu::Cpu;
use sdrt::pipeline::{Distillation, Family, Pipeline, Request};

fn pipeline(model: &str) -> Pipeline {
    load_pipeline(&format!("tests/fixtures/families/{model}"), Cpu::new())
}

#[test]
fn pictures_of_stable_diffusion_2_equal_those_of_diffusers() {
    equals_diffusers(&mut pipeline("sd2"), "families", "sd2");
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
    assert_eq!(defaults("lcm"), (Family::Sd1, Distillation::Consistency, 4, 8.5));
    assert_eq!(defaults("sdxl"), (Family::Xl, Distillation::None, 30, 5.0));
}
