//! Images of the siblings of Stable Diffusion on the CPU against diffusers' (tools/fixtures/siblings.py).

use crate::common::pictures::equals_diffusers_where;
use crate::common::{load_pipeline, root};
use sdrt::location::Location;
use sdrt::ops::cpu::Cpu;
use sdrt::pipeline::{ModelFiles, Pipeline};

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

fn with_refiner() -> Pipeline {
    let fixtures = |model: &str| Location::from(root().join("tests/fixtures").join(model));
    let refiner = Some(fixtures("siblings/refiner"));
    let files = ModelFiles { refiner, ..fixtures("families/sdxl").into() };
    Pipeline::load(&files, Box::new(Cpu::new()), &mut |_, _| {}).expect("a model and its refiner")
}

/// The base model denoises down to timestep 200, the refiner from there.
#[test]
fn images_that_a_refiner_goes_on_with_equal_those_of_diffusers() {
    equals_diffusers_where(&mut with_refiner(), "siblings", "refiner", |case| case.has("base_latents"));
}
