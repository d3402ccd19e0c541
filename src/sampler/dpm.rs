//! DPM-Solver++(2M) and its SDE variant (Lu et al. 2022, algorithm 2), as
//! `DPMSolverMultistepScheduler` with `solver_type` `midpoint`; and the SDE variant of order 3, as
//! `sample_dpmpp_3m_sde` of k-diffusion.

use super::name::Sampler;
use super::noise_model::Level;
use super::schedules::Settings;
use super::terms::{HISTORY, NOISE, Terms, X};
use super::{Row, Table};
use crate::error::Result;

pub(super) fn table(settings: &Settings) -> Result<Table> {
    let sigmas = settings.sigmas()?;
    let levels: Vec<Level> = sigmas.levels.iter().map(|&sigma| settings.level(sigma)).collect();
    let row = |(i, &t): (usize, &f64)| {
        let level = levels[i];
        let sample = settings.sample(level);
        let next = match settings.sampler {
            Sampler::DpmPp3mSde => third_order(&levels, i, settings.eta, sample),
            sampler => {
                let estimate = if is_first_order(settings, &levels, i) {
                    sample
                } else {
                    let [h, h_before] = [i, i - 1].map(|i| levels[i + 1].lambda - levels[i].lambda);
                    sample + (0.5 * h / h_before) * (sample - HISTORY[0])
                };
                // The ODE is the SDE without noise.
                let eta = if sampler == Sampler::DpmPp2mSde { settings.eta } else { 0.0 };
                let step = Step::new(level, levels[i + 1], eta);
                step.kept * X + step.gain * estimate + step.noise * NOISE
            }
        };
        Row { in_scale: level.in_scale, remember: Some(sample), ..Row::new(t, level.mix(), next) }
    };
    let rows = sigmas.timesteps.iter().enumerate().map(row).collect();
    Ok(Table::of(rows, settings.init_noise_sigma(&sigmas)))
}

fn is_first_order(settings: &Settings, levels: &[Level], i: usize) -> bool {
    let (config, last) = (settings.config, levels.len() - 1);
    let careful = config.lower_order_final.unwrap_or(true) && settings.steps < 15;
    let first_order_last = levels[last].sigma == 0.0 || careful || config.euler_at_final == Some(true);
    i == 0 || config.solver_order == Some(1) || (i + 1 == last && first_order_last)
}

/// The factors of a step that goes down further than its end by `eta`, and back up with fresh noise.
struct Step {
    /// In logarithmic SNR, as far as the step goes down.
    h: f64,
    /// The factor of the latents.
    kept: f64,
    /// The factor of the predicted sample.
    gain: f64,
    noise: f64,
}

impl Step {
    fn new(from: Level, to: Level, eta: f64) -> Self {
        let h = to.lambda - from.lambda;
        // `1 - exp(-rate·h)`, also where h is infinite.
        let loss = |rate: f64| if rate == 0.0 { 0.0 } else { -(-rate * h).exp_m1() };
        Step {
            h: (1.0 + eta) * h,
            kept: to.sigma / from.sigma * (1.0 - loss(eta)),
            gain: to.alpha * loss(1.0 + eta),
            noise: to.sigma * loss(2.0 * eta).sqrt(),
        }
    }
}

/// The latents after step `i`. The first steps are of lower order, and so is one that ends without noise, or
/// where it began.
fn third_order(levels: &[Level], i: usize, eta: f64, sample: Terms) -> Terms {
    let (from, to) = (levels[i], levels[i + 1]);
    let step = Step::new(from, to, eta);
    let first_order = step.kept * X + step.gain * sample + step.noise * NOISE;
    if i == 0 || to.sigma == 0.0 || to.sigma == from.sigma {
        return first_order;
    }
    let h = to.lambda - from.lambda;
    let r0 = (from.lambda - levels[i - 1].lambda) / h;
    let slope = (sample - HISTORY[0]) / r0;
    let phi2 = 1.0 - step.gain / (to.alpha * step.h);
    let correction = if i == 1 {
        phi2 * slope
    } else {
        let r1 = (levels[i - 1].lambda - levels[i - 2].lambda) / h;
        let change = (slope - (HISTORY[0] - HISTORY[1]) / r1) / (r0 + r1);
        phi2 * (slope + r0 * change) - (phi2 / step.h - 0.5) * change
    };
    first_order + to.alpha * correction
}
