//! Whole pictures on the CPU against diffusers' (`tools/fixtures/pictures.py`), and what the pipeline
//! promises from one request to the next.

use std::ops::ControlFlow;

use crate::common::pictures::{equals_diffusers, paint};
use sdrt::Error;
use sdrt::ops::cpu::Cpu;
use sdrt::pipeline::{Init, KnownShapes, Pipeline, Request};
use sdrt::raster::Raster;
use sdrt::rng::Rng;
use sdrt::sampler::{Sampler, Schedule};
use sdrt::text::LongPrompt;

fn pipeline() -> Pipeline {
    crate::common::pipeline("tiny", Cpu::new())
}

/// A small request.
fn request() -> Request {
    Request {
        prompt: "a red fox in the snow".to_string(),
        negative_prompt: "summer".to_string(),
        steps: 3,
        guidance_scale: 5.0,
        guidance_rescale: 0.0,
        sampler: Sampler::EulerAncestral,
        schedule: Schedule::Model,
        eta: None,
        sigmas: None,
        seed: 7,
        rng: Rng::Cpu,
        height: 24,
        width: 40,
        images: 1,
        ..Request::defaults(&KnownShapes::Sd15.describe(), Sampler::EulerAncestral)
    }
}

#[test]
fn pictures_equal_those_of_diffusers() {
    equals_diffusers(&mut pipeline(), "pictures", "tiny");
}

#[test]
fn pictures_of_the_trained_model_equal_those_of_diffusers() {
    equals_diffusers(&mut crate::common::pipeline("emoji", Cpu::new()), "pictures", "emoji");
}

#[test]
fn dropped_words_are_named() {
    let prompt = format!("{} a zebra", "x".repeat(80));
    let painting = paint(&mut pipeline(), &Request { prompt, steps: 1, ..request() });
    let [warning] = &painting.warnings[..] else { panic!("{:?}", painting.warnings) };
    assert!(warning.starts_with("the prompt") && warning.contains("zebra"), "{warning}");
}

#[test]
fn other_requests_of_a_shape_record_nothing_and_leave_nothing_behind() {
    let first = Request { images: 2, ..request() };
    let second = Request {
        prompt: "two boats".to_string(),
        negative_prompt: "fog".to_string(),
        steps: 6,
        guidance_scale: 7.5,
        guidance_rescale: 0.7,
        sampler: Sampler::DpmPp2m,
        schedule: Schedule::Karras,
        seed: 1,
        ..first.clone()
    };
    let third = Request { sampler: Sampler::Heun, schedule: Schedule::Linspace, ..second.clone() };

    let mut used = pipeline();
    let painted = paint(&mut used, &first).pictures;
    let recorded = used.backend().recorded();
    assert!(recorded > 0);
    let fourth = Request { sampler: Sampler::Dpm2Ancestral, eta: Some(0.5), ..first.clone() };
    for other in [&second, &third, &fourth] {
        let pictures = paint(&mut used, other).pictures;
        assert_eq!(used.backend().recorded(), recorded, "graphs recorded for {other:?}");
        assert!(pictures == paint(&mut pipeline(), other).pictures, "{other:?}");
    }
    assert!(paint(&mut used, &first).pictures == painted);

    // Another size and no guidance are other shapes; the old one stays.
    paint(&mut used, &Request { height: 16, ..first.clone() });
    paint(&mut used, &Request { guidance_scale: 1.0, ..first.clone() });
    let recorded = used.backend().recorded();
    assert!(paint(&mut used, &first).pictures == painted);
    assert_eq!(used.backend().recorded(), recorded);
}

/// What a change records is counted in graphs.
#[test]
fn a_change_records_the_programs_that_it_concerns() {
    let mut pipeline = pipeline();
    let first = request();
    paint(&mut pipeline, &first);
    let mut before = pipeline.backend().recorded();
    let long = "a lighthouse at dawn, ".repeat(6);
    let grey = Raster { width: 1, height: 1, rgb: vec![128; 3] };
    let init = Init { picture: grey, mask: None, strength: 0.5 };
    let long = Request { prompt: long, long_prompt: Some(LongPrompt::Chunk), ..first.clone() };
    for (change, graphs, request) in [
        ("steps, within the first 128", 0, Request { steps: 100, ..first.clone() }),
        (
            "clip skip of the prompt, not of the negative prompt: a text encoder for each",
            2,
            Request { clip_skip: Some(2), ..first.clone() },
        ),
        ("an image to start from: its encoder", 1, Request { init: Some(init), ..first.clone() }),
        ("two chunks: text encoder, keys and values, the step with long prompts", 3, long.clone()),
        ("two chunks again", 0, Request { seed: 9, ..long }),
        (
            "no guidance: the step, keys and values of one text",
            2,
            Request { guidance_scale: 1.0, ..first.clone() },
        ),
        ("another size: the step, the decoder", 2, Request { height: first.height + 8, ..first.clone() }),
        ("all that was", 0, first.clone()),
    ] {
        paint(&mut pipeline, &request);
        let recorded = pipeline.backend().recorded();
        assert_eq!(recorded - before, graphs, "{change}");
        before = recorded;
    }
}

#[test]
fn a_cancelled_request_stops_and_the_next_is_right() {
    let mut pipeline = pipeline();
    let whole = Request { steps: 5, ..request() };
    let painted = paint(&mut pipeline, &whole).pictures;

    let mut heard = Vec::new();
    let result = pipeline.paint(&whole, &mut |done, steps| {
        heard.push((done, steps));
        if done == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(heard, [(1, 5), (2, 5)]);
    match result {
        Err(Error::Cancelled { done: 2, steps: 5 }) => {}
        other => panic!("{:?}", other.map(|painting| painting.times)),
    }
    assert!(paint(&mut pipeline, &whole).pictures == painted);
}

#[test]
fn a_picture_does_not_depend_on_its_neighbours() {
    let mut pipeline = pipeline();
    for sampler in [Sampler::Ddim, Sampler::EulerAncestral] {
        let three = paint(&mut pipeline, &Request { sampler, images: 3, ..request() }).pictures;
        assert_eq!(three.iter().map(|picture| picture.seed).collect::<Vec<_>>(), [7, 8, 9]);
        assert!(three[0].rgb != three[1].rgb);
        for picture in three {
            let alone = paint(&mut pipeline, &Request { sampler, seed: picture.seed, ..request() });
            assert!(alone.pictures[0] == picture, "{sampler}: seed {}", picture.seed);
        }
    }
}

#[test]
fn guidance_of_at_most_one_leaves_the_negative_prompt_out() {
    let mut pipeline = pipeline();
    let plain = Request { guidance_scale: 1.0, ..request() };
    let painted = paint(&mut pipeline, &plain).pictures;
    for guidance_scale in [0.0, -3.0] {
        let other = Request { guidance_scale, negative_prompt: "snow".to_string(), ..plain.clone() };
        assert!(paint(&mut pipeline, &other).pictures == painted);
    }
    let guided = Request { guidance_scale: 1.5, ..plain };
    assert!(paint(&mut pipeline, &guided).pictures != painted);
}
