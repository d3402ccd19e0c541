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
    /// Blocks of the transformer behind each resnet of a down block; none in a block without attention.
    pub down_depths: Vec<Vec<usize>>,
    /// Blocks of the transformer behind each resnet of an up block, in the order in which those blocks run.
    pub up_depths: Vec<Vec<usize>>,
    pub mid_block: MidBlock,
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

/// `addition_embed_type` `text_time`: a prompt's pooled projection, and numbers about the image's size and crop, each
/// as sinusoidal features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextTimeConfig {
    /// Width of the pooled projection.
    pub pooled_dim: usize,
    /// Features of each of the numbers.
    pub time_embed_dim: usize,
    /// How many numbers there are: [`TextTimeConfig::SIZES`] or [`TextTimeConfig::SIZES_AND_SCORE`].
    pub numbers: usize,
}

/// The layers between the ways down and up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MidBlock {
    /// No layer at all.
    None,
    /// One resnet: `UNetMidBlock2D`.
    Resnet,
    /// A transformer between two resnets: `UNetMidBlock2DCrossAttn`.
    CrossAttention {
        /// Blocks of the transformer.
        depth: usize,
    },
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
            let attention = (level == last && self.mid_block.has_attention())
                || kinds.contains(&BlockKind::CrossAttention);
            let projected = if attention { 8 * channels[level] } else { 0 };
            h.div_ceil(1 << level) * w.div_ceil(1 << level) * concatenated.max(projected)
        };
        (0..channels.len()).map(level).max().unwrap_or(0)
    }
}

impl UNetConfig {
    /// The same with a pooled projection of this width, if there is one.
    pub(super) fn with_pooled_dim(self, pooled_dim: Option<usize>) -> Self {
        let text_time = match (self.text_time, pooled_dim) {
            (Some(text_time), Some(pooled_dim)) => Some(text_time.with_pooled_dim(pooled_dim)),
            (text_time, _) => text_time,
        };
        UNetConfig { text_time, ..self }
    }
}

impl TextTimeConfig {
    /// Height and width of the original, top and left of the crop, height and width of the target.
    pub const SIZES: usize = 6;
    /// Height and width of the original, top and left of the crop, the aesthetic score: XL's refiner.
    pub const SIZES_AND_SCORE: usize = 5;

    /// All that the embedding is made of, side by side: `projection_class_embeddings_input_dim`.
    pub fn width(&self) -> usize {
        self.pooled_dim + self.numbers * self.time_embed_dim
    }

    /// Whether an aesthetic score is among the numbers.
    pub fn has_score(&self) -> bool {
        self.numbers == Self::SIZES_AND_SCORE
    }

    /// An embedding of a width, by how many numbers there may be.
    pub(super) fn of_width(width: usize, time_embed_dim: usize) -> Option<Self> {
        [Self::SIZES, Self::SIZES_AND_SCORE].into_iter().find_map(|numbers| {
            let pooled_dim = width.checked_sub(numbers * time_embed_dim)?;
            let fits = pooled_dim > 0 && pooled_dim.is_multiple_of(8);
            fits.then_some(TextTimeConfig { pooled_dim, time_embed_dim, numbers })
        })
    }

    /// The same width, with as many numbers as a pooled projection of another width leaves room for.
    pub(super) fn with_pooled_dim(self, pooled_dim: usize) -> Self {
        let TextTimeConfig { time_embed_dim, .. } = self;
        [Self::SIZES, Self::SIZES_AND_SCORE]
            .into_iter()
            .map(|numbers| TextTimeConfig { pooled_dim, time_embed_dim, numbers })
            .find(|config| config.width() == self.width())
            .unwrap_or(self)
    }

    fn read(json: &Object) -> Result<Option<Self>> {
        if json.text("addition_embed_type")?.is_none() {
            return Ok(None);
        }
        let time_embed_dim = channels(json, "addition_time_embed_dim", 256, 8, MAX_CHANNELS)?;
        let key = "projection_class_embeddings_input_dim";
        let config = Self::of_width(json.count(key, 2816, 1..=MAX_CHANNELS)?, time_embed_dim);
        config.map(Some).ok_or_else(|| {
            let expected = format!(
                "expected the width of a pooled projection, a multiple of 8, and {} or {} times \
                 addition_time_embed_dim, {time_embed_dim}",
                Self::SIZES,
                Self::SIZES_AND_SCORE
            );
            json.refuse(key, expected)
        })
    }
}

impl MidBlock {
    pub(super) const NAMES: [&str; 2] = ["\"UNetMidBlock2DCrossAttn\"", "\"UNetMidBlock2D\""];

    pub fn has_attention(&self) -> bool {
        matches!(self, MidBlock::CrossAttention { .. })
    }

    /// `mid_block_type`, of which null is no default, but leaves the block out. Its transformer has as many blocks as
    /// the first of the coarsest level.
    fn read(json: &Object) -> Result<Self> {
        let of_level =
            |value: &Value| value.as_array().map_or(Some(value), |list| list.first()).and_then(depth);
        let depth = match json.get(DEPTHS) {
            None => Some(1),
            Some(Value::Array(list)) => list.last().and_then(of_level),
            Some(value) => depth(value),
        };
        let depth = depth.ok_or_else(|| json.refuse(DEPTHS, "expected whole numbers"))?;
        Ok(match json.text(MID_BLOCK)? {
            None if json.map.contains_key(MID_BLOCK) => MidBlock::None,
            None => MidBlock::CrossAttention { depth },
            Some(name) if name.ends_with("CrossAttn") => MidBlock::CrossAttention { depth },
            Some(_) => MidBlock::Resnet,
        })
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
const UNET_ONLY: &[(&str, &[&str])] =
    &[("_class_name", &["\"UNet2DConditionModel\""]), ("conv_out_kernel", &["3"])];

const MID_BLOCK: &str = "mid_block_type";
const DEPTHS: &str = "transformer_layers_per_block";
const UP_DEPTHS: &str = "reverse_transformer_layers_per_block";
/// Most blocks of a transformer.
const MAX_DEPTH: usize = 32;

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
    (MID_BLOCK, &MidBlock::NAMES),
    ("num_class_embeds", &["null"]),
    ("only_cross_attention", &["false"]),
    ("resnet_out_scale_factor", &["1"]),
    ("resnet_skip_time_act", &["false"]),
    ("resnet_time_scale_shift", &["\"default\""]),
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
        let encoder = Self::read_encoder(&json)?;
        let n = encoder.block_out_channels.len();
        let up = [BlockKind::Resnets].into_iter().chain([BlockKind::CrossAttention; 3]).collect();
        let up_blocks = block_kinds(&json, "up_block_types", "UpBlock2D", n, up)?;
        let layers = encoder.layers_per_block.iter().rev().map(|layers| layers + 1).collect::<Vec<_>>();
        let up_depths = match depths(&json, UP_DEPTHS, &up_blocks, &layers)? {
            Some(depths) => depths,
            None => {
                let even = json.counts(DEPTHS, 1, n, 0..=MAX_DEPTH).map_err(|_| {
                    json.refuse(DEPTHS, format!("lists within it are supported with {UP_DEPTHS} only"))
                })?;
                let blocks = up_blocks.iter().zip(&layers).zip(even.into_iter().rev());
                blocks.map(|((&kind, &layers), depth)| kind.depths(depth, layers)).collect()
            }
        };
        let config = UNetConfig {
            sample_size: json.count("sample_size", 64, 1..=4096)?,
            out_channels: channels(&json, "out_channels", 4, 4, MAX_CHANNELS)?,
            up_blocks,
            up_depths,
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
        let down_blocks = block_kinds(json, "down_block_types", "DownBlock2D", n, down)?;
        let layers_per_block = json.counts("layers_per_block", 2, n, 1..=32)?;
        let even = || {
            let blocks = down_blocks.iter().zip(&layers_per_block);
            blocks.map(|(&kind, &layers)| kind.depths(1, layers)).collect()
        };
        let down_depths = depths(json, DEPTHS, &down_blocks, &layers_per_block)?.unwrap_or_else(even);
        let config = UNetConfig {
            in_channels: channels(json, "in_channels", 4, 1, MAX_CHANNELS)?,
            down_blocks,
            up_blocks: Vec::new(),
            layers_per_block,
            down_depths,
            up_depths: Vec::new(),
            mid_block: MidBlock::read(json)?,
            heads: json.counts(heads_key(json), 8, n, 1..=MAX_CHANNELS)?,
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
                || (level == n - 1 && self.mid_block.has_attention());
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
            down_depths: vec![vec![1; 2], vec![1; 2], vec![1; 2], vec![]],
            up_depths: vec![vec![], vec![1; 3], vec![1; 3], vec![1; 3]],
            mid_block: MidBlock::CrossAttention { depth: 1 },
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
            down_depths: vec![vec![], vec![2; 2], vec![10; 2]],
            up_depths: vec![vec![10; 3], vec![2; 3], vec![]],
            mid_block: MidBlock::CrossAttention { depth: 10 },
            cross_attention_dim: 2048,
            use_linear_projection: true,
            text_time: Some(TextTimeConfig {
                pooled_dim: 1280,
                time_embed_dim: 256,
                numbers: TextTimeConfig::SIZES,
            }),
            ..Self::sd15()
        }
    }

    /// The refiner of Stable Diffusion XL.
    pub fn sdxl_refiner() -> Self {
        use BlockKind::{CrossAttention, Resnets};
        let text_time = TextTimeConfig {
            pooled_dim: 1280,
            time_embed_dim: 256,
            numbers: TextTimeConfig::SIZES_AND_SCORE,
        };
        UNetConfig {
            block_out_channels: vec![384, 768, 1536, 1536],
            down_blocks: vec![Resnets, CrossAttention, CrossAttention, Resnets],
            up_blocks: vec![Resnets, CrossAttention, CrossAttention, Resnets],
            layers_per_block: vec![2; 4],
            heads: vec![6, 12, 24, 24],
            down_depths: vec![vec![], vec![4; 2], vec![4; 2], vec![]],
            up_depths: vec![vec![], vec![4; 3], vec![4; 3], vec![]],
            mid_block: MidBlock::CrossAttention { depth: 4 },
            cross_attention_dim: 1280,
            text_time: Some(text_time),
            ..Self::sdxl()
        }
    }
}

impl BlockKind {
    /// The depths of as many transformers as a block of this kind has.
    fn depths(self, depth: usize, layers: usize) -> Vec<usize> {
        match self {
            BlockKind::Resnets => Vec::new(),
            BlockKind::CrossAttention => vec![depth; layers],
        }
    }
}

fn depth(value: &Value) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok().filter(|&depth| depth <= MAX_DEPTH)
}

/// The depths of the transformers behind each resnet of a block: a number for all blocks, one a block, or a list for
/// a block. `None` where nothing is said. `layers` are the resnets of each block; of blocks without attention, no value
/// means anything.
fn depths(
    json: &Object,
    key: &str,
    kinds: &[BlockKind],
    layers: &[usize],
) -> Result<Option<Vec<Vec<usize>>>> {
    let Some(value) = json.get(key) else { return Ok(None) };
    let block = |value: &Value, kind: BlockKind, layers: usize| match value {
        _ if kind == BlockKind::Resnets => Some(Vec::new()),
        Value::Array(list) if list.len() == layers => list.iter().map(depth).collect(),
        value => depth(value).map(|depth| kind.depths(depth, layers)),
    };
    let of_blocks = kinds.iter().zip(layers);
    let blocks: Option<Vec<Vec<usize>>> = match value {
        Value::Array(list) if list.len() == layers.len() => {
            list.iter().zip(of_blocks).map(|(value, (&kind, &layers))| block(value, kind, layers)).collect()
        }
        Value::Array(_) => None,
        value => of_blocks.map(|(&kind, &layers)| block(value, kind, layers)).collect(),
    };
    blocks.map(Some).ok_or_else(|| {
        let n = layers.len();
        let expected = format!(
            "expected a whole number from 0 to {MAX_DEPTH}, or {n} of them, one for each level, or for each level a \
             list of {layers:?} of them"
        );
        json.refuse(key, expected)
    })
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
