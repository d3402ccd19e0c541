//! The VAE.

use super::fields::{MAX_CHANNELS, MAX_VAE_HEAD_DIM, channels, check_groups, levels, only};
use crate::error::Result;
use crate::json::Object;
use crate::location::Location;
use crate::ops::Statistics;

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
    /// `latents_mean` and `latents_std`: what brings the encoder's channels to mean 0 and deviation 1, in front
    /// of the scaling factor.
    pub statistics: Option<Statistics>,
    /// Picture pixels of a side that the model was trained at.
    pub sample_size: usize,
    pub mid_block_add_attention: bool,
    pub use_quant_conv: bool,
    pub use_post_quant_conv: bool,
    /// `force_upcast`: whether the feature maps of half precision may overflow.
    pub force_upcast: bool,
}

impl VaeConfig {
    pub fn read(file: &Location) -> Result<Self> {
        let json = Object::read(file)?;
        only(&json, "_class_name", &["\"AutoencoderKL\""])?;
        only(&json, "act_fn", &["\"silu\"", "\"swish\""])?;
        only(&json, "down_block_types", &["\"DownEncoderBlock2D\""])?;
        only(&json, "up_block_types", &["\"UpDecoderBlock2D\""])?;
        only(&json, "shift_factor", &["null"])?;
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
            statistics: None,
            sample_size: json.count("sample_size", 32, 1..=1 << 15)?,
            mid_block_add_attention: json.flag("mid_block_add_attention", true)?,
            use_quant_conv: json.flag("use_quant_conv", true)?,
            use_post_quant_conv: json.flag("use_post_quant_conv", true)?,
            force_upcast: json.flag("force_upcast", true)?,
        };
        let config = VaeConfig { statistics: statistics(&json, config.latent_channels)?, ..config };
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

    /// Its pipelines decode in halves whatever `force_upcast` is.
    pub fn sd15() -> Self {
        VaeConfig {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            statistics: None,
            sample_size: 512,
            mid_block_add_attention: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            force_upcast: false,
        }
    }

    pub fn sdxl() -> Self {
        VaeConfig { scaling_factor: 0.13025, sample_size: 1024, force_upcast: true, ..Self::sd15() }
    }

    /// Factor and summand of the latents of a channel: what the encoder gives, times the one, plus the other.
    pub fn normalization(&self, channel: usize) -> (f32, f32) {
        match self.statistics {
            None => (self.scaling_factor, 0.0),
            Some(Statistics { mean, deviation }) => {
                let factor = self.scaling_factor / deviation[channel];
                (factor, -mean[channel] * factor)
            }
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

    /// Elements of the two maps around the layer where they are most, for one picture of h x w.
    pub fn largest_pair(&self, h: usize, w: usize) -> usize {
        let channels = &self.block_out_channels;
        let pixels = |level: usize| h.div_ceil(1 << level) * w.div_ceil(1 << level);
        let pairs = (0..channels.len()).flat_map(|level| {
            let coarser = (level + 1).min(channels.len() - 1);
            let resnet = pixels(level) * (channels[level] + channels[level].max(channels[coarser]));
            let upsampler = channels[coarser] * (pixels(level) + pixels(coarser));
            [resnet, upsampler]
        });
        pairs.max().unwrap_or(0)
    }
}

/// `latents_mean` and `latents_std`, of which there are both or none.
fn statistics(json: &Object, channels: usize) -> Result<Option<Statistics>> {
    let read = |key: &str,
                is_possible: &dyn Fn(f32) -> bool|
     -> Result<Option<[f32; Statistics::CHANNELS]>> {
        let Some(value) = json.get(key) else { return Ok(None) };
        let numbers = value.as_array().and_then(|list| {
            list.iter().map(|value| Some(value.as_f64()? as f32)).collect::<Option<Vec<f32>>>()
        });
        match numbers {
            Some(numbers)
                if numbers.len() == channels
                    && channels <= Statistics::CHANNELS
                    && numbers.iter().all(|&number| is_possible(number)) =>
            {
                Ok(Some(std::array::from_fn(|channel| numbers[channel % channels])))
            }
            _ => {
                let most = Statistics::CHANNELS;
                Err(json.refuse(
                    key,
                    format!("expected a list of {channels} numbers, one for each of latent_channels, at most {most}"),
                ))
            }
        }
    };
    let mean = read("latents_mean", &|number| number.is_finite())?;
    let deviation = read("latents_std", &|number| number.is_finite() && number > 0.0)?;
    match (mean, deviation) {
        (Some(mean), Some(deviation)) => Ok(Some(Statistics { mean, deviation })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(json.refuse("latents_std", "expected a list, as latents_mean is one")),
        (None, Some(_)) => Err(json.refuse("latents_mean", "expected a list, as latents_std is one")),
    }
}
