//! A second model that does the last steps.

use std::cell::RefCell;
use std::ops::ControlFlow;

use crate::common::pictures::paint;
use crate::common::{copy_folder, root};
use sdrt::error::Error;
use sdrt::location::Location;
use sdrt::ops::cpu::Cpu;
use sdrt::pipeline::{
    Control, Hires, Init, ModelFiles, Pipeline, PreviewMethod, Previews, Request, RequestPatch,
};
use sdrt::raster::Raster;
use sdrt::rng::Rng;
use sdrt::sampler::{Sampler, Schedule};

fn files(model: &str, refiner: Option<&str>) -> ModelFiles {
    let at = |path: &str| Location::from(root().join(path));
    ModelFiles { refiner: refiner.map(at), ..at(model).into() }
}

fn load(files: &ModelFiles) -> Pipeline {
    Pipeline::load(files, Box::new(Cpu::new()), &mut |_, _| {}).expect("a model")
}

fn raster(colour: impl Fn(usize) -> u8) -> Raster {
    Raster { width: 64, height: 64, rgb: (0..3 * 64 * 64).map(colour).collect() }
}

fn request(pipeline: &Pipeline) -> Request {
    Request {
        prompt: "a red fox in the snow".into(),
        negative_prompt: "grey".into(),
        steps: 6,
        seed: 3,
        images: 2,
        guidance_scale: 4.0,
        ..pipeline.defaults().unwrap()
    }
}

/// A model that goes on where it has left off has done nothing else than before: the latents, the schedule and the
/// noise are handed over as they are.
#[test]
fn a_model_that_refines_itself_changes_nothing() {
    let tiny = "tests/fixtures/families/sdxl";
    let (mut alone, mut refined) = (load(&files(tiny, None)), load(&files(tiny, Some(tiny))));
    let plain = request(&alone);
    let init = Init { picture: raster(|i| (i * 7 % 256) as u8), mask: None, strength: 0.8 };
    let mask = Some(raster(|i| if i / 3 % 64 < 24 { 0 } else { 255 }));
    let with = |sampler| Request { sampler, ..plain.clone() };
    let requests = [
        with(Sampler::Ddim),
        Request { eta: Some(1.0), ..with(Sampler::Ddim) },
        with(Sampler::Ddpm),
        with(Sampler::Euler),
        Request { rng: Rng::Cuda, ..with(Sampler::EulerAncestral) },
        with(Sampler::Heun),
        Request { schedule: Schedule::Karras, ..with(Sampler::Dpm2) },
        with(Sampler::Dpm2Ancestral),
        with(Sampler::DpmPp2sAncestral),
        Request { init: Some(init.clone()), ..with(Sampler::EulerAncestral) },
        Request { init: Some(Init { mask, ..init }), ..with(Sampler::EulerAncestral) },
        Request { guidance_start: 0.2, guidance_end: 0.7, ..with(Sampler::Euler) },
        Request {
            hires: Some(Hires { scale: 1.5, strength: 0.7, steps: Some(8) }),
            ..with(Sampler::EulerAncestral)
        },
    ];
    for request in requests {
        let whole = paint(&mut alone, &request).pictures;
        for start in [0.6, 0.8] {
            let parted = paint(&mut refined, &Request { refiner_start: Some(start), ..request.clone() });
            assert!(parted.pictures == whole, "{} {start} {:?}", request.sampler, request.schedule);
            assert_eq!(parted.times.evaluations, paint(&mut alone, &request).times.evaluations);
        }
    }
}

#[test]
fn a_refiner_that_never_takes_over_does_nothing() {
    let model = "tests/fixtures/families/sdxl";
    let mut refined = load(&files(model, Some("tests/fixtures/siblings/refiner")));
    let mut alone = load(&files(model, None));
    let request = request(&alone);
    let never = paint(&mut refined, &Request { refiner_start: Some(1.0), ..request.clone() });
    assert!(never.pictures == paint(&mut alone, &request).pictures);
}

/// Another VAE encodes and decodes for both models.
#[test]
fn another_vae_takes_the_place_of_both() {
    let (model, vae) = ("tests/fixtures/families/sdxl", "tests/fixtures/siblings/koala");
    let with = |refiner, vae: Option<&str>| {
        let vae = vae.map(|vae| Location::from(root().join(vae)));
        load(&ModelFiles { vae, ..files(model, refiner) })
    };
    let mut own = with(Some(model), None);
    let (mut alone, mut refined) = (with(None, Some(vae)), with(Some(model), Some(vae)));
    let plain = request(&own);
    let picture = raster(|i| (i * 7 % 256) as u8);
    let mask = Some(raster(|i| if i / 3 % 64 < 24 { 0 } else { 255 }));
    let masked = Request { init: Some(Init { picture, mask, strength: 0.9 }), ..plain.clone() };
    for request in [plain, masked] {
        let request = Request { refiner_start: Some(0.6), ..request };
        let never = Request { refiner_start: None, ..request.clone() };
        let pictures = paint(&mut refined, &request).pictures;
        assert!(pictures == paint(&mut alone, &never).pictures);
        assert!(pictures != paint(&mut own, &request).pictures);
    }
}

/// A tiny VAE has a scaling factor of its own, and stands for that of either model.
#[test]
fn a_tiny_vae_takes_the_place_of_both() {
    let vae = Some(Location::from(root().join("tests/fixtures/tiles/tiny_vae")));
    let mut alone = load(&ModelFiles { vae: vae.clone(), ..files("models/tiny", None) });
    let mut refined = load(&ModelFiles { vae, ..files("models/tiny", Some("models/tiny")) });
    let request = Request { width: 64, height: 64, sampler: Sampler::Euler, ..request(&alone) };
    let parted = paint(&mut refined, &Request { refiner_start: Some(0.6), ..request.clone() });
    assert!(parted.pictures == paint(&mut alone, &request).pictures);
}

/// The refiner takes the schedule of the model, and not what its file has.
#[test]
fn a_refiner_of_another_spacing_goes_on_with_the_same_schedule() {
    let model = "tests/fixtures/families/sdxl";
    let folder = tempfile::tempdir().unwrap();
    let changed = |name: &str, from: &str, to: &str| {
        let copy = folder.path().join(name);
        copy_folder(&root().join(model), &copy);
        let file = copy.join("scheduler/scheduler_config.json");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&file, text.replace(from, to)).unwrap();
        Location::from(copy)
    };
    let trailing = changed("trailing", "\"leading\"", "\"trailing\"");
    let mut refined = load(&ModelFiles { refiner: Some(trailing), ..files(model, None) });
    let mut alone = load(&files(model, None));
    let request = request(&alone);
    let parted = paint(&mut refined, &Request { refiner_start: Some(0.6), ..request.clone() });
    assert!(parted.pictures == paint(&mut alone, &request).pictures);
    let other = changed("betas", "0.012", "0.05");
    let error = ModelFiles { refiner: Some(other), ..files(model, None) }.describe().unwrap_err().to_string();
    assert!(error.contains("was trained with other timesteps or betas"), "{error}");
}

/// Those that remember outputs of earlier steps begin anew with the refiner.
#[test]
fn samplers_with_a_memory_begin_anew() {
    let tiny = "tests/fixtures/families/sdxl";
    let (mut alone, mut refined) = (load(&files(tiny, None)), load(&files(tiny, Some(tiny))));
    for sampler in [Sampler::DpmPp2m, Sampler::UniPc, Sampler::Lms, Sampler::Deis, Sampler::Pndm] {
        let request = Request { sampler, steps: 8, ..request(&alone) };
        let parted = paint(&mut refined, &Request { refiner_start: Some(0.5), ..request.clone() });
        assert!(parted.pictures != paint(&mut alone, &request).pictures, "{sampler}");
    }
}

#[test]
fn previews_show_both_models_and_a_cancelled_image_stops_in_either() {
    let refiner = "tests/fixtures/siblings/refiner";
    let mut pipeline = load(&files("tests/fixtures/families/sdxl", Some(refiner)));
    let request = Request { refiner_start: Some(0.5), ..request(&pipeline) };
    let shown = RefCell::new(Vec::new());
    let mut on_preview = |done, pictures: Vec<_>| {
        assert_eq!(pictures.len(), 2);
        shown.borrow_mut().push(done);
        Ok(())
    };
    let previews = Previews { every: 1, method: PreviewMethod::Vae, on_preview: &mut on_preview };
    let watched =
        pipeline.paint_with_previews(&request, &mut |_, _| ControlFlow::Continue(()), Some(previews));
    assert!(watched.expect("painted").pictures == paint(&mut pipeline, &request).pictures);
    // None is shown of the last evaluation of a pass.
    assert_eq!(*shown.borrow(), [1, 3, 4, 5]);
    for last in [2, 5] {
        let mut stop = |done, of| {
            assert_eq!(of, 6);
            if done == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        match pipeline.paint(&request, &mut stop) {
            Err(Error::Cancelled { done, steps: 6 }) => assert_eq!(done, last),
            other => panic!("{:?}", other.map(|_| ())),
        }
    }
}

#[test]
fn what_cannot_be_refined_is_said() {
    let sdxl = "tests/fixtures/families/sdxl";
    let refiner = Some("tests/fixtures/siblings/refiner");
    let refused = |model: &str, refiner: Option<&str>, patch: RequestPatch| {
        let description = files(model, refiner).describe()?;
        let request = patch.request(&description)?;
        request.check(&description).map(drop)
    };
    let says = |result: sdrt::Result<()>, sentence: &str| {
        let error = result.expect_err(sentence).to_string();
        assert!(error.contains(sentence), "{error}");
    };
    let at = |start| RequestPatch { refiner_start: Some(start), steps: Some(5), ..RequestPatch::default() };
    says(refused(sdxl, None, at(0.8)), "--refiner-start 0.8: there is no refiner; give one with --refiner");
    says(refused(sdxl, refiner, at(1.5)), "--refiner-start 1.5: expected a number above 0");
    says(refused(sdxl, refiner, at(0.0)), "--refiner-start 0: expected a number above 0");
    says(refused(sdxl, refiner, at(0.01)), "of 5 steps it leaves none to the model; raise it");
    let late = RequestPatch { schedule: Some(Schedule::Trailing), ..at(0.99) };
    says(refused(sdxl, refiner, late), "of 5 steps it leaves none to the refiner; lower it");
    assert!(refused(sdxl, refiner, at(0.7)).is_ok() && refused(sdxl, refiner, at(1.0)).is_ok());
    let from_image = Request {
        init: Some(Init { strength: 0.1, ..Init::blank() }),
        steps: 20,
        ..request(&load(&files(sdxl, refiner)))
    };
    let error = from_image.check(&files(sdxl, refiner).describe().unwrap()).unwrap_err().to_string();
    assert!(error.ends_with("none to the model; raise it or --strength, or take more --steps"), "{error}");
    let score = RequestPatch { aesthetic_score: Some(5.0), ..RequestPatch::default() };
    assert!(refused(sdxl, refiner, score.clone()).is_ok());
    says(refused(sdxl, None, score), "--aesthetic-score 5: read by the refiner of Stable Diffusion XL only");
    let none = RequestPatch::default;
    let sibling = |name: &str| format!("tests/fixtures/siblings/{name}");
    says(refused(sdxl, Some(&sibling("pix2pix")), none()), "sees an image beside its latents");
    says(refused(sdxl, Some(&sibling("cosxl")), none()), "CosXL has noise of its own");
    says(refused(sdxl, Some("models/tiny"), none()), "pixels along a latent's side: 8, and 2 in the model");
}

/// ControlNets steer the first model alone.
#[test]
fn controlnets_and_a_refiner_share_an_image() {
    let nets = vec![Location::from(root().join("tests/fixtures/controlnets/sdxl"))];
    let model = files("tests/fixtures/families/sdxl", Some("tests/fixtures/siblings/refiner"));
    let mut pipeline = load(&ModelFiles { controlnets: nets, ..model });
    let plain = Request { refiner_start: Some(0.5), ..request(&pipeline) };
    let control = Control::new(raster(|i| (i * 11 % 256) as u8));
    let steered = Request { controls: vec![control.clone()], ..plain.clone() };
    // From where the refiner has taken over.
    let late = Request { controls: vec![Control { start: 0.6, ..control }], ..plain.clone() };
    let [plain, steered, late] =
        [plain, steered, late].map(|request| paint(&mut pipeline, &request).pictures);
    assert!(steered != plain && late == plain);
}
