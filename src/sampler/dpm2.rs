//! Samplers of second order that evaluate the model where a step begins and half way down in `ln sigma`: DPM2
//! (Lu et al. 2022a, algorithm 1; Karras et al. 2022) as `KDPM2DiscreteScheduler` and
//! `KDPM2AncestralDiscreteScheduler`, and DPM-Solver++(2S) (Lu et al. 2022b, algorithm 1), ancestral, as
//! `sample_dpmpp_2s_ancestral` of k-diffusion. A step to no noise at all is Euler's.

use super::euler::ancestral;
use super::name::Sampler;
use super::noise_model::Prediction;
use super::schedules::Settings;
use super::terms::{NOISE, SAVED, X};
use super::{Mix, Row, Table};
use crate::error::{Error, Result};
use crate::parameter::{Parameter, sentence};

pub(super) fn table(settings: &Settings) -> Result<Table> {
    let (sampler, prediction) = (settings.sampler, settings.prediction);
    if prediction == Prediction::Sample && sampler != Sampler::DpmPp2sAncestral {
        return Err(Error::invalid(sentence![
            format!("scheduler_config.json: prediction_type sample is not defined for {sampler}; try "),
            Parameter::Sampler,
            " heun"
        ]));
    }
    let sigmas = settings.sigmas()?;
    let mut rows = Vec::with_capacity(2 * settings.steps);
    for (&t, levels) in sigmas.timesteps.iter().zip(sigmas.levels.windows(2)) {
        let (sigma, sigma_next) = (levels[0], levels[1]);
        let (down, up) = match sampler {
            Sampler::Dpm2 => (sigma_next, 0.0),
            _ => ancestral(sigma, sigma_next, settings.eta),
        };
        let mix = Mix::of_sigma(sigma);
        let slope = settings.derivative(sigma);
        let first = |to: f64| X + (to - sigma) * slope;
        if down == 0.0 {
            rows.push(Row {
                in_scale: settings.in_scale(sigma),
                ..Row::new(t, mix, first(0.0) + up * NOISE)
            });
            continue;
        }
        let middle = f64::from((sigma * down).sqrt() as f32);
        rows.push(Row { in_scale: settings.in_scale(sigma), save: X, ..Row::new(t, mix, first(middle)) });
        let second = match sampler {
            Sampler::DpmPp2sAncestral => {
                let kept = down / sigma;
                kept * SAVED + (1.0 - kept) * settings.denoised(middle)
            }
            _ => SAVED + (down - sigma) * settings.derivative(middle),
        };
        let t_middle = sigmas.timestep(middle);
        // The schedulers of diffusers add the noise of the step's end here, not that of its middle.
        let mix = Mix::of_sigma(if sampler == Sampler::DpmPp2sAncestral { middle } else { sigma_next });
        rows.push(Row {
            in_scale: settings.in_scale(middle),
            ..Row::new(t_middle, mix, second + up * NOISE)
        });
    }
    Ok(Table::of(rows, settings.init_noise_sigma(&sigmas)))
}
