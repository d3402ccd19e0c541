//! Whole pictures, and those of diffusers.

use std::ops::ControlFlow;

use sdrt::pipeline::{
    Control, Hires, Init, KnownShapes, Painting, Picture, Pipeline, Request, SizeConditioning, Tiled, Tiling,
};
use sdrt::raster::Raster;
use sdrt::rng::Rng;
use sdrt::sampler::Sampler;
use sdrt::text::PromptStyle;
use serde_json::Value;

use super::{Case, Numbers, Values, fixture};

/// Largest difference of a colour, of 255: what lies near the middle of two may be rounded either way.
const LEVELS: u8 = 1;

pub fn paint(pipeline: &mut Pipeline, request: &Request) -> Painting {
    pipeline.paint(request, &mut |_, _| ControlFlow::Continue(())).expect("a picture")
}

pub fn request_of(case: &Case) -> Request {
    let text = |field: &str| case.scalars[field].as_str().expect(field).to_string();
    let count = |field: &str| case.scalars[field].as_u64().expect(field) as usize;
    let float = |field: &str| case.scalars[field].as_f64().map(|number| number as f32);
    let pair = |field: &str| {
        let pair = case.scalars[field].as_array()?;
        Some([0, 1].map(|i| pair[i].as_u64().expect(field) as usize))
    };
    Request {
        prompt: text("prompt"),
        negative_prompt: text("negative_prompt"),
        prompt_style: case.scalars["prompt_style"]
            .as_str()
            .map_or(PromptStyle::Plain, |s| s.parse().expect("a style")),
        clip_skip: case.scalars["clip_skip"].as_u64().map(|skip| skip as usize),
        steps: count("steps"),
        guidance_scale: case.number("guidance_scale") as f32,
        guidance_rescale: case.scalars["guidance_rescale"].as_f64().unwrap_or(0.0) as f32,
        image_guidance_scale: float("image_guidance_scale"),
        aesthetic_score: float("aesthetic_score"),
        negative_aesthetic_score: float("negative_aesthetic_score"),
        refiner_start: case.scalars["denoising_start"].as_f64(),
        sampler: text("sampler").parse().expect("a sampler"),
        schedule: text("schedule").parse().expect("a schedule"),
        eta: case.scalars["eta"].as_f64(),
        sigmas: case.scalars["sigmas"].as_str().map(|levels| levels.parse().expect("noise levels")),
        seed: count("seed") as u64,
        rng: Rng::Cpu,
        height: count("height"),
        width: count("width"),
        images: count("images"),
        tiling: match case.scalars["tile_size"].as_u64() {
            Some(size) => Tiling { when: Tiled::On, tile_size: Some(size as usize) },
            None => Tiling::default(),
        },
        size: SizeConditioning {
            original: pair("original_size"),
            crop: pair("crop").unwrap_or_default(),
            target: pair("target_size"),
        },
        init: case.has("picture").then(|| Init {
            picture: raster(case.tensor("picture")),
            mask: case.has("mask").then(|| raster(case.tensor("mask"))),
            strength: case.scalars["strength"].as_f64().unwrap_or(1.0),
        }),
        hires: case.scalars["hires_scale"].as_f64().map(|scale| Hires {
            scale,
            strength: case.number("hires_strength"),
            steps: case.scalars["hires_steps"].as_u64().map(|steps| steps as usize),
        }),
        controls: controls_of(case),
        ..Request::defaults(&KnownShapes::Sd15.describe(), Sampler::Ddim)
    }
}

/// A picture of a fixture, u8 [height,width,3].
pub fn raster(numbers: &Numbers) -> Raster {
    let (&[height, width, 3], Values::U8(rgb)) = (&numbers.shape[..], &numbers.values) else {
        panic!("u8 of three channels expected, found {:?}", numbers.shape)
    };
    Raster { width, height, rgb: rgb.clone() }
}

fn controls_of(case: &Case) -> Vec<Control> {
    let controls = case.scalars["controls"].as_array().map_or(&[][..], |controls| controls);
    let control = |(i, control): (usize, &Value)| {
        let number = |field: &str| control[field].as_f64().expect(field);
        Control {
            image: raster(case.tensor(&format!("hint{i}"))),
            strength: number("strength") as f32,
            start: number("start"),
            end: number("end"),
        }
    };
    controls.iter().enumerate().map(control).collect()
}

/// Differences between two pictures' colours: how many there are, and the largest.
fn differences<'a>(got: impl IntoIterator<Item = &'a u8>, want: &[u8]) -> (usize, u8) {
    let got: Vec<u8> = got.into_iter().copied().collect();
    assert_eq!(got.len(), want.len());
    let unequal = got.iter().zip(want).map(|(&got, &want)| got.abs_diff(want)).filter(|&level| level > 0);
    (unequal.clone().count(), unequal.max().unwrap_or_default())
}

/// Paints all cases of `tests/fixtures/AREA/MODEL.safetensors`, and compares.
pub fn equals_diffusers(pipeline: &mut Pipeline, area: &str, model: &str) {
    compare(pipeline, fixture(area, model), |_, _| {});
}

/// The same for some of the cases.
pub fn equals_diffusers_where(
    pipeline: &mut Pipeline,
    area: &str,
    model: &str,
    wanted: impl Fn(&Case) -> bool,
) {
    compare(pipeline, fixture(area, model).into_iter().filter(wanted), |_, _| {});
}

/// The same, with something done to the pipeline in front of each case.
pub fn equals_diffusers_with(
    pipeline: &mut Pipeline,
    area: &str,
    model: &str,
    prepare: impl FnMut(&mut Pipeline, &Case),
) {
    compare(pipeline, fixture(area, model), prepare);
}

fn compare(
    pipeline: &mut Pipeline,
    cases: impl IntoIterator<Item = Case>,
    mut prepare: impl FnMut(&mut Pipeline, &Case),
) {
    let mut failed = Vec::new();
    for case in cases {
        prepare(pipeline, &case);
        let request = request_of(&case);
        let want = case.tensor("want");
        let painting = paint(pipeline, &request);
        let Picture { width, height, .. } = painting.pictures[0];
        assert_eq!(want.shape, [request.images, height, width, 3], "{}", case.name);
        assert_eq!(painting.pictures.len(), request.images, "{}", case.name);
        let Values::U8(want) = &want.values else { panic!("{} is not u8", case.name) };
        let got = painting.pictures.iter().flat_map(|picture| &picture.rgb);
        let (unequal, worst) = differences(got, want);
        let report = format!("{}: {unequal} of {} colours differ, by at most {worst}", case.name, want.len());
        println!("{report}");
        if worst > LEVELS {
            failed.push(report);
        }
    }
    assert!(failed.is_empty(), "more than {LEVELS} apart:\n{}", failed.join("\n"));
}
