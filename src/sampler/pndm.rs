//! PLMS (Liu et al. 2022, equations 9 and 12), as `PNDMScheduler` with `skip_prk_steps`.

use super::schedules::{Alphas, Prediction, Settings};
use super::terms::{E, HISTORY, SAVED, Terms, X};
use super::{Row, Table};
use crate::error::{Error, Result};

pub(super) fn table(settings: &Settings) -> Result<Table> {
    if settings.prediction == Prediction::Sample {
        return Err(Error::invalid(
            "scheduler_config.json: prediction_type sample is not defined for pndm; try --sampler ddim",
        ));
    }
    let alphas = settings.alphas()?;
    let timesteps = settings.whole_timesteps()?;
    let stride = settings.stride();
    let [h0, h1, h2, _] = HISTORY;

    // The first step is taken twice: tentatively, then again from where it started with the mean of
    // the outputs at both its ends.
    let t = timesteps[0];
    let tentative = transfer(settings.prediction, &alphas, X, E, t, t - stride);
    let mut rows = vec![Row { save: X, remember: Some(E), ..Row::new(t as f64, tentative) }];
    if let Some(&t) = timesteps.get(1) {
        let mean = 0.5 * (E + h0);
        rows.push(Row::new(t as f64, transfer(settings.prediction, &alphas, SAVED, mean, t + stride, t)));
    }
    for (i, &t) in timesteps.iter().enumerate().skip(1) {
        let output = match i {
            1 => (3.0 * E - h0) / 2.0,
            2 => (23.0 * E - 16.0 * h0 + 5.0 * h1) / 12.0,
            _ => (55.0 * E - 59.0 * h0 + 37.0 * h1 - 9.0 * h2) / 24.0,
        };
        let next = transfer(settings.prediction, &alphas, X, output, t, t - stride);
        rows.push(Row { remember: Some(E), ..Row::new(t as f64, next) });
    }
    Ok(Table { rows, init_noise_sigma: 1.0 })
}

/// Takes `x` from one timestep to another (`_get_prev_sample`).
fn transfer(prediction: Prediction, alphas: &Alphas, x: Terms, output: Terms, from: i64, to: i64) -> Terms {
    let (alpha, sigma) = alphas.at(from);
    let (alpha_next, sigma_next) = alphas.at(to);
    let noise = match prediction {
        Prediction::Velocity => alpha * output + sigma * x,
        Prediction::Epsilon | Prediction::Sample => output,
    };
    let difference = alphas.cumulative(to) - alphas.cumulative(from);
    let denominator = alpha * alpha * sigma_next + alpha * sigma * alpha_next;
    (alpha_next / alpha) * x - (difference / denominator) * noise
}
