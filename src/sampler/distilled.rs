//! Samplers of consistency models: multistep consistency sampling (Luo et al. 2023, algorithm 1) as
//! `LCMScheduler`, and strategic stochastic sampling (Zheng et al. 2024) as `TCDScheduler`.

use super::name::Sampler;
use super::schedules::{Alphas, Settings};
use super::terms::{NOISE, Terms, X};
use super::{Row, Table};
use crate::error::{Error, Invalid, Result};
use crate::parameter::Parameter;

/// `original_inference_steps` of both schedulers.
const DISTILLED_STEPS: usize = 50;
const SIGMA_DATA: f64 = 0.5;

pub(super) fn table(settings: &Settings) -> Result<Table> {
    let alphas = settings.alphas()?;
    let timesteps = timesteps(settings)?;
    let row = |(i, &t): (usize, &i64)| {
        let t_next = timesteps.get(i + 1).copied();
        let next = match settings.sampler {
            Sampler::Tcd => stochastic(settings, &alphas, t, t_next),
            _ => consistency(settings, &alphas, t, t_next),
        };
        Row::new(t as f64, alphas.mix(t), next)
    };
    let rows = timesteps.iter().enumerate().map(row).collect();
    Ok(Table::of(rows, 1.0))
}

/// To the sample, and back up with fresh noise.
fn consistency(settings: &Settings, alphas: &Alphas, t: i64, t_next: Option<i64>) -> Terms {
    let (alpha, sigma) = alphas.at(t);
    let scaled = settings.config.timestep_scaling.unwrap_or(10.0) * t as f64;
    let variance = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
    let skip = SIGMA_DATA * SIGMA_DATA / variance;
    let out = scaled / variance.sqrt();
    let denoised = out * settings.prediction.sample(X, alpha, sigma) + skip * X;
    match t_next {
        Some(t_next) => {
            let (alpha_next, sigma_next) = alphas.at(t_next);
            alpha_next * denoised + sigma_next * NOISE
        }
        None => denoised,
    }
}

/// To a timestep below the next one, by as much as eta says, and back up with fresh noise. The last step goes to
/// the first timestep, not before it.
fn stochastic(settings: &Settings, alphas: &Alphas, t: i64, t_next: Option<i64>) -> Terms {
    let (alpha, sigma) = alphas.at(t);
    // In f32 like diffusers, because it is rounded down to a whole timestep.
    let below = ((1.0 - settings.eta) as f32 * t_next.unwrap_or(0) as f32).floor() as i64;
    let (alpha_below, sigma_below) = alphas.at(below);
    let sample = settings.prediction.sample(X, alpha, sigma);
    let noise = settings.prediction.noise(X, alpha, sigma);
    let noised = alpha_below * sample + sigma_below * noise;
    match t_next {
        Some(t_next) if settings.eta > 0.0 => {
            let ratio = alphas.cumulative(t_next) / alphas.cumulative(below);
            ratio.sqrt() * noised + (1.0 - ratio).sqrt() * NOISE
        }
        _ => noised,
    }
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
        let problem =
            format!("{} takes at most {distilled} steps (original_inference_steps)", settings.sampler);
        return Err(Invalid::value(Parameter::Steps, steps).problem(problem).error());
    }
    let step = distilled as f64 / steps as f64;
    Ok((0..steps)
        .map(|i| (distilled - (i as f64 * step) as usize) * (train / distilled) - 1)
        .map(|t| t as i64)
        .skip(settings.start)
        .collect())
}
