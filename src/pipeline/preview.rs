//! Pictures of a request that is not done: what the model makes of its latents so far.
//!
//! The loop runs in pieces, and between two the host works out the clean sample that the last evaluation predicted
//! ([`State`]). So the loop is the same whether previews are asked for or not.

use std::ops::ControlFlow;
use std::str::FromStr;

use super::Request;
use super::bucket::Bucket;
use super::numbers::read_floats;
use super::predicted::State;
use super::request::Picture;
use super::stages::Models;
use super::tensors::Shape;
use crate::error::{Error, Invalid, Result};
use crate::model::config::{AutoencoderConfig, ModelConfig, RGB, VaeConfig};
use crate::ops::{Backend, ToRgb8};
use crate::parameter::Parameter;
use crate::sampler::Table;

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

/// Who is told of a pass: what it calls counts the evaluations of this pass.
pub(super) struct Watch<'a> {
    pub on_step: &'a mut dyn FnMut(usize) -> ControlFlow<()>,
    pub previews: Option<Previews<'a>>,
}

/// The denoising loop of a pass, which may be watched.
pub(super) struct Watched<'a> {
    pub backend: &'a mut dyn Backend,
    pub models: &'a Models,
    pub bucket: &'a Bucket,
    pub shape: Shape,
    pub request: &'a Request,
    pub table: &'a Table,
}

impl Watched<'_> {
    /// Runs all steps; returns how many were done.
    pub fn denoise(&mut self, watch: Watch) -> Result<usize> {
        let Watch { on_step, previews } = watch;
        let steps = self.table.evaluations();
        let Some(previews) = previews else {
            return self.backend.replay_steps(&self.bucket.denoise, steps, on_step);
        };
        let mut done = 0;
        while done < steps {
            // Of the last evaluation comes the picture itself.
            let row = Some(done + previews.every - 1).filter(|row| row + 1 < steps);
            if self.run(&mut done, row.unwrap_or(steps), on_step)?.is_break() {
                break;
            }
            let Some(row) = row else { break };
            let d = &self.bucket.tensors.denoising;
            let before = (0..d.shape.images).map(|picture| State::read(self.backend, d, picture, row));
            let before = before.collect::<Result<Vec<State>>>()?;
            if self.run(&mut done, row + 1, on_step)?.is_break() {
                break;
            }
            let after = read_floats(self.backend, d.latents)?;
            let pictures = before.iter().zip(after.chunks_exact(after.len() / d.shape.images));
            let samples = pictures.map(|(before, after)| before.predicted(&self.table.rows[row], after));
            if let Some(samples) = samples.collect::<Option<Vec<_>>>() {
                let pictures = self.bucket.show(
                    self.backend,
                    self.models,
                    &self.shape,
                    self.request,
                    previews.method,
                    &samples.concat(),
                )?;
                self.backend.write(d.latents, bytemuck::cast_slice(&after))?;
                (previews.on_preview)(done, pictures)?;
            }
        }
        Ok(done)
    }

    /// Runs from `done` steps to `end`, or until `on_step` breaks off.
    fn run(
        &mut self,
        done: &mut usize,
        end: usize,
        on_step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let before = *done;
        let mut flow = ControlFlow::Continue(());
        let ran = self.backend.replay_steps(&self.bucket.denoise, end - before, &mut |ran| {
            flow = on_step(before + ran);
            flow
        })?;
        *done += ran;
        Ok(flow)
    }
}

impl Bucket {
    /// Clean samples of all pictures, [images,h,w,c], as colours.
    pub(super) fn show(
        &self,
        backend: &mut dyn Backend,
        models: &Models,
        shape: &Shape,
        request: &Request,
        method: PreviewMethod,
        samples: &[f32],
    ) -> Result<Vec<Picture>> {
        let latents = self.tensors.denoising.latents;
        let [_, h, w, c] = latents.shape;
        if let (PreviewMethod::Projection, Some(projection)) = (method, projection(&models.config)) {
            let rgb: Vec<u8> = samples.chunks_exact(c).flat_map(|pixel| projection.colour(pixel)).collect();
            return Ok(request.pictures(w, h, &rgb));
        }
        backend.write(latents, bytemuck::cast_slice(samples))?;
        let rgb = self.decode_preview(backend, models, shape)?;
        Ok(request.pictures(shape.width, shape.height, &rgb))
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
