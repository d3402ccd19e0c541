//! Tiny VAEs against diffusers' `AutoencoderTiny`.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use sdrt::model::config::{AutoencoderConfig, TinyCoderConfig, TinyVaeConfig};
use sdrt::model::tiny_vae::TinyVae;
use sdrt::ops::cpu::Cpu;
use sdrt::ops::{Backend, DType, Ops};
use sdrt::pipeline::Request;
use sdrt::weights::single_file::open_vae;
use sdrt::weights::{Checkpoint, ModelFolder};

use super::{files, from_picture_equals_diffusers, init, pipeline, request, tiny_vae};
use crate::common::pictures::{equals_diffusers_where, paint};
use crate::common::{Case, check, download, fixture, reserve_arena, root, upload};

/// Relative L2 error of f32 sums in another order than torch's, through tens of layers.
const MODEL: f64 = 3e-6;

/// Cases of the fixture's tiny VAE, and the VAE itself.
fn coder_cases(kind: &str, run: impl Fn(&mut Cpu, &TinyVae, &Case)) {
    let folder = ModelFolder::open(&root().join("models/tiny").into()).expect("models/tiny");
    let checkpoint =
        Checkpoint::open(&folder).unwrap().with(open_vae(&tiny_vae(), "vae").expect("a tiny VAE"));
    let config = TinyVaeConfig::read(&tiny_vae().join("config.json")).expect("a configuration");
    for case in fixture("tiles", "tiny_vae").iter().filter(|case| case.scalars["model"] == kind) {
        let mut cpu = Cpu::new();
        let (vae, _weights) = crate::common::load(&mut cpu, &checkpoint, |plan| {
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

fn weights() -> PathBuf {
    root().join("tests/fixtures/tiles/tiny_vae/diffusion_pytorch_model.safetensors")
}

/// The fixture's weights under the keys of the two files of TAESD: the decoder's alone, then both in one.
pub fn files_of_taesd(folder: &Path) -> [PathBuf; 2] {
    let bytes = std::fs::read(weights()).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let original = |key: &str, prefixed: bool| {
        let (half, rest) = key.split_once(".layers.").unwrap();
        let (layer, rest) = rest.split_once('.').unwrap();
        let layer = layer.parse::<usize>().unwrap() + usize::from(half == "decoder");
        let prefix = if prefixed { format!("taesd_{half}.") } else { String::new() };
        (half == "decoder" || prefixed).then(|| format!("{prefix}{layer}.{rest}"))
    };
    [false, true].map(|prefixed| {
        let tensors = stored.tensors();
        let tensors = tensors.iter().filter_map(|(key, view)| Some((original(key, prefixed)?, view.clone())));
        let path = folder.join(format!("{prefixed}.safetensors"));
        safetensors::serialize_to_file(tensors, None, &path).unwrap();
        path
    })
}

#[test]
fn the_files_of_taesd_give_the_same_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let [decoder, both] = files_of_taesd(folder.path());
    let expected = paint(&mut pipeline(Some(tiny_vae())), &request()).pictures;
    for path in [weights(), decoder, both] {
        let painted = paint(&mut pipeline(Some(path.clone().into())), &request()).pictures;
        assert!(painted == expected, "{}", path.display());
    }
}

#[test]
fn pictures_from_a_picture_equal_those_of_diffusers() {
    from_picture_equals_diffusers(Some(tiny_vae()), |case| case.scalars["tiny_vae"] == true);
}

#[test]
fn a_decoder_alone_encodes_no_picture_to_start_from() {
    let folder = tempfile::tempdir().unwrap();
    let [decoder, both] = files_of_taesd(folder.path());
    let request = Request { init: Some(init(true)), ..request() };
    let check = |vae: PathBuf| request.check(&files(Some(vae.into())).describe().unwrap());
    assert!(check(both).is_ok());
    let message = check(decoder).unwrap_err().to_string();
    assert!(message.contains("--init-image") && message.contains("--vae"), "{message}");
}
