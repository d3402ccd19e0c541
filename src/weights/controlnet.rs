//! ControlNets: folders of diffusers, and files of either layout.

use super::component::{Component, Shard};
use super::single_file::names;
use crate::error::{Error, Result};
use crate::location::Location;
use crate::pickle;
use crate::sha256;

/// Names of the components, as diffusers saves several; so many can act at once.
pub const NAMES: [&str; 8] = [
    "controlnet",
    "controlnet_1",
    "controlnet_2",
    "controlnet_3",
    "controlnet_4",
    "controlnet_5",
    "controlnet_6",
    "controlnet_7",
];

/// A tensor that every ControlNet has.
const SIGNATURE: &str = "controlnet_cond_embedding.conv_in.weight";

/// In front of the keys of the original layout, in some files.
const PREFIX: &str = "control_model.";

/// What a file is instead, by a part of its keys.
const INSTEAD: [(&str, &str); 4] = [
    ("lora_controlnet", "a Control-LoRA, which is not supported; give a whole ControlNet"),
    ("lllite_", "a ControlNet-LLLite, which is not supported; give a whole ControlNet"),
    (
        "task_embedding",
        "a ControlNet of several tasks (union), which is not supported; give one for a single task",
    ),
    ("adapter.", "a T2I-Adapter, which is not supported; give a ControlNet"),
];

/// Opens a ControlNet as the component `name`.
///
/// # Errors
/// A file that is none, with what it is instead.
pub fn open(location: &Location, name: &'static str) -> Result<Component> {
    if location.is_folder() {
        return Component::in_folder(location, name, "diffusion_pytorch_model");
    }
    let opened = Shard::open(location);
    let (shard, tensors) = opened.map_err(|error| pickle::named(location, pickle::LOAD, error))?;
    let has = |part: &str| tensors.iter().any(|stored| stored.key.contains(part));
    if let Some((_, instead)) = INSTEAD.iter().find(|(part, _)| has(part)) {
        return Err(Error::file(location, *instead));
    }
    // The first ControlNets came with the whole model that they steer.
    let prefix = if has(PREFIX) { PREFIX } else { "" };
    let is_original = tensors.iter().any(|stored| stored.key.ends_with("input_hint_block.0.weight"));
    let mut component = Component::new(name, location.clone(), "its other tensors".into());
    component.files.push(shard);
    for stored in tensors {
        let Some(key) = stored.key.strip_prefix(prefix) else { continue };
        let key = if is_original { names::controlnet(key) } else { Some(key.to_string()) };
        let Some(key) = key else {
            let message = "unexpected; no ControlNet of Stable Diffusion has it";
            return Err(Error::tensor(location, &stored.key, message));
        };
        component.add(&key, stored)?;
    }
    if component.find(SIGNATURE).is_none() {
        let message =
            format!("no ControlNet; expected keys such as {SIGNATURE} or input_hint_block.0.weight");
        return Err(Error::file(location, message));
    }
    Ok(component)
}

/// The hash by which A1111 tells ControlNets apart, `model_hash` of its `sd_models.py`: of 64 KiB of the file, or of
/// the first of several.
pub fn hash(location: &Location) -> Result<String> {
    const DIGITS: usize = 8;
    const PART: std::ops::Range<usize> = 0x10_0000..0x11_0000;
    let component = open(location, NAMES[0])?;
    let bytes = component.files.first().map(Shard::bytes).unwrap_or_default();
    let part = bytes.get(PART.start..bytes.len().min(PART.end)).unwrap_or_default();
    Ok(sha256::short(part, DIGITS))
}
