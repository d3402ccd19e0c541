//! How A1111 names samplers and schedules, beyond the labels of our own.

use crate::error::Result;
use crate::sampler::{Sampler, Schedule};

/// `Euler a`, or from before A1111 1.9 and from sd.cpp both in one: `DPM++ 2M Karras`.
pub fn sampler_and_schedule(name: &str) -> Option<(Sampler, Option<Schedule>)> {
    let whole = name.parse().ok().map(|sampler| (sampler, None));
    whole.or_else(|| {
        name.match_indices(' ')
            .find_map(|(i, _)| Some((name[..i].parse().ok()?, Some(name[i + 1..].parse().ok()?))))
    })
}

/// A1111's `Automatic`: the option `scheduler` of `samplers_k_diffusion` in its `sd_samplers_kdiffusion.py`
/// (1.9), or evenly spaced timesteps; the others are no samplers of k-diffusion, and go by the model's.
pub fn automatic(sampler: Sampler) -> Schedule {
    match sampler.label() {
        "DPM++ 2M" | "DPM++ 2S a" | "DPM++ SDE" | "DPM2" | "DPM2 a" => Schedule::Karras,
        "DPM++ 2M SDE" | "DPM++ 3M SDE" => Schedule::Exponential,
        "Euler" | "Euler a" | "Heun" | "LMS" => Schedule::Linspace,
        _ => Schedule::Model,
    }
}

/// The schedule of a request: `None` and `automatic` go by the sampler, `Uniform` is what the samplers of
/// k-diffusion do by themselves.
///
/// # Errors
/// [`Error::Invalid`](crate::Error::Invalid) for a name that is none.
pub fn schedule(name: Option<&str>, sampler: Sampler) -> Result<Schedule> {
    match name.map(str::to_ascii_lowercase).as_deref() {
        None | Some("" | "automatic") => Ok(automatic(sampler)),
        Some("uniform") => Ok(Schedule::Linspace),
        Some(name) => name.parse(),
    }
}
