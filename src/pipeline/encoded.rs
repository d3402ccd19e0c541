//! A request's picture and mask as latents.

use super::family::Family;
use super::init::Init;
use super::models::Models;
use super::passes::Pass;
use super::programs::Programs;
use crate::error::Result;
use crate::model::config::{AutoencoderConfig, RGB, UNetInput};
use crate::ops::Backend;
use crate::sampler::{Mix, Table};

/// diffusers' `DiagonalGaussianDistribution` keeps the logarithm of the variance between these.
const LOG_VARIANCE: (f32, f32) = (-30.0, 20.0);
/// From this brightness on, a mask is light.
const LIGHT: u8 = 128;

/// What a pass knows of its picture.
pub(super) struct Encoded {
    /// `None` where nothing of it is in what the latents start as: an inpainting or InstructPix2Pix model at full
    /// strength.
    pub picture: Option<Posterior>,
    pub masked: Option<Masked>,
    /// The latents of the image that an InstructPix2Pix model edits: [h,w,c].
    pub edited: Option<Vec<f32>>,
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
        models: &Models,
        programs: &mut Programs,
        tile: Option<[usize; 2]>,
        init: &Init,
        pass: &Pass,
        family: &Family,
    ) -> Result<Self> {
        let (config, input) = (&models.config, models.config.unet_input());
        let picture = init.picture.resized(pass.width, pass.height);
        // Grey where it is not kept.
        let mut encode = |kept: &dyn Fn(usize) -> bool| -> Result<Vec<f32>> {
            let colour = |row: usize, column: usize| {
                let pixel = row * pass.width + column;
                let level = |i: usize| 2.0 * (f32::from(picture.rgb[RGB * pixel + i]) / 255.0) - 1.0;
                if kept(pixel) { [0, 1, 2].map(level) } else { [0.0; RGB] }
            };
            let size = [pass.height, pass.width];
            programs.encode_image(backend, models, size, tile, &colour)
        };
        let posterior = |encoded: &[f32]| Posterior::new(encoded, &config.vae);
        let is_full = init.strength == 1.0;
        let is_start = !is_full || input == UNetInput::Latents;
        let is_seen = is_start || input == UNetInput::Image;
        let whole = is_seen.then(|| encode(&|_| true)).transpose()?;
        let edited = whole.as_ref().filter(|_| input == UNetInput::Image);
        let edited = edited.map(|encoded| edited_latents(encoded, &config.vae, family));
        let masked = match &init.mask {
            None => None,
            Some(mask) => {
                let luma = mask.resized(pass.width, pass.height).luma();
                let kept = |pixel: usize| luma[pixel] < LIGHT;
                let masked = (input == UNetInput::MaskedImage).then(|| encode(&kept)).transpose()?;
                let masked = masked.as_deref().map(posterior);
                // The first pixel stands for those of a latent, as torch's `interpolate` finds the nearest.
                let scale = config.vae.scale_factor();
                let rows = (0..pass.height).step_by(scale);
                let pixels =
                    rows.flat_map(|y| (0..pass.width).step_by(scale).map(move |x| y * pass.width + x));
                let mask = pixels.map(|pixel| if kept(pixel) { 0.0 } else { 1.0 }).collect();
                Some(Masked { mask, picture: masked, is_drawn: config.vae.is_variational() })
            }
        };
        let starts_from_noise = is_full && (masked.is_some() || edited.is_some());
        Ok(Encoded {
            picture: whole.as_deref().filter(|_| is_start).map(posterior),
            masked,
            edited,
            starts_from_noise,
        })
    }

    /// What the latents start as: `prepare_latents` of diffusers' pipelines.
    pub fn start(&self, table: &Table) -> Mix {
        if self.starts_from_noise { table.noise() } else { table.start() }
    }
}

/// What an InstructPix2Pix model sees of an image: the means of its latents, which most models see without the scaling
/// factor.
fn edited_latents(encoded: &[f32], vae: &AutoencoderConfig, family: &Family) -> Vec<f32> {
    let factor = if family.scales_edited_image { vae.scaling_factor() } else { 1.0 };
    let means =
        encoded.chunks_exact(vae.encoded_channels()).flat_map(|pixel| &pixel[..vae.latent_channels()]);
    means.map(|mean| factor * mean).collect()
}

impl Posterior {
    /// Of what the VAE gives, [h,w,encoded_channels].
    fn new(encoded: &[f32], vae: &AutoencoderConfig) -> Self {
        let c = vae.latent_channels();
        let normalizations: Vec<(f32, f32)> = (0..c).map(|channel| vae.normalization(channel)).collect();
        let (low, high) = LOG_VARIANCE;
        let deviation = |(log, (factor, _)): (&f32, &(f32, f32))| (0.5 * log.clamp(low, high)).exp() * factor;
        let mean = |(mean, (factor, summand)): (&f32, &(f32, f32))| mean * factor + summand;
        let pixels = || encoded.chunks_exact(vae.encoded_channels());
        let deviations =
            || pixels().flat_map(|pixel| pixel[c..].iter().zip(&normalizations).map(deviation)).collect();
        Posterior {
            mean: pixels().flat_map(|pixel| pixel[..c].iter().zip(&normalizations).map(mean)).collect(),
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
