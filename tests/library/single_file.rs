//! Models in one file: keys against diffusers' own converter (tools/fixtures/single_files.py), recognition of
//! full-size files, and what other files are called.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use crate::common::root;
use flate2::read::GzDecoder;
use sdrt::location::Location;
use sdrt::model::config::{AutoencoderConfig, MidBlock, ModelConfig, UNetConfig, UNetInput, VaeConfig};
use sdrt::ops::DType;
use sdrt::pipeline::{Distillation, Family, ModelFiles, Models, Request};
use sdrt::sampler::{NoiseModel, Sampler};
use sdrt::weights::component::Part;
use sdrt::weights::single_file::names::{self, Levels, places};
use sdrt::weights::{Plan, Source};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// Levels of the VAE of all families.
const VAE_LEVELS: usize = 4;

fn family(name: &str) -> Value {
    let path = root().join(format!("tests/fixtures/single_files/{name}.json.gz"));
    let mut text = String::new();
    GzDecoder::new(File::open(&path).expect("a fixture")).read_to_string(&mut text).expect("gzip");
    serde_json::from_str(&text).expect("JSON")
}

fn shape(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect()
}

/// The keys of a family's file and their shapes.
fn original(name: &str) -> BTreeMap<String, Vec<usize>> {
    let family = family(name);
    let keys = family["original"].as_object().unwrap();
    keys.iter().map(|(key, value)| (key.clone(), shape(value))).collect()
}

/// A safetensors file of halves whose numbers are nowhere: a hole of that size.
fn write_hollow(path: &Path, tensors: &BTreeMap<String, Vec<usize>>, metadata: Value) {
    let mut end = 0;
    let mut header = Map::new();
    header.insert("__metadata__".into(), metadata);
    for (key, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(key.clone(), json!({"dtype": "F16", "shape": shape, "data_offsets": [start, end]}));
    }
    let header = Value::from(header).to_string();
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
}

/// A single file in a folder of its own.
struct Hollow(TempDir, String);

impl Hollow {
    fn new(name: &str, tensors: &BTreeMap<String, Vec<usize>>, metadata: Value) -> Self {
        let folder = TempDir::new().unwrap();
        write_hollow(&folder.path().join(name), tensors, metadata);
        Hollow(folder, name.to_string())
    }

    fn location(&self) -> Location {
        Location::from(self.0.path().join(&self.1))
    }

    fn files(&self) -> ModelFiles {
        self.location().into()
    }
}

#[track_caller]
fn assert_refused<T>(result: sdrt::Result<T>, sentence: &str) {
    let message = result.err().expect("refused").to_string();
    assert!(message.contains(sentence), "{message:?} does not say {sentence:?}");
}

#[test]
fn every_key_means_what_the_converter_of_diffusers_says() {
    for name in ["sd15", "sd21", "sdxl", "ssd1b", "vega", "koala700m", "refiner"] {
        let family = family(name);
        let keys = family["original"].as_object().unwrap().keys();
        let levels = Levels::of(keys.map(String::as_str));
        let mut found = BTreeSet::new();
        for key in family["original"].as_object().unwrap().keys() {
            for place in
                places(key, VAE_LEVELS, &levels).unwrap_or_else(|_| panic!("{name}: {key} has no place"))
            {
                // Ours may have transformers' prefix or not, as the files have.
                let ours = place.key.strip_prefix("text_model.").unwrap_or(&place.key);
                let pair = &family["diffusers"][place.component][ours];
                assert_eq!(pair[1], **key, "{name}: {ours}");
                let third = match place.part {
                    Part::Third(third) => json!(third),
                    Part::Whole | Part::Transposed => Value::Null,
                };
                assert_eq!(pair[2], third, "{name}: {key}");
                assert!(found.insert((place.component, ours.to_string())), "{name}: two keys mean {ours}");
            }
        }
        let components = family["diffusers"].as_object().unwrap();
        let wanted: usize = components.values().map(|keys| keys.as_object().unwrap().len()).sum();
        assert_eq!(found.len(), wanted, "{name}");
    }
}

#[test]
fn files_of_all_families_are_recognised_by_their_shapes() {
    let base = ModelConfig::sd21();
    for (name, known, family) in [
        ("sd15", ModelConfig::sd15(), Family::SD1),
        ("sd21", base, Family::SD2),
        ("sdxl", ModelConfig::sdxl(), Family::XL),
    ] {
        let file = Hollow::new("model.safetensors", &original(name), json!({}));
        let (description, checkpoint) = file.files().open().unwrap();
        assert_eq!(description.family, family);
        assert_eq!(description.config, known, "{name}");
        let mut plan = Plan::measure(DType::F16);
        Models::new(&description.config, 0, &mut plan);
        checkpoint.check(&plan.requests).unwrap();
    }
}

#[test]
fn files_of_siblings_are_recognised_by_their_shapes() {
    let ssd = UNetConfig {
        down_depths: vec![vec![], vec![2; 2], vec![4; 2]],
        up_depths: vec![vec![4, 4, 10], vec![2, 1, 1], vec![]],
        mid_block: MidBlock::Resnet,
        ..UNetConfig::sdxl()
    };
    let vega = UNetConfig {
        down_depths: vec![vec![], vec![1; 2], vec![2; 2]],
        up_depths: vec![vec![2; 3], vec![1; 3], vec![]],
        ..ssd.clone()
    };
    let koala = UNetConfig {
        layers_per_block: vec![1; 3],
        down_depths: vec![vec![], vec![2], vec![5]],
        up_depths: vec![vec![5; 2], vec![2; 2], vec![]],
        mid_block: MidBlock::None,
        ..UNetConfig::sdxl()
    };
    for (name, unet, family) in
        [("ssd1b", ssd, "SSD-1B"), ("vega", vega, "Vega"), ("koala700m", koala, "KOALA")]
    {
        let file = Hollow::new("model.safetensors", &original(name), json!({}));
        let (description, checkpoint) = file.files().open().unwrap();
        assert!(description.family.name.contains(family), "{}", description.family);
        assert_eq!(description.config, ModelConfig { unet, ..ModelConfig::sdxl() }, "{name}");
        let mut plan = Plan::measure(DType::F16);
        Models::new(&description.config, 0, &mut plan);
        checkpoint.check(&plan.requests).unwrap();
    }
}

#[test]
fn a_refiner_and_an_instruct_pix2pix_model_are_recognised() {
    let refiner = Hollow::new("sd_xl_refiner_1.0.safetensors", &original("refiner"), json!({}));
    let (description, checkpoint) = refiner.files().open().unwrap();
    assert_eq!(description.config, ModelConfig::sdxl_refiner());
    assert_eq!(description.family.name, "the refiner of Stable Diffusion XL");
    assert!(!description.zeroes_empty_prompt);
    let mut plan = Plan::measure(DType::F16);
    Models::new(&description.config, 0, &mut plan);
    checkpoint.check(&plan.requests).unwrap();

    let mut tensors = original("sd15");
    tensors.insert("model.diffusion_model.input_blocks.0.0.weight".into(), vec![320, 8, 3, 3]);
    let edit = Hollow::new("instruct-pix2pix-00-22000.safetensors", &tensors, json!({}));
    let description = edit.files().describe().unwrap();
    assert_eq!(description.config.unet, UNetConfig { in_channels: 8, ..UNetConfig::sd15() });
    assert_eq!(description.config.unet_input(), UNetInput::Image);
}

/// A single file of XL with tensors of one number each besides, f32.
fn with_numbers(numbers: &[(&str, &[f32])]) -> Hollow {
    let mut end = 0;
    let mut header = Map::new();
    for (key, numbers) in numbers {
        let start = end;
        end += 4 * numbers.len();
        let shape = if numbers.len() == 1 { vec![] } else { vec![1, numbers.len(), 1, 1] };
        header.insert((*key).into(), json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]}));
    }
    let own: Vec<u8> = numbers.iter().flat_map(|(_, n)| n.iter().flat_map(|n| n.to_le_bytes())).collect();
    for (key, shape) in original("sdxl") {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(key, json!({"dtype": "F16", "shape": shape, "data_offsets": [start, end]}));
    }
    let header = Value::from(header).to_string();
    let folder = TempDir::new().unwrap();
    let mut file = File::create(folder.path().join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.write_all(&own).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
    Hollow(folder, "model.safetensors".into())
}

#[test]
fn files_of_edm_models_are_recognised_by_their_tensors() {
    let (mean, std) = ([-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299]);
    let playground = with_numbers(&[("edm_mean", &mean), ("edm_std", &std)]).files().describe().unwrap();
    assert_eq!(playground.scheduler.default_sampler().unwrap(), Sampler::DpmPp2m);
    let NoiseModel::Edm(edm) = playground.scheduler.noise_model().unwrap() else { panic!("not EDM") };
    assert_eq!((edm.sigma_data, edm.sigma_min, edm.sigma_max), (0.5, 0.002, 80.0));
    let AutoencoderConfig::Kl(vae) = playground.config.vae else { panic!("a tiny VAE") };
    let statistics = vae.statistics.unwrap();
    assert_eq!((&statistics.mean[..4], &statistics.deviation[..4]), (&mean[..], &std[..]));
    assert_eq!(vae.scaling_factor, 0.5);

    let ends: [(&str, &[f32]); 2] = [("edm_vpred.sigma_max", &[120.0]), ("edm_vpred.sigma_min", &[0.002])];
    let cosxl = with_numbers(&ends).files().describe().unwrap();
    let NoiseModel::Edm(edm) = cosxl.scheduler.noise_model().unwrap() else { panic!("not EDM") };
    assert_eq!((edm.sigma_data, edm.sigma_min as f32, edm.sigma_max), (1.0, 0.002, 120.0));
    assert_eq!(cosxl.scheduler.prediction_type.as_deref(), Some("v_prediction"));
    assert_eq!(cosxl.config, ModelConfig::sdxl());

    let zeros = with_numbers(&[("edm_mean", &mean), ("edm_std", &[0.0; 4])]);
    assert_refused(zeros.files().describe(), "edm_std: expected numbers above 0");
    let ends: [(&str, &[f32]); 2] = [("edm_vpred.sigma_max", &[0.0]), ("edm_vpred.sigma_min", &[0.002])];
    assert_refused(with_numbers(&ends).files().describe(), "sigma_max");
}

#[test]
fn what_a_file_says_of_itself_decides_what_is_suggested() {
    let describe = |name: &str, file: &str, metadata: Value, keys: &[&str]| {
        let mut tensors = original(name);
        tensors.extend(keys.iter().map(|key| (key.to_string(), vec![])));
        Hollow::new(file, &tensors, metadata).files().describe().unwrap()
    };
    let prediction = |name, file, metadata, keys| {
        let description = describe(name, file, metadata, keys);
        let side = description.config.unet.sample_size;
        (description.scheduler.prediction_type.unwrap(), side)
    };
    let none = json!({});
    assert_eq!(prediction("sd21", "a.safetensors", none.clone(), &[]), ("v_prediction".into(), 96));
    let epsilon = json!({"modelspec.prediction_type": "epsilon"});
    assert_eq!(prediction("sd21", "a.safetensors", epsilon, &[]), ("epsilon".into(), 64));
    let velocity = describe("sdxl", "a.safetensors", none.clone(), &["v_pred", "ztsnr"]).scheduler;
    assert_eq!(velocity.prediction_type.as_deref(), Some("v_prediction"));
    assert_eq!(velocity.rescale_betas_zero_snr, Some(true));

    let suggests = |name, file, metadata| {
        let description = describe(name, file, metadata, &[]);
        let sampler = description.scheduler.default_sampler().unwrap();
        let Request { steps, guidance_scale, width, .. } = Request::defaults(&description, sampler);
        (sampler, steps, guidance_scale, width)
    };
    assert_eq!(suggests("sd15", "v1-5.safetensors", none.clone()), (Sampler::Pndm, 20, 7.5, 512));
    assert_eq!(suggests("sdxl", "sd_xl_base.safetensors", none.clone()), (Sampler::Euler, 30, 5.0, 1024));
    assert_eq!(suggests("sdxl", "sd_xl_turbo_1.0.safetensors", none.clone()), (Sampler::Euler, 4, 1.0, 512));
    assert_eq!(
        suggests("sdxl", "xl_lightning_8step.safetensors", none.clone()),
        (Sampler::Euler, 8, 1.0, 1024)
    );
    assert_eq!(suggests("sd15", "some-LCM.safetensors", none), (Sampler::Lcm, 4, 1.0, 512));
    let titled = json!({"modelspec.title": "Some Turbo"});
    assert_eq!(suggests("sdxl", "model.safetensors", titled), (Sampler::Euler, 4, 1.0, 512));

    let mut distilled = original("sd15");
    distilled.insert("model.diffusion_model.time_embed.cond_proj.weight".into(), vec![320, 256]);
    let description = Hollow::new("a.safetensors", &distilled, json!({})).files().describe().unwrap();
    assert_eq!(description.distillation, Distillation::Consistency);
    assert_eq!(description.config.unet.time_cond_proj_dim, Some(256));
}

#[test]
fn tensors_that_nothing_reads_are_passed_over() {
    let mut tensors = original("sd15");
    for key in [
        "model_ema.diffusion_modelinput_blocks00weight",
        "first_stage_model.loss.discriminator.main.0.weight",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
        "alphas_cumprod",
    ] {
        tensors.insert(key.into(), vec![1, 77]);
    }
    let (description, checkpoint) = Hollow::new("a.safetensors", &tensors, json!({})).files().open().unwrap();
    let mut plan = Plan::measure(DType::F16);
    Models::new(&description.config, 0, &mut plan);
    checkpoint.check(&plan.requests).unwrap();
}

#[test]
fn another_vae_takes_the_place_of_the_models() {
    let file = Hollow::new("a.safetensors", &original("sdxl"), json!({}));
    let prefix = "first_stage_model.";
    let vae = |with_prefix: bool| -> BTreeMap<String, Vec<usize>> {
        let keys = original("sd15").into_iter().filter(|(key, _)| key.starts_with(prefix));
        keys.map(|(key, shape)| (if with_prefix { key } else { key[prefix.len()..].into() }, shape)).collect()
    };
    let of_diffusers: BTreeMap<String, Vec<usize>> = family("sd15")["diffusers"]["vae"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(key, pair)| (key.clone(), shape(&pair[0])))
        .collect();
    for tensors in [vae(true), vae(false), of_diffusers] {
        let other = Hollow::new("vae.safetensors", &tensors, json!({}));
        let files = ModelFiles { vae: Some(other.location()), ..file.files() };
        let (description, checkpoint) = files.open().unwrap();
        assert_eq!(description.config.vae, VaeConfig::sdxl().into(), "all but the shapes is the model's");
        assert_eq!(checkpoint.files().filter(|path| path.name() == "vae.safetensors").count(), 1);
        let mut plan = Plan::measure(DType::F16);
        Models::new(&description.config, 0, &mut plan);
        checkpoint.check(&plan.requests).unwrap();
    }
    let none = Hollow::new("vae.safetensors", &BTreeMap::from([("a".into(), vec![1])]), json!({}));
    let files = ModelFiles { vae: Some(none.location()), ..file.files() };
    assert_refused(files.describe(), "vae.safetensors: no VAE of Stable Diffusion");
    let half = BTreeMap::from([("0.weight".into(), vec![64, 3, 3, 3])]);
    let encoder = Hollow::new("taesd_encoder.safetensors", &half, json!({}));
    let files = ModelFiles { vae: Some(encoder.location()), ..file.files() };
    assert_refused(files.describe(), "the encoder of a tiny VAE alone");
}

#[test]
fn every_key_of_a_controlnet_means_what_the_converter_of_diffusers_says() {
    for name in ["controlnet_sd15", "controlnet_sd21"] {
        let family = family(name);
        let wanted = family["diffusers"]["controlnet"].as_object().unwrap();
        let mut found = BTreeSet::new();
        for key in family["original"].as_object().unwrap().keys() {
            let ours = names::controlnet(key.strip_prefix("control_model.").unwrap()).expect(key);
            assert_eq!(wanted[&ours][1], **key, "{name}: {ours}");
            assert!(found.insert(ours), "{name}: two keys mean {key}");
        }
        assert_eq!(found.len(), wanted.len(), "{name}");
    }
    for key in ["zero_convs.0.1.weight", "zero_convs.x", "input_hint_block.1.weight", "wings.weight"] {
        assert_eq!(names::controlnet(key), None, "{key}");
    }
}

#[test]
fn controlnets_of_all_layouts_are_recognised_by_their_shapes() {
    for (model, name, other) in [("sd15", "controlnet_sd15", "sd21"), ("sd21", "controlnet_sd21", "sdxl")] {
        let of_original = original(name);
        let prefix = "control_model.";
        let bare = of_original.iter().map(|(key, shape)| (key[prefix.len()..].to_string(), shape.clone()));
        let with_a_model = of_original.clone().into_iter().chain(original(model));
        let of_diffusers = family(name)["diffusers"]["controlnet"].as_object().unwrap().clone();
        let of_diffusers = of_diffusers.iter().map(|(key, pair)| (key.clone(), shape(&pair[0])));
        let base = Hollow::new("model.safetensors", &original(model), json!({}));
        let steered = |tensors| {
            let net = Hollow::new("net.safetensors", &tensors, json!({}));
            let files = ModelFiles { controlnets: vec![net.location()], ..base.files() };
            let (description, checkpoint) = files.open().unwrap();
            let unet = &description.config.unet;
            let [controlnet] = &description.config.controlnets[..] else { panic!("one ControlNet") };
            assert_eq!(controlnet.embedding_channels, [16, 32, 96, 256]);
            assert_eq!(controlnet.encoder.block_out_channels, unet.block_out_channels);
            assert_eq!(controlnet.encoder.down_blocks, unet.down_blocks);
            assert_eq!(controlnet.encoder.heads, unet.heads);
            let mut plan = Plan::measure(DType::F16);
            Models::new(&description.config, 0, &mut plan);
            checkpoint.check(&plan.requests).unwrap();
        };
        steered(of_original.clone());
        steered(bare.collect());
        steered(with_a_model.collect());
        steered(of_diffusers.collect());

        let net = Hollow::new("net.safetensors", &of_original, json!({}));
        let other = Hollow::new("model.safetensors", &original(other), json!({}));
        let files = ModelFiles { controlnets: vec![net.location()], ..other.files() };
        assert_refused(files.describe(), "net.safetensors: cross_attention_dim is");
    }
}

#[test]
fn files_that_are_no_controlnets_are_called_what_they_are() {
    let base = Hollow::new("model.safetensors", &original("sd15"), json!({}));
    let describe = |keys: &[&str]| {
        let tensors = keys.iter().map(|key| (key.to_string(), vec![8, 8])).collect();
        let net = Hollow::new("net.safetensors", &tensors, json!({}));
        ModelFiles { controlnets: vec![net.location()], ..base.files() }.describe()
    };
    for (key, sentence) in [
        ("lora_controlnet", "a Control-LoRA"),
        ("lllite_unet_input_blocks_4_1_proj.down.0.weight", "a ControlNet-LLLite"),
        ("adapter.body.0.in_conv.weight", "a T2I-Adapter"),
        ("task_embedding", "a ControlNet of several tasks (union)"),
        ("model.diffusion_model.out.2.bias", "no ControlNet; expected keys such as"),
        ("controlnet_cond_embedding.conv_in.weight", "not the shapes of a ControlNet"),
    ] {
        assert_refused(describe(&[key]), sentence);
    }
    let hint = "input_hint_block.0.weight";
    assert_refused(describe(&[hint, "wings.weight"]), "wings.weight: unexpected; no ControlNet");
    assert_refused(describe(&[hint]), "not the shapes of a ControlNet");
}

/// The length of this header, in the first bytes, is how a pickle begins.
#[test]
fn a_header_whose_length_begins_like_a_pickle_is_one_nevertheless() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.safetensors");
    let start = r#"{"text_model.w":{"dtype":"F16","shape":[0],"data_offsets":[0,0]}}"#;
    let header = format!("{start:<640}");
    let length = (header.len() as u64).to_le_bytes();
    assert_eq!(length[..2], [0x80, 0x02]);
    std::fs::write(&path, [&length, header.as_bytes()].concat()).unwrap();
    assert_refused(ModelFiles::from(Location::from(path)).describe(), "a text encoder alone");
}

#[test]
fn other_files_are_called_what_they_are() {
    let describe = |name: &str, keys: &[&str]| {
        let tensors = keys.iter().map(|key| (key.to_string(), vec![8, 8])).collect();
        Hollow::new(name, &tensors, json!({})).files().describe()
    };
    for (key, sentence) in [
        ("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight", "a LoRA, which changes a model"),
        ("unet.mid_block.attentions.0.proj_in.lora_A.weight", "a LoRA, which changes a model"),
        ("control_model.input_blocks.0.0.weight", "a ControlNet, which steers a model"),
        ("emb_params", "a textual inversion"),
        ("double_blocks.0.img_attn.qkv.weight", "Flux or Stable Diffusion 3"),
        ("down_blocks.0.resnets.0.conv1.weight", "one component of a model in the layout of diffusers"),
        ("decoder.conv_in.weight", "a VAE alone; name the model with --model, and this file with --vae"),
        ("decoder.layers.0.weight", "a VAE alone; name the model with --model, and this file with --vae"),
        ("text_model.final_layer_norm.weight", "a text encoder alone"),
        ("fc.weight", "has no U-Net of Stable Diffusion"),
    ] {
        assert_refused(describe("a.safetensors", &[key]), sentence);
    }
    let unet = "model.diffusion_model.input_blocks.0.0.weight";
    assert_refused(describe("a.safetensors", &[unet]), "has no text encoder");
    assert_refused(
        describe("a.safetensors", &["model.diffusion_model.wings.weight", unet]),
        "wings.weight: unexpected",
    );

    let mut tensors = original("sd15");
    tensors.remove("model.diffusion_model.out.2.bias");
    let (description, checkpoint) = Hollow::new("a.safetensors", &tensors, json!({})).files().open().unwrap();
    let mut plan = Plan::measure(DType::F16);
    Models::new(&description.config, 0, &mut plan);
    assert_refused(checkpoint.check(&plan.requests), "conv_out.bias: missing; its other tensors describe");

    let folder = TempDir::new().unwrap();
    for (name, bytes, sentence) in [
        ("a.ckpt", &b"PK\x03\x04rest"[..], "a pickle, which can run any program"),
        ("a.safetensors", b"PK\x03\x04rest", "a pickle, which can run any program"),
        ("a.pt", b"anything", "a pickle, which can run any program"),
        ("a.safetensors", b"x", "too few for a safetensors file"),
        ("a.txt", b"some text", "not a model; a model is a .safetensors file, or a folder"),
    ] {
        std::fs::write(folder.path().join(name), bytes).unwrap();
        let files = ModelFiles::from(Location::from(folder.path().join(name)));
        assert_refused(files.describe(), sentence);
    }
}
