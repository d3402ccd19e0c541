//! Images of a request that is not done: what the model makes of its latents so far.
//!
//! The loop runs in pieces, and between two the host works out the clean sample that the last evaluation predicted
//! ([`Batch::run_previewed`](super::Batch::run_previewed)). So the loop is the same whether previews are asked for or
//! not.

use std::str::FromStr;

use super::Pipeline;
use super::colours::LatentColours;
use super::model::Description;
use super::request::{Picture, Request};
use super::state::Canvas;
use crate::error::{Error, Invalid, Result};
use crate::model::config::{AutoencoderConfig, ModelConfig, VaeConfig};
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

impl PreviewMethod {
    /// The faster one of those that a model has.
    pub fn default_of(model: &Description) -> Self {
        let ModelConfig { vae, preview_vae, .. } = &model.config;
        let is_tiny = preview_vae.is_some() || matches!(vae, AutoencoderConfig::Tiny(_));
        if is_tiny || projection(model).is_none() { PreviewMethod::Vae } else { PreviewMethod::Projection }
    }

    /// # Errors
    /// Latents of which no projection is known.
    pub fn check(self, model: &Description) -> Result<()> {
        if self == PreviewMethod::Projection && projection(model).is_none() {
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
fn projection(model: &Description) -> Option<&'static LatentColours> {
    let (vae, colours) = (&model.config.vae, model.family.colours);
    let known = match vae {
        AutoencoderConfig::Kl(vae) => vae.block_out_channels == VaeConfig::sd15().block_out_channels,
        AutoencoderConfig::Tiny(vae) => vae.scale_factor() == VaeConfig::sd15().scale_factor(),
    };
    (known && vae.latent_channels() == colours.factors.len()).then_some(colours)
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
        if let (PreviewMethod::Projection, Some(projection)) = (method, projection(&self.description)) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::KnownShapes;

    #[test]
    fn projections_are_of_the_latents_that_they_were_made_for() {
        for (shapes, first) in [(KnownShapes::Sd15, 0.3512), (KnownShapes::Sdxl, 0.3651)] {
            let model = shapes.describe();
            assert_eq!(projection(&model).expect("known").factors[0][0], first);
            assert_eq!(PreviewMethod::default_of(&model), PreviewMethod::Projection);
            let vae = VaeConfig { block_out_channels: vec![32, 64, 96, 96], ..VaeConfig::sd15() };
            let other =
                Description { config: ModelConfig { vae: vae.into(), ..model.config.clone() }, ..model };
            assert_eq!(PreviewMethod::default_of(&other), PreviewMethod::Vae);
            assert!(PreviewMethod::Projection.check(&other).unwrap_err().to_string().contains("try vae"));
        }
    }
}
