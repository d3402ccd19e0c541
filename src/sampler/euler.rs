//! Euler and ancestral Euler steps (Karras et al. 2022, algorithm 1), as `EulerDiscreteScheduler` with
//! `s_churn` 0 and `EulerAncestralDiscreteScheduler`.

use super::name::Sampler;
use super::schedules::Settings;
use super::terms::{NOISE, X};
use super::{Row, Table};
use crate::error::Result;

pub(super) fn table(settings: &Settings) -> Result<Table> {
    let sigmas = settings.sigmas()?;
    let row = |(&t, levels): (&f64, &[f64])| {
        let (sigma, sigma_next) = (levels[0], levels[1]);
        let (down, up) = match settings.sampler {
            Sampler::EulerAncestral => ancestral(sigma, sigma_next, settings.eta),
            _ => (sigma_next, 0.0),
        };
        let next = X + (down - sigma) * settings.derivative(sigma) + up * NOISE;
        Row { in_scale: settings.in_scale(sigma), ..Row::new(t, settings.mix(sigma), next) }
    };
    let rows = sigmas.timesteps.iter().zip(sigmas.levels.windows(2)).map(row).collect();
    Ok(Table::of(rows, settings.init_noise_sigma(&sigmas)))
}

/// Splits a step to level `to` into a step further down and the noise that is then added: all that an ancestor of
/// the sample at `from` has between the two (eta 1), or less (`get_ancestral_step` of k-diffusion).
///
/// In f32 like diffusers: where `to` is far below `from`, the difference cancels (and may come out
/// negative, where diffusers goes on with NaN).
pub(super) fn ancestral(from: f64, to: f64, eta: f64) -> (f64, f64) {
    let (from, to) = (from as f32, to as f32);
    let up = to.min(eta as f32 * (to * to * (from * from - to * to) / (from * from)).sqrt());
    let down = (to * to - up * up).max(0.0).sqrt();
    (f64::from(down), f64::from(up))
}
