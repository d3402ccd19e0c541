//! The keys of tiny VAEs: those of diffusers, those of TAESD's own two files, and both of these in one.

use crate::weights::component::Stored;

/// How a file spells the keys of diffusers' `AutoencoderTiny`.
pub(super) enum TinyKeys {
    Diffusers,
    /// One half, layer by layer: `1.weight`, `3.conv.0.weight`.
    Half(Half),
    /// Both, as `taesd_decoder.1.weight`.
    Halves,
}

#[derive(Clone, Copy)]
pub(super) enum Half {
    Encoder,
    Decoder,
}

const ENCODER: &str = "taesd_encoder.";
const DECODER: &str = "taesd_decoder.";

impl TinyKeys {
    /// `None` if the file is no tiny VAE.
    pub fn of(tensors: &[Stored]) -> Option<Self> {
        let has = |test: &dyn Fn(&str) -> bool| tensors.iter().any(|stored| test(&stored.key));
        let starts_with = |prefix: &'static str| has(&|key| key.starts_with(prefix));
        if starts_with("decoder.layers.") || starts_with("encoder.layers.") {
            return Some(TinyKeys::Diffusers);
        }
        if starts_with(DECODER) || starts_with(ENCODER) {
            return Some(TinyKeys::Halves);
        }
        // The decoder's first layer is its clamp, which has no weights.
        let is_layer = |key: &str| key.split('.').next().is_some_and(|layer| layer.parse::<usize>().is_ok());
        let is_half = !tensors.is_empty() && tensors.iter().all(|stored| is_layer(&stored.key));
        let half = if has(&|key| key == "0.weight") { Half::Encoder } else { Half::Decoder };
        is_half.then_some(TinyKeys::Half(half))
    }

    /// The key of diffusers; `None` for what is no weight of either half.
    pub fn key(&self, key: &str) -> Option<String> {
        match self {
            TinyKeys::Diffusers => Some(key.to_string()),
            TinyKeys::Half(half) => half.key(key),
            TinyKeys::Halves => match key.strip_prefix(DECODER) {
                Some(key) => Half::Decoder.key(key),
                None => Half::Encoder.key(key.strip_prefix(ENCODER)?),
            },
        }
    }
}

impl Half {
    fn key(self, key: &str) -> Option<String> {
        let (layer, rest) = key.split_once('.')?;
        let layer: usize = layer.parse().ok()?;
        Some(match self {
            Half::Encoder => format!("encoder.layers.{layer}.{rest}"),
            Half::Decoder => format!("decoder.layers.{}.{rest}", layer.checked_sub(1)?),
        })
    }
}
