//! How sample and noise mix in the latents that a model was trained on, and what its output says of them.

use super::Mix;
use super::config::{SchedulerConfig, choose};
use super::ramp::Ramp;
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

    /// As the schedulers EDMEulerScheduler and EDMDPMSolverMultistepScheduler of diffusers read it.
    fn of_edm_scheduler(config: &SchedulerConfig) -> Result<Self> {
        let rho = config.rho.unwrap_or(7.0);
        let ramps = [("karras", Ramp::Karras { rho }), ("exponential", Ramp::Exponential)];
        let edm = Edm {
            sigma_data: config.sigma_data.unwrap_or(0.5),
            sigma_min: config.sigma_min.unwrap_or(0.002),
            sigma_max: config.sigma_max.unwrap_or(80.0),
            ramp: choose("sigma_schedule", config.sigma_schedule.as_deref().unwrap_or("karras"), &ramps)?,
            starts_above: true,
        };
        for (key, value) in [("sigma_data", edm.sigma_data), ("rho", rho)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::invalid(format!(
                    "scheduler_config.json: {key} is {value}; expected a positive number"
                )));
            }
        }
        edm.checked()
    }

    /// As EulerDiscreteScheduler of diffusers reads it with continuous timesteps: its noise levels follow from no
    /// betas only where they are spaced between two given ones.
    fn of_continuous(config: &SchedulerConfig) -> Result<Self> {
        let ramp = match (config.use_karras_sigmas, config.use_exponential_sigmas) {
            (Some(true), _) => Ramp::Karras { rho: 7.0 },
            (_, Some(true)) => Ramp::Exponential,
            _ => {
                return Err(Error::invalid(
                    "scheduler_config.json: timestep_type continuous is supported with use_karras_sigmas or \
                     use_exponential_sigmas only",
                ));
            }
        };
        let (Some(sigma_min), Some(sigma_max)) = (config.sigma_min, config.sigma_max) else {
            return Err(Error::invalid(
                "scheduler_config.json: timestep_type continuous is supported with sigma_min and sigma_max only",
            ));
        };
        let starts_above = config.timestep_spacing.as_deref() == Some("leading");
        Edm { sigma_data: 1.0, sigma_min, sigma_max, ramp, starts_above }.checked()
    }

    fn checked(self) -> Result<Self> {
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
    pub(super) fn of(config: &SchedulerConfig) -> Result<Self> {
        let is_continuous = config.timestep_type.as_deref() == Some("continuous");
        let predicts_velocity = config.prediction_type.as_deref() == Some("v_prediction");
        match config.class_name.as_deref() {
            Some("EDMEulerScheduler" | "EDMDPMSolverMultistepScheduler") => {
                Ok(NoiseModel::Edm(Edm::of_edm_scheduler(config)?))
            }
            Some("EulerDiscreteScheduler") if is_continuous && predicts_velocity => {
                Ok(NoiseModel::Edm(Edm::of_continuous(config)?))
            }
            Some("FlowMatchEulerDiscreteScheduler") => {
                let shift = config.shift.unwrap_or(1.0);
                if !(shift.is_finite() && shift > 0.0) {
                    return Err(Error::invalid(format!(
                        "scheduler_config.json: shift is {shift}; expected a positive number"
                    )));
                }
                Ok(NoiseModel::Flow { shift })
            }
            _ => match [
                ("beta_start", config.beta_start.is_none()),
                ("beta_end", config.beta_end.is_none()),
                ("beta_schedule", config.beta_schedule.is_none()),
            ]
            .iter()
            .find(|(_, is_missing)| *is_missing)
            {
                None => Ok(NoiseModel::VariancePreserving),
                Some((key, _)) => {
                    Err(Error::invalid(format!("scheduler_config.json: {key} is missing; expected a value")))
                }
            },
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
