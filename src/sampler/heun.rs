//! Heun's method (Karras et al. 2022, algorithm 1), as `HeunDiscreteScheduler`: an Euler step, then the
//! same step again with the mean of the derivatives at both its ends. The last step is Euler's.

use super::schedules::Settings;
use super::terms::{HISTORY, SAVED, X};
use super::{Mix, Row, Table};
use crate::error::Result;

pub(super) fn table(settings: &Settings) -> Result<Table> {
    let sigmas = settings.sigmas()?;
    let mut rows = Vec::with_capacity(2 * settings.steps - 1);
    for (i, (&t, levels)) in sigmas.timesteps.iter().zip(sigmas.levels.windows(2)).enumerate() {
        let (sigma, sigma_next) = (levels[0], levels[1]);
        let slope = settings.derivative(sigma);
        let next = X + (sigma_next - sigma) * slope;
        rows.push(Row {
            in_scale: settings.in_scale(sigma),
            save: X,
            remember: Some(slope),
            ..Row::new(t, Mix::of_sigma(sigma), next)
        });
        if let Some(&t_next) = sigmas.timesteps.get(i + 1) {
            let mean = 0.5 * (HISTORY[0] + settings.derivative(sigma_next));
            let next = SAVED + (sigma_next - sigma) * mean;
            rows.push(Row {
                in_scale: settings.in_scale(sigma_next),
                ..Row::new(t_next, Mix::of_sigma(sigma_next), next)
            });
        }
    }
    Ok(Table::of(rows, settings.init_noise_sigma(&sigmas)))
}
