//! Whole pictures on both backends: of the small model for tests, and of the trained one.

use std::ops::ControlFlow;

use sdrt::location::Location;
use sdrt::ops::cpu::Cpu;
use sdrt::ops::cuda::LoopKind;
use sdrt::ops::{Backend, DType};
use sdrt::pipeline::{Control, Init, ModelFiles, Picture, Pipeline, Request};
use sdrt::raster::Raster;
use sdrt::sampler::Sampler;

use super::gpu::{HALVES, lock, open};
use crate::common;

fn pipeline(backend: impl Backend + 'static) -> Pipeline {
    common::pipeline("tiny", backend)
}

/// Not square, and of odd latents.
fn request(pipeline: &Pipeline) -> Request {
    let defaults = pipeline.defaults().expect("defaults");
    let prompt = "a lighthouse at dawn".to_string();
    Request { prompt, steps: 8, seed: 7, height: 72, width: 104, ..defaults }
}

fn paint(pipeline: &mut Pipeline, request: &Request) -> Vec<Picture> {
    let painting = pipeline.paint(request, &mut |_, _| ControlFlow::Continue(())).expect("paint");
    assert_eq!(painting.pictures.len(), request.images);
    painting.pictures
}

/// Peak signal-to-noise ratio in dB, and the largest difference.
fn compare(got: &Picture, want: &Picture) -> (f64, u8) {
    assert_eq!((got.width, got.height, got.rgb.len()), (want.width, want.height, want.rgb.len()));
    let differences: Vec<u8> = got.rgb.iter().zip(&want.rgb).map(|(a, b)| a.abs_diff(*b)).collect();
    let squares: f64 = differences.iter().map(|&d| f64::from(d).powi(2)).sum();
    let psnr = 10.0 * (255.0 * 255.0 * differences.len() as f64 / squares).log10();
    (psnr, differences.into_iter().max().unwrap_or(0))
}

#[test]
fn half_precision_is_close_to_the_cpu() {
    let Some(_guard) = lock() else { return };
    let mut cpu = pipeline(Cpu::new());
    let request = request(&cpu);
    let want = paint(&mut cpu, &request);
    // bf16 has three bits less than f16, 18 dB.
    for (dtype, least) in HALVES.into_iter().zip([40.0, 24.0]) {
        let got = paint(&mut pipeline(open(dtype)), &request);
        let (psnr, largest) = compare(&got[0], &want[0]);
        println!("{dtype} on the GPU, f32 on the CPU: PSNR {psnr:.1} dB, largest difference {largest}");
        assert!(psnr >= least, "{dtype}: PSNR {psnr:.1} dB");
    }
}

#[test]
fn the_trained_model_in_half_precision_is_close_to_the_cpu() {
    let Some(_guard) = lock() else { return };
    let mut cpu = common::pipeline("emoji", Cpu::new());
    let prompt = "fox on a purple background".to_string();
    let request = Request { prompt, ..cpu.defaults().expect("defaults") };
    let want = paint(&mut cpu, &request);
    let got = paint(&mut common::pipeline("emoji", open(DType::F16)), &request);
    let (psnr, largest) = compare(&got[0], &want[0]);
    println!("emoji, f16 on the GPU, f32 on the CPU: PSNR {psnr:.1} dB, largest difference {largest}");
    assert!(psnr >= 40.0, "PSNR {psnr:.1} dB");
}

#[test]
fn every_family_in_half_precision_is_close_to_the_cpu() {
    let Some(_guard) = lock() else { return };
    for model in ["sd2", "lcm", "sdxl"] {
        let folder = format!("tests/fixtures/families/{model}");
        let mut cpu = common::load_pipeline(&folder, Cpu::new());
        let request = Request { steps: 4, ..request(&cpu) };
        let want = paint(&mut cpu, &request);
        let got = paint(&mut common::load_pipeline(&folder, open(DType::F16)), &request);
        let (psnr, largest) = compare(&got[0], &want[0]);
        println!("{model}, f16 on the GPU, f32 on the CPU: PSNR {psnr:.1} dB, largest difference {largest}");
        assert!(psnr >= 40.0, "{model}: PSNR {psnr:.1} dB");
    }
}

/// Uneven depths, EDM, three rows of an image, aesthetic scores, latents that go from one model to another.
#[test]
fn every_sibling_in_half_precision_is_close_to_the_cpu() {
    let Some(_guard) = lock() else { return };
    let fixtures = common::root().join("tests/fixtures");
    let folder = |name: &str| Location::from(fixtures.join(name));
    let sibling = |name: &str| ModelFiles::from(folder(&format!("siblings/{name}")));
    let names = ["ssd", "vega", "koala", "refiner", "pix2pix", "playground", "cosxl", "cosxl_edit"];
    let refined = ModelFiles { refiner: Some(folder("siblings/refiner")), ..folder("families/sdxl").into() };
    let all = names.into_iter().map(|name| (name, sibling(name))).chain([("refined", refined)]);
    for (name, files) in all {
        let load =
            |backend: Box<dyn Backend>| Pipeline::load(&files, backend, &mut |_, _| {}).expect("a pipeline");
        let mut cpu = load(Box::new(Cpu::new()));
        let init = Init::wanted(cpu.description()).map(|init| {
            let rgb = (0..104 * 72).flat_map(|i| [(i % 251) as u8, (i / 104) as u8, 90]).collect();
            Init { picture: Raster { width: 104, height: 72, rgb }, ..init }
        });
        let request = Request { steps: 6, guidance_scale: 4.0, init, ..request(&cpu) };
        let want = paint(&mut cpu, &request);
        let got = paint(&mut load(Box::new(open(DType::F16))), &request);
        let (psnr, largest) = compare(&got[0], &want[0]);
        println!("{name}, f16 on the GPU, f32 on the CPU: PSNR {psnr:.1} dB, largest difference {largest}");
        assert!(psnr >= 40.0, "{name}: PSNR {psnr:.1} dB");
    }
}

#[test]
fn a_steered_picture_in_half_precision_is_close_to_the_cpu() {
    let Some(_guard) = lock() else { return };
    let fixtures = common::root().join("tests/fixtures");
    let folder = |name: &str| Location::from(fixtures.join(name));
    let nets = ["controlnets/sdxl", "controlnets/sdxl_small"].map(folder);
    let files = ModelFiles { controlnets: nets.to_vec(), ..folder("families/sdxl").into() };
    let load =
        |backend: Box<dyn Backend>| Pipeline::load(&files, backend, &mut |_, _| {}).expect("a pipeline");
    let mut cpu = load(Box::new(Cpu::new()));
    let plain = Request { steps: 4, ..request(&cpu) };
    let (width, height) = (plain.width, plain.height);
    let rgb = (0..width * height).flat_map(|i| [(i % 251) as u8, (i / width) as u8, 90]).collect();
    let whole = Control::new(Raster { width, height, rgb });
    let late = Control { strength: 0.5, start: 0.5, ..whole.clone() };
    let steered = Request { controls: vec![whole, late], ..plain.clone() };
    let want = paint(&mut cpu, &steered);
    assert!(want != paint(&mut cpu, &plain));
    let got = paint(&mut load(Box::new(open(DType::F16))), &steered);
    let (psnr, largest) = compare(&got[0], &want[0]);
    println!("steered, f16 on the GPU, f32 on the CPU: PSNR {psnr:.1} dB, largest difference {largest}");
    assert!(psnr >= 40.0, "PSNR {psnr:.1} dB");
}

#[test]
fn f32_differs_from_the_cpu_by_one_at_most() {
    let Some(_guard) = lock() else { return };
    let mut cpu = pipeline(Cpu::new());
    let request = request(&cpu);
    let want = paint(&mut cpu, &request);
    let got = paint(&mut pipeline(open(DType::F32)), &request);
    let (psnr, largest) = compare(&got[0], &want[0]);
    println!("f32 on the GPU and on the CPU: PSNR {psnr:.1} dB, largest difference {largest}");
    assert!(largest <= 1, "largest difference {largest}");
}

#[test]
fn the_same_request_gives_the_same_bytes() {
    let Some(_guard) = lock() else { return };
    let mut first = pipeline(open(DType::F16));
    let request = request(&first);
    let picture = paint(&mut first, &request);
    assert!(paint(&mut first, &request) == picture, "again");
    drop(first);
    let mut stepwise = open(DType::F16);
    stepwise.set_loop_kind(LoopKind::Stepwise);
    assert!(paint(&mut pipeline(stepwise), &request) == picture, "in another engine, step by step");
}

/// Every picture of a batch, with guidance and without, has the bytes that it has alone.
fn keeps_its_bytes_in_company(mut pipeline: Pipeline, request: Request) {
    pipeline.backend().keep_alike();
    for (images, guidance_scale) in [(4, request.guidance_scale), (3, 1.0)] {
        let request = Request { images, guidance_scale, ..request.clone() };
        for (i, picture) in (0..).zip(paint(&mut pipeline, &request)) {
            let seed = request.seed + i;
            assert_eq!(picture.seed, seed);
            let alone = &paint(&mut pipeline, &Request { images: 1, seed, ..request.clone() })[0];
            let (psnr, largest) = compare(&picture, alone);
            assert!(
                &picture == alone,
                "picture {i} of {images}, guidance {guidance_scale}, is not the one alone: PSNR {psnr:.1} dB, \
                 largest difference {largest}"
            );
        }
    }
}

#[test]
fn pictures_keep_their_bytes_in_company() {
    let Some(_guard) = lock() else { return };
    for dtype in HALVES {
        let pipeline = pipeline(open(dtype));
        let request = request(&pipeline);
        keeps_its_bytes_in_company(pipeline, request);
    }
}

#[test]
fn pictures_of_the_trained_model_keep_their_bytes_in_company() {
    let Some(_guard) = lock() else { return };
    let pipeline = common::pipeline("emoji", open(DType::F16));
    let prompt = "fox on a purple background".to_string();
    let request = Request { prompt, ..pipeline.defaults().expect("defaults") };
    keeps_its_bytes_in_company(pipeline, request);
}

#[test]
fn pictures_of_xl_keep_their_bytes_in_company() {
    let Some(_guard) = lock() else { return };
    let pipeline = common::load_pipeline("tests/fixtures/families/sdxl", open(DType::F16));
    let request = Request { steps: 4, ..request(&pipeline) };
    keeps_its_bytes_in_company(pipeline, request);
}

#[test]
fn another_request_records_nothing() {
    let Some(_guard) = lock() else { return };
    let mut pipeline = pipeline(open(DType::F16));
    let request = request(&pipeline);
    let first = paint(&mut pipeline, &request);
    let recorded = pipeline.backend().recorded();
    assert!(recorded > 0);
    let others = [
        Request { steps: 3, ..request.clone() },
        Request { sampler: Sampler::EulerAncestral, ..request.clone() },
        Request { guidance_scale: 3.0, ..request.clone() },
        Request { seed: 8, ..request.clone() },
        Request { prompt: "a cat".to_string(), negative_prompt: "rain".to_string(), ..request.clone() },
    ];
    for other in &others {
        assert!(paint(&mut pipeline, other) != first, "{other:?}");
        assert_eq!(pipeline.backend().recorded(), recorded, "{other:?}");
    }
    assert!(paint(&mut pipeline, &request) == first);
    assert_eq!(pipeline.backend().recorded(), recorded);
}
