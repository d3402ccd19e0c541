//! A model in the diffusers layout: which folders it must have, and what else people point at.

use std::io;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::json::Object;
use crate::location::{Kind, Location};

/// Pipelines whose U-Net, VAE and text encoders are those of Stable Diffusion 1.x, 2.x and XL, and the text encoders
/// of each.
const PIPELINES: [(&str, &[&str]); 9] = [
    ("StableDiffusionPipeline", ONE),
    ("StableDiffusionImg2ImgPipeline", ONE),
    ("StableDiffusionInpaintPipeline", ONE),
    ("StableDiffusionInstructPix2PixPipeline", ONE),
    ("LatentConsistencyModelPipeline", ONE),
    ("StableDiffusionXLPipeline", TWO),
    ("StableDiffusionXLImg2ImgPipeline", TWO),
    ("StableDiffusionXLInpaintPipeline", TWO),
    ("StableDiffusionXLInstructPix2PixPipeline", TWO),
];
const ONE: &[&str] = &["text_encoder"];
/// XL's refiner leaves the first out.
const TWO: &[&str] = &["text_encoder", "text_encoder_2"];

const FOLDER: &str =
    "a folder in the diffusers layout: model_index.json, unet/, vae/, text_encoder/, scheduler/";
/// What a model is.
pub(super) const LAYOUT: &str = "a .safetensors file, or a folder in the diffusers layout: model_index.json, unet/, \
                                 vae/, text_encoder/, scheduler/";

/// The key of `model_index.json` with a model's [`Defaults`].
const DEFAULTS_KEY: &str = "_sdrt";
const FORCE_ZEROS: &str = "force_zeros_for_empty_prompt";
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
    /// The text encoders that it has: `text_encoder`, `text_encoder_2`.
    pub text_encoders: Vec<&'static str>,
    pub defaults: Defaults,
    /// Whether the unconditional embedding is zeros where no negative prompt is given, if the file says so.
    pub force_zeros_for_empty_prompt: Option<bool>,
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
            return Err(index.refuse("_class_name", format!("expected \"{}\"", PIPELINES[0].0)));
        };
        let Some((_, text_encoders)) = PIPELINES.iter().find(|(name, _)| *name == class_name) else {
            let names = PIPELINES.map(|(name, _)| name).join(", ");
            let expected = format!("only Stable Diffusion 1.x, 2.x and XL are supported ({names})");
            return Err(index.refuse("_class_name", expected));
        };
        let is_left_out = |component: &str| {
            index.get(component).is_some_and(|class| class.get(1).is_some_and(Value::is_null))
        };
        let mut text_encoders = text_encoders.to_vec();
        if text_encoders.len() > 1 {
            text_encoders.retain(|name| !is_left_out(name));
        }
        let described = text_encoders.iter().map(|name| format!("{name}/config.json"));
        for file in ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"]
            .map(String::from)
            .into_iter()
            .chain(described)
        {
            if !location.join(&file).is_file() {
                return Err(Error::file(
                    location,
                    format!("{file} is missing; download the model again; it should be {FOLDER}"),
                ));
            }
        }
        Ok(ModelFolder {
            location: location.clone(),
            class_name: class_name.to_owned(),
            text_encoders,
            defaults: Defaults::read(&index)?,
            force_zeros_for_empty_prompt: index
                .get(FORCE_ZEROS)
                .map(|_| index.flag(FORCE_ZEROS, true))
                .transpose()?,
        })
    }

    /// The vocabulary in a folder of that name, where there is one.
    pub fn tokenizer(&self, name: &str) -> Option<Location> {
        Some(self.location.join(name)).filter(Location::is_folder)
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
