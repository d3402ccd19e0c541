//! Configurations from the shapes of a checkpoint's tensors, where no `config.json` comes with it.
//!
//! What no shape says is what all models of the family share: norms, activations, and heads of 64 columns
//! except for the U-Net of Stable Diffusion 1.x, which has eight heads.

use super::fields::{MAX_CHANNELS, MAX_HEAD_DIM, MAX_VAE_HEAD_DIM, MAX_WIDTH};
use super::shapes::{Shapes, conv, count, matrix};
use super::{
    AutoencoderConfig, BlockKind, ClipConfig, MidBlock, ModelConfig, TextEncoderConfig, TextEncoderRole,
    TextTimeConfig, UNetConfig, VaeConfig, pooled_dim,
};
use crate::error::{Error, Result};
use crate::location::Location;

const HEAD_DIM: usize = 64;
/// Width of the context of Stable Diffusion 1.x.
const SD1_CONTEXT: usize = 768;

impl ModelConfig {
    /// The configuration of a model in a single file, `file`, by the shapes of its components: of one that is not
    /// there, none.
    pub fn infer<'a>(file: &Location, component: &dyn Fn(&str) -> Shapes<'a>) -> Result<Self> {
        let config = ModelConfig::of_shapes(component).ok_or_else(|| {
            let message = "not the shapes of a Stable Diffusion 1.x, 2.x or XL model; try the model in the \
                           layout of diffusers";
            Error::file(file, message)
        })?;
        config.check(file)?;
        Ok(config)
    }

    fn of_shapes<'a>(component: &dyn Fn(&str) -> Shapes<'a>) -> Option<Self> {
        let unet = UNetConfig::of_shapes(&component("unet"))?;
        let like = match unet.text_time {
            Some(_) => Self::sdxl(),
            None if unet.cross_attention_dim == SD1_CONTEXT => Self::sd15(),
            None => Self::sd21(),
        };
        let mut text_encoders = Vec::new();
        for TextEncoderConfig { role, clip } in &like.text_encoders {
            let shapes = component(role.component);
            // XL's refiner has the second alone.
            if *role != TextEncoderRole::FIRST || !shapes.is_empty() {
                text_encoders.push(role.of(ClipConfig::of_shapes(&shapes, clip)?));
            }
        }
        let AutoencoderConfig::Kl(vae_like) = &like.vae else { return None };
        Some(ModelConfig {
            vae: AutoencoderConfig::of_shapes(&component("vae"), vae_like)?,
            unet: UNetConfig { sample_size: like.unet.sample_size, ..unet }
                .with_pooled_dim(pooled_dim(&text_encoders)),
            text_encoders,
            controlnets: Vec::new(),
            preview_vae: None,
        })
    }
}

impl ClipConfig {
    fn of_shapes(shapes: &Shapes, like: &ClipConfig) -> Option<Self> {
        let &[vocab_size, hidden_size] = matrix(shapes, "embeddings.token_embedding.weight")?;
        let &[max_position_embeddings, _] = matrix(shapes, "embeddings.position_embedding.weight")?;
        let &[intermediate_size, _] = matrix(shapes, "encoder.layers.0.mlp.fc1.weight")?;
        let projection_dim = matrix(shapes, "text_projection.weight").map_or(like.projection_dim, |s| s[0]);
        let fits = hidden_size.is_multiple_of(HEAD_DIM) && (HEAD_DIM..=MAX_WIDTH).contains(&hidden_size);
        let fits = fits && intermediate_size.is_multiple_of(8) && intermediate_size <= MAX_CHANNELS;
        let fits =
            fits && (4..=1 << 20).contains(&vocab_size) && (3..=1024).contains(&max_position_embeddings);
        fits.then(|| ClipConfig {
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers: count(shapes, "encoder.layers."),
            num_attention_heads: hidden_size / HEAD_DIM,
            max_position_embeddings,
            projection_dim,
            ..like.clone()
        })
    }
}

impl UNetConfig {
    /// The size it was trained at is not among what shapes say.
    fn of_shapes(shapes: &Shapes) -> Option<Self> {
        let out_channels = conv(shapes, "conv_out.weight")?[0];
        let encoder = Self::encoder_of_shapes(shapes, None)?;
        let levels = encoder.block_out_channels.len();
        if count(shapes, "up_blocks.") != levels || !(4..=MAX_CHANNELS).contains(&out_channels) {
            return None;
        }
        let resnets = |up: usize| count(shapes, &format!("up_blocks.{up}.resnets."));
        let layers = |up: usize| encoder.layers_per_block[levels - 1 - up] + 1;
        if (0..levels).any(|up| resnets(up) != layers(up)) {
            return None;
        }
        let up_depths = (0..levels).map(|up| depths(shapes, &format!("up_blocks.{up}"), layers(up)));
        let up_depths = up_depths.collect::<Option<Vec<_>>>()?;
        Some(UNetConfig {
            out_channels,
            up_depths,
            up_blocks: (0..levels).map(|up| block_kind(shapes, &format!("up_blocks.{up}"))).collect(),
            time_cond_proj_dim: matrix(shapes, "time_embedding.cond_proj.weight").map(|s| s[1]),
            ..encoder
        })
    }

    /// The encoder of a U-Net or ControlNet, without up blocks. `unread_context` is the context's width where
    /// no transformer says it.
    pub(super) fn encoder_of_shapes(shapes: &Shapes, unread_context: Option<usize>) -> Option<Self> {
        let &[_, in_channels, 3, 3] = conv(shapes, "conv_in.weight")? else { return None };
        let levels = count(shapes, "down_blocks.");
        if !(1..=8).contains(&levels) {
            return None;
        }
        let per_level =
            |name: &dyn Fn(usize) -> Option<usize>| (0..levels).map(name).collect::<Option<Vec<_>>>();
        let block_out_channels = per_level(&|level| {
            Some(conv(shapes, &format!("down_blocks.{level}.resnets.0.conv1.weight"))?[0])
        })?;
        let usable = |c: &usize| c.is_multiple_of(32) && (32..=MAX_WIDTH).contains(c);
        if !block_out_channels.iter().all(usable) {
            return None;
        }
        let layers_per_block =
            per_level(&|level| Some(count(shapes, &format!("down_blocks.{level}.resnets."))))?;
        let kind = |level| block_kind(shapes, &format!("down_blocks.{level}"));
        let down_depths =
            (0..levels).map(|level| depths(shapes, &format!("down_blocks.{level}"), layers_per_block[level]));
        let down_depths = down_depths.collect::<Option<Vec<_>>>()?;
        let mid_block = match count(shapes, "mid_block.resnets.") {
            0 => MidBlock::None,
            1 => MidBlock::Resnet,
            _ => MidBlock::CrossAttention { depth: depths(shapes, "mid_block", 1)?.first().copied()? },
        };
        let keys = shapes.iter().find(|(key, _)| key.ends_with(".transformer_blocks.0.attn2.to_k.weight"));
        let cross_attention_dim = match keys {
            Some((_, &&[_, width])) => width,
            Some(_) => return None,
            None => unread_context?,
        };
        let is_sd1 = cross_attention_dim == SD1_CONTEXT;
        let heads: Vec<usize> =
            block_out_channels.iter().map(|c| if is_sd1 { 8 } else { (c / HEAD_DIM).max(1) }).collect();
        let head_dims = block_out_channels.iter().zip(&heads).map(|(c, heads)| c / heads);
        let fits = cross_attention_dim.is_multiple_of(8) && (1..=MAX_CHANNELS).contains(&cross_attention_dim);
        if !fits || head_dims.clone().any(|d| !d.is_multiple_of(8) || d > MAX_HEAD_DIM) {
            return None;
        }
        let time_embed_dim = 256;
        let text_time = match matrix(shapes, "add_embedding.linear_1.weight") {
            None => None,
            Some(&[_, width]) => Some(TextTimeConfig::of_width(width, time_embed_dim)?),
        };
        Some(UNetConfig {
            in_channels,
            down_blocks: (0..levels).map(kind).collect(),
            up_blocks: Vec::new(),
            layers_per_block,
            heads,
            down_depths,
            up_depths: Vec::new(),
            mid_block,
            cross_attention_dim,
            use_linear_projection: shapes
                .iter()
                .any(|(key, shape)| key.ends_with(".proj_in.weight") && shape.len() == 2),
            text_time,
            block_out_channels,
            ..Self::sd15()
        })
    }
}

impl VaeConfig {
    /// The configuration of a VAE by its shapes; the rest as `like`.
    pub(super) fn of_shapes(shapes: &Shapes, like: &VaeConfig) -> Option<Self> {
        let levels = count(shapes, "encoder.down_blocks.");
        if !(1..=8).contains(&levels) {
            return None;
        }
        let channels =
            |level| Some(conv(shapes, &format!("encoder.down_blocks.{level}.resnets.0.conv1.weight"))?[0]);
        let block_out_channels = (0..levels).map(channels).collect::<Option<Vec<_>>>()?;
        let latent_channels = conv(shapes, "decoder.conv_in.weight")?[1];
        let usable = |c: &usize| c.is_multiple_of(32) && (32..=MAX_WIDTH).contains(c);
        let fits = block_out_channels.iter().all(usable) && (4..=MAX_CHANNELS).contains(&latent_channels);
        let mid_block_add_attention = count(shapes, "decoder.mid_block.attentions.") > 0;
        if !fits || (mid_block_add_attention && block_out_channels[levels - 1] > MAX_VAE_HEAD_DIM) {
            return None;
        }
        Some(VaeConfig {
            latent_channels,
            layers_per_block: count(shapes, "encoder.down_blocks.0.resnets."),
            mid_block_add_attention,
            use_quant_conv: shapes.contains_key("quant_conv.weight"),
            use_post_quant_conv: shapes.contains_key("post_quant_conv.weight"),
            block_out_channels,
            ..like.clone()
        })
    }
}

/// Blocks of the transformer behind each of a block's `layers` resnets: behind all of them, or behind none.
fn depths(shapes: &Shapes, name: &str, layers: usize) -> Option<Vec<usize>> {
    let attentions = count(shapes, &format!("{name}.attentions."));
    let depth = |layer| count(shapes, &format!("{name}.attentions.{layer}.transformer_blocks."));
    (attentions == 0 || attentions == layers).then(|| (0..attentions).map(depth).collect())
}

fn block_kind(shapes: &Shapes, name: &str) -> BlockKind {
    let has_attention = count(shapes, &format!("{name}.attentions.")) > 0;
    if has_attention { BlockKind::CrossAttention } else { BlockKind::Resnets }
}
