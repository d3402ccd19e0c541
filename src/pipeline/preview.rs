//! Images of a request that is not done: what the model makes of its latents so far.
//!
//! The loop runs in pieces, and between two the host works out the clean sample that the last evaluation predicted
//! ([`Batch::run_previewed`](super::Batch::run_previewed)). So the loop is the same whether previews are asked for or
//! not.

use std::str::FromStr;

use super::Pipeline;
use super::request::{Picture, Request};
use super::state::Canvas;
use crate::error::{Error, Invalid, Result};
use crate::model::config::{AutoencoderConfig, ModelConfig, RGB, VaeConfig};
use crate::ops::ToRgb8;
use crate::parameter::Parameter;

/// Called with the model evaluations that are done, and a preview of each picture. An error breaks off.
pub type OnPreview<'a> = &'a mut dyn FnMut(usize, Vec<Picture>) -> Result<()>;

/// Pictures in the course of a request.
pub struct Previews<'a> {
    /// Model evaluations from one preview to the next, at least 1; there is none of the last.
    pub every: usize,
    pub method: PreviewMethod,
    pub on_preview: OnPreview<'a>,
}

/// How latents become colours before they are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreviewMethod {
    /// A linear combination of the latents' channels: a small picture, of a pixel for each latent pixel.
    Projection,
    /// The VAE for previews, or else what decodes the picture itself: as large as that, and fast if it is a tiny one.
    Vae,
}

/// Red, green and blue by latent channel, and their offset, with colours from -1 to 1: least squares over the latents
/// of a VAE, as published for ComfyUI (`latent_rgb_factors`).
struct Projection {
    factors: [[f32; RGB]; 4],
    offset: [f32; RGB],
}

/// Of Stable Diffusion 1.x and 2.x.
const SD: Projection = Projection {
    factors: [
        [0.3512, 0.2297, 0.3227],
        [0.3250, 0.4974, 0.2350],
        [-0.2829, 0.1762, 0.2721],
        [-0.2120, -0.2616, -0.7177],
    ],
    offset: [0.0; RGB],
};

const XL: Projection = Projection {
    factors: [
        [0.3651, 0.4232, 0.4341],
        [-0.2533, -0.0042, 0.1068],
        [0.1076, 0.1111, -0.0362],
        [-0.3165, -0.2492, -0.2188],
    ],
    offset: [0.1084, -0.0175, -0.0011],
};

impl PreviewMethod {
    /// The faster one of those that a model has.
    pub fn default_of(config: &ModelConfig) -> Self {
        let is_tiny = config.preview_vae.is_some() || matches!(config.vae, AutoencoderConfig::Tiny(_));
        if is_tiny || projection(config).is_none() { PreviewMethod::Vae } else { PreviewMethod::Projection }
    }

    /// # Errors
    /// Latents of which no projection is known.
    pub fn check(self, config: &ModelConfig) -> Result<()> {
        if self == PreviewMethod::Projection && projection(config).is_none() {
            return Err(Invalid::value(Parameter::PreviewMethod, "proj")
                .problem(
                    "it is known for the latents of Stable Diffusion 1.x, 2.x and XL, and not for this model's",
                )
                .advice("try vae")
                .error());
        }
        Ok(())
    }
}

impl FromStr for PreviewMethod {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "proj" => Ok(PreviewMethod::Projection),
            "vae" => Ok(PreviewMethod::Vae),
            _ => Err(Invalid::value(Parameter::PreviewMethod, text).expected("proj or vae").error()),
        }
    }
}

/// The projection of the latents that a model has, by the shapes of its VAE: others have latents of their own.
fn projection(config: &ModelConfig) -> Option<&'static Projection> {
    let known = match &config.vae {
        AutoencoderConfig::Kl(vae) => vae.block_out_channels == VaeConfig::sd15().block_out_channels,
        AutoencoderConfig::Tiny(vae) => vae.scale_factor() == VaeConfig::sd15().scale_factor(),
    };
    let projection = if config.is_xl() { &XL } else { &SD };
    (known && config.vae.latent_channels() == projection.factors.len()).then_some(projection)
}

impl Pipeline {
    /// Clean samples [h,w,c] of the images of a request, one after the other, as colours.
    pub fn preview(
        &mut self,
        request: &Request,
        canvas: Canvas,
        method: PreviewMethod,
        samples: &[f32],
    ) -> Result<Vec<Picture>> {
        if let (PreviewMethod::Projection, Some(projection)) = (method, projection(&self.models.config)) {
            let [h, w] = self.models.latent_size([canvas.height, canvas.width]);
            let c = self.models.config.vae.latent_channels();
            let colours = |sample: &[f32]| -> Vec<u8> {
                sample.chunks_exact(c).flat_map(|pixel| projection.colour(pixel)).collect()
            };
            return Ok(request.pictures(w, h, samples.chunks_exact(h * w * c).map(colours).collect()));
        }
        self.decode_samples(request, canvas, true, samples)
    }
}

impl Projection {
    fn colour(&self, pixel: &[f32]) -> [u8; RGB] {
        std::array::from_fn(|colour| {
            let terms = pixel.iter().zip(&self.factors).map(|(x, factors)| x * factors[colour]);
            ToRgb8::level(self.offset[colour] + terms.sum::<f32>())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::KnownShapes;

    #[test]
    fn projections_are_of_the_latents_that_they_were_made_for() {
        for (shapes, first) in [(KnownShapes::Sd15, 0.3512), (KnownShapes::Sdxl, 0.3651)] {
            let config = shapes.describe().config;
            assert_eq!(projection(&config).expect("known").factors[0][0], first);
            assert_eq!(PreviewMethod::default_of(&config), PreviewMethod::Projection);
            let vae = VaeConfig { block_out_channels: vec![32, 64, 96, 96], ..VaeConfig::sd15() };
            let other = ModelConfig { vae: vae.into(), ..config };
            assert_eq!(PreviewMethod::default_of(&other), PreviewMethod::Vae);
            assert!(PreviewMethod::Projection.check(&other).unwrap_err().to_string().contains("try vae"));
        }
        assert_eq!(SD.colour(&[0.0; 4]), [128; RGB]);
        assert_eq!(SD.colour(&[9.0, 9.0, 0.0, -9.0]), [255; RGB]);
    }
}
