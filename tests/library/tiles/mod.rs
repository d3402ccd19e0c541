//! Other ways between latents and pictures than a whole VAE at once, against diffusers (`tools/fixtures/tiles.py`).

mod previews;
mod tiling;
mod tiny_vae;

use crate::common::pictures::equals_diffusers_where;
use crate::common::{Case, copy_folder, root};
use sdrt::location::Location;
use sdrt::ops::cpu::Cpu;
use sdrt::pipeline::{Init, KnownShapes, ModelFiles, Picture, Pipeline, Request};
use sdrt::raster::Raster;
use sdrt::sampler::Sampler;

fn tiny_vae() -> Location {
    root().join("tests/fixtures/tiles/tiny_vae").into()
}

fn files(vae: Option<Location>) -> ModelFiles {
    ModelFiles { vae, ..Location::from(root().join("models/tiny")).into() }
}

fn pipeline(vae: Option<Location>) -> Pipeline {
    Pipeline::load(&files(vae), Box::new(Cpu::new()), &mut |_, _| {}).expect("models/tiny")
}

fn request() -> Request {
    Request {
        prompt: "a lighthouse at dawn".into(),
        steps: 5,
        guidance_scale: 5.0,
        seed: 1,
        width: 40,
        height: 56,
        ..Request::defaults(&KnownShapes::Sd15.describe(), Sampler::EulerAncestral)
    }
}

/// Compares the wanted cases that start from a picture with this VAE.
fn from_picture_equals_diffusers(vae: Option<Location>, wanted: impl Fn(&Case) -> bool) {
    let is_inpainting = |case: &Case| case.scalars["model"] == "inpaint";
    equals_diffusers_where(&mut pipeline(vae.clone()), "tiles", "from_picture", |case| {
        wanted(case) && !is_inpainting(case)
    });
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&root().join("tests/fixtures/families/sd2"), folder.path());
    copy_folder(&root().join("tests/fixtures/from_picture/inpaint"), folder.path());
    let files = ModelFiles { vae, ..Location::from(folder.path().to_path_buf()).into() };
    let mut inpainting = Pipeline::load(&files, Box::new(Cpu::new()), &mut |_, _| {}).expect("a model");
    equals_diffusers_where(&mut inpainting, "tiles", "from_picture", |case| {
        wanted(case) && is_inpainting(case)
    });
}

/// Levels between the colours of two pictures, on average.
fn mean_difference(a: &Picture, b: &Picture) -> f64 {
    let sum: f64 = a.rgb.iter().zip(&b.rgb).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
    sum / a.rgb.len() as f64
}

/// A picture of which the right half is painted, or nothing.
fn init(painted: bool) -> Init {
    let (width, height) = (40, 56);
    let pixels = || (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let rgb = pixels().flat_map(|(x, y)| [5 * x, 4 * y, 90].map(|level| level as u8)).collect();
    let light = |x: usize| if painted && x >= width / 2 { 255 } else { 0 };
    let mask = pixels().flat_map(|(x, _)| [light(x); 3]).collect();
    Init {
        picture: Raster { width, height, rgb },
        mask: Some(Raster { width, height, rgb: mask }),
        strength: 0.8,
    }
}
