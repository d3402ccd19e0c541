//! Pictures of a request that is not done: what the model makes of its latents so far.
//!
//! The loop runs in pieces, and between two the host works out the clean sample that the last evaluation
//! predicted. The model's output itself is gone by then, but the sampler's row is linear: what the latents were
//! before and after the step says what it was. So the sample needs no kernel and no memory, and the loop is the
//! same whether previews are asked for or not.

use std::ops::ControlFlow;
use std::str::FromStr;

use super::Request;
use super::bucket::Bucket;
use super::numbers::read_floats;
use super::request::Picture;
use super::stages::Models;
use super::tensors::{Shape, Tensors};
use crate::error::{Error, Result};
use crate::model::config::{AutoencoderConfig, ModelConfig, RGB, VaeConfig};
use crate::ops::{Backend, ToRgb8};
use crate::sampler::{Row, Table};

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
            return Err(Error::invalid(
                "--preview-method proj: it is known for the latents of Stable Diffusion 1.x, 2.x and XL, and not \
                 for this model's; try vae",
            ));
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
            _ => Err(Error::invalid(format!("--preview-method {text}: expected proj or vae"))),
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
            let before = State::read(self.backend, &self.bucket.tensors, row)?;
            if self.run(&mut done, row + 1, on_step)?.is_break() {
                break;
            }
            let t = &self.bucket.tensors;
            let after = read_floats(self.backend, t.latents)?;
            if let Some(sample) = before.predicted(&self.table.rows[row], &after) {
                let pictures = self.preview(previews.method, &sample, &after)?;
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

    fn preview(&mut self, method: PreviewMethod, sample: &[f32], latents: &[f32]) -> Result<Vec<Picture>> {
        let t = &self.bucket.tensors;
        let [_, h, w, c] = t.latents.shape;
        if let (PreviewMethod::Projection, Some(projection)) = (method, projection(&self.models.config)) {
            let rgb: Vec<u8> = sample.chunks_exact(c).flat_map(|pixel| projection.colour(pixel)).collect();
            return Ok(self.request.pictures(w, h, &rgb));
        }
        self.backend.write(t.latents, bytemuck::cast_slice(sample))?;
        let rgb = self.bucket.decode_preview(self.backend, self.models, &self.shape)?;
        self.backend.write(t.latents, bytemuck::cast_slice(latents))?;
        Ok(self.request.pictures(self.shape.width, self.shape.height, &rgb))
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

/// What a row reads, as it is before the step.
struct State {
    x: Vec<f32>,
    saved: Vec<f32>,
    noise: Vec<f32>,
    /// The newest of all pictures, then the one before, ...
    history: Vec<f32>,
    /// Where a part is painted: the mask, and the latents that are kept where it is 0.
    known: Option<[Vec<f32>; 2]>,
}

impl State {
    fn read(backend: &mut dyn Backend, t: &Tensors, row: usize) -> Result<Self> {
        let images = t.latents.b();
        Ok(State {
            x: read_floats(backend, t.latents)?,
            saved: read_floats(backend, t.saved)?,
            noise: read_floats(backend, t.noise.images(row * images, images))?,
            history: read_floats(backend, t.history)?,
            known: match t.known {
                Some(known) => {
                    Some([read_floats(backend, known.mask)?, read_floats(backend, known.latents)?])
                }
                None => None,
            },
        })
    }

    /// The clean sample that the model predicted in a row that made `after` of the latents; `None` if the latents do
    /// not depend on the model in it. Where the latents are kept after every step, they are what it comes to.
    fn predicted(&self, row: &Row, after: &[f32]) -> Option<Vec<f32>> {
        let n = after.len();
        let next = row.next.0;
        let of_output = next[1];
        let [of_x, of_e, ..] = row.predicted.0;
        let sample = |i: usize| {
            if let Some([mask, kept]) = &self.known
                && mask[i * mask.len() / n] == 0.0
            {
                return kept[i];
            }
            let history = [0, 1, 2, 3].map(|age| self.history[age * n + i]);
            let [h0, h1, h2, h3] = history;
            let basis = [self.x[i], 0.0, self.saved[i], self.noise[i], h0, h1, h2, h3];
            // What has no coefficient may be anything in memory.
            let rest: f64 =
                next.iter().zip(basis).filter(|(c, _)| **c != 0.0).map(|(c, x)| c * f64::from(x)).sum();
            let output = (f64::from(after[i]) - rest) / of_output;
            (of_x * f64::from(self.x[i]) + of_e * output) as f32
        };
        (of_output != 0.0).then(|| (0..n).map(sample).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::KnownShapes;
    use crate::sampler::{Sampler, Sampling, Schedule, SchedulerConfig};

    fn numbers(seed: u32, n: usize) -> Vec<f32> {
        (0..n as u32)
            .map(|i| ((seed + i).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0)
            .collect()
    }

    /// For every sampler and row: the latents after the step, and the prediction that follows from them.
    #[test]
    fn the_predicted_sample_follows_from_two_latents() {
        for sampler in Sampler::ALL {
            let sampling = Sampling::new(sampler, Schedule::Model, 6);
            let table = Table::new(&SchedulerConfig::sd15(), &sampling).unwrap();
            let n = 5;
            for (i, row) in table.rows.iter().enumerate() {
                let state = State {
                    x: numbers(1, n),
                    saved: numbers(100, n),
                    noise: numbers(200, n),
                    history: numbers(300, 4 * n),
                    known: None,
                };
                let output = numbers(400, n);
                let basis = |j: usize| {
                    let h = [0, 1, 2, 3].map(|age| state.history[age * n + j]);
                    [state.x[j], output[j], state.saved[j], state.noise[j], h[0], h[1], h[2], h[3]]
                        .map(f64::from)
                };
                let sum = |terms: [f64; 8], j: usize| -> f64 {
                    terms.iter().zip(basis(j)).map(|(c, x)| c * x).sum()
                };
                let after: Vec<f32> = (0..n).map(|j| sum(row.next.0, j) as f32).collect();
                let predicted = state.predicted(row, &after).expect("a row that depends on the output");
                for (j, got) in predicted.into_iter().enumerate() {
                    let want = sum(row.predicted.0, j);
                    let error = (f64::from(got) - want).abs();
                    assert!(error < 1e-4 * want.abs().max(1.0), "{sampler} row {i}: {got}, not {want}");
                }
            }
        }
    }

    /// Steps to no noise end at what was predicted.
    #[test]
    fn the_last_prediction_is_the_picture() {
        for sampler in
            [Sampler::Ddim, Sampler::Euler, Sampler::EulerAncestral, Sampler::DpmPp2m, Sampler::Lcm]
        {
            let sampling = Sampling::new(sampler, Schedule::Model, 6);
            let config = SchedulerConfig { set_alpha_to_one: Some(true), ..SchedulerConfig::sd15() };
            let table = Table::new(&config, &sampling).unwrap();
            let row = table.rows.last().unwrap();
            for (next, predicted) in row.next.0.iter().zip(row.predicted.0).take(2) {
                assert!((next - predicted).abs() < 1e-3, "{sampler}: {:?} and {:?}", row.next, row.predicted);
            }
        }
    }

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
