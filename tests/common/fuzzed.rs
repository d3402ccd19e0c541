//! What is fed with bytes that nobody vouches for (fuzz/): each function takes any, and panics only where
//! sdrt does.
#![allow(dead_code)] // Each fuzz target takes one.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use sdrt::image::{Origin, Parameters, Recorded, read_text};
use sdrt::location::Location;
use sdrt::model::config::{ControlNetConfig, ModelConfig};
use sdrt::ops::cpu::Cpu;
use sdrt::ops::{Backend, DType};
use sdrt::pipeline::{ModelFiles, Models, RequestPatch};
use sdrt::text::{Chunks, Embedding, Inversions, LongPrompt, Prompt, PromptStyle, Tokenizer, extract_loras};
use sdrt::weights::lora::{Changes, Names, fill_merged};
use sdrt::weights::{Lora, Plan, RandomWeights, Request, Source, controlnet};

/// A file that begins with this is only a header: its length and the tensors' bytes, all of them holes, are
/// put around it, so that a fuzzer need not keep the two in step.
const HEADER: u8 = b'{';
/// No more of such a file's holes are made.
const MOST_BYTES: u64 = 1 << 33;

/// Writes a safetensors file of the bytes, or of them as a header.
fn write_safetensors(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if bytes.first() != Some(&HEADER) {
        return fs::write(path, bytes);
    }
    let mut file = File::create(path)?;
    file.write_all(&(bytes.len() as u64).to_le_bytes())?;
    file.write_all(bytes)?;
    let header: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    let ends = header.as_object().into_iter().flat_map(|tensors| tensors.values());
    let end = ends.filter_map(|tensor| tensor["data_offsets"][1].as_u64()).max().unwrap_or(0);
    file.set_len(8 + bytes.len() as u64 + end.min(MOST_BYTES))
}

/// A model in a single file: its header, what is recognised in it, and whether its tensors are all there.
pub fn model_file(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    write_safetensors(&path, bytes).expect("a file");
    let as_vae =
        ModelFiles { vae: Some(Location::from(path.clone())), ..Location::from(path.clone()).into() };
    as_controlnet(&path.as_path().into());
    for files in [Location::from(path).into(), as_vae] {
        let Ok((description, checkpoint)) = files.open() else { continue };
        let mut plan = Plan::measure(DType::F16);
        Models::new(&description.config, 0, &mut plan);
        if checkpoint.check(&plan.requests).is_ok()
            && let Some(request) = plan.requests.last()
        {
            let mut row = vec![0u16; request.tensor.c()];
            let row: &mut [u8] = bytemuck::cast_slice_mut(&mut row);
            checkpoint.fill(request, 0..1, row);
        }
    }
}

fn as_controlnet(file: &Location) {
    let Ok(component) = controlnet::open(file, controlnet::NAMES[0]) else { return };
    let model = ModelConfig::sd15();
    if let Ok(config) = ControlNetConfig::infer(file, &component.shapes(), &model.unet)
        && config.check(file, &model.unet, &model.vae).is_ok()
    {
        let mut plan = Plan::measure(DType::F16);
        Models::new(&ModelConfig { controlnets: vec![config], ..model }, 0, &mut plan);
    }
}

/// A textual inversion.
pub fn embedding(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("word.safetensors");
    write_safetensors(&file, bytes).expect("a file");
    for widths in [&[768][..], &[768, 1280]] {
        let embeddings = [Embedding { file: file.clone(), name: None }];
        if let Ok(inversions) = Inversions::read(&embeddings, 49408, widths) {
            let _ = inversions.unused(&["a word", ""]).count();
        }
    }
}

/// A LoRA: which weights of Stable Diffusion 1.5 it changes, and the first of them with the change.
pub fn lora(bytes: &[u8]) {
    static SD15: OnceLock<(Vec<Request>, Names)> = OnceLock::new();
    let (requests, names) = SD15.get_or_init(|| {
        let mut plan = Plan::measure(DType::F32);
        Models::new(&ModelConfig::sd15(), 0, &mut plan);
        let names = Names::new(&plan.requests);
        (plan.requests, names)
    });
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("lora.safetensors");
    write_safetensors(&path, bytes).expect("a file");
    let Ok(lora) = Lora::open(&Location::from(path)) else { return };
    let Ok(matched) = lora.match_with(names, requests, "Stable Diffusion 1.x") else { return };
    let mut changes = Changes::default();
    changes.add(&Arc::new(lora), &matched.changes, requests, |_| 0.5);
    let Some(first) = changes.requests().next() else { return };
    let mut requests = requests.clone();
    let mut cpu = Cpu::new();
    let tensor = &mut requests[first].tensor;
    let region = cpu.reserve(tensor.bytes(), "a weight").expect("memory");
    tensor.address = region.base;
    fill_merged(&mut cpu, &RandomWeights, &requests, &[first], &changes).expect("a weight");
}

/// A prompt in every style, down to its tokens.
pub fn prompt(bytes: &[u8]) {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    let tokenizer = TOKENIZER.get_or_init(Tokenizer::clip);
    let text = String::from_utf8_lossy(bytes);
    let text = extract_loras(&text).map_or(text.into_owned(), |(text, _)| text);
    for style in [PromptStyle::Plain, PromptStyle::A1111] {
        let Ok(prompt) = Prompt::read(&text, style) else { continue };
        for long in [LongPrompt::Chunk, LongPrompt::Truncate] {
            let mut chunks =
                Chunks::new(&prompt, tokenizer, &Inversions::default(), long).expect("no embeddings");
            assert_eq!(chunks.ids.len(), chunks.count() * chunks.length);
            assert_eq!(chunks.weights.len(), chunks.ids.len());
            assert!(chunks.end(tokenizer) < chunks.length);
            chunks.extend_to(chunks.count() + 1, tokenizer);
        }
    }
}

/// A picture with a text, or that text alone: what it asks for.
pub fn picture(bytes: &[u8]) {
    let text = read_text(bytes).unwrap_or_else(|_| String::from_utf8_lossy(bytes).into_owned());
    let _ = Parameters::parse(&Parameters::parse(&text).to_string());

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.png");
    fs::write(&path, bytes).expect("a file");
    if let Ok(recorded) = Recorded::read(&path) {
        let (loras, controlnets) = (recorded.loras(), recorded.controlnets());
        let origin = Origin {
            model: "tiny".into(),
            refiner: None,
            device: "CPU".into(),
            dtype: DType::F32,
            lora_hashes: Vec::new(),
            loras,
            controlnets,
        };
        let _ = (recorded.patch(&RequestPatch::default()), recorded.warnings(&origin), recorded.model());
    }
}
