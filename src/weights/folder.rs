//! A model in the diffusers layout: which folders it must have, and what else people point at.

use std::io;
use std::path::Path;

use crate::error::{Error, Result};
use crate::json::Object;
use crate::location::{Kind, Location};

/// Pipelines whose U-Net, VAE and text encoder are those of Stable Diffusion 1.x and 2.x.
const PIPELINES: [&str; 4] = [
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "LatentConsistencyModelPipeline",
];

const LAYOUT: &str =
    "a folder in the diffusers layout: model_index.json, unet/, vae/, text_encoder/, scheduler/";

/// The key of `model_index.json` with a model's [`Defaults`].
const DEFAULTS_KEY: &str = "_sdrt";
const STEPS_KEY: &str = "num_inference_steps";
const GUIDANCE_KEY: &str = "guidance_scale";
/// Timesteps of the models in use; a model takes no more steps.
const MOST_STEPS: usize = 1000;

/// A folder that has everything a pipeline needs; nothing but `model_index.json` is read yet.
#[derive(Clone, Debug)]
pub struct ModelFolder {
    pub location: Location,
    /// Class of the diffusers pipeline, as `model_index.json` names it.
    pub class_name: String,
    pub defaults: Defaults,
}

/// How a model wants to be used where nobody says otherwise, by its `model_index.json`:
///
/// ```json
/// "_sdrt": {"num_inference_steps": 20, "guidance_scale": 4.0}
/// ```
/// The names are those of the arguments that diffusers' pipelines take. Both may be left out, and so may
/// the object. diffusers passes over keys with an underscore, and leaves them out where it saves a model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Defaults {
    pub steps: Option<usize>,
    pub guidance_scale: Option<f32>,
}

impl Defaults {
    fn read(index: &Object) -> Result<Self> {
        let Some(defaults) = index.object(DEFAULTS_KEY)? else { return Ok(Defaults::default()) };
        if let Some(key) = defaults.map.keys().find(|key| ![STEPS_KEY, GUIDANCE_KEY].contains(&key.as_str()))
        {
            let expected = format!("no such default; there are {STEPS_KEY} and {GUIDANCE_KEY}");
            return Err(defaults.refuse(key, expected));
        }
        let steps = defaults.get(STEPS_KEY).map(|_| defaults.count(STEPS_KEY, 0, 1..=MOST_STEPS));
        let guidance_scale = defaults.get(GUIDANCE_KEY).map(|_| {
            let scale = defaults.float(GUIDANCE_KEY, 0.0)? as f32;
            let usable = scale.is_finite() && scale >= 0.0;
            if usable { Ok(scale) } else { Err(defaults.refuse(GUIDANCE_KEY, "expected a number from 0 on")) }
        });
        Ok(Defaults { steps: steps.transpose()?, guidance_scale: guidance_scale.transpose()? })
    }
}

impl ModelFolder {
    pub fn open(location: &Location) -> Result<Self> {
        let kind = location.kind().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::file(location, format!("no such model; a model is {LAYOUT}")),
            _ => location.cannot_read(error),
        })?;
        if kind == Kind::File {
            return Err(Error::file(location, about_file(&location.name())));
        }
        let index = location.join("model_index.json");
        if !index.is_file() {
            return Err(Error::file(location, about_folder(&location.names()?)));
        }
        let index = Object::read(&index)?;
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
        for file in [
            "unet/config.json",
            "vae/config.json",
            "text_encoder/config.json",
            "scheduler/scheduler_config.json",
        ] {
            if !location.join(file).is_file() {
                return Err(Error::file(
                    location,
                    format!("{file} is missing; download the model again, a model is {LAYOUT}"),
                ));
            }
        }
        Ok(ModelFolder {
            location: location.clone(),
            class_name: class_name.to_owned(),
            defaults: Defaults::read(&index)?,
        })
    }

    /// The folder's own vocabulary, if it brings one.
    pub fn tokenizer(&self) -> Option<Location> {
        let folder = self.location.join("tokenizer");
        folder.is_folder().then_some(folder)
    }

    pub fn scheduler_config(&self) -> Location {
        self.location.join("scheduler/scheduler_config.json")
    }
}

fn about_file(name: &str) -> String {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    match extension {
        Some("safetensors" | "ckpt" | "pt" | "pth" | "bin") => format!(
            "a single-file checkpoint is not supported, a model is {LAYOUT}; convert it with diffusers: \
             StableDiffusionPipeline.from_single_file(\"{name}\").save_pretrained(\"model\")"
        ),
        _ => format!("not a model; a model is {LAYOUT}"),
    }
}

/// What a folder of such names, without `model_index.json`, is instead.
fn about_folder(names: &[String]) -> String {
    let has = |part: &str| names.iter().any(|name| name.contains(part));
    if names.is_empty() {
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
    }
}
