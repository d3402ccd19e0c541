//! The noise that a model was trained with, at each of its timesteps.
//!
//! Computed in f32 where torch does, because some roundings are amplified later: see `schedules`.

use super::config::SchedulerConfig;
use crate::error::{Error, Result};

/// The share of signal in the latents at each training timestep.
pub fn alphas_cumprod(config: &SchedulerConfig, zero_snr: bool) -> Result<Vec<f32>> {
    let train = config.num_train_timesteps;
    let (start, end) = (config.beta_start.unwrap_or(0.0), config.beta_end.unwrap_or(0.0));
    if !(0.0 < start && start <= end && end < 1.0) {
        return Err(Error::invalid(format!(
            "scheduler_config.json: beta_start is {start} and beta_end {end}; \
             expected 0 < beta_start <= beta_end < 1"
        )));
    }
    let betas: Vec<f32> = match &config.trained_betas {
        Some(betas) if betas.len() == train => betas.clone(),
        Some(betas) => {
            return Err(Error::invalid(format!(
                "scheduler_config.json: trained_betas has {} values; expected num_train_timesteps, {train}",
                betas.len()
            )));
        }
        None => match config.beta_schedule.as_deref().unwrap_or_default() {
            "scaled_linear" => linspace(start.sqrt() as f32, end.sqrt() as f32, train)
                .into_iter()
                .map(|root| root * root)
                .collect(),
            "linear" => linspace(start as f32, end as f32, train),
            "squaredcos_cap_v2" => cosine_betas(train),
            other => {
                return Err(Error::invalid(format!(
                    "scheduler_config.json: beta_schedule is {other}; supported are scaled_linear, linear, \
                     squaredcos_cap_v2"
                )));
            }
        },
    };
    let alphas = cumprod(betas.iter().map(|beta| 1.0 - beta));
    Ok(if zero_snr { without_terminal_signal(alphas) } else { alphas })
}

/// Linear interpolation between whole timesteps, constant beyond the ends (`numpy.interp`).
pub fn interpolate(values: &[f32], t: f64) -> f64 {
    let low = (t as usize).min(values.len() - 1);
    let high = (low + 1).min(values.len() - 1);
    let (a, b) = (f64::from(values[low]), f64::from(values[high]));
    a + (b - a) * (t - low as f64).min(1.0)
}

/// The timestep, not necessarily whole, with this noise level (`_sigma_to_t`).
pub fn timestep_of(sigma: f64, log_sigmas: &[f32]) -> f64 {
    let log_sigma = sigma.max(1e-10).ln();
    let below = log_sigmas.partition_point(|&log| f64::from(log) <= log_sigma);
    let low = below.saturating_sub(1).min(log_sigmas.len() - 2);
    let (a, b) = (f64::from(log_sigmas[low]), f64::from(log_sigmas[low + 1]));
    low as f64 + ((a - log_sigma) / (a - b)).clamp(0.0, 1.0)
}

/// Betas of Nichol and Dhariwal 2021, equation 17 (`betas_for_alpha_bar`).
fn cosine_betas(train: usize) -> Vec<f32> {
    let alpha_bar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
    let time = |i: usize| i as f64 / train as f64;
    (0..train).map(|i| (1.0 - alpha_bar(time(i + 1)) / alpha_bar(time(i))).min(0.999) as f32).collect()
}

/// Lin et al. 2023, algorithm 1 (`rescale_zero_terminal_snr`), through the betas and back.
fn without_terminal_signal(cumulative: Vec<f32>) -> Vec<f32> {
    let roots: Vec<f32> = cumulative.iter().map(|a| a.sqrt()).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = first / (first - last);
    let squares: Vec<f32> = roots.iter().map(|root| (root - last) * scale).map(|r| r * r).collect();
    let ratios = std::iter::once(squares[0]).chain(squares.windows(2).map(|pair| pair[1] / pair[0]));
    cumprod(ratios.map(|ratio| 1.0 - (1.0 - ratio)))
}

/// `torch.linspace` in f32: from both ends towards the middle.
fn linspace(start: f32, end: f32, count: usize) -> Vec<f32> {
    let step = (end - start) / (count - 1) as f32;
    (0..count)
        .map(|i| {
            if i < count / 2 {
                step.mul_add(i as f32, start)
            } else {
                (-step).mul_add((count - 1 - i) as f32, end)
            }
        })
        .collect()
}

/// `torch.cumprod` of f32: accumulated in f64, rounded at every element.
fn cumprod(factors: impl Iterator<Item = f32>) -> Vec<f32> {
    factors
        .scan(1.0, |product, factor| {
            *product *= f64::from(factor);
            Some(*product as f32)
        })
        .collect()
}
