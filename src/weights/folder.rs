//! A model in the diffusers layout: which folders it must have, and what else people point at.

use std::io;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::json::Object;
use crate::location::{Kind, Location};

/// Pipelines whose U-Net, VAE and text encoders are those of Stable Diffusion 1.x, 2.x and XL.
const PIPELINES: [&str; 9] = [
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "LatentConsistencyModelPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionXLInstructPix2PixPipeline",
];

const FOLDER: &str =
    "a folder in the diffusers layout: model_index.json, unet/, vae/, text_encoder/, scheduler/";
/// What a model is.
pub(super) const LAYOUT: &str = "a .safetensors file, or a folder in the diffusers layout: model_index.json, unet/, \
                                 vae/, text_encoder/, scheduler/";

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
    /// Whether XL's unconditional embedding is zeros where no negative prompt is given.
    pub force_zeros_for_empty_prompt: bool,
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
    /// Whether a model is a folder; the error says that there is none.
    pub fn is_at(location: &Location) -> Result<bool> {
        match location.kind() {
            Ok(kind) => Ok(kind == Kind::Folder),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::file(
                location,
                format!("no such model; a model is {LAYOUT}; one of the hub is named owner/name"),
            )),
            Err(error) => Err(location.cannot_read(error)),
        }
    }

    pub fn open(location: &Location) -> Result<Self> {
        let index = location.join("model_index.json");
        if !index.is_file() {
            return Err(Error::file(location, about_folder(&location.names()?)));
        }
        let index = Object::read(&index)?;
        let Some(class_name) = index.text("_class_name")? else {
            return Err(index.refuse("_class_name", format!("expected \"{}\"", PIPELINES[0])));
        };
        if !PIPELINES.contains(&class_name) {
            let expected =
                format!("only Stable Diffusion 1.x, 2.x and XL are supported ({})", PIPELINES.join(", "));
            return Err(index.refuse("_class_name", expected));
        }
        let is_xl = class_name.starts_with("StableDiffusionXL");
        let second_encoder = is_xl.then_some("text_encoder_2/config.json");
        // The refiner of Stable Diffusion XL has the second alone.
        let is_left_out = |component: &str| {
            index.get(component).is_some_and(|class| class.get(1).is_some_and(Value::is_null))
        };
        let first_encoder = (!is_xl || !is_left_out("text_encoder")).then_some("text_encoder/config.json");
        for file in ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"]
            .into_iter()
            .chain(first_encoder)
            .chain(second_encoder)
        {
            if !location.join(file).is_file() {
                return Err(Error::file(
                    location,
                    format!("{file} is missing; download the model again; it should be {FOLDER}"),
                ));
            }
        }
        Ok(ModelFolder {
            location: location.clone(),
            class_name: class_name.to_owned(),
            defaults: Defaults::read(&index)?,
            force_zeros_for_empty_prompt: index.flag("force_zeros_for_empty_prompt", true)?,
        })
    }

    /// Whether there is a text encoder of that name: `text_encoder`, `text_encoder_2`.
    pub fn has_text_encoder(&self, name: &str) -> bool {
        self.location.join(name).is_folder()
    }

    /// The vocabulary of each text encoder, where the folder brings one.
    pub fn tokenizers(&self) -> Vec<Option<Location>> {
        let names = [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")];
        let there = names.into_iter().filter(|(encoder, _)| self.has_text_encoder(encoder));
        let folders = there.map(|(_, name)| self.location.join(name));
        folders.map(|folder| folder.is_folder().then_some(folder)).collect()
    }

    pub fn scheduler_config(&self) -> Location {
        self.location.join("scheduler/scheduler_config.json")
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
        "has no model_index.json; give one of the files in it, or the folder of a model in the diffusers layout"
            .into()
    } else {
        format!("has no model_index.json; a model is {LAYOUT}")
    }
}
