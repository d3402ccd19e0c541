//! The linear multistep method of order 4 over sigma, as `LMSDiscreteScheduler`; but where it starts from a picture,
//! its first steps are of the orders that they have from noise, without the weights of derivatives that are not there.

use super::schedules::Settings;
use super::terms::{HISTORY, X};
use super::{Mix, Row, Table};
use crate::error::Result;

const ORDER: usize = 4;

pub(super) fn table(settings: &Settings) -> Result<Table> {
    let sigmas = settings.sigmas()?;
    let row = |(i, &t): (usize, &f64)| {
        let known: Vec<f64> = (0..ORDER.min(i + 1)).map(|k| sigmas.levels[i - k]).collect();
        let slope = settings.derivative(known[0]);
        let slopes = [slope, HISTORY[0], HISTORY[1], HISTORY[2]];
        let next = (0..known.len())
            .fold(X, |next, k| next + weight(&known, k, known[0], sigmas.levels[i + 1]) * slopes[k]);
        Row {
            in_scale: settings.in_scale(known[0]),
            remember: Some(slope),
            ..Row::new(t, Mix::of_sigma(known[0]), next)
        }
    };
    let rows = sigmas.timesteps.iter().enumerate().map(row).collect();
    Ok(Table::of(rows, settings.init_noise_sigma(&sigmas)))
}

/// The integral over `from..to` of the Lagrange polynomial that is 1 at `nodes[k]` and 0 at the others.
fn weight(nodes: &[f64], k: usize, from: f64, to: f64) -> f64 {
    let polynomial = |tau: f64| -> f64 {
        let others = nodes.iter().enumerate().filter(|&(j, _)| j != k);
        others.map(|(_, node)| (tau - node) / (nodes[k] - node)).product()
    };
    // Two Gauss-Legendre points integrate a cubic exactly.
    let (middle, half) = ((from + to) / 2.0, (to - from) / 2.0);
    let offset = half / 3f64.sqrt();
    half * (polynomial(middle - offset) + polynomial(middle + offset))
}
