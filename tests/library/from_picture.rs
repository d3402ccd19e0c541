//! Pictures that start from a picture, paint a part of it, or are painted in two passes, on the CPU against those of
//! diffusers (`tools/fixtures/from_picture.py`).

use std::ops::ControlFlow;

use crate::common::pictures::{equals_diffusers, paint, raster};
use crate::common::{Values, copy_folder, fixture, load_pipeline, root};
use sdrt::Error;
use sdrt::ops::cpu::Cpu;
use sdrt::pipeline::{Hires, Init, Pipeline, Request};
use sdrt::raster::Raster;
use sdrt::sampler::Sampler;

fn tiny() -> Pipeline {
    crate::common::pipeline("tiny", Cpu::new())
}

#[test]
fn pictures_equal_those_of_diffusers() {
    equals_diffusers(&mut tiny(), "from_picture", "tiny");
}

#[test]
fn pictures_of_xl_equal_those_of_diffusers() {
    equals_diffusers(&mut load_pipeline("tests/fixtures/families/sdxl", Cpu::new()), "from_picture", "sdxl");
}

#[test]
fn pictures_of_an_inpainting_model_equal_those_of_diffusers() {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&root().join("tests/fixtures/families/sd2"), folder.path());
    copy_folder(&root().join("tests/fixtures/from_picture/inpaint"), folder.path());
    equals_diffusers(
        &mut load_pipeline(folder.path().to_str().unwrap(), Cpu::new()),
        "from_picture",
        "inpaint",
    );
}

/// A small request from a picture.
fn request(pipeline: &Pipeline, mask: Option<Raster>) -> Request {
    let rgb = (0..3 * 40 * 24).map(|i| (i * 7 % 256) as u8).collect();
    let picture = Raster { width: 40, height: 24, rgb };
    Request {
        prompt: "a red fox in the snow".into(),
        sampler: Sampler::EulerAncestral,
        steps: 4,
        width: 40,
        height: 24,
        init: Some(Init { picture, mask, strength: 0.6 }),
        ..pipeline.defaults().unwrap()
    }
}

/// Light to the right of the middle.
fn half() -> Raster {
    let rgb = (0..40 * 24).flat_map(|pixel| [if pixel % 40 < 24 { 0 } else { 255 }; 3]).collect();
    Raster { width: 40, height: 24, rgb }
}

#[test]
fn requests_from_noise_and_from_pictures_leave_nothing_behind_for_one_another() {
    let mut pipeline = tiny();
    let from_picture = request(&pipeline, None);
    let part = request(&pipeline, Some(half()));
    let from_noise = Request { init: None, ..from_picture.clone() };
    let hires = Hires { scale: 2.0, strength: 0.5, steps: None };
    let hires = Request { hires: Some(hires), ..from_noise.clone() };
    let requests = [from_picture, part, from_noise, hires];
    let painted = requests.each_ref().map(|request| paint(&mut pipeline, request).pictures);
    let recorded = pipeline.backend().recorded();
    for (request, painted) in requests.iter().zip(&painted).rev() {
        assert!(paint(&mut pipeline, request).pictures == *painted);
        assert!(paint(&mut tiny(), request).pictures == *painted);
    }
    assert_eq!(pipeline.backend().recorded(), recorded);
}

#[test]
fn a_picture_does_not_depend_on_its_neighbours() {
    let mut pipeline = tiny();
    for mask in [None, Some(half())] {
        let alone = request(&pipeline, mask);
        let pictures = paint(&mut pipeline, &Request { images: 3, ..alone.clone() }).pictures;
        for picture in pictures {
            let alone = paint(&mut pipeline, &Request { seed: picture.seed, ..alone.clone() }).pictures;
            assert!(alone[0] == picture, "seed {}", picture.seed);
        }
    }
}

#[test]
fn passes_count_as_one_and_can_be_broken_off() {
    let mut pipeline = tiny();
    let hires = Hires { scale: 1.5, strength: 0.5, steps: Some(6) };
    let request = Request { init: None, hires: Some(hires), ..request(&pipeline, None) };
    let mut heard = Vec::new();
    let painting = pipeline.paint(&request, &mut |done, all| {
        heard.push((done, all));
        ControlFlow::Continue(())
    });
    assert_eq!(painting.unwrap().times.evaluations, 4 + 3);
    assert_eq!(heard, (1..=7).map(|done| (done, 7)).collect::<Vec<_>>());
    let stopped = pipeline.paint(&request, &mut |done, _| {
        if done == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(Error::Cancelled { done: 5, steps: 7 })), "{stopped:?}");
}

#[test]
fn what_cannot_be_painted_is_refused_with_the_flag() {
    let mut pipeline = tiny();
    let strength = |strength: f64, steps: usize| {
        let mut request = Request { steps, ..request(&pipeline, None) };
        request.init.as_mut().unwrap().strength = strength;
        request
    };
    let hires = |scale: f64, strength: f64| {
        let hires = Some(Hires { scale, strength, steps: None });
        Request { init: None, hires, ..request(&pipeline, None) }
    };
    let refused = [
        (strength(0.0, 4), "--strength 0: expected a number above 0, up to 1"),
        (strength(1.01, 4), "--strength 1.01: expected"),
        (strength(f64::NAN, 4), "--strength NaN: expected"),
        (strength(0.3, 3), "--strength 0.3: of 3 steps it leaves none to denoise; raise it to 0.34"),
        (hires(1.0, 0.5), "--hires-scale 1: expected a number above 1"),
        (hires(f64::INFINITY, 0.5), "--hires-scale inf: expected"),
        (hires(9000.0, 0.5), "too many pixels; lower --num-images, --hires-scale"),
        (hires(2.0, 0.1), "--hires-strength 0.1: of 4 steps it leaves none"),
    ];
    for (request, expected) in refused {
        let error = pipeline.paint(&request, &mut |_, _| ControlFlow::Continue(())).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn pictures_are_resized_as_pillow_does() {
    let cases = fixture("from_picture", "resize");
    let case = |name: &str| cases.iter().find(|case| case.name == format!("resize.{name}")).unwrap();
    let source = raster(case("source").tensor("want"));
    for name in ["larger", "smaller", "narrower", "same_width"] {
        let want = raster(case(name).tensor("want"));
        assert!(source.resized(want.width, want.height) == want, "{name}");
    }
    let Values::U8(luma) = &case("luma").tensor("want").values else { panic!("luma is not u8") };
    assert!(source.luma() == *luma);
    assert!(source.resized(source.width, source.height) == source);
}
