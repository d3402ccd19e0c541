//! UniPC (Zhao et al. 2023, algorithms 5 and 6) of order 2 with `bh2` and data prediction, as
//! `UniPCMultistepScheduler`.
//!
//! An evaluation first corrects the latents it was made at, then predicts the next ones from the
//! corrected ones. `saved` holds the corrected latents, the history the samples that were predicted.

use super::noise_model::Level;
use super::schedules::Settings;
use super::terms::{HISTORY, SAVED, X};
use super::{Row, Table};
use crate::error::Result;

pub(super) fn table(settings: &Settings) -> Result<Table> {
    let sigmas = settings.sigmas()?;
    let levels: Vec<Level> = sigmas.levels.iter().map(|&sigma| settings.level(sigma)).collect();
    let steps = sigmas.timesteps.len();
    let order = |i: usize| {
        let order = settings.config.solver_order.unwrap_or(2).min(i + 1);
        if settings.config.lower_order_final.unwrap_or(true) { order.min(steps - i) } else { order }
    };
    let row = |(i, &t): (usize, &f64)| {
        let sample = settings.sample(levels[i]);
        let corrected = match i {
            0 => X,
            _ => {
                let [h0, h1, ..] = HISTORY;
                let step = Step::new(levels[i - 1], levels[i]);
                let change = if order(i - 1) == 1 {
                    0.5 * (sample - h0)
                } else {
                    let r = step.ratio(levels[i - 2]);
                    let (b1, b2) = step.moments();
                    // [1 1; r 1] rho = b
                    let rho = (b1 - b2) / (1.0 - r);
                    (rho / r) * (h1 - h0) + (b1 - rho) * (sample - h0)
                };
                step.signal * SAVED - step.gain * (h0 + change)
            }
        };
        let step = Step::new(levels[i], levels[i + 1]);
        let estimate = match order(i) {
            1 => sample,
            _ => sample + (0.5 / step.ratio(levels[i - 1])) * (HISTORY[0] - sample),
        };
        Row {
            in_scale: levels[i].in_scale,
            save: corrected,
            remember: Some(sample),
            ..Row::new(t, levels[i].mix(), step.signal * corrected - step.gain * estimate)
        }
    };
    let rows = sigmas.timesteps.iter().enumerate().map(row).collect();
    Ok(Table::of(rows, settings.init_noise_sigma(&sigmas)))
}

/// What predictor and corrector share about a step between two levels.
struct Step {
    from: Level,
    h: f64,
    /// The factor of the latents.
    signal: f64,
    /// Minus the factor of the predicted sample.
    gain: f64,
}

impl Step {
    fn new(from: Level, to: Level) -> Self {
        let h = to.lambda - from.lambda;
        Step { from, h, signal: to.sigma / from.sigma, gain: to.alpha * (-h).exp_m1() }
    }

    /// Where an earlier level lies, in steps from `from`.
    fn ratio(&self, earlier: Level) -> f64 {
        (earlier.lambda - self.from.lambda) / self.h
    }

    /// The right hand side of the corrector's order conditions.
    fn moments(&self) -> (f64, f64) {
        let hh = -self.h;
        let b = hh.exp_m1();
        let phi2 = b / hh - 1.0;
        let phi3 = phi2 / hh - 0.5;
        (phi2 / b, 2.0 * phi3 / b)
    }
}
