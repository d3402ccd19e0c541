//! Which LoRAs a pipeline's weights have in them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::ops::Backend;
use crate::weights::lora::{Changes, Names, fill_merged};
use crate::weights::plan::Request;
use crate::weights::{Lora, Source};

/// A LoRA and how strong it is; 0 leaves a part of the model as it is.
#[derive(Clone)]
pub struct LoraUse {
    pub lora: Arc<Lora>,
    /// Of all text encoders.
    pub text_encoder: f32,
    pub unet: f32,
}

impl LoraUse {
    /// Equally strong in all parts of the model.
    pub fn new(lora: Arc<Lora>, weight: f32) -> Self {
        LoraUse { lora, text_encoder: weight, unet: weight }
    }

    fn is(&self, other: &LoraUse) -> bool {
        Arc::ptr_eq(&self.lora, &other.lora)
            && (self.text_encoder, self.unet) == (other.text_encoder, other.unet)
    }
}

/// The weights of a pipeline, as far as LoRAs may change them.
pub(super) struct Loras {
    source: Box<dyn Source>,
    requests: Vec<Request>,
    names: Option<Names>,
    /// Sorted; `None` where filling them broke off.
    set: Option<Vec<LoraUse>>,
    /// The requests whose weights may not be those of the source.
    changed: BTreeSet<usize>,
}

impl Loras {
    /// For weights that have just been filled from their source.
    pub fn new(source: Box<dyn Source>, requests: Vec<Request>) -> Self {
        Loras { source, requests, names: None, set: Some(Vec::new()), changed: BTreeSet::new() }
    }

    /// [`Pipeline::set_loras`](super::Pipeline::set_loras).
    pub fn set(&mut self, backend: &mut dyn Backend, loras: &[LoraUse], family: &str) -> Result<Vec<String>> {
        let mut set = loras.to_vec();
        // Sums depend on the order of their terms; wherever the files are, it is the same.
        set.sort_by(|a, b| {
            let name = |x: &LoraUse| (x.lora.location.name().to_lowercase(), x.lora.location.to_string());
            let weights = a.unet.total_cmp(&b.unet).then(a.text_encoder.total_cmp(&b.text_encoder));
            name(a).cmp(&name(b)).then(weights)
        });
        let is_there =
            |before: &Vec<LoraUse>| set.len() == before.len() && set.iter().zip(before).all(|(a, b)| a.is(b));
        if self.set.as_ref().is_some_and(is_there) {
            return Ok(Vec::new());
        }
        let names = self.names.get_or_insert_with(|| Names::new(&self.requests));
        let mut changes = Changes::default();
        let mut warnings = Vec::new();
        for LoraUse { lora, text_encoder, unet } in &set {
            if !text_encoder.is_finite() || !unet.is_finite() {
                return Err(Error::file(
                    &lora.location,
                    "the weight is not a number; expected one such as 0.8",
                ));
            }
            let matched = lora.match_with(names, &self.requests, family)?;
            warnings.extend(about_unmatched(lora, &matched.unmatched));
            let weight = |component: &str| if component == "unet" { *unet } else { *text_encoder };
            changes.add(lora, &matched.changes, &self.requests, weight);
        }
        let start = Instant::now();
        self.changed.extend(changes.requests());
        self.set = None;
        let indices: Vec<usize> = self.changed.iter().copied().collect();
        fill_merged(backend, &*self.source, &self.requests, &indices, &changes)?;
        backend.finish_fill()?;
        tracing::debug!(weights = self.changed.len(), time = ?start.elapsed(), "set LoRAs");
        self.changed = changes.requests().collect();
        self.set = Some(set);
        Ok(warnings)
    }
}

fn about_unmatched(lora: &Lora, keys: &[String]) -> Option<String> {
    const NAMED: usize = 3;
    if keys.is_empty() {
        return None;
    }
    let more = keys.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let named = keys[..keys.len().min(NAMED)].join(", ");
    Some(format!("{}: ignored keys not present in this model: {named}{more}", lora.location))
}
