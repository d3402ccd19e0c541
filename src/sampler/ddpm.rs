//! Ancestral sampling (Ho et al. 2020, equations 6 and 7) with `variance_type` `fixed_small`, as
//! `DDPMScheduler`.

use super::schedules::Settings;
use super::terms::{NOISE, X};
use super::{Row, Table};
use crate::error::Result;

pub(super) fn table(settings: &Settings) -> Result<Table> {
    let alphas = settings.alphas()?;
    let timesteps = &settings.whole_timesteps()?[settings.start..];
    let next = timesteps.iter().skip(1).copied().chain([-1]);
    let row = |(&t, t_next): (&i64, i64)| {
        let (a, a_next) = (alphas.cumulative(t), alphas.cumulative(t_next));
        let step_alpha = a / a_next;
        let step_beta = 1.0 - step_alpha;
        let (alpha, sigma) = alphas.at(t);
        let sample = settings.prediction.sample(X, alpha, sigma);
        let mean = (a_next.sqrt() * step_beta / (1.0 - a)) * sample
            + (step_alpha.sqrt() * (1.0 - a_next) / (1.0 - a)) * X;
        let variance = ((1.0 - a_next) / (1.0 - a) * step_beta).max(1e-20);
        Row::new(t as f64, alphas.mix(t), if t > 0 { mean + variance.sqrt() * NOISE } else { mean })
    };
    let rows = timesteps.iter().zip(next).map(row).collect();
    Ok(Table::of(rows, 1.0))
}
