//! Models in one safetensors file, with the keys of the original code bases.

mod edm;
pub mod names;
mod tiny_vae;

pub use self::edm::EdmTensors;
use self::names::{Levels, Place, Unknown};
use self::tiny_vae::TinyKeys;
use super::checkpoint::Checkpoint;
use super::component::{COMPONENTS, Component, Shard, Stored};
use super::folder::LAYOUT;
use crate::error::{Error, Result};
use crate::location::Location;
use crate::parameter::{Parameter, Sentence, Word};
use crate::pickle;

/// A single file, open.
pub struct SingleFile {
    pub checkpoint: Checkpoint,
    /// `modelspec.title` of its header.
    pub title: Option<String>,
    /// `epsilon` or `v_prediction`, by `modelspec.prediction_type` or a tensor called `v_pred`.
    pub prediction_type: Option<&'static str>,
    /// Whether the last timestep is all noise, by a tensor called `ztsnr`.
    pub zero_snr: bool,
    /// Of a model that was trained as EDM.
    pub edm: Option<EdmTensors>,
}

/// What a file is instead of a model, by the parts of its keys; the first that is found.
const INSTEAD: [(&[&str], &[Word]); 7] = [
    (
        &[
            "lora_unet_",
            "lora_te",
            ".lora_A.",
            ".lora_down.",
            ".lora.down.",
            "_lora.down.",
            "lokr_",
            "hada_w",
        ],
        &[Word::Text(
            "a LoRA, which changes a model and is none itself; give the model that it was made for",
        )],
    ),
    (
        &["control_model.", "controlnet_cond_embedding."],
        &[Word::Text(
            "a ControlNet, which steers a model and is none itself; give the model that it was made for",
        )],
    ),
    (
        &["emb_params", "string_to_param", "clip_g"],
        &[Word::Text(
            "a textual inversion, which is a word for a prompt; give the model that it was made for",
        )],
    ),
    (
        &["double_blocks.", "joint_blocks.", "single_transformer_blocks."],
        &[Word::Text(
            "a model of the Flux or Stable Diffusion 3 family, which is not supported; try Stable Diffusion 1.x, 2.x or XL",
        )],
    ),
    (
        &["down_blocks.0.resnets.0.conv1.", "time_embedding.linear_1."],
        &[Word::Text(
            "one component of a model in the layout of diffusers; give the folder of the whole model",
        )],
    ),
    (
        &["decoder.conv_in.", "decoder.conv_out.", "encoder.conv_in.", "decoder.layers.", "taesd_decoder."],
        &[
            Word::Text("a VAE alone; name the model with "),
            Word::Name(Parameter::Model),
            Word::Text(", and this file with "),
            Word::Name(Parameter::Vae),
        ],
    ),
    (&["text_model.", "transformer.resblocks."], &[Word::Text("a text encoder alone; give the whole model")]),
];

/// What gives the tensors of a model's pickle in Python.
const LOAD: &str = "torch.load(FILE, weights_only=True)[\"state_dict\"]";

impl SingleFile {
    /// # Errors
    /// A file that is no whole model of Stable Diffusion, with what it is instead.
    pub fn open(location: &Location) -> Result<Self> {
        let (shard, tensors) = Shard::open(location).map_err(|error| {
            let error = match pickle::extension(location).as_str() {
                "safetensors" => error,
                _ => Error::file(location, format!("not a model; a model is {LAYOUT}")),
            };
            pickle::named(location, LOAD, error)
        })?;
        let described = "its other tensors".to_string();
        let mut components: Vec<Component> = COMPONENTS
            .iter()
            .map(|(name, _)| {
                let mut component = Component::new(name, location.clone(), described.clone());
                component.files.push(shard.clone());
                component
            })
            .collect();
        if let Some(instead) = other_than_a_model(&tensors) {
            return Err(Error::file(location, instead));
        }
        let vae_levels = vae_levels(&tensors, "first_stage_model.");
        let levels = Levels::of(tensors.iter().map(|stored| stored.key.as_str()));
        let edm = EdmTensors::find(location, &shard, &tensors)?;
        let has_key = |key: &str| tensors.iter().any(|stored| stored.key == key);
        let (v_pred, zero_snr) = (has_key("v_pred"), has_key("ztsnr"));
        for stored in tensors {
            let places = names::places(&stored.key, vae_levels, &levels).map_err(|Unknown| {
                let message = "unexpected; no model of the family whose keys begin like this has it";
                Error::tensor(location, &stored.key, message)
            })?;
            for place in places {
                let component = components.iter_mut().find(|component| component.name == place.component);
                let component = component.expect("places are those of components");
                add(component, location, &place, &stored)?;
            }
        }
        components.retain(|component| !component.is_empty());
        let has = |name: &str| components.iter().any(|component| component.name == name);
        for (name, advice) in [
            ("unet", "expected keys that begin with model.diffusion_model."),
            ("text_encoder", "expected keys that begin with cond_stage_model. or conditioner."),
            (
                "vae",
                "expected keys that begin with first_stage_model.; a file with all of them is a checkpoint \
                     as it is trained and published",
            ),
        ] {
            // The refiner of Stable Diffusion XL has the second text encoder alone.
            let is_there = has(name) || (name == "text_encoder" && has("text_encoder_2"));
            if !is_there {
                let what = match name {
                    "unet" => "U-Net of Stable Diffusion",
                    "vae" => "VAE",
                    _ => "text encoder",
                };
                return Err(Error::file(location, format!("has no {what}; {advice}")));
            }
        }
        let stated = match shard.metadata("modelspec.prediction_type") {
            Some("v") => Some("v_prediction"),
            Some("epsilon") => Some("epsilon"),
            _ => None,
        };
        Ok(SingleFile {
            checkpoint: Checkpoint::of(components),
            title: shard.metadata("modelspec.title").map(String::from),
            prediction_type: stated.or(v_pred.then_some("v_prediction")),
            zero_snr,
            edm,
        })
    }
}

/// Opens a VAE from a folder of diffusers, one of a whole model, or a file of either layout, as the component `name`.
pub fn open_vae(location: &Location, name: &'static str) -> Result<Component> {
    let (_, base) = COMPONENTS[COMPONENTS.len() - 1];
    if location.is_folder() {
        return Component::in_folder(&vae_folder(location), name, base);
    }
    let (shard, tensors) = Shard::open(location).map_err(|error| pickle::named(location, LOAD, error))?;
    let prefix = ["first_stage_model.", "vae."]
        .into_iter()
        .find(|prefix| tensors.iter().any(|stored| stored.key.starts_with(prefix)))
        .unwrap_or("");
    let levels = vae_levels(&tensors, prefix);
    let mut component = Component::new(name, location.clone(), "its other tensors".into());
    component.files.push(shard);
    let tiny = TinyKeys::of(&tensors);
    for stored in tensors {
        if let Some(keys) = &tiny {
            if let Some(key) = keys.key(&stored.key) {
                component.add(&key, stored)?;
            }
            continue;
        }
        let Some(key) = stored.key.strip_prefix(prefix) else { continue };
        if key.starts_with("loss.") || key.starts_with("model_ema.") {
            continue;
        }
        let key = names::vae(key, levels).unwrap_or_else(|| key.to_string());
        component.add(&key, stored)?;
    }
    if ["decoder.conv_in.weight", "decoder.layers.0.weight"].iter().all(|key| component.find(key).is_none()) {
        let message = match tiny {
            Some(_) => {
                "the encoder of a tiny VAE alone; expected a decoder such as taesd_decoder.safetensors"
            }
            None => "no VAE of Stable Diffusion; expected keys such as decoder.conv_in.weight",
        };
        return Err(Error::file(location, message));
    }
    Ok(component)
}

/// The folder of the VAE, given that or the whole model's.
pub fn vae_folder(location: &Location) -> Location {
    let inner = location.join("vae");
    if inner.is_folder() { inner } else { location.clone() }
}

fn add(component: &mut Component, location: &Location, place: &Place, stored: &Stored) -> Result<()> {
    match stored.clone().part(place.part) {
        Some(part) => component.add(&place.key, part),
        None => {
            let message = format!("its shape is {:?}; {:?} of it is needed", stored.shape, place.part);
            Err(Error::tensor(location, &stored.key, message))
        }
    }
}

/// How many levels the decoder under a prefix has, in the original layout.
fn vae_levels(tensors: &[Stored], prefix: &str) -> usize {
    let level = |stored: &Stored| -> Option<usize> {
        let rest = stored.key.strip_prefix(prefix)?.strip_prefix("decoder.up.")?;
        rest.split_once('.')?.0.parse().ok()
    };
    tensors.iter().filter_map(level).max().map_or(0, |level: usize| level.saturating_add(1))
}

fn other_than_a_model(tensors: &[Stored]) -> Option<Sentence> {
    let has = |part: &str| tensors.iter().any(|stored| stored.key.contains(part));
    if has("model.diffusion_model.input_blocks.") {
        return None;
    }
    INSTEAD
        .iter()
        .find(|(parts, _)| parts.iter().any(|part| has(part)))
        .map(|&(_, words)| Sentence::of(words))
}
