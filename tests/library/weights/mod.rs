//! Checkpoints on disk: what loads, how it is arranged, and what is said about what does not load.

mod packed;

use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use sdrt::Error;
use sdrt::location::Location;
use sdrt::ops::DType;
use sdrt::weights::{Checkpoint, ModelFolder, Plan, Request, Source};
use tempfile::TempDir;

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";
const TEXT: &str = "text_encoder/model.safetensors";

/// A model folder with one small tensor in each component.
struct Model(TempDir);

impl Model {
    fn new() -> Self {
        let model = Model(TempDir::new().unwrap());
        model.write("model_index.json", br#"{"_class_name": "StableDiffusionPipeline"}"#);
        for config in [
            "unet/config.json",
            "vae/config.json",
            "text_encoder/config.json",
            "scheduler/scheduler_config.json",
        ] {
            model.write(config, b"{}");
        }
        for file in [UNET, VAE, TEXT] {
            model.write(file, &safetensors(&[("w", "F32", &[2, 3], &f32s(6))]));
        }
        model
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        let path = self.path(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn remove(&self, file: &str) {
        fs::remove_file(self.path(file)).unwrap();
    }

    fn open(&self) -> sdrt::Result<Checkpoint> {
        Checkpoint::open(&ModelFolder::open(&self.0.path().into())?)
    }
}

type Entry<'a> = (&'a str, &'a str, &'a [usize], &'a [u8]);

fn safetensors(entries: &[Entry]) -> Vec<u8> {
    let mut offset = 0;
    let infos = entries.iter().map(|(key, dtype, shape, data)| {
        let start = offset;
        offset += data.len();
        format!(r#""{key}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{offset}]}}"#)
    });
    let header = format!("{{{}}}", infos.collect::<Vec<_>>().join(","));
    with_header(&header, &entries.iter().flat_map(|entry| entry.3).copied().collect::<Vec<_>>())
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Whole numbers that all three dtypes hold exactly.
fn value(i: usize) -> f32 {
    (i * 37 % 251) as f32 - 125.0
}

fn f32s(count: usize) -> Vec<u8> {
    bytes_of(DType::F32, (0..count).map(value))
}

fn bytes_of(dtype: DType, values: impl Iterator<Item = f32>) -> Vec<u8> {
    values
        .flat_map(|x| match dtype {
            DType::F32 => x.to_le_bytes().to_vec(),
            DType::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
            DType::BF16 => bf16::from_f32(x).to_le_bytes().to_vec(),
            _ => unreachable!(),
        })
        .collect()
}

fn requests(dtype: DType, body: impl FnOnce(&mut Plan)) -> Vec<Request> {
    let mut plan = Plan::measure(dtype);
    body(&mut plan);
    plan.requests
}

/// The whole packed tensor, filled `chunk` rows at a time.
fn fill(source: &dyn Source, request: &Request, chunk: usize) -> Vec<u8> {
    let tensor = request.tensor;
    let row = tensor.c() * tensor.dtype.size();
    // Backed by u32, as the contract asks for aligned memory.
    let mut memory = vec![0xffff_ffff_u32; tensor.bytes().div_ceil(4)];
    let out = &mut bytemuck::cast_slice_mut(&mut memory)[..tensor.bytes()];
    for (i, part) in out.chunks_mut(row * chunk).enumerate() {
        let rows = i * chunk..i * chunk + part.len() / row;
        source.fill(request, rows, part);
    }
    out.to_vec()
}

/// Asserts that `result` failed with a sentence that names `path` and has `parts` in it.
#[track_caller]
fn assert_refused<T>(result: sdrt::Result<T>, path: &Path, parts: &[&str]) {
    let error = result.err().expect("refused");
    let (Error::File { path: named, .. } | Error::Tensor { path: named, .. }) = &error else {
        panic!("{error:?} names no file")
    };
    assert_eq!(named, path, "{error}");
    let sentence = error.to_string();
    for part in parts {
        assert!(sentence.contains(part), "{sentence:?} does not say {part:?}");
    }
}

#[test]
fn old_and_new_spellings_are_the_same_tensor() {
    let old = ["query", "key", "value", "proj_attn"];
    let new = ["to_q", "to_k", "to_v", "to_out.0"];
    let spelled = |names: [&str; 4]| names.map(|name| format!("mid_block.attentions.0.{name}.weight"));
    for (in_file, shape, asked) in [
        (spelled(old), &[2, 3][..], spelled(new)),
        (spelled(old), &[2, 3, 1, 1], spelled(new)),
        (spelled(new), &[2, 3], spelled(old)),
    ] {
        let model = Model::new();
        let data = f32s(6);
        let entries: Vec<Entry> = in_file.iter().map(|key| (key.as_str(), "F32", shape, &data[..])).collect();
        model.write(VAE, &safetensors(&entries));
        let requests = requests(DType::F32, |plan| {
            plan.component("vae", |plan| {
                for key in &asked {
                    plan.matrix(key, 2, 3);
                }
            });
        });
        let checkpoint = model.open().unwrap();
        checkpoint.check(&requests).unwrap();
        assert_eq!(fill(&checkpoint, &requests[3], 1), data);
    }

    let model = Model::new();
    let data = f32s(6);
    for prefix in ["", "text_model."] {
        let key = format!("{prefix}final_layer_norm.weight");
        let ids = format!("{prefix}embeddings.position_ids");
        model.write(TEXT, &safetensors(&[(&key, "F32", &[6], &data), (&ids, "I64", &[1, 2], &[0; 16])]));
        for asked in ["final_layer_norm.weight", "text_model.final_layer_norm.weight"] {
            let requests = requests(DType::F32, |plan| {
                plan.component("text_encoder", |plan| plan.vector(asked, 6));
            });
            model.open().unwrap().check(&requests).unwrap();
        }
    }
}

#[test]
fn linear_layers_load_as_convs_and_back() {
    let model = Model::new();
    let data = f32s(32);
    model.write(UNET, &safetensors(&[("a", "F32", &[4, 8], &data), ("b", "F32", &[4, 8, 1, 1], &data)]));
    let requests = requests(DType::F32, |plan| {
        plan.component("unet", |plan| {
            plan.conv("a", 4, 8, 1);
            plan.matrix("b", 4, 8);
        });
    });
    let checkpoint = model.open().unwrap();
    checkpoint.check(&requests).unwrap();
    for request in &requests {
        assert_eq!(fill(&checkpoint, request, 3), data);
    }
}

fn unet_request() -> Vec<Request> {
    requests(DType::F32, |plan| {
        plan.component("unet", |plan| plan.matrix("w", 2, 3));
    })
}

#[test]
fn variants_and_shards_load() {
    let model = Model::new();
    let fp16 = "unet/diffusion_pytorch_model.fp16.safetensors";
    let halves = bytes_of(DType::F16, (0..6).map(|_| 1.0));
    model.write(fp16, &safetensors(&[("w", "F16", &[2, 3], &halves)]));
    assert_eq!(fill(&model.open().unwrap(), &unet_request()[0], 2), f32s(6), "the plain name comes first");
    model.remove(UNET);
    assert_eq!(
        fill(&model.open().unwrap(), &unet_request()[0], 2),
        bytes_of(DType::F32, [1.0; 6].into_iter())
    );
    model.remove(fp16);

    let index = "unet/diffusion_pytorch_model.safetensors.index.json";
    model.write(index, br#"{"metadata": {}, "weight_map": {"w": "2.safetensors", "x": "1.safetensors"}}"#);
    model.write("unet/1.safetensors", &safetensors(&[("x", "F32", &[1], &f32s(1))]));
    model.write("unet/2.safetensors", &safetensors(&[("w", "F32", &[2, 3], &f32s(6))]));
    let checkpoint = model.open().unwrap();
    assert_eq!(fill(&checkpoint, &unet_request()[0], 2), f32s(6));
    assert_eq!(checkpoint.files().count(), 4);

    model.write("unet/2.safetensors", &safetensors(&[("y", "F32", &[2, 3], &f32s(6))]));
    assert_refused(model.open(), &model.path(index), &["w: is not in \"2.safetensors\""]);
    model.write("unet/2.safetensors", &safetensors(&[("x", "F32", &[1], &f32s(1))]));
    assert_refused(model.open(), &model.path("unet/2.safetensors"), &["x: means the same tensor as x"]);
    model.remove("unet/2.safetensors");
    assert_refused(model.open(), &model.path("unet/2.safetensors"), &["missing", "index.json names it"]);
    for map in
        [r#"{"w": "../unet/1.safetensors"}"#, r#"{"w": "/etc/passwd"}"#, r#"{"w": 1}"#, r#"{"w": ".."}"#]
    {
        model.write(index, format!(r#"{{"weight_map": {map}}}"#).as_bytes());
        assert_refused(model.open(), &model.path(index), &["w: weight_map gives", "expected a file name"]);
    }
    model.write(index, b"{}");
    assert_refused(model.open(), &model.path(index), &["weight_map is null", "expected an object"]);
}

#[test]
fn a_checkpoint_must_be_the_model_that_is_configured() {
    let model = Model::new();
    let refused = |entries: &[Entry], parts: &[&str]| {
        model.write(UNET, &safetensors(entries));
        assert_refused(model.open().unwrap().check(&unet_request()), &model.path(UNET), parts);
    };
    let data = f32s(6);
    let w: Entry = ("w", "F32", &[2, 3], &data);
    refused(&[("v", "F32", &[2, 3], &data)], &["w: missing", "unet/config.json"]);
    refused(&[("w", "F32", &[3, 2], &data)], &["w: its shape is [3, 2]; expected [2, 3]"]);
    refused(&[("w", "F32", &[2, 3, 1], &data)], &["w: its shape is [2, 3, 1]; expected [2, 3]"]);
    refused(&[("w", "I64", &[2, 3], &[0; 48])], &["w: its dtype is I64; expected F32, F16 or BF16"]);
    refused(&[w, ("x", "F32", &[6], &data)], &["x: unexpected; unet/config.json"]);
    refused(&[w, ("z", "U8", &[1], &[0]), ("y", "U8", &[1], &[0])], &["y: unexpected (and 1 more)"]);
    model.write(UNET, &safetensors(&[w]));
    model.open().unwrap().check(&unet_request()).unwrap();
}

#[test]
fn malformed_files_are_refused_in_a_sentence() {
    let model = Model::new();
    let refused = |bytes: &[u8], parts: &[&str]| {
        model.write(UNET, bytes);
        assert_refused(model.open(), &model.path(UNET), parts);
    };
    let good = safetensors(&[("w", "F32", &[2, 3], &f32s(6))]);
    refused(&[], &["the file is empty"]);
    refused(&[1, 2, 3], &["3 bytes are too few"]);
    refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", &["git lfs pull"]);
    refused(&u64::MAX.to_le_bytes(), &["its header would be 18446744073709551615 bytes long", "has 8"]);
    refused(&good[..20], &["its header would be", "cut short"]);
    refused(&good[..good.len() - 1], &["tells of 24 bytes", "there are 23", "cut short"]);
    refused(&[&good[..], &[0]].concat(), &["tells of 24 bytes", "there are 25", "something was added"]);
    refused(&with_header("{\"w\": ", &[]), &["its header is malformed"]);
    refused(&with_header("[]", &[]), &["its header is malformed"]);
    refused(&[&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat(), &["its header is malformed"]);
    let entry = |shape: &str, start: u64, end: u64| {
        format!(r#"{{"dtype":"U8","shape":[{shape}],"data_offsets":[{start},{end}]}}"#)
    };
    let header = |a: String, b: String| with_header(&format!(r#"{{"a":{a},"b":{b}}}"#), &[0; 16]);
    refused(&header(entry("8", 0, 8), entry("12", 4, 16)), &["malformed", "invalid offset", "b"]);
    refused(&header(entry("8", 0, 8), entry("4", 12, 16)), &["malformed", "invalid offset"]);
    refused(&header(entry("8", 8, 0), entry("8", 8, 16)), &["malformed"]);
    refused(&header(entry("9", 0, 8), entry("8", 8, 16)), &["malformed"]);
    let huge = format!("{0},{0}", u64::MAX);
    refused(&header(entry(&huge, 0, 8), entry("8", 8, 16)), &["malformed"]);
    let huge = u64::MAX - 7;
    refused(&header(entry("8", 0, 8), entry(&huge.to_string(), 8, u64::MAX)), &["malformed"]);
    refused(&header(entry(&(u64::MAX - 8).to_string(), 0, u64::MAX - 8), entry("0", 1, 1)), &["malformed"]);
    let most = u64::MAX / 8;
    let one = with_header(&format!(r#"{{"a":{}}}"#, entry(&most.to_string(), 0, most)), &[0; 4]);
    refused(&one, &["tells of 2305843009213693951 bytes of tensors, there are 4", "cut short"]);
    let both = [("text_model.a", "U8", &[1][..], &[0u8][..]), ("a", "U8", &[1], &[0])];
    model.write(UNET, &good);
    model.write(TEXT, &safetensors(&both));
    assert_refused(model.open(), &model.path(TEXT), &["a: means the same tensor as", "text_model.a"]);
}

#[test]
fn no_mutated_header_panics() {
    let model = Model::new();
    let good = safetensors(&[("w", "F32", &[2, 3], &f32s(6)), ("b", "F16", &[3], &[0; 6])]);
    let mut state = 1u32;
    let mut random = |below: usize| {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as usize % below
    };
    for _ in 0..1000 {
        let mut bytes = good.clone();
        for _ in 0..1 + random(3) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] = random(256) as u8,
                1 => bytes[at] = b"0123456789{}[],:\""[random(17)],
                2 => drop(bytes.remove(at)),
                _ => bytes.insert(at, b"0123456789{}[],:\""[random(17)]),
            }
        }
        model.write(UNET, &bytes);
        if let Ok(checkpoint) = model.open()
            && checkpoint.check(&unet_request()).is_ok()
        {
            fill(&checkpoint, &unet_request()[0], 1);
        }
    }
}

#[test]
fn wrong_folders_are_refused_in_a_sentence() {
    let open = |model: &Model| ModelFolder::open(&model.0.path().into());
    let model = Model::new();
    assert_eq!(open(&model).unwrap().class_name, "StableDiffusionPipeline");
    assert_eq!(open(&model).unwrap().text_encoders, ["text_encoder"]);
    assert!(open(&model).unwrap().tokenizer("tokenizer").is_none());
    model.write("tokenizer/vocab.json", b"{}");
    let path = |location: &Location| PathBuf::from(location);
    assert_eq!(
        open(&model).unwrap().tokenizer("tokenizer").as_ref().map(path),
        Some(model.path("tokenizer"))
    );
    assert_eq!(
        path(&open(&model).unwrap().scheduler_config()),
        model.path("scheduler/scheduler_config.json")
    );

    let index = model.path("model_index.json");
    for (class, parts) in [
        ("\"FluxPipeline\"", ["_class_name is \"FluxPipeline\"", "StableDiffusionPipeline"]),
        ("null", ["_class_name is null", "StableDiffusionPipeline"]),
        ("7", ["_class_name is 7", "expected a string"]),
    ] {
        model.write("model_index.json", format!("{{\"_class_name\": {class}}}").as_bytes());
        assert_refused(open(&model), &index, &parts);
    }
    model.write("model_index.json", br#"{"_class_name": "StableDiffusionXLPipeline"}"#);
    assert_refused(open(&model), model.0.path(), &["text_encoder_2/config.json is missing"]);
    model.write("model_index.json", b"not json");
    assert_refused(open(&model), &index, &["not valid JSON"]);

    let model = Model::new();
    model.remove("vae/config.json");
    assert_refused(open(&model), model.0.path(), &["vae/config.json is missing"]);

    let model = Model::new();
    model.remove(UNET);
    let unet = model.path("unet");
    assert_refused(model.open(), &unet, &["no weights", "diffusion_pytorch_model.fp16.safetensors"]);
    model.write("unet/diffusion_pytorch_model.bin", b"PK");
    assert_refused(model.open(), &unet, &["pickle", "safe_serialization=True"]);

    let refused = |file: &str, parts: &[&str]| {
        let folder = TempDir::new().unwrap();
        if !file.is_empty() {
            fs::write(folder.path().join(file), "x").unwrap();
        }
        assert_refused(ModelFolder::open(&folder.path().into()), folder.path(), parts);
    };
    refused("", &["the folder is empty", "diffusers layout"]);
    refused("notes.txt", &["has no model_index.json"]);
    refused("config.json", &["only one component", "folder above"]);
    refused("diffusion_pytorch_model.safetensors", &["only one component"]);
    refused("pytorch_lora_weights.safetensors", &["a LoRA"]);
    refused("adapter_config.json", &["a LoRA"]);
    refused("v1-5-pruned.safetensors", &["has no model_index.json", "give one of the files in it"]);

    let folder = TempDir::new().unwrap();
    let gone = folder.path().join("gone");
    assert_refused(ModelFolder::is_at(&gone.as_path().into()), &gone, &["no such model", "diffusers layout"]);
}
