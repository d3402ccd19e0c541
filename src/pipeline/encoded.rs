//! A request's picture and mask as latents.

use super::bucket::Bucket;
use super::init::Init;
use super::request::Pass;
use super::tensors::PictureTensors;
use crate::error::Result;
use crate::model::config::{AutoencoderConfig, ModelConfig};
use crate::ops::{Backend, DType};
use crate::raster::Raster;
use crate::sampler::{Mix, Table};
use crate::weights::pack;

/// diffusers' `DiagonalGaussianDistribution` keeps the logarithm of the variance between these.
const LOG_VARIANCE: (f32, f32) = (-30.0, 20.0);
/// From this brightness on, a mask is light.
const LIGHT: u8 = 128;

/// What a pass knows of its picture.
pub(super) struct Encoded {
    /// `None` where nothing is to be seen of it: an inpainting model at full strength.
    pub picture: Option<Posterior>,
    pub masked: Option<Masked>,
    /// Whether the latents start from noise alone: what is kept of the picture comes in by the mask.
    starts_from_noise: bool,
}

pub(super) struct Masked {
    /// [h,w]: 1 is painted, 0 is kept.
    pub mask: Vec<f32>,
    /// The picture, grey where it is painted, for an inpainting model.
    pub picture: Option<Posterior>,
    /// Whether latents of it are drawn: diffusers draws them where no model sees them, too.
    pub is_drawn: bool,
}

/// A normal distribution of latents, scaled as the U-Net sees them: [h,w,c].
pub(super) struct Posterior {
    mean: Vec<f32>,
    /// `None` of a tiny VAE, which gives the latents themselves.
    deviation: Option<Vec<f32>>,
}

impl Encoded {
    /// Brings the picture and its mask to the size of a pass, and encodes them.
    pub fn new(
        backend: &mut dyn Backend,
        bucket: &Bucket,
        config: &ModelConfig,
        init: &Init,
        pass: &Pass,
    ) -> Result<Self> {
        let mut encode = |picture: &Raster, kept: &dyn Fn(usize) -> bool| {
            Posterior::encode(backend, bucket, &config.vae, picture, kept)
        };
        let picture = init.picture.resized(pass.width, pass.height);
        let is_full = init.strength == 1.0;
        let is_seen = !(is_full && config.paints_into_pictures());
        let posterior = if is_seen { Some(encode(&picture, &|_| true)?) } else { None };
        let masked = match &init.mask {
            None => None,
            Some(mask) => {
                let luma = mask.resized(pass.width, pass.height).luma();
                let kept = |pixel: usize| luma[pixel] < LIGHT;
                let masked = config.paints_into_pictures().then(|| encode(&picture, &kept)).transpose()?;
                // The first pixel stands for those of a latent, as torch's `interpolate` finds the nearest.
                let scale = config.vae.scale_factor();
                let rows = (0..pass.height).step_by(scale);
                let pixels =
                    rows.flat_map(|y| (0..pass.width).step_by(scale).map(move |x| y * pass.width + x));
                let mask = pixels.map(|pixel| if kept(pixel) { 0.0 } else { 1.0 }).collect();
                Some(Masked { mask, picture: masked, is_drawn: config.vae.is_variational() })
            }
        };
        Ok(Encoded { picture: posterior, starts_from_noise: is_full && masked.is_some(), masked })
    }

    /// What the latents start as: `prepare_latents` of diffusers' pipelines.
    pub fn start(&self, table: &Table) -> Mix {
        if self.starts_from_noise { table.noise() } else { table.start() }
    }
}

impl Posterior {
    /// Encodes a picture, grey where it is not `kept`.
    fn encode(
        backend: &mut dyn Backend,
        bucket: &Bucket,
        vae: &AutoencoderConfig,
        picture: &Raster,
        kept: &dyn Fn(usize) -> bool,
    ) -> Result<Self> {
        let graph = bucket.encode_picture.as_ref().expect("recorded for a picture");
        let PictureTensors { picture: input, encoded } =
            bucket.tensors.picture.expect("planned for a picture");
        let mut pixels = vec![0f32; input.len()];
        let colours = picture.rgb.chunks_exact(3).enumerate().filter(|(pixel, _)| kept(*pixel));
        for (pixel, rgb) in colours {
            for (channel, &byte) in rgb.iter().enumerate() {
                pixels[pixel * input.c() + channel] = 2.0 * (f32::from(byte) / 255.0) - 1.0;
            }
        }
        let mut bytes = vec![0; input.bytes()];
        pack::from_f32(&pixels, input.dtype, &mut bytes);
        backend.write(input, &bytes)?;
        backend.replay(graph)?;

        let mut stored = vec![0; encoded.bytes()];
        backend.read(encoded, &mut stored)?;
        let mut floats = vec![0f32; encoded.len()];
        pack::convert(encoded.dtype, &stored, 1.0, DType::F32, bytemuck::cast_slice_mut(&mut floats));
        Ok(Posterior::new(&floats, vae))
    }

    /// Of what the VAE gives, [h,w,encoded_channels].
    fn new(encoded: &[f32], vae: &AutoencoderConfig) -> Self {
        let (c, scaling_factor) = (vae.latent_channels(), vae.scaling_factor());
        let (low, high) = LOG_VARIANCE;
        let deviation = |log: &f32| (0.5 * log.clamp(low, high)).exp() * scaling_factor;
        let pixels = || encoded.chunks_exact(vae.encoded_channels());
        let deviations = || pixels().flat_map(|pixel| pixel[c..].iter().map(deviation)).collect();
        Posterior {
            mean: pixels().flat_map(|pixel| pixel[..c].iter().map(|mean| mean * scaling_factor)).collect(),
            deviation: vae.is_variational().then(deviations),
        }
    }

    /// Latents, with the noise of `draw` where they have to be drawn.
    pub fn sample(&self, draw: &mut dyn FnMut() -> Vec<f32>) -> Vec<f32> {
        let Some(deviation) = &self.deviation else { return self.mean.clone() };
        let numbers = self.mean.iter().zip(deviation).zip(draw());
        numbers.map(|((mean, deviation), noise)| mean + deviation * noise).collect()
    }
}
