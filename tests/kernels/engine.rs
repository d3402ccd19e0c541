//! The engine on a GPU: pictures in company, two streams at once.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use sdrt::device::Device;
use sdrt::engine::{Engine, Event, Job, Settings, Wanted};
use sdrt::location::Location;
use sdrt::ops::{Backend, DType};
use sdrt::pipeline::{Init, Model, ModelFiles, Picture, Pipeline, PreviewMethod, Request};
use sdrt::sampler::Sampler;

use super::gpu::{lock, open};
use crate::common;

/// Pictures of the trained model, of many step counts, with and without guidance: the same bytes as from a pipeline,
/// one by one.
#[test]
fn pictures_are_the_same_in_company() {
    let Some(_guard) = lock() else { return };
    let mut pipeline = common::pipeline("emoji", open(DType::F16));
    let requests: Vec<Request> = (0..16)
        .map(|i| Request {
            prompt: ["fox on a purple background", "red apple", "smiling sun with sunglasses"][i % 3].into(),
            steps: 8 + 3 * (i % 5),
            seed: i as u64,
            sampler: [Sampler::Ddim, Sampler::EulerAncestral, Sampler::DpmPp2m, Sampler::UniPc][i % 4],
            guidance_scale: if i % 7 == 3 { 1.0 } else { 5.0 },
            ..pipeline.defaults().expect("defaults")
        })
        .collect();
    let mut wanted: Vec<Picture> = Vec::new();
    for request in &requests {
        let painting = pipeline.paint(request, &mut |_, _| ControlFlow::Continue(()));
        wanted.extend(painting.expect("painted").pictures);
    }
    drop(pipeline);

    let model = Model::Files(Location::from(common::root().join("models/emoji")).into());
    let engine = Engine::start(model, Device::Cuda(0), Some(DType::F16), Settings::default(), Arc::new(()));
    let engine = engine.expect("the engine starts");
    for previews in [None, Some(Wanted { every: 4, method: PreviewMethod::Vae })] {
        let start = Instant::now();
        let jobs: Vec<_> = requests
            .iter()
            .map(|request| {
                let (events, heard) = channel();
                let on_event = Box::new(move |event| drop(events.send(event)));
                let request = request.clone();
                let job = Job { request, priority: 0, deadline: None, previews, on_event };
                (engine.submit(job).expect("taken"), heard)
            })
            .collect();
        let mut different = Vec::new();
        for ((_, heard), (i, wanted)) in jobs.iter().zip(wanted.iter().enumerate()) {
            let picture = loop {
                match heard.recv_timeout(Duration::from_secs(60)).expect("another event") {
                    Event::Done(finished) => break finished.picture,
                    Event::Failed(failure) => panic!("{failure:?}"),
                    _ => {}
                }
            };
            if picture != *wanted {
                let levels = picture.rgb.iter().zip(&wanted.rgb).map(|(a, b)| a.abs_diff(*b)).max();
                different.push(format!("{i}: by up to {} levels", levels.unwrap_or(0)));
            }
        }
        println!("{} pictures in {:?}", requests.len(), start.elapsed());
        assert!(different.is_empty(), "other bytes than alone: {}", different.join("; "));
    }
}

/// Two models in turn, and three rows of an image beside one.
#[test]
fn refined_and_edited_images_are_the_same_in_company() {
    let Some(_guard) = lock() else { return };
    let fixtures = common::root().join("tests/fixtures");
    let folder = |name: &str| Location::from(fixtures.join(name));
    let refined = ModelFiles { refiner: Some(folder("siblings/refiner")), ..folder("families/sdxl").into() };
    for files in [refined, folder("siblings/pix2pix").into()] {
        let backend = || -> Box<dyn Backend> { Box::new(open(DType::F16)) };
        let mut pipeline = Pipeline::load(&files, backend(), &mut |_, _| {}).expect("a pipeline");
        let requests: Vec<Request> = (0..8)
            .map(|i| Request {
                prompt: ["red apple", "fox on a purple background"][i % 2].into(),
                steps: 8 + 3 * (i % 3),
                seed: i as u64,
                width: 64,
                height: 64,
                guidance_scale: if i % 4 == 3 { 1.0 } else { 4.0 },
                init: Init::wanted(pipeline.description()),
                ..pipeline.defaults().expect("defaults")
            })
            .collect();
        let mut paint = |request| {
            let painting = pipeline.paint(request, &mut |_, _| ControlFlow::Continue(()));
            painting.expect("painted").pictures.remove(0)
        };
        let wanted: Vec<Picture> = requests.iter().map(&mut paint).collect();
        let model = Model::Files(files);
        let engine =
            Engine::start(model, Device::Cuda(0), Some(DType::F16), Settings::default(), Arc::new(()));
        let engine = engine.expect("the engine starts");
        let submit = |request: &Request| {
            let (events, heard) = channel();
            let on_event = Box::new(move |event| drop(events.send(event)));
            let request = request.clone();
            let job = Job { request, priority: 0, deadline: None, previews: None, on_event };
            (engine.submit(job).expect("taken"), heard)
        };
        let jobs: Vec<_> = requests.iter().map(submit).collect();
        for ((_, heard), wanted) in jobs.iter().zip(&wanted) {
            let picture = loop {
                match heard.recv_timeout(Duration::from_secs(60)).expect("another event") {
                    Event::Done(finished) => break finished.picture,
                    Event::Failed(failure) => panic!("{failure:?}"),
                    _ => {}
                }
            };
            assert!(picture == *wanted, "seed {}", wanted.seed);
        }
    }
}
