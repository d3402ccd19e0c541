//! DDIM (Song et al. 2021, equations 12 and 16), as `DDIMScheduler`.

use super::schedules::Settings;
use super::terms::{NOISE, X};
use super::{Row, Table};
use crate::error::Result;

pub(super) fn table(settings: &Settings) -> Result<Table> {
    let alphas = settings.alphas()?;
    let row = |t: i64| {
        let (alpha, sigma) = alphas.at(t);
        // The stride of the leading spacing, whatever the spacing is.
        let (alpha_next, sigma_next) = alphas.at(t - settings.stride());
        let sample = settings.prediction.sample(X, alpha, sigma);
        let noise = settings.prediction.noise(X, alpha, sigma);
        let ratio = alpha / alpha_next;
        let fresh = settings.eta * (sigma_next / sigma) * (1.0 - ratio * ratio).max(0.0).sqrt();
        let kept = (sigma_next * sigma_next - fresh * fresh).max(0.0).sqrt();
        Row::new(t as f64, alphas.mix(t), alpha_next * sample + kept * noise + fresh * NOISE)
    };
    let rows = settings.whole_timesteps()?.into_iter().skip(settings.start).map(row).collect();
    Ok(Table::of(rows, 1.0))
}
