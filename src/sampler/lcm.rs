//! Multistep consistency sampling (Luo et al. 2023, algorithm 1), as `LCMScheduler`.

use super::schedules::Settings;
use super::terms::{NOISE, X};
use super::{Row, Table};
use crate::error::{Error, Result};

/// `original_inference_steps` of `LCMScheduler`.
const DISTILLED_STEPS: usize = 50;
const SIGMA_DATA: f64 = 0.5;

pub(super) fn table(settings: &Settings) -> Result<Table> {
    let alphas = settings.alphas()?;
    let timesteps = timesteps(settings)?;
    let scaling = settings.config.timestep_scaling.unwrap_or(10.0);
    let row = |(i, &t): (usize, &i64)| {
        let (alpha, sigma) = alphas.at(t);
        let scaled = scaling * t as f64;
        let variance = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
        let skip = SIGMA_DATA * SIGMA_DATA / variance;
        let out = scaled / variance.sqrt();
        let denoised = out * settings.prediction.sample(X, alpha, sigma) + skip * X;
        let next = match timesteps.get(i + 1) {
            Some(&t_next) => {
                let (alpha_next, sigma_next) = alphas.at(t_next);
                alpha_next * denoised + sigma_next * NOISE
            }
            None => denoised,
        };
        Row::new(t as f64, next)
    };
    let rows = timesteps.iter().enumerate().map(row).collect();
    Ok(Table { rows, init_noise_sigma: 1.0 })
}

/// n of the timesteps that the model was distilled on, evenly chosen by index.
fn timesteps(settings: &Settings) -> Result<Vec<i64>> {
    let (steps, train) = (settings.steps, settings.config.num_train_timesteps);
    let distilled = settings.config.original_inference_steps.unwrap_or(DISTILLED_STEPS);
    if distilled == 0 || distilled > train {
        return Err(Error::invalid(format!(
            "scheduler_config.json: original_inference_steps is {distilled}; expected 1 to {train}"
        )));
    }
    if steps > distilled {
        return Err(Error::invalid(format!(
            "--steps {steps}: lcm takes at most {distilled} steps (original_inference_steps)"
        )));
    }
    let step = distilled as f64 / steps as f64;
    Ok((0..steps)
        .map(|i| (distilled - (i as f64 * step) as usize) * (train / distilled) - 1)
        .map(|t| t as i64)
        .collect())
}
