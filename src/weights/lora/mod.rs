//! LoRAs: files that change the weights of a model by adding to them.
//!
//! ```text
//! keys    what a file's key means: a module, as the file spells it, and a part of its change
//! alpha   how strong changes are, by what PEFT keeps beside the tensors
//! names   which tensor of the model a spelling means
//! form    the kinds of changes, and whether their shapes fit
//! change  the numbers, and the arithmetic
//! merge   a weight of the model with all changes of a set
//! ```
//! A changed weight is computed on the host, in f32 from the checkpoint's numbers, rounded once, and filled
//! into its place on the device as loading does. So all kinds take one way, weights need not be adapted to
//! the kernels' packings, recorded graphs stay as they are, and a weight without changes is filled from the
//! checkpoint again, bit for bit what it was.

mod alpha;
mod change;
mod form;
mod keys;
mod merge;
mod names;

use std::collections::BTreeMap;

use self::alpha::Alphas;
use self::form::{Fault, Form, Magnitude, Parts};
use self::keys::Part;
pub use self::merge::{Changes, fill_merged};
pub use self::names::{Names, Place, Target};
use super::component::Shard;
use super::plan::Request;
use crate::error::{Error, Result};
use crate::location::Location;
use crate::parameter::{Parameter, Sentence, sentence};
use crate::pickle;
use crate::sha256;

/// A LoRA file, open: what it says of which modules.
///
/// The file stays mapped: it must not be cut short while this lives.
pub struct Lora {
    pub location: Location,
    file: Shard,
    /// By the spelling of the file.
    modules: BTreeMap<String, Parts>,
    /// Keys of no known kind.
    unknown: Vec<String>,
    alphas: Alphas,
}

/// What a LoRA does to a model.
pub struct Matched {
    /// In the order of places.
    pub changes: Vec<MatchedChange>,
    /// Keys that mean nothing in this model.
    pub unmatched: Vec<String>,
}

/// A change of one weight. Its numbers are still in the file.
#[derive(Clone)]
pub struct MatchedChange {
    pub place: Place,
    form: Form,
    /// alpha / rank.
    scale: f32,
    magnitude: Option<Magnitude>,
}

impl Lora {
    /// # Errors
    /// [`Error::File`] and [`Error::Tensor`] when the file is no LoRA.
    pub fn open(location: &Location) -> Result<Self> {
        let opened = Shard::open(location);
        let (file, tensors) = opened.map_err(|error| pickle::named(location, pickle::LOAD, error))?;
        let mut modules: BTreeMap<String, Parts> = BTreeMap::new();
        let mut unknown = Vec::new();
        for stored in tensors {
            let Some((module, part)) = keys::split(&stored.key) else {
                unknown.push(stored.key);
                continue;
            };
            let is_number = if part == Part::Alpha {
                file.scalar(&stored).is_some_and(f64::is_finite)
            } else {
                stored.float().is_some()
            };
            if !is_number {
                let expected = if part == Part::Alpha { "one number" } else { "F32, F16 or BF16" };
                let message = format!("{:?} of shape {:?}; expected {expected}", stored.dtype, stored.shape);
                return Err(Error::tensor(location, &stored.key, message));
            }
            let parts = modules.entry(module.to_string()).or_default();
            if let Some(other) = parts.insert(part, stored.clone()) {
                let message = format!("means the same as {}, which is there too", other.key);
                return Err(Error::tensor(location, &stored.key, message));
            }
        }
        if modules.is_empty() {
            return Err(Error::file(location, other_than_a_lora(&unknown)));
        }
        let alphas = Alphas::read(location, &file)?;
        Ok(Lora { location: location.clone(), file, modules, unknown, alphas })
    }

    /// The hash by which A1111 and Civitai know the file: the first digits of what kohya's scripts keep under
    /// `sshs_model_hash`, the SHA-256 of everything behind the header.
    pub fn hash(&self) -> String {
        const DIGITS: usize = 12;
        let stated = self.file.metadata("sshs_model_hash").and_then(|hash| hash.get(..DIGITS));
        match stated.filter(|hash| hash.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            Some(hash) => hash.to_string(),
            None => sha256::short(&self.file.bytes()[self.file.header_end()..], DIGITS),
        }
    }

    /// Finds the weights that this changes among those of a model. `family` is what the model is called.
    ///
    /// # Errors
    /// When a change has not the shape of its weight, or nothing of the file is in the model.
    pub fn match_with(&self, names: &Names, requests: &[Request], family: &str) -> Result<Matched> {
        let mut changes = Vec::new();
        let mut unmatched = self.unknown.clone();
        let fault = |(key, message): Fault| Error::tensor(&self.location, key, message);
        for (module, parts) in &self.modules {
            let target = names.find(module).unwrap_or_default();
            let form = Form::new(parts).map_err(fault)?;
            let bias = parts.get(&Part::DiffB).cloned().map(Form::Full);
            let all = [(form, target.weight, false), (bias, target.bias, true)];
            for (form, place, is_bias) in all {
                let (Some(form), Some(place)) = (form, place) else {
                    let of_form = parts.iter().filter(|(part, _)| (**part == Part::DiffB) == is_bias);
                    unmatched.extend(of_form.map(|(_, stored)| stored.key.clone()));
                    continue;
                };
                let weight = &requests[place.request].shape;
                let (rows, columns) = (weight[0], weight[1..].iter().product());
                if form.shape() != (rows, columns) {
                    return Err(self.misfit(&form, weight, family));
                }
                let inputs = weight.get(1).copied().unwrap_or(1);
                let magnitude = if is_bias { Ok(None) } else { Magnitude::new(parts, rows, inputs) };
                let magnitude = magnitude.map_err(fault)?;
                let scale = self.scale(requests[place.request].component, module, parts, &form);
                changes.push(MatchedChange { place, form, scale, magnitude });
            }
        }
        if changes.is_empty() {
            let example = self.modules.values().next().and_then(|parts| parts.values().next());
            let example = example.map(|stored| stored.key.as_str()).unwrap_or_default();
            let message = format!(
                "nothing of it is in this model, {family}; {}, with keys such as {example}",
                self.made_for().unwrap_or("it was made for another kind of model".into())
            );
            return Err(Error::file(&self.location, message));
        }
        changes.sort_by_key(|change| change.place);
        Ok(Matched { changes, unmatched })
    }

    /// The factor that alpha gives: 1 where there is none.
    fn scale(&self, component: &str, module: &str, parts: &Parts, form: &Form) -> f32 {
        let Some(rank) = form.rank() else { return 1.0 };
        match parts.get(&Part::Alpha).and_then(|stored| self.file.scalar(stored)) {
            Some(alpha) => (alpha / rank as f64) as f32,
            None => self.alphas.scale(component, module, rank),
        }
    }

    fn misfit(&self, form: &Form, weight: &[usize], family: &str) -> Error {
        let (rows, columns) = form.shape();
        let made_for = self.made_for().unwrap_or("it was made for another model".into());
        let message = format!(
            "changes a weight of {rows} rows and {columns} columns; this model, {family}, has {weight:?} \
             there; {made_for}"
        );
        Error::tensor(&self.location, form.key(), message)
    }

    /// What the file was made for, if that can be told.
    fn made_for(&self) -> Option<String> {
        let stated = ["modelspec.architecture", "ss_base_model_version"];
        let stated = stated.iter().find_map(|key| self.file.metadata(key)).unwrap_or_default();
        let has = |part: &str| self.modules.keys().any(|module| module.contains(part));
        let context = self.modules.iter().find_map(|(module, parts)| {
            let of_context = module.ends_with("attn2_to_k") || module.ends_with("attn2.to_k");
            Form::new(parts).ok().flatten().filter(|_| of_context).map(|form| form.shape().1)
        });
        let family = match context {
            Some(768) => "Stable Diffusion 1.x",
            Some(1024) => "Stable Diffusion 2.x",
            Some(2048) => "Stable Diffusion XL",
            _ if stated.contains("flux") || has("double_blocks") || has("single_transformer_blocks") => {
                "Flux"
            }
            _ if stated.contains("-3") || has("joint_blocks") => "Stable Diffusion 3",
            _ if stated.contains("xl") || has("lora_te2_") || has("text_encoder_2.") => "Stable Diffusion XL",
            _ if stated.contains("v2") => "Stable Diffusion 2.x",
            _ if stated.contains("v1") => "Stable Diffusion 1.x",
            _ => return None,
        };
        Some(format!("it was made for {family}"))
    }
}

/// What a file without a key of a LoRA is instead.
fn other_than_a_lora(keys: &[String]) -> Sentence {
    let has = |part: &str| keys.iter().any(|key| key.contains(part));
    if has("model.diffusion_model.") || has("first_stage_model.") {
        return sentence!["a model, not a LoRA; name it with ", Parameter::Model];
    }
    if has("emb_params") || has("string_to_param") || has("clip_g") {
        return sentence!["a textual inversion, not a LoRA; name it with ", Parameter::Embedding];
    }
    let first = keys.first().map(|key| format!("; its first key is {key}")).unwrap_or_default();
    format!(
        "no LoRA of a known kind: expected keys such as lora_unet_...lora_down.weight or unet....lora_A.weight{first}"
    )
    .into()
}
