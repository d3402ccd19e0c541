//! PLMS (Liu et al. 2022, equations 9 and 12), as `PNDMScheduler` with `skip_prk_steps`.

use super::noise_model::Prediction;
use super::schedules::{Alphas, Settings};
use super::terms::{E, HISTORY, SAVED, Terms, X};
use super::{Row, Table};
use crate::error::{Error, Result};
use crate::parameter::{Parameter, sentence};

pub(super) fn table(settings: &Settings) -> Result<Table> {
    if settings.prediction == Prediction::Sample {
        return Err(Error::invalid(sentence![
            "scheduler_config.json: prediction_type sample is not defined for pndm; try ",
            Parameter::Sampler,
            " ddim"
        ]));
    }
    let alphas = settings.alphas()?;
    let timesteps = settings.whole_timesteps()?;
    let stride = settings.stride();
    let [h0, h1, h2, _] = HISTORY;

    // The second timestep is evaluated twice. From a picture, diffusers leaves out the first entries of this list,
    // not of the timesteps: the two evaluations of its first step are then at two timesteps, and all later ones are
    // a stride ahead of the latents.
    let twice = timesteps.iter().take(2).chain(timesteps.iter().skip(1)).skip(settings.start);
    let row = |(i, &t): (usize, &i64)| {
        let (x, from, output) = match i {
            // The first step is taken twice: tentatively, then again from where it started with the mean of the
            // outputs at both its ends.
            0 => (X, t, E),
            1 => (SAVED, t + stride, 0.5 * (E + h0)),
            2 => (X, t, (3.0 * E - h0) / 2.0),
            3 => (X, t, (23.0 * E - 16.0 * h0 + 5.0 * h1) / 12.0),
            _ => (X, t, (55.0 * E - 59.0 * h0 + 37.0 * h1 - 9.0 * h2) / 24.0),
        };
        let next = transfer(settings.prediction, &alphas, x, output, from, from - stride);
        let row = Row::new(t as f64, alphas.mix(t), next);
        Row { save: if i == 0 { X } else { row.save }, remember: (i != 1).then_some(E), ..row }
    };
    let rows = twice.enumerate().map(row).collect();
    Ok(Table::of(rows, 1.0))
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
