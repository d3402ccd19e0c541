//! Images of the siblings of Stable Diffusion on the CPU against diffusers' (tools/fixtures/siblings.py).

use crate::common::pictures::equals_diffusers_where;
use crate::common::{load_pipeline, root};
use sdrt::location::Location;
use sdrt::ops::cpu::Cpu;
use sdrt::pipeline::ModelFiles;

fn equals_diffusers(model: &str) {
    let mut pipeline = load_pipeline(&format!("tests/fixtures/siblings/{model}"), Cpu::new());
    equals_diffusers_where(&mut pipeline, "siblings", model, |case| !case.has("states"));
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

#[test]
fn pipelines_that_are_not_supported_are_named() {
    for (model, named) in [
        ("refiner", "the refiner of Stable Diffusion XL"),
        ("pix2pix", "an InstructPix2Pix model"),
        ("cosxl_edit", "an InstructPix2Pix model"),
    ] {
        let folder = root().join("tests/fixtures/siblings").join(model);
        let message = ModelFiles::from(Location::from(folder)).describe().unwrap_err().to_string();
        assert!(message.contains(named) && message.contains("not supported"), "{message}");
    }
}
