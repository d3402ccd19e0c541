//! A picture is the same alone and in any company.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sdrt::device::Device;
use sdrt::engine::{Batching, Engine, Event, Job, Settings, Wanted};
use sdrt::location::Location;
use sdrt::ops::cpu::Cpu;
use sdrt::pipeline::{Control, Hires, Init, Model, ModelFiles, Picture, Pipeline, PreviewMethod, Request};
use sdrt::raster::Raster;
use sdrt::sampler::Sampler;
use sdrt::text::LongPrompt;

use super::{LONG, Rows, end, job, request, start, step, submit};
use crate::common::pictures::paint;
use crate::common::{load_pipeline, root};

fn raster(size: [usize; 2], colour: impl Fn(usize) -> u8) -> Raster {
    let [width, height] = size;
    Raster { width, height, rgb: (0..3 * width * height).map(colour).collect() }
}

/// Requests that differ in everything that a batch allows, and in some things that it does not.
fn requests(engine: &sdrt::engine::Engine) -> Vec<Request> {
    let with = |steps, seed| request(engine, steps, seed);
    let picture = raster([64, 64], |i| (i * 7 % 256) as u8);
    let mask = raster([64, 64], |i| if i / 3 % 64 < 24 { 0 } else { 255 });
    let init = Init { picture, mask: None, strength: 0.6 };
    let hires = Hires { scale: 1.5, strength: 0.5, steps: None };
    vec![
        with(3, 1),
        Request { sampler: Sampler::EulerAncestral, ..with(6, 2) },
        Request { guidance_scale: 1.0, sampler: Sampler::DpmPp2m, ..with(5, 3) },
        Request { negative_prompt: "grey".into(), guidance_rescale: 0.5, ..with(4, 4) },
        Request { init: Some(init.clone()), sampler: Sampler::Lms, ..with(7, 5) },
        Request { init: Some(Init { mask: Some(mask), ..init }), ..with(4, 6) },
        Request { width: 96, height: 64, sampler: Sampler::UniPc, ..with(5, 7) },
        Request { hires: Some(hires), sampler: Sampler::Heun, ..with(3, 8) },
        Request { guidance_scale: 0.0, ..with(2, 9) },
        Request { clip_skip: Some(2), sampler: Sampler::Pndm, ..with(5, 10) },
    ]
}

/// Paints them all at once, and compares each with a pipeline's.
fn same_in_company(folder: &str, all: bool, previews: bool) {
    let rows = Arc::new(Rows::default());
    let engine = start(folder, Settings { max_batch: 4, ..Settings::default() }, rows.clone());
    let mut requests = requests(&engine);
    if !all {
        requests.retain(|request| request.init.is_none() && request.clip_skip.is_none());
    }
    let jobs: Vec<_> = requests
        .iter()
        .map(|request| {
            let (made, heard) = job(request.clone());
            let wanted = Wanted { every: 2, method: PreviewMethod::Vae };
            let ticket = engine.submit(Job { previews: previews.then_some(wanted), ..made });
            (ticket.expect("taken"), heard)
        })
        .collect();
    let pictures: Vec<Picture> = jobs.iter().map(|(_, heard)| end(heard).expect("painted").picture).collect();
    let most = *rows.0.lock().unwrap().iter().max().expect("a step");
    assert!((5..=8).contains(&most), "at most {most} rows in a call");
    drop(jobs);

    let mut pipeline = load_pipeline(folder, Cpu::new());
    for (request, picture) in requests.iter().zip(&pictures) {
        assert!(paint(&mut pipeline, request).pictures[0] == *picture, "{folder}: seed {}", request.seed);
    }
}

#[test]
fn pictures_are_the_same_in_company() {
    same_in_company("models/tiny", true, false);
}

/// A mask beside none, a prompt of two chunks beside one, many steps beside few, guidance beside none or in some steps:
/// one batch.
#[test]
fn images_of_every_kind_share_a_batch() {
    let rows = Arc::new(Rows::default());
    let engine = start("models/tiny", Settings { max_batch: 5, ..Settings::default() }, rows.clone());
    let picture = raster([64, 64], |i| (i * 7 % 256) as u8);
    let mask = Some(raster([64, 64], |i| if i / 3 % 64 < 24 { 0 } else { 255 }));
    let long = "a lighthouse at dawn, ".repeat(6);
    let requests = [
        request(&engine, 100, 1),
        Request {
            prompt: long,
            long_prompt: Some(LongPrompt::Chunk),
            sampler: Sampler::EulerAncestral,
            ..request(&engine, 60, 2)
        },
        Request { init: Some(Init { picture, mask, strength: 1.0 }), ..request(&engine, 50, 3) },
        Request { guidance_scale: 1.0, ..request(&engine, 50, 4) },
        Request { guidance_start: 0.2, guidance_end: 0.6, ..request(&engine, 20, 5) },
    ];
    let jobs: Vec<_> = requests.iter().map(|request| submit(&engine, request.clone())).collect();
    let pictures: Vec<Picture> = jobs.iter().map(|(_, heard)| end(heard).expect("painted").picture).collect();
    let most = *rows.0.lock().unwrap().iter().max().expect("a step");
    assert!(most >= 8, "all five in one call, not {most} rows");
    let mut pipeline = load_pipeline("models/tiny", Cpu::new());
    for (request, picture) in requests.iter().zip(&pictures) {
        assert!(paint(&mut pipeline, request).pictures[0] == *picture, "seed {}", request.seed);
    }
}

/// Guidance in a part of the steps costs a second row in these alone.
#[test]
fn steps_without_guidance_have_one_row() {
    let rows = Arc::new(Rows::default());
    let engine = start("models/tiny", Settings::default(), rows.clone());
    let whole = request(&engine, 10, 1);
    let part = Request { guidance_start: 0.2, guidance_end: 0.5, ..whole.clone() };
    let (_ticket, heard) = submit(&engine, part.clone());
    let picture = end(&heard).expect("painted").picture;
    assert_eq!(*rows.0.lock().unwrap(), [1, 1, 2, 2, 2, 1, 1, 1, 1, 1]);
    let mut pipeline = load_pipeline("models/tiny", Cpu::new());
    let mut paint = |request: &Request| paint(&mut pipeline, request).pictures.remove(0);
    assert!(paint(&part) == picture);
    let everywhere = Request { guidance_start: 0.0, guidance_end: 1.0, ..whole.clone() };
    let [whole, everywhere, nowhere] =
        [whole.clone(), everywhere, Request { guidance_scale: 1.0, ..whole }].map(|request| paint(&request));
    assert!(everywhere == whole && picture != whole && picture != nowhere);
}

#[test]
fn images_that_controlnets_steer_are_the_same_in_company() {
    let fixtures = root().join("tests/fixtures");
    let files = ModelFiles {
        controlnets: vec![Location::from(fixtures.join("controlnets/sd2"))],
        ..Location::from(fixtures.join("families/sd2")).into()
    };
    let rows = Arc::new(Rows::default());
    let model = Model::Files(files.clone());
    let engine = Engine::start(model, Device::Cpu, None, Settings::default(), rows.clone()).expect("starts");
    let plain = |steps, seed| request(&engine, steps, seed);
    let control = Control::new(raster([64, 64], |i| (i * 11 % 256) as u8));
    let late = Control { start: 0.5, strength: 0.7, ..control.clone() };
    let requests = [
        plain(30, 1),
        Request { controls: vec![control.clone()], ..plain(30, 2) },
        Request { controls: vec![late], guidance_scale: 1.0, ..plain(25, 3) },
        Request { controls: vec![control], sampler: Sampler::EulerAncestral, ..plain(20, 4) },
    ];
    let jobs: Vec<_> = requests.iter().map(|request| submit(&engine, request.clone())).collect();
    let pictures: Vec<Picture> = jobs.iter().map(|(_, heard)| end(heard).expect("painted").picture).collect();
    assert_eq!(rows.0.lock().unwrap().iter().max(), Some(&5), "all that are steered in one call");
    let mut pipeline = Pipeline::load(&files, Box::new(Cpu::new()), &mut |_, _| {}).expect("a pipeline");
    for (request, picture) in requests.iter().zip(&pictures) {
        assert!(paint(&mut pipeline, request).pictures[0] == *picture, "seed {}", request.seed);
    }
}

/// Images of a model and its refiner, of which each has batches of its own.
#[test]
fn images_that_a_refiner_goes_on_with_are_the_same_in_company() {
    let fixtures = root().join("tests/fixtures");
    let files = ModelFiles {
        refiner: Some(Location::from(fixtures.join("siblings/refiner"))),
        ..Location::from(fixtures.join("families/sdxl")).into()
    };
    let rows = Arc::new(Rows::default());
    let model = Model::Files(files.clone());
    let engine = Engine::start(model, Device::Cpu, None, Settings::default(), rows.clone()).expect("starts");
    let refined = |steps, seed| request(&engine, steps, seed);
    let hires = Hires { scale: 1.5, strength: 0.7, steps: None };
    let requests = [
        refined(30, 1),
        Request { refiner_start: None, ..refined(20, 2) },
        Request { refiner_start: Some(0.4), sampler: Sampler::EulerAncestral, ..refined(20, 3) },
        Request { guidance_scale: 1.0, ..refined(25, 4) },
        Request { hires: Some(hires), ..refined(12, 5) },
    ];
    let jobs: Vec<_> = requests.iter().map(|request| submit(&engine, request.clone())).collect();
    let pictures: Vec<Picture> = jobs.iter().map(|(_, heard)| end(heard).expect("painted").picture).collect();
    let mut pipeline = Pipeline::load(&files, Box::new(Cpu::new()), &mut |_, _| {}).expect("a pipeline");
    for (request, picture) in requests.iter().zip(&pictures) {
        assert!(paint(&mut pipeline, request).pictures[0] == *picture, "seed {}", request.seed);
    }
}

/// Three rows of an image in a batch with one: two guidances beside none.
#[test]
fn edited_images_are_the_same_in_company() {
    for model in ["pix2pix", "cosxl_edit"] {
        let folder = format!("tests/fixtures/siblings/{model}");
        let rows = Arc::new(Rows::default());
        let engine = start(&folder, Settings::default(), rows.clone());
        let init = Init { picture: raster([64, 64], |i| (i * 7 % 256) as u8), ..Init::blank() };
        let edited = |steps, seed| Request { init: Some(init.clone()), ..request(&engine, steps, seed) };
        let requests = [
            edited(20, 1),
            Request { guidance_scale: 1.0, ..edited(20, 2) },
            Request { image_guidance_scale: Some(2.5), negative_prompt: "fog".into(), ..edited(15, 3) },
            Request { init: Some(Init { strength: 0.5, ..init.clone() }), ..edited(12, 4) },
            Request { guidance_end: 0.5, ..edited(14, 5) },
        ];
        let jobs: Vec<_> = requests.iter().map(|request| submit(&engine, request.clone())).collect();
        let pictures = jobs.iter().map(|(_, heard)| end(heard).expect("painted").picture);
        let pictures: Vec<Picture> = pictures.collect();
        let most = *rows.0.lock().unwrap().iter().max().expect("a step");
        assert!(most >= 7, "{most} rows");
        let mut pipeline = load_pipeline(&folder, Cpu::new());
        for (request, picture) in requests.iter().zip(&pictures) {
            assert!(paint(&mut pipeline, request).pictures[0] == *picture, "{model}: seed {}", request.seed);
        }
    }
}

#[test]
fn previews_change_nothing() {
    same_in_company("models/tiny", true, true);
}

#[test]
fn pictures_of_other_families_are_the_same_in_company() {
    for family in ["sd2", "sdxl"] {
        same_in_company(&format!("tests/fixtures/families/{family}"), false, false);
    }
}

#[test]
fn a_picture_that_comes_later_joins_between_two_steps() {
    let rows = Arc::new(Rows::default());
    let engine = start("models/tiny", Settings::default(), rows.clone());
    let (_first, first_heard) = submit(&engine, request(&engine, 100, 1));
    step(&first_heard, 1);
    let (_second, second_heard) = submit(&engine, request(&engine, 3, 2));
    end(&second_heard).expect("painted");
    let first_is_done = first_heard.try_iter().any(|event| matches!(event, Event::Done(_)));
    assert!(!first_is_done, "the later, shorter one is done first");
    let rows = rows.0.lock().unwrap().clone();
    assert!(rows.starts_with(&[2]) && rows.contains(&4), "{rows:?}");
}

#[test]
fn whole_requests_wait_for_one_another() {
    let rows = Arc::new(Rows::default());
    // Two images with as many steps fill the batch. The third waits in vain, and the second has as long to be encoded.
    let settings = Settings {
        batching: Batching::Request { wait: Duration::from_secs(2) },
        max_batch: 2,
        ..Settings::default()
    };
    let engine = start("models/tiny", settings, rows.clone());
    let jobs: Vec<_> = [4, 4, 6].map(|steps| submit(&engine, request(&engine, steps, 1))).into();
    jobs.iter().for_each(|(_, heard)| drop(end(heard).expect("painted")));
    assert_eq!(*rows.0.lock().unwrap(), [[4; 4].as_slice(), [2; 6].as_slice()].concat());
}

#[test]
fn sizes_take_turns() {
    let engine = start("models/tiny", Settings::default(), Arc::new(()));
    let (_large, large_heard) =
        submit(&engine, Request { width: 128, height: 128, ..request(&engine, 120, 1) });
    step(&large_heard, 1);
    let begun = Instant::now();
    let (_small, small_heard) = submit(&engine, request(&engine, 3, 2));
    end(&small_heard).expect("painted");
    let small = begun.elapsed();
    end(&large_heard).expect("painted");
    assert!(begun.elapsed() > 2 * small && small < LONG, "{small:?} of {:?}", begun.elapsed());
}

#[test]
fn events_come_in_order() {
    let engine = start("models/tiny", Settings::default(), Arc::new(()));
    let (made, heard) = job(request(&engine, 9, 1));
    let previews = Some(Wanted { every: 3, method: PreviewMethod::Vae });
    let _ticket = engine.submit(Job { previews, ..made }).expect("taken");
    let mut events = Vec::new();
    while !matches!(events.last(), Some(Event::Done(_) | Event::Failed(_))) {
        events.push(heard.recv_timeout(LONG).expect("another event"));
    }
    assert!(matches!(events[0], Event::Started) && matches!(events[events.len() - 1], Event::Done(_)));
    let steps: Vec<usize> = events
        .iter()
        .filter_map(|event| if let Event::Step { done, of: 10 | 9 } = event { Some(*done) } else { None })
        .collect();
    assert!(steps.is_sorted() && *steps.last().unwrap() >= 9, "{steps:?}");
    let previews = events.iter().filter(|event| matches!(event, Event::Preview { .. })).count();
    assert!((1..=3).contains(&previews), "{previews} previews");
}
