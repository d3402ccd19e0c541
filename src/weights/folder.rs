//! A model on disk in the diffusers layout: which folders it must have, and what else people point at.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::json::{Object, cannot_read};

/// Pipelines whose U-Net, VAE and text encoder are those of Stable Diffusion 1.x and 2.x.
const PIPELINES: [&str; 4] = [
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "LatentConsistencyModelPipeline",
];

const LAYOUT: &str =
    "a folder in the diffusers layout: model_index.json, unet/, vae/, text_encoder/, scheduler/";

/// A folder that has everything a pipeline needs; nothing but `model_index.json` is read yet.
#[derive(Clone, Debug)]
pub struct ModelFolder {
    pub path: PathBuf,
    /// Class of the diffusers pipeline, as `model_index.json` names it.
    pub class_name: String,
}

impl ModelFolder {
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::file(path, format!("no such model; a model is {LAYOUT}")),
            _ => cannot_read(path, error),
        })?;
        if !metadata.is_dir() {
            return Err(Error::file(path, about_file(path)));
        }
        let index_path = path.join("model_index.json");
        if !index_path.is_file() {
            return Err(Error::file(path, about_folder(path)?));
        }
        let index = Object::read(&index_path)?;
        let Some(class_name) = index.text("_class_name")? else {
            return Err(index.refuse("_class_name", format!("expected \"{}\"", PIPELINES[0])));
        };
        if class_name.starts_with("StableDiffusionXL") {
            let expected = "Stable Diffusion XL is not supported, try a model of the 1.x or 2.x family";
            return Err(index.refuse("_class_name", expected));
        }
        if !PIPELINES.contains(&class_name) {
            let expected =
                format!("only Stable Diffusion 1.x and 2.x are supported ({})", PIPELINES.join(", "));
            return Err(index.refuse("_class_name", expected));
        }
        let class_name = class_name.to_owned();
        for file in [
            "unet/config.json",
            "vae/config.json",
            "text_encoder/config.json",
            "scheduler/scheduler_config.json",
        ] {
            if !path.join(file).is_file() {
                return Err(Error::file(
                    path,
                    format!("{file} is missing; download the model again, a model is {LAYOUT}"),
                ));
            }
        }
        Ok(ModelFolder { path: path.into(), class_name })
    }

    /// The folder's own vocabulary, if it brings one.
    pub fn tokenizer(&self) -> Option<PathBuf> {
        let folder = self.path.join("tokenizer");
        folder.is_dir().then_some(folder)
    }

    pub fn scheduler_config(&self) -> PathBuf {
        self.path.join("scheduler/scheduler_config.json")
    }
}

fn about_file(path: &Path) -> String {
    let extension = path.extension().and_then(|extension| extension.to_str());
    match extension {
        Some("safetensors" | "ckpt" | "pt" | "pth" | "bin") => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            format!(
                "a single-file checkpoint is not supported, a model is {LAYOUT}; convert it with diffusers: \
                 StableDiffusionPipeline.from_single_file(\"{name}\").save_pretrained(\"model\")"
            )
        }
        _ => format!("not a model; a model is {LAYOUT}"),
    }
}

/// What a folder without `model_index.json` is instead.
fn about_folder(path: &Path) -> Result<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|error| cannot_read(path, error))? {
        let entry = entry.map_err(|error| cannot_read(path, error))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    let has = |part: &str| names.iter().any(|name| name.contains(part));
    Ok(if names.is_empty() {
        format!("the folder is empty; a model is {LAYOUT}")
    } else if has("adapter_config.json") || has("lora") {
        "a LoRA, which changes a model and is none itself; give the folder of the model it was made for"
            .into()
    } else if has("config.json") || has("diffusion_pytorch_model") {
        "only one component of a model; give the folder above it, the one with model_index.json".into()
    } else if has(".safetensors") || has(".ckpt") {
        format!(
            "single-file checkpoints are not supported, a model is {LAYOUT}; convert one with diffusers: \
             StableDiffusionPipeline.from_single_file(...).save_pretrained(\"model\")"
        )
    } else {
        format!("has no model_index.json; a model is {LAYOUT}")
    })
}
