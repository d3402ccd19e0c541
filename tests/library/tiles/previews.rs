//! Pictures of a request that is not done.

use std::ops::ControlFlow;

use sdrt::error::Error;
use sdrt::location::Location;
use sdrt::ops::cpu::Cpu;
use sdrt::pipeline::{Hires, ModelFiles, Picture, Pipeline, PreviewMethod, Previews, Request, Tiled, Tiling};
use sdrt::sampler::Sampler;

use super::tiny_vae::files_of_taesd;
use super::{files, init, mean_difference, pipeline, request, tiny_vae};
use crate::common::pictures::paint;
use crate::common::{copy_folder, root};

/// All previews of a request, and its pictures.
fn watch(
    pipeline: &mut Pipeline,
    request: &Request,
    every: usize,
) -> (Vec<(usize, Vec<Picture>)>, Vec<Picture>) {
    let mut seen = Vec::new();
    let mut steps = Vec::new();
    let mut on_preview = |done, pictures| {
        seen.push((done, pictures));
        Ok(())
    };
    let previews = Previews { every, method: PreviewMethod::Vae, on_preview: &mut on_preview };
    let mut on_step = |done, all| {
        steps.push((done, all));
        ControlFlow::Continue(())
    };
    let painting = pipeline.paint_with_previews(request, &mut on_step, Some(previews)).expect("a picture");
    let evaluations = painting.times.evaluations;
    assert_eq!(steps, (1..=evaluations).map(|done| (done, evaluations)).collect::<Vec<_>>());
    (seen, painting.pictures)
}

#[test]
fn previews_change_no_byte_and_come_closer() {
    for vae in [None, Some(tiny_vae())] {
        let mut pipeline = pipeline(vae);
        for sampler in [Sampler::EulerAncestral, Sampler::Heun, Sampler::UniPc, Sampler::Pndm] {
            let request = Request { sampler, images: 2, ..request() };
            let painted = paint(&mut pipeline, &request).pictures;
            for every in [1, 2, 100] {
                let (previews, pictures) = watch(&mut pipeline, &request, every);
                assert!(pictures == painted, "{sampler}, every {every}");
                let evaluations =
                    if sampler == Sampler::Heun { 9 } else { 5 + usize::from(sampler == Sampler::Pndm) };
                let expected: Vec<usize> = (1..evaluations).filter(|done| done % every == 0).collect();
                assert_eq!(previews.iter().map(|(done, _)| *done).collect::<Vec<_>>(), expected, "{sampler}");
                let size = |picture: &Picture| (picture.width, picture.height, picture.seed);
                for (_, preview) in &previews {
                    assert!(preview.iter().map(size).eq(painted.iter().map(size)), "{sampler}");
                }
                let distance = |at: usize| mean_difference(&previews[at].1[0], &painted[0]);
                if every == 1 {
                    assert!(distance(previews.len() - 1) < distance(0), "{sampler}");
                }
            }
        }
    }
}

#[test]
fn previews_show_what_a_mask_keeps_as_it_will_be() {
    let mut pipeline = pipeline(None);
    for sampler in [Sampler::Ddim, Sampler::EulerAncestral, Sampler::DpmPp2m] {
        let request = Request { sampler, init: Some(init(false)), ..request() };
        let (previews, pictures) = watch(&mut pipeline, &request, 1);
        assert!(
            !previews.is_empty() && previews.iter().all(|(_, preview)| *preview == pictures),
            "{sampler}"
        );
        let request = Request { init: Some(init(true)), ..request };
        let painted = paint(&mut pipeline, &request).pictures;
        let (previews, pictures) = watch(&mut pipeline, &request, 1);
        assert!(pictures == painted, "{sampler}");
        let distance = |at: usize| mean_difference(&previews[at].1[0], &painted[0]);
        assert!(distance(previews.len() - 1) < distance(0), "{sampler}");
    }
}

#[test]
fn both_passes_of_hires_fix_have_previews() {
    for vae in [None, Some(tiny_vae())] {
        let mut pipeline = pipeline(vae);
        let hires = Some(Hires { scale: 2.0, strength: 0.6, steps: None });
        let request = Request { hires, ..request() };
        let painted = paint(&mut pipeline, &request).pictures;
        let (previews, pictures) = watch(&mut pipeline, &request, 2);
        assert!(pictures == painted);
        let seen: Vec<_> =
            previews.iter().map(|(done, preview)| (*done, preview[0].width, preview[0].height)).collect();
        assert_eq!(seen, [(2, 40, 56), (4, 40, 56), (7, 80, 112)]);
        // The second pass is larger than a tile.
        let tiled = Request { tiling: Tiling { when: Tiled::On, tile_size: Some(8) }, ..request };
        let Picture { width, height, .. } = paint(&mut pipeline, &tiled).pictures[0];
        assert_eq!([width, height], [80, 112]);
    }
}

/// `models/tiny` with its own VAE for pictures, and this one for previews.
fn with_preview_vae(preview_vae: Location) -> ModelFiles {
    ModelFiles { preview_vae: Some(preview_vae), ..files(None) }
}

/// The previews are those of a model that has the tiny VAE for everything; the pictures those of one that has none.
#[test]
fn a_vae_for_previews_decodes_them_and_nothing_else() {
    let (mut plain, mut all_tiny) = (pipeline(None), pipeline(Some(tiny_vae())));
    let files = with_preview_vae(tiny_vae());
    let mut pipeline = Pipeline::load(&files, Box::new(Cpu::new()), &mut |_, _| {}).expect("models/tiny");
    let hires = Some(Hires { scale: 2.0, strength: 0.6, steps: None });
    let tiling = Tiling { when: Tiled::On, tile_size: Some(8) };
    let large = Request { width: 144, height: 112, ..request() };
    let requests = [
        Request { images: 2, ..request() },
        Request { sampler: Sampler::DpmPp2m, hires, ..request() },
        Request { tiling, ..large.clone() },
        large,
    ];
    for request in &requests {
        let (previews, pictures) = watch(&mut pipeline, request, 1);
        assert!(pictures == paint(&mut plain, request).pictures);
        assert!(paint(&mut pipeline, request).pictures == pictures);
        let (expected, _) = watch(&mut all_tiny, request, 1);
        assert!(previews == expected && !previews.is_empty());
    }
    let recorded = pipeline.backend().recorded();
    requests.iter().for_each(|request| drop(watch(&mut pipeline, request, 2)));
    assert_eq!(pipeline.backend().recorded(), recorded);

    // Encoded by the model's own.
    let request = Request { init: Some(init(true)), ..request() };
    assert!(watch(&mut pipeline, &request, 1).1 == paint(&mut plain, &request).pictures);
}

#[test]
fn a_vae_for_previews_must_be_tiny_and_of_the_same_latents() {
    let folder = tempfile::tempdir().unwrap();
    for file in files_of_taesd(folder.path()) {
        let read = |vae: Location| with_preview_vae(vae).describe().unwrap().config.preview_vae;
        assert_eq!(read(file.into()), read(tiny_vae()));
    }

    let refused = |vae: Location| with_preview_vae(vae).describe().unwrap_err().to_string();
    let message = refused(root().join("models/tiny").into());
    assert!(message.contains("models/tiny") && message.contains("such as TAESD"), "{message}");
    let message = refused(root().join("nothing.safetensors").into());
    assert!(message.contains("nothing.safetensors"), "{message}");

    copy_folder(&root().join("tests/fixtures/tiles/tiny_vae"), folder.path());
    let file = folder.path().join("config.json");
    let config = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, config.replace("\"latent_channels\": 4", "\"latent_channels\": 16")).unwrap();
    let message = refused(folder.path().to_path_buf().into());
    assert!(message.contains("latent_channels: 16, and 4 in the model's VAE"), "{message}");
}

#[test]
fn previews_can_break_off() {
    let mut pipeline = pipeline(None);
    let mut full = |_, _| Err(Error::invalid("the disk is full"));
    let previews = Previews { every: 2, method: PreviewMethod::Vae, on_preview: &mut full };
    let error = pipeline
        .paint_with_previews(&request(), &mut |_, _| ControlFlow::Continue(()), Some(previews))
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.to_string(), "the disk is full");
    let mut ignored = |_, _| Ok(());
    let previews = Previews { every: 2, method: PreviewMethod::Vae, on_preview: &mut ignored };
    let stop = |done, _| if done == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    let result = pipeline.paint_with_previews(&request(), &mut { stop }, Some(previews));
    assert!(matches!(result.map(|_| ()), Err(Error::Cancelled { done: 3, steps: 5 })));
}
