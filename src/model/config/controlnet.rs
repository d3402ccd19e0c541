//! ControlNets.

use super::autoencoder::AutoencoderConfig;
use super::fields::{MAX_WIDTH, only};
use super::shapes::{Shapes, conv, count};
use super::unet::UNetConfig;
use crate::error::{Error, Result};
use crate::json::Object;
use crate::location::Location;

/// `ControlNetModel`.
#[derive(Clone, Debug, PartialEq)]
pub struct ControlNetConfig {
    /// The U-Net whose encoder it copies; only what an encoder has means something.
    pub encoder: UNetConfig,
    /// `conditioning_embedding_out_channels`: widths of the picture's embedding, each at half the size of
    /// the one before.
    pub embedding_channels: Vec<usize>,
    /// Whether it reads blue, green, red.
    pub is_bgr: bool,
}

const EMBEDDING: &str = "conditioning_embedding_out_channels";
const ORDER: &str = "controlnet_conditioning_channel_order";

/// The widths where nothing is said.
const EMBEDDING_CHANNELS: [usize; 4] = [16, 32, 96, 256];

/// Keys of a ControlNet's configuration with the values, in JSON, that the engine computes.
const ONLY: &[(&str, &[&str])] = &[
    ("_class_name", &["\"ControlNetModel\""]),
    ("conditioning_channels", &["3"]),
    ("global_pool_conditions", &["false"]),
    (ORDER, &["\"rgb\"", "\"bgr\""]),
];

impl ControlNetConfig {
    /// Channels of the picture.
    pub const HINT_CHANNELS: usize = 3;

    /// The shapes of a ControlNet that copies a published U-Net: those of `ControlNetModel.from_unet`.
    pub fn of_family(unet: &UNetConfig) -> Self {
        let encoder = UNetConfig { up_blocks: Vec::new(), up_depths: Vec::new(), ..unet.clone() };
        ControlNetConfig { encoder, embedding_channels: EMBEDDING_CHANNELS.to_vec(), is_bgr: false }
    }

    pub fn read(file: &Location) -> Result<Self> {
        let json = Object::read(file)?;
        for (key, supported) in ONLY {
            only(&json, key, supported)?;
        }
        let encoder = UNetConfig::read_encoder(&json)?;
        encoder.check_heads(&json)?;
        let embedding_channels = match json.get(EMBEDDING) {
            None => EMBEDDING_CHANNELS.to_vec(),
            Some(value) => {
                let levels = value.as_array().map_or(0, |list| list.len());
                json.counts(EMBEDDING, 0, levels, 8..=MAX_WIDTH)?
            }
        };
        let fits = |channels: &usize| channels.is_multiple_of(8);
        if embedding_channels.is_empty() || !embedding_channels.iter().all(fits) {
            return Err(json.refuse(EMBEDDING, "expected a list of multiples of 8"));
        }
        let is_bgr = json.text(ORDER)? == Some("bgr");
        Ok(ControlNetConfig { encoder, embedding_channels, is_bgr })
    }

    /// The configuration of a ControlNet in a single file by its shapes; what they do not say is as in the
    /// U-Net that it steers.
    pub fn infer(file: &Location, shapes: &Shapes, unet: &UNetConfig) -> Result<Self> {
        Self::of_shapes(shapes, unet).ok_or_else(|| {
            let message = "not the shapes of a ControlNet of Stable Diffusion 1.x, 2.x or XL; try one in the \
                           layout of diffusers";
            Error::file(file, message)
        })
    }

    fn of_shapes(shapes: &Shapes, unet: &UNetConfig) -> Option<Self> {
        let encoder = UNetConfig::encoder_of_shapes(shapes, Some(unet.cross_attention_dim))?;
        let heads = if encoder.block_out_channels == unet.block_out_channels {
            unet.heads.clone()
        } else {
            encoder.heads.clone()
        };
        let width = |name: &str| Some(conv(shapes, &format!("controlnet_cond_embedding.{name}.weight"))?[0]);
        let mut embedding_channels = vec![width("conv_in")?];
        for block in (1..count(shapes, "controlnet_cond_embedding.blocks.")).step_by(2) {
            embedding_channels.push(width(&format!("blocks.{block}"))?);
        }
        let usable = |c: &usize| c.is_multiple_of(8) && (8..=MAX_WIDTH).contains(c);
        embedding_channels.iter().all(usable).then_some(ControlNetConfig {
            encoder: UNetConfig {
                heads,
                norm_num_groups: unet.norm_num_groups,
                norm_eps: unet.norm_eps,
                flip_sin_to_cos: unet.flip_sin_to_cos,
                freq_shift: unet.freq_shift,
                ..encoder
            },
            embedding_channels,
            is_bgr: false,
        })
    }

    /// Pixels of the picture to a side of a latent.
    fn scale_factor(&self) -> usize {
        1 << (self.embedding_channels.len() - 1)
    }

    /// Elements of the largest map that the embedding of a picture has.
    pub fn largest_map(&self, height: usize, width: usize) -> usize {
        let maps = self.embedding_channels.iter().enumerate();
        let elements = maps.map(|(level, c)| c.saturating_mul((height >> level) * (width >> level)));
        elements.max().unwrap_or(0)
    }

    /// Checks that it fits the U-Net and the VAE of a model; `file` is where it is described.
    pub fn check(&self, file: &Location, unet: &UNetConfig, vae: &AutoencoderConfig) -> Result<()> {
        let (ours, theirs) = (&self.encoder, unet);
        let refuse = |what: &str, ours: String, theirs: String| {
            let message = format!(
                "{what} is {ours}, and {theirs} in the model: a ControlNet for another family; give one that was \
                 made for this one"
            );
            Err(Error::file(file, message))
        };
        if ours.cross_attention_dim != theirs.cross_attention_dim {
            let [ours, theirs] = [ours, theirs].map(|config| config.cross_attention_dim.to_string());
            return refuse("cross_attention_dim", ours, theirs);
        }
        for (what, ours, theirs) in [
            ("block_out_channels", &ours.block_out_channels, &theirs.block_out_channels),
            ("layers_per_block", &ours.layers_per_block, &theirs.layers_per_block),
        ] {
            if ours != theirs {
                return refuse(what, format!("{ours:?}"), format!("{theirs:?}"));
            }
        }
        if ours.text_time != theirs.text_time {
            let width = |config: &UNetConfig| config.text_time.map_or(0, |text_time| text_time.width());
            let [ours, theirs] = [ours, theirs].map(|config| width(config).to_string());
            return refuse("the width of added embeddings", ours, theirs);
        }
        if ours.in_channels != vae.latent_channels() {
            return refuse("in_channels", ours.in_channels.to_string(), vae.latent_channels().to_string());
        }
        if self.scale_factor() != vae.scale_factor() {
            let (ours, theirs) = (self.scale_factor(), vae.scale_factor());
            return refuse("a latent's side in pixels", ours.to_string(), theirs.to_string());
        }
        Ok(())
    }
}
