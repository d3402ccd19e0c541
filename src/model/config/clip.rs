//! CLIP's text encoders.

use super::fields::{MAX_CHANNELS, MAX_WIDTH, channels, check_heads, only};
use crate::error::Result;
use crate::json::Object;
use crate::location::Location;
use crate::ops::Activation;

/// `CLIPTextModel`, or `CLIPTextModelWithProjection`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// Tokens of a prompt, with its start and its end.
    pub max_position_embeddings: usize,
    pub hidden_act: Activation,
    pub layer_norm_eps: f32,
    /// Width of the pooled projection, where a model makes use of it.
    pub projection_dim: usize,
}

impl ClipConfig {
    pub fn read(file: &Location) -> Result<Self> {
        let json = Object::read(file)?;
        only(&json, "model_type", &["\"clip_text_model\""])?;
        let config = ClipConfig {
            vocab_size: json.count("vocab_size", 49408, 4..=1 << 20)?,
            hidden_size: channels(&json, "hidden_size", 512, 8, MAX_WIDTH)?,
            intermediate_size: channels(&json, "intermediate_size", 2048, 8, MAX_CHANNELS)?,
            num_hidden_layers: json.count("num_hidden_layers", 12, 1..=128)?,
            num_attention_heads: json.count("num_attention_heads", 8, 1..=MAX_CHANNELS)?,
            max_position_embeddings: json.count("max_position_embeddings", 77, 3..=1024)?,
            hidden_act: match json.text("hidden_act")? {
                None | Some("quick_gelu") => Activation::QuickGelu,
                Some("gelu") => Activation::Gelu,
                Some(_) => {
                    return Err(json.refuse("hidden_act", "only \"quick_gelu\" and \"gelu\" are supported"));
                }
            },
            layer_norm_eps: json.positive("layer_norm_eps", 1e-5)?,
            projection_dim: channels(&json, "projection_dim", 512, 8, MAX_CHANNELS)?,
        };
        check_heads(&json, "num_attention_heads", config.hidden_size, config.num_attention_heads)?;
        Ok(config)
    }

    /// Whether it is one of OpenCLIP's, which were trained with zeros behind the end of a text: their MLPs have gelu.
    pub fn is_open_clip(&self) -> bool {
        self.hidden_act == Activation::Gelu
    }

    /// CLIP ViT-L/14: Stable Diffusion 1.x, and the first of XL's two.
    pub fn vit_l() -> Self {
        ClipConfig {
            vocab_size: 49408,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            projection_dim: 768,
        }
    }

    /// OpenCLIP ViT-H/14 without its last layer: Stable Diffusion 2.x.
    pub fn open_clip_h() -> Self {
        ClipConfig {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 23,
            num_attention_heads: 16,
            hidden_act: Activation::Gelu,
            projection_dim: 512,
            ..Self::vit_l()
        }
    }

    /// OpenCLIP ViT-bigG/14: the second of XL's two.
    pub fn open_clip_big_g() -> Self {
        ClipConfig {
            hidden_size: 1280,
            intermediate_size: 5120,
            num_hidden_layers: 32,
            num_attention_heads: 20,
            hidden_act: Activation::Gelu,
            projection_dim: 1280,
            ..Self::vit_l()
        }
    }
}
