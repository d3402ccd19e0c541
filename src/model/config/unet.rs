//! The U-Net.

use serde_json::Value;

use super::fields::{MAX_CHANNELS, channels, check_groups, check_heads, levels, only};
use crate::error::Result;
use crate::json::Object;
use crate::location::Location;

/// `UNet2DConditionModel`. Lists have one entry a level, the finest level first; only `up_blocks` is in
/// the order in which those blocks run, the coarsest first. A ControlNet has none of them.
#[derive(Clone, Debug, PartialEq)]
pub struct UNetConfig {
    /// Latent pixels of a side that the model was trained at.
    pub sample_size: usize,
    pub in_channels: usize,
    pub out_channels: usize,
    pub block_out_channels: Vec<usize>,
    pub down_blocks: Vec<BlockKind>,
    pub up_blocks: Vec<BlockKind>,
    /// Resnets of a down block; an up block has one more.
    pub layers_per_block: Vec<usize>,
    pub heads: Vec<usize>,
    pub transformer_layers_per_block: Vec<usize>,
    /// Whether the middle has a transformer and a second resnet.
    pub mid_attention: bool,
    pub cross_attention_dim: usize,
    pub use_linear_projection: bool,
    pub norm_num_groups: usize,
    pub norm_eps: f32,
    pub flip_sin_to_cos: bool,
    pub freq_shift: f32,
    /// What XL's time embedding takes in besides the timestep.
    pub text_time: Option<TextTimeConfig>,
    /// Width of the embedding of the guidance scale, in models with guidance distilled into them.
    pub time_cond_proj_dim: Option<usize>,
}

/// `addition_embed_type` `text_time`: a prompt's pooled projection, and six numbers about the picture's
/// size and crop, each as sinusoidal features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextTimeConfig {
    /// Width of the pooled projection.
    pub pooled_dim: usize,
    /// Features of each of the six numbers.
    pub time_embed_dim: usize,
}

impl UNetConfig {
    /// Elements of the largest map between layers, or a few more, for latents of h x w.
    pub fn largest_map(&self, h: usize, w: usize) -> usize {
        let channels = &self.block_out_channels;
        let last = channels.len() - 1;
        let level = |level: usize| {
            let neighbours = channels[level].max(channels[(level + 1).min(last)]);
            let concatenated = channels[level].max(channels[level.saturating_sub(1)]) + neighbours;
            let kinds = [self.down_blocks[level], self.up_blocks[last - level]];
            // GEGLU's projection.
            let attention = level == last || kinds.contains(&BlockKind::CrossAttention);
            let projected = if attention { 8 * channels[level] } else { 0 };
            h.div_ceil(1 << level) * w.div_ceil(1 << level) * concatenated.max(projected)
        };
        (0..channels.len()).map(level).max().unwrap_or(0)
    }
}

impl TextTimeConfig {
    /// Height and width of the original, top and left of the crop, height and width of the target.
    pub const NUMBERS: usize = 6;

    /// All that the embedding is made of, side by side: `projection_class_embeddings_input_dim`.
    pub fn width(&self) -> usize {
        self.pooled_dim + Self::NUMBERS * self.time_embed_dim
    }

    fn read(json: &Object) -> Result<Option<Self>> {
        if json.text("addition_embed_type")?.is_none() {
            return Ok(None);
        }
        let time_embed_dim = channels(json, "addition_time_embed_dim", 256, 8, MAX_CHANNELS)?;
        let key = "projection_class_embeddings_input_dim";
        let pooled_dim = json.count(key, 2816, 1..=MAX_CHANNELS)?.checked_sub(Self::NUMBERS * time_embed_dim);
        match pooled_dim {
            Some(pooled_dim) if pooled_dim > 0 && pooled_dim.is_multiple_of(8) => {
                Ok(Some(TextTimeConfig { pooled_dim, time_embed_dim }))
            }
            _ => {
                let expected = format!(
                    "expected the width of a pooled projection, a multiple of 8, and {} times \
                     addition_time_embed_dim, {time_embed_dim}",
                    Self::NUMBERS
                );
                Err(json.refuse(key, expected))
            }
        }
    }
}

/// What a block of the U-Net is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// `DownBlock2D`, `UpBlock2D`.
    Resnets,
    /// `CrossAttnDownBlock2D`, `CrossAttnUpBlock2D`: a transformer after each resnet.
    CrossAttention,
}

/// Keys of a U-Net's configuration with the values, in JSON, that the engine computes.
const UNET_ONLY: &[(&str, &[&str])] = &[
    ("_class_name", &["\"UNet2DConditionModel\""]),
    ("conv_out_kernel", &["3"]),
    ("mid_block_type", &["\"UNetMidBlock2DCrossAttn\""]),
];

/// The same for its encoder.
const ENCODER_ONLY: &[(&str, &[&str])] = &[
    ("act_fn", &["\"silu\"", "\"swish\""]),
    ("addition_embed_type", &["\"text_time\""]),
    ("attention_type", &["\"default\""]),
    ("center_input_sample", &["false"]),
    ("class_embed_type", &["null"]),
    ("class_embeddings_concat", &["false"]),
    ("conv_in_kernel", &["3"]),
    ("cross_attention_norm", &["null"]),
    ("downsample_padding", &["1"]),
    ("dual_cross_attention", &["false"]),
    ("encoder_hid_dim", &["null"]),
    ("encoder_hid_dim_type", &["null"]),
    ("mid_block_only_cross_attention", &["false"]),
    ("mid_block_scale_factor", &["1"]),
    ("num_class_embeds", &["null"]),
    ("only_cross_attention", &["false"]),
    ("resnet_out_scale_factor", &["1"]),
    ("resnet_skip_time_act", &["false"]),
    ("resnet_time_scale_shift", &["\"default\""]),
    ("reverse_transformer_layers_per_block", &["null"]),
    ("time_embedding_act_fn", &["null"]),
    ("time_embedding_dim", &["null"]),
    ("time_embedding_type", &["\"positional\""]),
    ("timestep_post_act", &["null"]),
];

impl UNetConfig {
    pub fn read(file: &Location) -> Result<Self> {
        let json = Object::read(file)?;
        for (key, supported) in UNET_ONLY {
            only(&json, key, supported)?;
        }
        // Here null is no default: it leaves the block out.
        if json.map.get("mid_block_type") == Some(&Value::Null) {
            return Err(json.refuse("mid_block_type", "only \"UNetMidBlock2DCrossAttn\" is supported"));
        }
        let encoder = Self::read_encoder(&json)?;
        let n = encoder.block_out_channels.len();
        let up = [BlockKind::Resnets].into_iter().chain([BlockKind::CrossAttention; 3]).collect();
        let config = UNetConfig {
            sample_size: json.count("sample_size", 64, 1..=4096)?,
            out_channels: channels(&json, "out_channels", 4, 4, MAX_CHANNELS)?,
            up_blocks: block_kinds(&json, "up_block_types", "UpBlock2D", n, up)?,
            time_cond_proj_dim: match json.get("time_cond_proj_dim") {
                None => None,
                Some(_) => Some(channels(&json, "time_cond_proj_dim", 0, 8, MAX_CHANNELS)?),
            },
            ..encoder
        };
        config.check_heads(&json)?;
        Ok(config)
    }

    /// The configuration of the encoder of a U-Net or ControlNet, without up blocks; the rest as in
    /// Stable Diffusion 1.5.
    pub(super) fn read_encoder(json: &Object) -> Result<Self> {
        for (key, supported) in ENCODER_ONLY {
            only(json, key, supported)?;
        }
        let block_out_channels = levels(json, &[320, 640, 1280, 1280])?;
        let n = block_out_channels.len();
        let down = [BlockKind::CrossAttention; 3].into_iter().chain([BlockKind::Resnets]).collect();
        let cross_attention_dims = json.counts("cross_attention_dim", 1280, n, 8..=MAX_CHANNELS)?;
        let cross_attention_dim = cross_attention_dims[0];
        if !cross_attention_dim.is_multiple_of(8)
            || cross_attention_dims.iter().any(|&d| d != cross_attention_dim)
        {
            return Err(json.refuse("cross_attention_dim", "expected one multiple of 8 for all levels"));
        }
        let config = UNetConfig {
            in_channels: channels(json, "in_channels", 4, 1, MAX_CHANNELS)?,
            down_blocks: block_kinds(json, "down_block_types", "DownBlock2D", n, down)?,
            up_blocks: Vec::new(),
            layers_per_block: json.counts("layers_per_block", 2, n, 1..=32)?,
            heads: json.counts(heads_key(json), 8, n, 1..=MAX_CHANNELS)?,
            transformer_layers_per_block: json.counts("transformer_layers_per_block", 1, n, 0..=32)?,
            cross_attention_dim,
            use_linear_projection: json.flag("use_linear_projection", false)?,
            norm_num_groups: json.count("norm_num_groups", 32, 1..=MAX_CHANNELS)?,
            norm_eps: json.positive("norm_eps", 1e-5)?,
            flip_sin_to_cos: json.flag("flip_sin_to_cos", true)?,
            freq_shift: json.float("freq_shift", 0.0)? as f32,
            text_time: TextTimeConfig::read(json)?,
            block_out_channels,
            ..Self::sd15()
        };
        check_groups(json, &config.block_out_channels, config.norm_num_groups)?;
        let half = config.block_out_channels[0] / 2;
        if !(config.freq_shift.is_finite() && config.freq_shift < half as f32) {
            return Err(json.refuse("freq_shift", format!("expected a number below {half}")));
        }
        Ok(config)
    }

    /// Checks the heads of every level that has a transformer.
    pub(super) fn check_heads(&self, json: &Object) -> Result<()> {
        let n = self.block_out_channels.len();
        for level in 0..n {
            let up = self.up_blocks.iter().rev().nth(level);
            let has_attention = self.down_blocks[level] == BlockKind::CrossAttention
                || up == Some(&BlockKind::CrossAttention)
                || (level == n - 1 && self.mid_attention);
            if has_attention {
                check_heads(json, heads_key(json), self.block_out_channels[level], self.heads[level])?;
            }
        }
        Ok(())
    }

    pub fn sd15() -> Self {
        use BlockKind::{CrossAttention, Resnets};
        UNetConfig {
            sample_size: 64,
            in_channels: 4,
            out_channels: 4,
            block_out_channels: vec![320, 640, 1280, 1280],
            down_blocks: vec![CrossAttention, CrossAttention, CrossAttention, Resnets],
            up_blocks: vec![Resnets, CrossAttention, CrossAttention, CrossAttention],
            layers_per_block: vec![2; 4],
            heads: vec![8; 4],
            transformer_layers_per_block: vec![1; 4],
            mid_attention: true,
            cross_attention_dim: 768,
            use_linear_projection: false,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            text_time: None,
            time_cond_proj_dim: None,
        }
    }

    /// Stable Diffusion 2.1 for 768x768.
    pub fn sd21() -> Self {
        UNetConfig {
            sample_size: 96,
            heads: vec![5, 10, 20, 20],
            cross_attention_dim: 1024,
            use_linear_projection: true,
            ..Self::sd15()
        }
    }

    pub fn sdxl() -> Self {
        use BlockKind::{CrossAttention, Resnets};
        UNetConfig {
            sample_size: 128,
            block_out_channels: vec![320, 640, 1280],
            down_blocks: vec![Resnets, CrossAttention, CrossAttention],
            up_blocks: vec![CrossAttention, CrossAttention, Resnets],
            layers_per_block: vec![2; 3],
            heads: vec![5, 10, 20],
            transformer_layers_per_block: vec![1, 2, 10],
            cross_attention_dim: 2048,
            use_linear_projection: true,
            text_time: Some(TextTimeConfig { pooled_dim: 1280, time_embed_dim: 256 }),
            ..Self::sd15()
        }
    }
}

/// Older configurations, and diffusers to this day, give the number of heads under the name of their width.
fn heads_key(json: &Object) -> &'static str {
    if json.get("num_attention_heads").is_some() { "num_attention_heads" } else { "attention_head_dim" }
}

/// `plain` is the block without attention: `DownBlock2D` or `UpBlock2D`.
fn block_kinds(
    json: &Object,
    key: &str,
    plain: &str,
    levels: usize,
    default: Vec<BlockKind>,
) -> Result<Vec<BlockKind>> {
    let kinds = match json.texts(key)? {
        None => Some(default),
        Some(names) => names
            .into_iter()
            .map(|name| match name.strip_prefix("CrossAttn") {
                None if name == plain => Some(BlockKind::Resnets),
                Some(rest) if rest == plain => Some(BlockKind::CrossAttention),
                _ => None,
            })
            .collect(),
    };
    kinds.filter(|kinds| kinds.len() == levels).ok_or_else(|| {
        json.refuse(key, format!("expected {levels} blocks, each \"{plain}\" or \"CrossAttn{plain}\""))
    })
}
