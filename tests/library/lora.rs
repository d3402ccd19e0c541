//! LoRAs: pictures against diffusers' (tools/fixtures/lora.py), names of full-size models, what is undone, and
//! what is refused.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use crate::common::pictures::{equals_diffusers_with, paint, request_of};
use crate::common::{copy_folder, decode, encode, fixture, load_pipeline, root};
use flate2::read::GzDecoder;
use safetensors::tensor::{TensorView, serialize};
use safetensors::{Dtype, SafeTensors};
use sdrt::location::Location;
use sdrt::model::config::ModelConfig;
use sdrt::ops::DType;
use sdrt::ops::cpu::Cpu;
use sdrt::pipeline::{LoraUse, Models, Pipeline};
use sdrt::weights::lora::{Names, Place};
use sdrt::weights::{Lora, Plan, Request};
use serde_json::Value;
use tempfile::TempDir;

fn pipeline(model: &str) -> Pipeline {
    load_pipeline(&format!("tests/fixtures/families/{model}"), Cpu::new())
}

fn open(name: &str) -> Arc<Lora> {
    let path = root().join(format!("tests/fixtures/lora/files/{name}.safetensors"));
    Arc::new(Lora::open(&Location::from(path)).unwrap())
}

fn painted_as_by_diffusers(model: &str) {
    equals_diffusers_with(&mut pipeline(model), "lora", model, |pipeline, case| {
        let loras = case.scalars["loras"].as_array().unwrap();
        let uses: Vec<LoraUse> = loras
            .iter()
            .map(|lora| LoraUse::new(open(lora[0].as_str().unwrap()), lora[1].as_f64().unwrap() as f32))
            .collect();
        assert_eq!(pipeline.set_loras(&uses).unwrap(), [""; 0], "{}", case.name);
    });
}

#[test]
fn pictures_of_stable_diffusion_2_equal_those_of_diffusers() {
    painted_as_by_diffusers("sd2");
}

#[test]
fn pictures_of_xl_equal_those_of_diffusers() {
    painted_as_by_diffusers("sdxl");
}

#[test]
fn a_set_is_undone_bit_for_bit_and_nothing_is_recorded_anew() {
    let mut pipeline = pipeline("sd2");
    let request = request_of(&fixture("lora", "sd2")[0]);
    let mut picture = |loras: &[LoraUse]| {
        pipeline.set_loras(loras).unwrap();
        let rgb = paint(&mut pipeline, &request).pictures.remove(0).rgb;
        (rgb, pipeline.backend().recorded())
    };
    let [kohya, dora] = ["sd2-kohya", "sd2-dora"].map(open);
    let (plain, recorded) = picture(&[]);
    let one = LoraUse::new(kohya.clone(), 0.7);
    let both = [one.clone(), LoraUse { text_encoder: 0.0, ..LoraUse::new(dora, 0.5) }];
    let with_both = picture(&both);
    assert_ne!(with_both.0, plain);
    let with_one = picture(std::slice::from_ref(&one));
    assert_ne!(with_one.0, with_both.0);
    assert_eq!(picture(&[]), (plain.clone(), recorded));
    let reversed = [both[1].clone(), both[0].clone()];
    assert_eq!(picture(&reversed), with_both, "the order does not count");
    assert_eq!(picture(&[one]), with_one);
    assert_eq!(picture(&[LoraUse::new(kohya, 0.0)]), (plain, recorded));
}

#[test]
fn changed_weights_are_packed_as_those_of_a_checkpoint() {
    let modules =
        ["up_blocks.0.upsamplers.0.conv", "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"];
    let folder = TempDir::new().unwrap();
    copy_folder(&root().join("tests/fixtures/families/sd2"), folder.path());
    let file = folder.path().join("unet/diffusion_pytorch_model.safetensors");
    let stored = fs::read(&file).unwrap();
    let tensors = SafeTensors::deserialize(&stored).unwrap();
    let weights = modules.map(|module| tensors.tensor(&format!("{module}.weight")).unwrap());

    // Adding a weight to itself doubles it, exactly.
    let keys = modules.map(|module| format!("lora_unet_{}.diff", module.replace('.', "_")));
    let path = folder.path().join("twice.safetensors");
    fs::write(&path, serialize(keys.iter().zip(&weights), None).unwrap()).unwrap();
    let twice = |view: &TensorView| {
        let doubled: Vec<f32> = decode(view.data(), DType::F16).iter().map(|x| 2.0 * x).collect();
        encode(&doubled, DType::F16)
    };
    let mut doubled = stored.clone();
    for weight in &weights {
        let start = weight.data().as_ptr().addr() - stored.as_ptr().addr();
        doubled[start..start + weight.data().len()].copy_from_slice(&twice(weight));
    }
    fs::write(&file, doubled).unwrap();

    let request = request_of(&fixture("lora", "sd2")[0]);
    let picture = |mut pipeline: Pipeline, loras: &[LoraUse]| {
        pipeline.set_loras(loras).unwrap();
        paint(&mut pipeline, &request).pictures.remove(0).rgb
    };
    let lora = Arc::new(Lora::open(&Location::from(path)).unwrap());
    let with_lora = picture(pipeline("sd2"), &[LoraUse::new(lora, 1.0)]);
    assert_ne!(with_lora, picture(pipeline("sd2"), &[]));
    assert_eq!(with_lora, picture(load_pipeline(folder.path().to_str().unwrap(), Cpu::new()), &[]));
}

/// The tensors that a full-size model wants, and the original keys of its tensors: by component and key.
fn full_size(name: &str, config: &ModelConfig) -> (Vec<Request>, Value) {
    let mut plan = Plan::measure(DType::F16);
    Models::new(config, 0, &mut plan);
    let path = root().join(format!("tests/fixtures/single_files/{name}.json.gz"));
    let mut text = String::new();
    GzDecoder::new(fs::File::open(&path).unwrap()).read_to_string(&mut text).unwrap();
    let mut family: Value = serde_json::from_str(&text).unwrap();
    (plan.requests, family["diffusers"].take())
}

#[test]
fn every_module_is_found_by_all_its_names() {
    for (name, config) in
        [("sd15", ModelConfig::sd15()), ("sd21", ModelConfig::sd21()), ("sdxl", ModelConfig::sdxl())]
    {
        let (requests, keys) = full_size(name, &config);
        let names = Names::new(&requests);
        let mut found = 0;
        for component in ["unet", "text_encoder", "text_encoder_2"] {
            for (key, pair) in keys[component].as_object().into_iter().flatten() {
                let Some(module) = key.strip_suffix(".weight").filter(|key| !key.contains("embeddings."))
                else {
                    continue;
                };
                let underscores = |path: &str| path.replace('.', "_");
                let mut all = vec![format!("{component}.{module}")];
                if component == "unet" {
                    let original = pair[1].as_str().unwrap().strip_prefix("model.diffusion_model.").unwrap();
                    let original = original.strip_suffix(".weight").unwrap();
                    all.extend([
                        module.to_string(),
                        format!("lora_unet_{}", underscores(module)),
                        format!("lora_unet_{}", underscores(original)),
                        format!("diffusion_model.{original}"),
                    ]);
                } else {
                    let kohya = match (name, component) {
                        ("sdxl", "text_encoder") => "lora_te1",
                        (_, "text_encoder") => "lora_te",
                        _ => "lora_te2",
                    };
                    let prefix = if module == "text_projection" { "" } else { "text_model." };
                    all.push(format!("{kohya}_{}", underscores(&format!("{prefix}{module}"))));
                    all.push(format!("{component}.{prefix}{module}"));
                }
                for spelling in all {
                    let target = names.find(&spelling).unwrap_or_else(|| panic!("{name}: {spelling}"));
                    let Place { request, key: index } = target.weight.expect("a weight");
                    let request = &requests[request];
                    let ours = request.keys[index].trim_start_matches("text_model.");
                    assert_eq!((request.component, ours), (component, key.as_str()), "{name}: {spelling}");
                }
                found += 1;
            }
        }
        let wanted = requests.iter().filter(|request| request.component != "vae");
        let wanted = wanted.flat_map(|request| &request.keys);
        let wanted = wanted.filter(|key| key.ends_with(".weight") && !key.contains("embeddings.")).count();
        assert_eq!(found, wanted, "{name}");
    }
}

/// Writes zeros of these shapes.
fn write(path: &Path, tensors: &[(&str, &[usize])], metadata: &[(&str, &str)]) -> Location {
    let zeros = vec![0; 4 << 16];
    let view = |shape: &[usize]| {
        let bytes = &zeros[..4 * shape.iter().product::<usize>()];
        TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()
    };
    let views = tensors.iter().map(|(key, shape)| (key.to_string(), view(shape)));
    let metadata = metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    fs::write(path, serialize(views, Some(metadata)).unwrap()).unwrap();
    Location::from(path)
}

const TO_Q: &str = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";

#[test]
fn keys_that_mean_nothing_are_named() {
    let folder = TempDir::new().unwrap();
    let [up, down] = ["up", "down"].map(|part| format!("{TO_Q}.lora_{part}.weight"));
    let wings = ["lora_unet_wings.alpha", "lora_unet_wings.diff", "wings", "lora_unet_conv_in.oft_blocks"];
    let mut tensors: Vec<(&str, &[usize])> = wings.map(|key| (key, &[1usize][..])).to_vec();
    tensors.extend([(up.as_str(), &[16usize, 2][..]), (&down, &[2, 16])]);
    let location = write(&folder.path().join("some.safetensors"), &tensors, &[]);
    let lora = LoraUse::new(Arc::new(Lora::open(&location).unwrap()), 1.0);
    let warnings = pipeline("sd2").set_loras(&[lora]).unwrap();
    let sentence = "some.safetensors: ignored keys not present in this model: \
                    lora_unet_conv_in.oft_blocks, wings, lora_unet_wings.alpha and 1 more";
    assert!(warnings.len() == 1 && warnings[0].ends_with(sentence), "{warnings:?}");
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.safetensors");
    let mut pipeline = pipeline("sd2");
    let request = request_of(&fixture("lora", "sd2")[0]);
    let mut refused = |tensors: &[(&str, &[usize])], metadata: &[(&str, &str)], sentence: &str| {
        // Each in a file of its own: one that is open must not be written over.
        let _ = fs::remove_file(&path);
        let lora = Lora::open(&write(&path, tensors, metadata));
        let kohya = LoraUse::new(open("sd2-kohya"), 1.0);
        let set = lora.and_then(|lora| pipeline.set_loras(&[kohya, LoraUse::new(Arc::new(lora), 1.0)]));
        let message = set.expect_err("refused").to_string();
        assert!(message.contains(sentence), "{message:?} does not say {sentence:?}");
    };
    let key = |end: &str| format!("{TO_Q}.{end}");
    let [up, down, mid] = ["lora_up.weight", "lora_down.weight", "lora_mid.weight"].map(key);
    let [alpha, scale, hada, lokr] = ["alpha", "dora_scale", "hada_w1_a", "lokr_w1"].map(key);
    let [hada_b, other] = ["hada_w1_b", "lora.up.weight"].map(key);
    let (up, down, fits, fits_down) = (up.as_str(), down.as_str(), &[16usize, 2][..], &[2usize, 16][..]);

    refused(&[(up, &[320, 2]), (down, &[2, 320])], &[], "a weight of 320 rows and 320 columns; this model, ");
    refused(&[(up, &[320, 2]), (down, &[2, 320])], &[], "has [16, 16] there; it was made for another model");
    refused(
        &[(up, fits), (down, &[3, 16])],
        &[],
        "its shape [16, 2] and that of the other factor, [3, 16], have",
    );
    refused(&[(up, fits), (down, fits_down), (&mid, &[2, 2])], &[], "expected [r, r, kh, kw]");
    refused(&[(up, &[16, 0]), (down, &[0, 16])], &[], "have no product");
    refused(&[(up, fits)], &[], "stands alone");
    refused(
        &[(up, fits), (down, fits_down), (&alpha, &[2])],
        &[],
        "alpha: F32 of shape [2]; expected one number",
    );
    refused(&[(up, fits), (down, fits_down), (&scale, &[7])], &[], "its shape is [7]; expected 16 numbers");
    refused(&[(up, fits), (&other, fits), (down, fits_down)], &[], "means the same as");
    refused(&[(&hada, fits), (&hada_b, fits_down)], &[], "expected a second product");
    refused(&[(&lokr, fits)], &[], "stands alone; expected lokr_w1 and lokr_w2");
    let metadata = [("lora_adapter_metadata", "[1")];
    refused(
        &[(up, fits), (down, fits_down)],
        &metadata,
        "lora_adapter_metadata in its header: expected a JSON",
    );
    let xl = "lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_k";
    let [xl_up, xl_down] = ["up", "down"].map(|part| format!("{xl}.lora_{part}.weight"));
    let sentence =
        "nothing of it is in this model, Stable Diffusion 1.x; it was made for Stable Diffusion XL";
    refused(&[(&xl_up, &[8, 2]), (&xl_down, &[2, 2048])], &[], sentence);
    let flux = [("lora_unet_double_blocks_0_img_attn_qkv.alpha", &[1usize][..])];
    refused(&flux, &[], "it was made for Flux, with keys such as lora_unet_double_blocks_0");
    refused(&[("model.diffusion_model.out.2.bias", &[4])], &[], "a model, not a LoRA; name it with --model");
    refused(&[("emb_params", &[1, 4])], &[], "a textual inversion, not a LoRA; name it with --embedding");
    refused(&[("a.weight", &[1])], &[], "no LoRA of a known kind: expected keys such as");

    let painted = paint(&mut pipeline, &request).pictures.remove(0).rgb;
    pipeline.set_loras(&[]).unwrap();
    assert_eq!(painted, paint(&mut pipeline, &request).pictures.remove(0).rgb);

    for (name, bytes, sentence) in [
        ("a.pt", &b"anything"[..], "a pickle, which can run any program"),
        ("b.safetensors", b"PK\x03\x04rest", "torch.load(FILE, weights_only=True), \"new.safetensors\")"),
        ("c.safetensors", b"x", "too few for a safetensors file"),
    ] {
        fs::write(folder.path().join(name), bytes).unwrap();
        let error = Lora::open(&Location::from(folder.path().join(name))).err().unwrap().to_string();
        assert!(error.contains(sentence), "{error}");
    }
}

#[test]
fn the_alpha_of_peft_is_read_beside_the_file() {
    let folder = TempDir::new().unwrap();
    let module = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
    let key = |part: &str| format!("base_model.model.{module}.lora_{part}.weight");
    let (a, b): (Vec<f32>, Vec<f32>) = ((0..32).map(|i| i as f32 / 32.0).collect(), vec![0.1; 32]);
    let a = TensorView::new(Dtype::F32, vec![2, 16], bytemuck::cast_slice(&a)).unwrap();
    let b = TensorView::new(Dtype::F32, vec![16, 2], bytemuck::cast_slice(&b)).unwrap();
    let file = folder.path().join("adapter_model.safetensors");
    fs::write(&file, serialize([(key("A"), &a), (key("B"), &b)], None).unwrap()).unwrap();
    let mut pipeline = pipeline("sd2");
    let request = request_of(&fixture("lora", "sd2")[0]);
    let mut picture = |config: &str, weight: f32| {
        fs::write(folder.path().join("adapter_config.json"), config).unwrap();
        let lora = Arc::new(Lora::open(&Location::from(file.as_path())).unwrap());
        assert_eq!(pipeline.set_loras(&[LoraUse::new(lora, weight)]).unwrap(), [""; 0]);
        paint(&mut pipeline, &request).pictures.remove(0).rgb
    };
    // The rank is 2, and alpha the rank where nothing is said.
    let four = picture("{}", 4.0);
    assert_eq!(picture(r#"{"lora_alpha": 8}"#, 1.0), four);
    assert_eq!(picture(r#"{"lora_alpha": 1, "alpha_pattern": {"attn1.to_q": 8}}"#, 1.0), four);
    assert_ne!(picture(r#"{"lora_alpha": 8, "use_rslora": true}"#, 1.0), four);
    assert_ne!(picture("{}", 1.0), four);
}
