//! DEIS (Zhang and Chen 2023) with polynomials in the logarithm of sigma, up to order 3, as
//! `DEISMultistepScheduler`.

use super::noise_model::Level;
use super::schedules::Settings;
use super::terms::{HISTORY, X};
use super::{Row, Table};
use crate::error::Result;

pub(super) fn table(settings: &Settings) -> Result<Table> {
    let sigmas = settings.sigmas()?;
    let levels: Vec<Level> = sigmas.levels.iter().map(|&sigma| settings.level(sigma)).collect();
    let (config, steps) = (settings.config, settings.steps);
    // Not all steps are taken where it starts from a picture.
    let last = sigmas.timesteps.len();
    let careful = config.lower_order_final.unwrap_or(true) && steps < 15;
    let order = |i: usize| {
        let order = config.solver_order.unwrap_or(2).min(i + 1);
        match last - i {
            // The polynomials have no value without noise.
            1 if sigmas.levels[last] == 0.0 => 1,
            left if careful => order.min(left),
            _ => order,
        }
    };
    let row = |(i, &t): (usize, &f64)| {
        let (level, next) = (levels[i], levels[i + 1]);
        let noise = settings.noise(level);
        let noises = [noise, HISTORY[0], HISTORY[1]];
        let known: Vec<f64> = (0..order(i)).map(|k| sigmas.levels[i - k]).collect();
        let sum = (0..known.len())
            .fold(X / level.alpha, |sum, k| sum + weight(&known, k, sigmas.levels[i + 1]) * noises[k]);
        Row { in_scale: level.in_scale, remember: Some(noise), ..Row::new(t, level.mix(), next.alpha * sum) }
    };
    let rows = sigmas.timesteps.iter().enumerate().map(row).collect();
    Ok(Table::of(rows, settings.init_noise_sigma(&sigmas)))
}

/// The integral over sigma from `nodes[0]` to `to` of the Lagrange polynomial in `ln sigma` that is 1 at
/// `nodes[k]` and 0 at the others, of which there are at most two.
fn weight(nodes: &[f64], k: usize, to: f64) -> f64 {
    let others: Vec<f64> = (0..nodes.len()).filter(|&j| j != k).map(|j| nodes[j]).collect();
    let scale: f64 = others.iter().map(|node| (nodes[k] / node).ln()).product();
    // Antiderivatives of 1, ln(s/a) and ln(s/a)·ln(s/b).
    let integral = |s: f64| match others[..] {
        [] => s,
        [a] => s * ((s / a).ln() - 1.0),
        [a, b] => {
            let (u, v) = ((s / a).ln(), (s / b).ln());
            s * (u * v - u - v + 2.0)
        }
        _ => unreachable!("three nodes at most"),
    };
    (integral(to) - integral(nodes[0])) / scale
}
