//! Images of the siblings of Stable Diffusion on the CPU against diffusers' (tools/fixtures/siblings.py).

use crate::common::load_pipeline;
use crate::common::pictures::equals_diffusers_where;
use sdrt::ops::cpu::Cpu;

fn equals_diffusers(model: &str) {
    let mut pipeline = load_pipeline(&format!("tests/fixtures/siblings/{model}"), Cpu::new());
    equals_diffusers_where(&mut pipeline, "siblings", model, |case| {
        !case.has("states") && !case.has("base_latents")
    });
}

#[test]
fn images_of_ssd_1b_equal_those_of_diffusers() {
    equals_diffusers("ssd");
}

#[test]
fn images_of_vega_equal_those_of_diffusers() {
    equals_diffusers("vega");
}

#[test]
fn images_of_koala_equal_those_of_diffusers() {
    equals_diffusers("koala");
}

/// EDM, and latents with a mean and a deviation.
#[test]
fn images_of_playground_equal_those_of_diffusers() {
    equals_diffusers("playground");
}

#[test]
fn images_of_cosxl_equal_those_of_diffusers() {
    equals_diffusers("cosxl");
}

/// Two guidances; the latents of the image as the encoder gives them.
#[test]
fn images_of_instruct_pix2pix_equal_those_of_diffusers() {
    equals_diffusers("pix2pix");
}

/// The same with latents times the scaling factor.
#[test]
fn images_of_cosxl_edit_equal_those_of_diffusers() {
    equals_diffusers("cosxl_edit");
}

/// From an image, with aesthetic scores.
#[test]
fn images_of_the_refiner_equal_those_of_diffusers() {
    equals_diffusers("refiner");
}
