//! Shapes of the three models, read from the `config.json` of each, checked against what the engine can run.
//!
//! Absent keys have the defaults of diffusers (`UNet2DConditionModel`, `AutoencoderKL`) and transformers
//! (`CLIPTextConfig`).

use serde_json::Value;

use crate::error::{Error, Result};
use crate::json::Object;
use crate::location::Location;
use crate::ops::Activation;

/// Most channels of a level, and the widest hidden states. Layer norm's rows are no wider, and group norm's
/// twice as wide, as a concatenation is. Stable Diffusion has 1280.
const MAX_WIDTH: usize = 1 << 11;
/// Most of any other count of channels: far from overflowing anything.
const MAX_CHANNELS: usize = 1 << 14;
/// Largest head of the attention kernels; the VAE's single head has its own limit.
const MAX_HEAD_DIM: usize = 160;
const MAX_VAE_HEAD_DIM: usize = 512;

/// The three models of a checkpoint, known to fit one another.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    pub clip: ClipConfig,
    pub unet: UNetConfig,
    pub vae: VaeConfig,
}

/// CLIP's text encoder.
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
}

/// `UNet2DConditionModel`. Lists have one entry a level, the finest level first; only `up_blocks` is in
/// the order in which those blocks run, the coarsest first.
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
    pub cross_attention_dim: usize,
    pub use_linear_projection: bool,
    pub norm_num_groups: usize,
    pub norm_eps: f32,
    pub flip_sin_to_cos: bool,
    pub freq_shift: f32,
}

/// What a block of the U-Net is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// `DownBlock2D`, `UpBlock2D`.
    Resnets,
    /// `CrossAttnDownBlock2D`, `CrossAttnUpBlock2D`: a transformer after each resnet.
    CrossAttention,
}

/// `AutoencoderKL`.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    pub latent_channels: usize,
    pub block_out_channels: Vec<usize>,
    /// Resnets of an encoder block; a decoder block has one more.
    pub layers_per_block: usize,
    pub norm_num_groups: usize,
    /// Latents are what the encoder gives, times this.
    pub scaling_factor: f32,
    /// Picture pixels of a side that the model was trained at.
    pub sample_size: usize,
    pub mid_block_add_attention: bool,
    pub use_quant_conv: bool,
    pub use_post_quant_conv: bool,
}

impl ModelConfig {
    /// Reads `text_encoder/config.json`, `unet/config.json` and `vae/config.json` of a model folder.
    pub fn read(folder: &Location) -> Result<Self> {
        let unet_file = folder.join("unet/config.json");
        let clip = ClipConfig::read(&folder.join("text_encoder/config.json"))?;
        let unet = UNetConfig::read(&unet_file)?;
        let vae = VaeConfig::read(&folder.join("vae/config.json"))?;
        if unet.cross_attention_dim != clip.hidden_size {
            let (dim, hidden) = (unet.cross_attention_dim, clip.hidden_size);
            let message = format!(
                "cross_attention_dim is {dim}; the text encoder's hidden_size is {hidden}, and the two must be equal"
            );
            return Err(Error::file(&unet_file, message));
        }
        if unet.in_channels != vae.latent_channels || unet.out_channels != vae.latent_channels {
            let (i, o, latent) = (unet.in_channels, unet.out_channels, vae.latent_channels);
            let message = format!(
                "in_channels is {i} and out_channels is {o}; both must be the VAE's latent_channels, {latent}: \
                 inpainting, depth and pix2pix models are not supported, try a text-to-image one"
            );
            return Err(Error::file(&unet_file, message));
        }
        Ok(ModelConfig { clip, unet, vae })
    }

    /// The shapes of Stable Diffusion 1.5.
    pub fn sd15() -> Self {
        ModelConfig { clip: ClipConfig::sd15(), unet: UNetConfig::sd15(), vae: VaeConfig::sd15() }
    }
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
        };
        check_heads(&json, "num_attention_heads", config.hidden_size, config.num_attention_heads)?;
        Ok(config)
    }

    /// CLIP ViT-L/14, the text encoder of Stable Diffusion 1.5.
    pub fn sd15() -> Self {
        ClipConfig {
            vocab_size: 49408,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

/// Keys of a U-Net's configuration with the values, in JSON, that the engine computes.
const UNET_ONLY: &[(&str, &[&str])] = &[
    ("_class_name", &["\"UNet2DConditionModel\""]),
    ("act_fn", &["\"silu\"", "\"swish\""]),
    ("addition_embed_type", &["null"]),
    ("attention_type", &["\"default\""]),
    ("center_input_sample", &["false"]),
    ("class_embed_type", &["null"]),
    ("class_embeddings_concat", &["false"]),
    ("conv_in_kernel", &["3"]),
    ("conv_out_kernel", &["3"]),
    ("cross_attention_norm", &["null"]),
    ("downsample_padding", &["1"]),
    ("dual_cross_attention", &["false"]),
    ("encoder_hid_dim", &["null"]),
    ("encoder_hid_dim_type", &["null"]),
    ("mid_block_only_cross_attention", &["false"]),
    ("mid_block_scale_factor", &["1"]),
    ("mid_block_type", &["\"UNetMidBlock2DCrossAttn\""]),
    ("num_class_embeds", &["null"]),
    ("only_cross_attention", &["false"]),
    ("resnet_out_scale_factor", &["1"]),
    ("resnet_skip_time_act", &["false"]),
    ("resnet_time_scale_shift", &["\"default\""]),
    ("reverse_transformer_layers_per_block", &["null"]),
    ("time_cond_proj_dim", &["null"]),
    ("time_embedding_act_fn", &["null"]),
    ("time_embedding_dim", &["null"]),
    ("time_embedding_type", &["\"positional\""]),
    ("timestep_post_act", &["null"]),
];

impl UNetConfig {
    pub fn read(file: &Location) -> Result<Self> {
        let json = Object::read(file)?;
        if json.text("addition_embed_type")?.is_some() {
            let expected = "Stable Diffusion XL is not supported, try a model of the 1.x or 2.x family";
            return Err(json.refuse("addition_embed_type", expected));
        }
        for (key, supported) in UNET_ONLY {
            only(&json, key, supported)?;
        }
        // Here null is no default: it leaves the block out.
        if json.map.get("mid_block_type") == Some(&Value::Null) {
            return Err(json.refuse("mid_block_type", "only \"UNetMidBlock2DCrossAttn\" is supported"));
        }
        let block_out_channels = levels(&json, &[320, 640, 1280, 1280])?;
        let n = block_out_channels.len();
        let down = [BlockKind::CrossAttention; 3].into_iter().chain([BlockKind::Resnets]).collect();
        let up = [BlockKind::Resnets].into_iter().chain([BlockKind::CrossAttention; 3]).collect();
        let heads_key = if json.get("num_attention_heads").is_some() {
            "num_attention_heads"
        } else {
            "attention_head_dim"
        };
        let cross_attention_dims = json.counts("cross_attention_dim", 1280, n, 8..=MAX_CHANNELS)?;
        let cross_attention_dim = cross_attention_dims[0];
        if !cross_attention_dim.is_multiple_of(8)
            || cross_attention_dims.iter().any(|&d| d != cross_attention_dim)
        {
            return Err(json.refuse("cross_attention_dim", "expected one multiple of 8 for all levels"));
        }
        let config = UNetConfig {
            sample_size: json.count("sample_size", 64, 1..=4096)?,
            in_channels: channels(&json, "in_channels", 4, 1, MAX_CHANNELS)?,
            out_channels: channels(&json, "out_channels", 4, 4, MAX_CHANNELS)?,
            down_blocks: block_kinds(&json, "down_block_types", "DownBlock2D", n, down)?,
            up_blocks: block_kinds(&json, "up_block_types", "UpBlock2D", n, up)?,
            layers_per_block: json.counts("layers_per_block", 2, n, 1..=32)?,
            heads: json.counts(heads_key, 8, n, 1..=MAX_CHANNELS)?,
            transformer_layers_per_block: json.counts("transformer_layers_per_block", 1, n, 1..=32)?,
            cross_attention_dim,
            use_linear_projection: json.flag("use_linear_projection", false)?,
            norm_num_groups: json.count("norm_num_groups", 32, 1..=MAX_CHANNELS)?,
            norm_eps: json.positive("norm_eps", 1e-5)?,
            flip_sin_to_cos: json.flag("flip_sin_to_cos", true)?,
            freq_shift: json.float("freq_shift", 0.0)? as f32,
            block_out_channels,
        };
        check_groups(&json, &config.block_out_channels, config.norm_num_groups)?;
        for level in 0..n {
            let has_attention = config.down_blocks[level] == BlockKind::CrossAttention
                || config.up_blocks[n - 1 - level] == BlockKind::CrossAttention
                || level == n - 1;
            if has_attention {
                check_heads(&json, heads_key, config.block_out_channels[level], config.heads[level])?;
            }
        }
        let half = config.block_out_channels[0] / 2;
        if !(config.freq_shift.is_finite() && config.freq_shift < half as f32) {
            return Err(json.refuse("freq_shift", format!("expected a number below {half}")));
        }
        Ok(config)
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
            cross_attention_dim: 768,
            use_linear_projection: false,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
        }
    }
}

impl VaeConfig {
    pub fn read(file: &Location) -> Result<Self> {
        let json = Object::read(file)?;
        only(&json, "_class_name", &["\"AutoencoderKL\""])?;
        only(&json, "act_fn", &["\"silu\"", "\"swish\""])?;
        only(&json, "down_block_types", &["\"DownEncoderBlock2D\""])?;
        only(&json, "up_block_types", &["\"UpDecoderBlock2D\""])?;
        for key in ["latents_mean", "latents_std", "shift_factor"] {
            only(&json, key, &["null"])?;
        }
        only(&json, "in_channels", &["3"])?;
        only(&json, "out_channels", &["3"])?;
        let config = VaeConfig {
            in_channels: 3,
            out_channels: 3,
            latent_channels: channels(&json, "latent_channels", 4, 4, MAX_CHANNELS)?,
            block_out_channels: levels(&json, &[64])?,
            layers_per_block: json.count("layers_per_block", 1, 1..=32)?,
            norm_num_groups: json.count("norm_num_groups", 32, 1..=MAX_CHANNELS)?,
            scaling_factor: json.positive("scaling_factor", 0.18215)?,
            sample_size: json.count("sample_size", 32, 1..=1 << 15)?,
            mid_block_add_attention: json.flag("mid_block_add_attention", true)?,
            use_quant_conv: json.flag("use_quant_conv", true)?,
            use_post_quant_conv: json.flag("use_post_quant_conv", true)?,
        };
        check_groups(&json, &config.block_out_channels, config.norm_num_groups)?;
        for key in ["down_block_types", "up_block_types"] {
            let count = json.texts(key)?.map_or(1, |types| types.len());
            if count != config.block_out_channels.len() {
                return Err(json.refuse(key, "expected as many as block_out_channels"));
            }
        }
        let last = config.block_out_channels[config.block_out_channels.len() - 1];
        if config.mid_block_add_attention && last > MAX_VAE_HEAD_DIM {
            let expected =
                format!("with attention in the middle block, at most {MAX_VAE_HEAD_DIM} at the end");
            return Err(json.refuse("block_out_channels", expected));
        }
        Ok(config)
    }

    pub fn sd15() -> Self {
        VaeConfig {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            sample_size: 512,
            mid_block_add_attention: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
        }
    }

    /// Picture pixels along one latent pixel: 8 for Stable Diffusion.
    pub fn scale_factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// Elements of the largest map between layers, for one picture of h x w.
    pub fn largest_map(&self, h: usize, w: usize) -> usize {
        let channels = &self.block_out_channels;
        let level = |level: usize| {
            // In the decoder a level also holds the enlarged map of the coarser one.
            let c = channels[level].max(channels[(level + 1).min(channels.len() - 1)]);
            h.div_ceil(1 << level) * w.div_ceil(1 << level) * c
        };
        (0..channels.len()).map(level).max().unwrap_or(0)
    }
}

/// Refuses every value but the `supported` ones, given as JSON. A list must have supported entries only.
fn only(json: &Object, key: &str, supported: &[&str]) -> Result<()> {
    let Some(value) = json.get(key) else { return Ok(()) };
    let fits = |value: &Value| {
        let written = value.to_string();
        let number = value.as_f64();
        supported
            .iter()
            .any(|text| *text == written || number.is_some_and(|number| text.parse() == Ok(number)))
    };
    let supported_here = match value {
        Value::Array(list) => list.iter().all(fits),
        value => fits(value),
    };
    if supported_here {
        return Ok(());
    }
    let verb = if supported.len() == 1 { "is" } else { "are" };
    Err(json.refuse(key, format!("only {} {verb} supported", supported.join(" and "))))
}

fn channels(json: &Object, key: &str, default: usize, multiple: usize, most: usize) -> Result<usize> {
    let count = json.count(key, default, 1..=most)?;
    if count.is_multiple_of(multiple) {
        Ok(count)
    } else {
        Err(json.refuse(key, format!("expected a multiple of {multiple}")))
    }
}

/// `block_out_channels`, the key that says how many levels there are.
fn levels(json: &Object, default: &[usize]) -> Result<Vec<usize>> {
    let key = "block_out_channels";
    let Some(value) = json.get(key) else { return Ok(default.to_vec()) };
    let n = value.as_array().map_or(0, |list| list.len());
    if !(1..=8).contains(&n) {
        return Err(json.refuse(key, "expected a list of 1 to 8 channel counts"));
    }
    let channels = json.counts(key, 0, n, 8..=MAX_WIDTH)?;
    if channels.iter().any(|count| !count.is_multiple_of(8)) {
        return Err(json.refuse(key, "expected multiples of 8"));
    }
    Ok(channels)
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

fn check_groups(json: &Object, channels: &[usize], groups: usize) -> Result<()> {
    match channels.iter().find(|count| !count.is_multiple_of(groups)) {
        None => Ok(()),
        Some(count) => Err(json
            .refuse("norm_num_groups", format!("{count} channels cannot be divided into that many groups"))),
    }
}

fn check_heads(json: &Object, key: &str, channels: usize, heads: usize) -> Result<()> {
    let d = channels / heads;
    if channels.is_multiple_of(heads) && d.is_multiple_of(8) && (8..=MAX_HEAD_DIM).contains(&d) {
        return Ok(());
    }
    let expected = format!(
        "it is a number of heads, and must divide {channels} channels into heads of a multiple of 8, \
         at most {MAX_HEAD_DIM}"
    );
    Err(json.refuse(key, expected))
}
