//! How sample and noise mix in the latents that a model was trained on, and what its output says of them.

use super::ramp::Ramp;
use super::table::Mix;
use super::terms::{E, Terms, X};
use crate::error::{Error, Result};

/// What the model's output means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    Epsilon,
    Velocity,
    Sample,
}

impl Prediction {
    /// The clean sample, from latents `x = alpha·sample + sigma·noise` with `alpha² + sigma² = 1`.
    pub fn sample(self, x: Terms, alpha: f64, sigma: f64) -> Terms {
        match self {
            Prediction::Epsilon => (x - sigma * E) / alpha,
            Prediction::Velocity => alpha * x - sigma * E,
            Prediction::Sample => E,
        }
    }

    /// The noise in such latents.
    pub fn noise(self, x: Terms, alpha: f64, sigma: f64) -> Terms {
        match self {
            Prediction::Epsilon => E,
            Prediction::Velocity => alpha * E + sigma * x,
            Prediction::Sample => (x - alpha * E) / sigma,
        }
    }
}

/// The noise of a model's training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NoiseModel {
    /// Latents of unit variance at each of many timesteps (Ho et al. 2020), whose noise levels follow from the
    /// betas of the configuration: Stable Diffusion.
    VariancePreserving,
    /// Continuous noise levels, and latents `sample + sigma·noise` (Karras et al. 2022): Playground 2.5, CosXL.
    Edm(Edm),
    /// Straight lines from noise to sample, `(1 - sigma)·sample + sigma·noise` (Liu et al. 2022).
    Flow {
        /// How much of the steps is spent at high noise: noise level s becomes `shift·s / (1 + (shift - 1)·s)`.
        shift: f64,
    },
}

/// The preconditioning and the noise levels of an EDM model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Edm {
    /// The standard deviation of the latents that the model was trained on.
    pub sigma_data: f64,
    /// The lowest noise level of training.
    pub sigma_min: f64,
    /// The highest noise level of training.
    pub sigma_max: f64,
    /// How the noise levels of the steps are spaced unless another schedule is chosen.
    pub(super) ramp: Ramp,
    /// Whether latents start as noise of the variance of sample and noise together, not of the noise alone.
    pub(super) starts_above: bool,
}

/// Quarter of the logarithm of a noise level: the timestep of an EDM model (`c_noise`).
pub(super) fn edm_timestep(sigma: f64) -> f64 {
    f64::from((0.25 * sigma.ln()) as f32)
}

impl Edm {
    /// The latents times this have unit variance (`c_in`).
    pub(super) fn in_scale(&self, sigma: f64) -> f64 {
        1.0 / (sigma * sigma + self.sigma_data * self.sigma_data).sqrt()
    }

    /// The noise level whose [`Edm::in_scale`] it is.
    pub(super) fn sigma(&self, in_scale: f64) -> f64 {
        (1.0 / (in_scale * in_scale) - self.sigma_data * self.sigma_data).max(0.0).sqrt()
    }

    /// The clean sample in latents (`c_skip`, `c_out`).
    pub(super) fn denoised(&self, prediction: Prediction, sigma: f64) -> Terms {
        let in_scale = self.in_scale(sigma);
        let out = match prediction {
            Prediction::Epsilon => sigma * self.sigma_data * in_scale,
            Prediction::Velocity => -sigma * self.sigma_data * in_scale,
            Prediction::Sample => return E,
        };
        (self.sigma_data * in_scale).powi(2) * X + out * E
    }

    pub(super) fn checked(self) -> Result<Self> {
        let Edm { sigma_min, sigma_max, .. } = self;
        if 0.0 < sigma_min && sigma_min < sigma_max && sigma_max.is_finite() {
            return Ok(self);
        }
        Err(Error::invalid(format!(
            "scheduler_config.json: sigma_min is {sigma_min} and sigma_max {sigma_max}; expected \
             0 < sigma_min < sigma_max"
        )))
    }
}

impl NoiseModel {
    /// The standard deviation of the latents that an EDM model was trained on.
    pub fn sigma_data(&self) -> Option<f64> {
        match self {
            NoiseModel::Edm(edm) => Some(edm.sigma_data),
            NoiseModel::VariancePreserving | NoiseModel::Flow { .. } => None,
        }
    }

    /// The noise that a model was trained with, in the words of a message.
    pub(super) fn words(&self) -> &'static str {
        match self {
            NoiseModel::VariancePreserving => "the noise of DDPM",
            NoiseModel::Edm(_) => "continuous noise levels (EDM)",
            NoiseModel::Flow { .. } => "a rectified flow",
        }
    }
}

/// A noise level as the solvers in logarithmic SNR see it: latents are `alpha·sample + sigma·noise`.
#[derive(Clone, Copy)]
pub(super) struct Level {
    pub alpha: f64,
    pub sigma: f64,
    /// `ln(alpha/sigma)`, infinite without noise.
    pub lambda: f64,
    /// The model sees the latents times this.
    pub in_scale: f64,
}

impl Level {
    pub fn mix(self) -> Mix {
        Mix { signal: self.alpha, noise: self.sigma }
    }
}
