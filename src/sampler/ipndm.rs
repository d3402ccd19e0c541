//! Improved PNDM: Adams-Bashforth steps over sigma up to order 4, with the weights of even steps whatever the
//! steps are (Zhang and Chen 2023), as `sample_ipndm` of ComfyUI. A step to no noise at all is Euler's.

use super::schedules::Settings;
use super::terms::{HISTORY, X};
use super::{Mix, Row, Table};
use crate::error::Result;

pub(super) fn table(settings: &Settings) -> Result<Table> {
    let sigmas = settings.sigmas()?;
    let [h0, h1, h2, _] = HISTORY;
    let row = |(i, &t): (usize, &f64)| {
        let (sigma, sigma_next) = (sigmas.levels[i], sigmas.levels[i + 1]);
        let slope = settings.derivative(sigma);
        let mean = match i {
            _ if sigma_next == 0.0 => slope,
            0 => slope,
            1 => (3.0 * slope - h0) / 2.0,
            2 => (23.0 * slope - 16.0 * h0 + 5.0 * h1) / 12.0,
            _ => (55.0 * slope - 59.0 * h0 + 37.0 * h1 - 9.0 * h2) / 24.0,
        };
        let next = X + (sigma_next - sigma) * mean;
        Row {
            in_scale: settings.in_scale(sigma),
            remember: Some(slope),
            ..Row::new(t, Mix::of_sigma(sigma), next)
        }
    };
    let rows = sigmas.timesteps.iter().enumerate().map(row).collect();
    Ok(Table::of(rows, settings.init_noise_sigma(&sigmas)))
}
