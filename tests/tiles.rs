//! Other ways from latents to pictures than a whole VAE at once: tiny VAEs, tiles, previews. Against diffusers
//! (`tools/fixtures/tiles.py`).

mod common;

use std::ops::ControlFlow;

use common::pictures::{equals_diffusers_where, paint};
use common::{Case, check, download, fixture, reserve_arena, root, upload};
use sdrt::error::{Error, Result};
use sdrt::location::Location;
use sdrt::model::config::{AutoencoderConfig, TinyCoderConfig, TinyVaeConfig};
use sdrt::model::tiny_vae::TinyVae;
use sdrt::ops::cpu::Cpu;
use sdrt::ops::{Arena, Backend, Call, DType, FillRows, Graph, Ops, Region, Tensor};
use sdrt::pipeline::{
    Hires, Init, KnownShapes, ModelFiles, Picture, Pipeline, PreviewMethod, Previews, Request,
};
use sdrt::pipeline::{Tiled, Tiling, count};
use sdrt::raster::Raster;
use sdrt::sampler::Sampler;
use sdrt::weights::{Checkpoint, ModelFolder};

/// Relative L2 error of f32 sums in another order than torch's, through tens of layers.
const MODEL: f64 = 3e-6;

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

/// Cases of the fixture's tiny VAE, and the VAE itself.
fn coder_cases(kind: &str, run: impl Fn(&mut Cpu, &TinyVae, &Case)) {
    let folder = ModelFolder::open(&root().join("models/tiny").into()).expect("models/tiny");
    let checkpoint = Checkpoint::open(&folder).unwrap().with_vae(&tiny_vae()).expect("a tiny VAE");
    let config = TinyVaeConfig::read(&tiny_vae().join("config.json")).expect("a configuration");
    for case in fixture("tiles", "tiny_vae").iter().filter(|case| case.scalars["model"] == kind) {
        let mut cpu = Cpu::new();
        let (vae, _weights) = common::load(&mut cpu, &checkpoint, |plan| {
            plan.component("vae", |plan| TinyVae::new(&config, plan))
        });
        let _arena = reserve_arena(&mut cpu, 8 << 20);
        run(&mut cpu, &vae, case);
    }
}

#[test]
fn a_tiny_vae_decodes_as_diffusers() {
    coder_cases("decode", |cpu, vae, case| {
        let x = case.tensor("x");
        let latents = upload(cpu, x.f32(), x.shape4(), DType::F32);
        let out = cpu.arena().alloc(case.tensor("want").shape4(), DType::F32);
        cpu.run(&mut |ops| vae.decode(ops, out, latents)).unwrap();
        check(&case.name, &download(cpu, out), case.tensor("want").f32(), MODEL);
    });
}

#[test]
fn a_tiny_vae_encodes_as_diffusers() {
    coder_cases("encode", |cpu, vae, case| {
        let x = case.tensor("x");
        let picture = upload(cpu, x.f32(), x.shape4(), DType::F32);
        let out = cpu.arena().alloc(case.tensor("want").shape4(), DType::F32);
        cpu.run(&mut |ops| vae.encode(ops, out, picture)).unwrap();
        check(&case.name, &download(cpu, out), case.tensor("want").f32(), MODEL);
    });
}

#[test]
fn pictures_of_a_tiny_vae_equal_those_of_diffusers() {
    equals_diffusers_where(&mut pipeline(Some(tiny_vae())), "tiles", "pictures", |case| {
        case.scalars["tiny_vae"] == true
    });
}

#[test]
fn pictures_decoded_in_tiles_equal_those_of_diffusers() {
    equals_diffusers_where(&mut pipeline(None), "tiles", "pictures", |case| {
        case.scalars["tile_size"].is_u64()
    });
}

/// The published sizes, by the numbers of the layers alone.
#[test]
fn tiny_vaes_are_recognised_by_their_shapes() {
    let (conv, edge) = ([64, 64, 3, 3], [64, 4, 3, 3]);
    let mut shapes = std::collections::BTreeMap::new();
    let blocks: Vec<String> = [2, 3, 4, 7, 8, 9, 12, 13, 14, 17]
        .iter()
        .map(|layer| format!("decoder.layers.{layer}.conv.0.weight"))
        .collect();
    shapes.extend(blocks.iter().map(|key| (key.as_str(), &conv[..])));
    shapes.insert("decoder.layers.0.weight", &edge[..]);
    let decoder = TinyCoderConfig { channels: 64, blocks: vec![3, 3, 3, 1] };
    let expected = TinyVaeConfig { latent_channels: 4, scaling_factor: 1.0, decoder, encoder: None };
    assert_eq!(TinyVaeConfig::of_shapes(&shapes), Some(expected.clone()));
    assert_eq!(AutoencoderConfig::Tiny(expected).scale_factor(), 8);
}

/// The fixture's weights under the keys of the two files of TAESD, and of both in one.
#[test]
fn the_files_of_taesd_give_the_same_pictures() {
    let weights = root().join("tests/fixtures/tiles/tiny_vae/diffusion_pytorch_model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let original = |key: &str, prefixed: bool| {
        let (half, rest) = key.split_once(".layers.").unwrap();
        let (layer, rest) = rest.split_once('.').unwrap();
        let layer = layer.parse::<usize>().unwrap() + usize::from(half == "decoder");
        let prefix = if prefixed { format!("taesd_{half}.") } else { String::new() };
        (half == "decoder" || prefixed).then(|| format!("{prefix}{layer}.{rest}"))
    };
    let folder = tempfile::tempdir().unwrap();
    let expected = paint(&mut pipeline(Some(tiny_vae())), &request()).pictures;
    let mut paths = vec![weights.clone()];
    for prefixed in [false, true] {
        let tensors = stored.tensors();
        let tensors = tensors.iter().filter_map(|(key, view)| Some((original(key, prefixed)?, view.clone())));
        let path = folder.path().join(format!("{prefixed}.safetensors"));
        safetensors::serialize_to_file(tensors, None, &path).unwrap();
        paths.push(path);
    }
    for path in paths {
        let painted = paint(&mut pipeline(Some(path.clone().into())), &request()).pictures;
        assert!(painted == expected, "{}", path.display());
    }
}

/// How many colours of a picture are how far from another's.
fn mean_difference(a: &Picture, b: &Picture) -> f64 {
    let sum: f64 = a.rgb.iter().zip(&b.rgb).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
    sum / a.rgb.len() as f64
}

/// Levels between neighbours across the columns where tiles begin to be shown, relative to those between all
/// neighbours.
fn seams(picture: &Picture, step: usize) -> f64 {
    let at = |x: usize, y: usize| f64::from(picture.rgb[3 * (y * picture.width + x)]);
    let edge = |x: usize| (0..picture.height).map(|y| (at(x, y) - at(x - 1, y)).abs()).sum::<f64>();
    let mean = |edges: Vec<f64>| edges.iter().sum::<f64>() / edges.len() as f64;
    let all = mean((1..picture.width).map(edge).collect());
    mean((step..picture.width).step_by(step).map(edge).collect()) / all
}

#[test]
fn tiles_leave_no_seams() {
    let folder = Location::from(root().join("models/emoji"));
    let mut pipeline = Pipeline::load(&folder.into(), Box::new(Cpu::new()), &mut |_, _| {}).unwrap();
    let prompt = "fox on a purple background".into();
    let request = Request { prompt, seed: 0, steps: 4, ..pipeline.defaults().unwrap() };
    let tiling = Tiling { when: Tiled::On, tile_size: Some(16) };
    let whole = paint(&mut pipeline, &request).pictures.remove(0);
    let tiled = paint(&mut pipeline, &Request { tiling, ..request }).pictures.remove(0);
    let difference = mean_difference(&whole, &tiled);
    let (before, after) = (seams(&whole, 96), seams(&tiled, 96));
    println!("{difference:.2} levels apart; edges of tiles: {before:.2} of the average, then {after:.2}");
    // Half of what the VAE was trained at: what group norm sees is another crop.
    assert!(difference > 0.0 && difference < 4.0, "{difference} levels apart");
    assert!(after < before + 0.3, "edges of tiles: {before} of the average, then {after}");
}

#[test]
fn what_fits_one_tile_is_decoded_whole() {
    let mut pipeline = pipeline(None);
    let whole = paint(&mut pipeline, &request()).pictures;
    let tiling = Tiling { when: Tiled::On, tile_size: Some(8) };
    assert!(paint(&mut pipeline, &Request { tiling, ..request() }).pictures == whole);
    let off = Tiling { when: Tiled::Off, tile_size: None };
    assert!(paint(&mut pipeline, &Request { tiling: off, ..request() }).pictures == whole);
}

#[test]
fn tiles_bound_the_memory_of_decoding() {
    let description = KnownShapes::Sd15.describe();
    let bytes = |side: usize, when: Tiled| {
        let tiling = Tiling { when, tile_size: None };
        let defaults = Request::defaults(&description, Sampler::Ddim);
        let request = Request { width: side, height: side, tiling, ..defaults };
        let pass = &request.check(&description).expect("fits")[0];
        let shape = request.shape(&description.config, pass);
        count(&description.config, &shape, DType::F16).decode.peak_bytes()
    };
    assert_eq!(bytes(512, Tiled::On), bytes(512, Tiled::Off));
    assert!(bytes(2048, Tiled::On) < bytes(2048, Tiled::Off) / 4);
    // The kernels cannot count the elements of the whole.
    assert!(bytes(4096, Tiled::Auto) < bytes(2048, Tiled::Off));
    let defaults = Request::defaults(&description, Sampler::Ddim);
    let tiling = Tiling { when: Tiled::Off, tile_size: None };
    let off = Request { width: 4096, height: 4096, tiling, ..defaults };
    let message = off.check(&description).unwrap_err().to_string();
    assert!(message.contains("too many pixels") && message.contains("--vae-tiling"), "{message}");
}

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

#[test]
fn a_tiny_vae_encodes_no_picture_to_start_from() {
    let description = files(Some(tiny_vae())).describe().unwrap();
    let request = Request { init: Some(Init { mask: None, ..init(true) }), ..request() };
    let message = request.check(&description).unwrap_err().to_string();
    assert!(message.contains("--init-image") && message.contains("--vae"), "{message}");
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

/// A machine that has no more memory in one piece than `limit`.
struct Small {
    cpu: Cpu,
    limit: usize,
}

impl Ops for Small {
    fn dtype(&self) -> DType {
        self.cpu.dtype()
    }
    fn arena(&mut self) -> &mut Arena {
        self.cpu.arena()
    }
    fn issue(&mut self, call: Call) {
        self.cpu.issue(call);
    }
}

impl Backend for Small {
    fn describe(&self) -> String {
        self.cpu.describe()
    }
    fn name(&self) -> String {
        self.cpu.name()
    }
    fn reserve(&mut self, bytes: usize, purpose: &str) -> Result<Region> {
        if bytes > self.limit {
            return Err(Error::OutOfMemory { purpose: purpose.into(), needed: bytes, free: None });
        }
        self.cpu.reserve(bytes, purpose)
    }
    fn use_arena(&mut self, arena: Arena) -> Arena {
        self.cpu.use_arena(arena)
    }
    fn fill(&mut self, to: Tensor, fill: FillRows) -> Result<()> {
        self.cpu.fill(to, fill)
    }
    fn write(&mut self, to: Tensor, bytes: &[u8]) -> Result<()> {
        self.cpu.write(to, bytes)
    }
    fn read(&mut self, from: Tensor, bytes: &mut [u8]) -> Result<()> {
        self.cpu.read(from, bytes)
    }
    fn run(&mut self, body: &mut dyn FnMut(&mut dyn Ops)) -> Result<()> {
        self.cpu.run(body)
    }
    fn record(&mut self, body: &mut dyn FnMut(&mut dyn Ops)) -> Result<Graph> {
        self.cpu.record(body)
    }
    fn replay(&mut self, graph: &Graph) -> Result<()> {
        self.cpu.replay(graph)
    }
    fn record_steps(&mut self, index: Tensor, body: &mut dyn FnMut(&mut dyn Ops)) -> Result<Graph> {
        self.cpu.record_steps(index, body)
    }
    fn replay_steps(
        &mut self,
        graph: &Graph,
        steps: usize,
        on_step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<usize> {
        self.cpu.replay_steps(graph, steps, on_step)
    }
    fn recorded(&self) -> usize {
        self.cpu.recorded()
    }
}

#[test]
fn a_picture_that_does_not_fit_is_decoded_in_tiles() {
    let description = files(None).describe().unwrap();
    let tile_size = Some(8);
    let with =
        |when| Request { width: 256, height: 256, steps: 1, tiling: Tiling { when, tile_size }, ..request() };
    let bytes = |when| {
        let pass = &with(when).check(&description).expect("fits")[0];
        count(&description.config, &with(when).shape(&description.config, pass), DType::F32)
    };
    let [tiled, whole] = [Tiled::On, Tiled::Off].map(|when| bytes(when).arena_bytes());
    assert!(tiled < whole / 2, "{tiled} and {whole} bytes");
    let small = Small { cpu: Cpu::new(), limit: whole - 1 };
    let mut pipeline = Pipeline::load(&files(None), Box::new(small), &mut |_, _| {}).unwrap();
    let refused = pipeline.paint(&with(Tiled::Off), &mut |_, _| ControlFlow::Continue(()));
    assert!(matches!(refused.map(|_| ()), Err(Error::OutOfMemory { .. })));
    let painting = paint(&mut pipeline, &with(Tiled::Auto));
    assert!(painting.warnings.iter().any(|warning| warning.contains("decoded in tiles of 8x8 latents")));
    let recorded = pipeline.backend().recorded();
    assert!(paint(&mut pipeline, &with(Tiled::Auto)).pictures == painting.pictures);
    let on = paint(&mut pipeline, &with(Tiled::On));
    assert!(on.pictures == painting.pictures && on.warnings.is_empty());
    assert_eq!(pipeline.backend().recorded(), recorded, "the graphs that decode in tiles are kept");
}
