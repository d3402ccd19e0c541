//! DPM-Solver++(2M) and its SDE variant (Lu et al. 2022, algorithm 2), as
//! `DPMSolverMultistepScheduler` with `solver_type` `midpoint`.

use super::name::Sampler;
use super::schedules::Settings;
use super::terms::{HISTORY, NOISE, X};
use super::{Row, Table};
use crate::error::Result;

/// A noise level as the solvers in logarithmic SNR see it.
#[derive(Clone, Copy)]
pub(super) struct Level {
    pub alpha: f64,
    pub sigma: f64,
    /// `ln(alpha/sigma)`, infinite without noise.
    pub lambda: f64,
}

impl Level {
    /// `ratio` is sigma/alpha.
    pub fn new(ratio: f64) -> Self {
        let alpha = 1.0 / (ratio * ratio + 1.0).sqrt();
        Level { alpha, sigma: ratio * alpha, lambda: -ratio.ln() }
    }
}

pub(super) fn table(settings: &Settings) -> Result<Table> {
    let sigmas = settings.sigmas()?;
    let levels: Vec<Level> = sigmas.levels.iter().map(|&sigma| Level::new(sigma)).collect();
    let config = settings.config;
    let steps = settings.steps;
    let careful = config.lower_order_final.unwrap_or(true) && steps < 15;
    let first_order_last = settings.ends_at_zero || careful || config.euler_at_final == Some(true);
    let row = |(i, &t): (usize, &f64)| {
        let (level, next) = (levels[i], levels[i + 1]);
        let sample = settings.prediction.sample(X, level.alpha, level.sigma);
        let h = next.lambda - level.lambda;
        let last = i + 1 == steps;
        let first_order = i == 0 || config.solver_order == Some(1) || (last && first_order_last);
        let estimate = if first_order {
            sample
        } else {
            let h_before = level.lambda - levels[i - 1].lambda;
            sample + (0.5 * h / h_before) * (sample - HISTORY[0])
        };
        let next = match settings.sampler {
            Sampler::DpmPp2mSde => {
                let fresh = -(-2.0 * h).exp_m1();
                (next.sigma / level.sigma * (-h).exp()) * X
                    + (next.alpha * fresh) * estimate
                    + (next.sigma * fresh.sqrt()) * NOISE
            }
            _ => (next.sigma / level.sigma) * X - (next.alpha * (-h).exp_m1()) * estimate,
        };
        Row { remember: Some(sample), ..Row::new(t, next) }
    };
    let rows = sigmas.timesteps.iter().enumerate().map(row).collect();
    Ok(Table { rows, init_noise_sigma: 1.0 })
}
