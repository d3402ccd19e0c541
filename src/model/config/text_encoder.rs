//! What a model reads of its text encoders.

use super::clip::ClipConfig;
use crate::error::Result;
use crate::location::Location;

/// A text encoder of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct TextEncoderConfig {
    pub role: TextEncoderRole,
    pub clip: ClipConfig,
}

/// Where a text encoder is found, and what the model reads of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextEncoderRole {
    /// Its folder of a model, and its component of a checkpoint.
    pub component: &'static str,
    /// The folder of its vocabulary.
    pub tokenizer: &'static str,
    /// The layer whose output is read where a request says nothing, from the end, 1 being the last.
    pub layer: usize,
    /// Whether the last norm of the encoder goes over what is read.
    pub is_normed: bool,
    /// Whether emphasis keeps the mean of what is read.
    pub keeps_mean: bool,
    /// Whether its pooled projection goes into the time embedding.
    pub is_pooled: bool,
}

impl TextEncoderRole {
    /// The only one of Stable Diffusion 1.x and 2.x.
    pub const ONLY: Self = TextEncoderRole {
        component: "text_encoder",
        tokenizer: "tokenizer",
        layer: 1,
        is_normed: true,
        keeps_mean: true,
        is_pooled: false,
    };
    /// The first of XL.
    pub const FIRST: Self = TextEncoderRole { layer: 2, is_normed: false, keeps_mean: false, ..Self::ONLY };
    /// The second of XL, and the only one of its refiner.
    pub const SECOND: Self = TextEncoderRole {
        component: "text_encoder_2",
        tokenizer: "tokenizer_2",
        is_pooled: true,
        ..Self::FIRST
    };

    /// Those of a U-Net that does or does not take in the pooled projection of one of them.
    pub(super) fn of_unet(is_pooled: bool) -> &'static [Self] {
        if is_pooled { &[Self::FIRST, Self::SECOND] } else { &[Self::ONLY] }
    }

    /// The text encoder of these shapes.
    pub const fn of(self, clip: ClipConfig) -> TextEncoderConfig {
        TextEncoderConfig { role: self, clip }
    }

    /// Reads its configuration in a model folder.
    pub(super) fn read(self, folder: &Location) -> Result<TextEncoderConfig> {
        let file = folder.join(self.component).join("config.json");
        Ok(self.of(ClipConfig::read(&file)?))
    }
}
