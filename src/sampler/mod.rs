//! Samplers as tables.
//!
//! Whatever its name, a sampler turns one evaluation of the model into a linear combination of the
//! latents, the model's output, a few remembered quantities and fresh noise. [`Table::new`] works out
//! the coefficients on the host in f64, one [`Row`] for each evaluation, and the verb
//! [`SamplerStep`](crate::ops::SamplerStep) executes them: a new sampler needs no new kernel.
//!
//! Each family's file gives the formulas of the scheduler of diffusers that it equals, or, where diffusers has
//! none, those of k-diffusion.

mod config;
mod ddim;
mod ddpm;
mod deis;
mod distilled;
mod dpm;
mod dpm2;
mod euler;
mod heun;
mod ipndm;
mod lms;
mod name;
mod noise_model;
mod pndm;
mod prediction;
mod ramp;
mod sampling;
mod schedules;
mod table;
mod terms;
mod training;
mod unipc;

pub use config::SchedulerConfig;
pub use name::{Sampler, Schedule};
pub use noise_model::{Edm, NoiseModel};
pub use prediction::prediction_type;
pub use ramp::{ALIGNED_SD, ALIGNED_XL, AlignedLevels};
pub use sampling::{NoiseLevels, Sampling};
pub use table::{Mix, Row, Table};
pub use terms::Terms;

use crate::error::{Invalid, Result};
use crate::parameter::{Parameter, sentence};
use schedules::Settings;

impl Table {
    /// # Errors
    /// [`Error::Invalid`] if a value of the configuration is not supported (the message names its
    /// key), or if the sampler cannot do what is asked for (the error names the parameter).
    pub fn new(config: &SchedulerConfig, sampling: &Sampling) -> Result<Self> {
        let settings = Settings::new(config, sampling)?;
        let &Sampling { sampler, steps, .. } = sampling;
        let mut table = match sampler {
            Sampler::Ddim => ddim::table(&settings),
            Sampler::Ddpm => ddpm::table(&settings),
            Sampler::Pndm => pndm::table(&settings),
            Sampler::Lcm | Sampler::Tcd => distilled::table(&settings),
            Sampler::Euler | Sampler::EulerAncestral => euler::table(&settings),
            Sampler::Heun => heun::table(&settings),
            Sampler::Dpm2 | Sampler::Dpm2Ancestral | Sampler::DpmPp2sAncestral => dpm2::table(&settings),
            Sampler::Lms => lms::table(&settings),
            Sampler::Ipndm => ipndm::table(&settings),
            Sampler::DpmPp2m | Sampler::DpmPp2mSde | Sampler::DpmPp3mSde => dpm::table(&settings),
            Sampler::Deis => deis::table(&settings),
            Sampler::UniPc => unipc::table(&settings),
        }?;
        settings.predict(&mut table)?;
        let endless = table.packed().position(|row| !row.iter().all(|c| c.is_finite()));
        match endless {
            None => Ok(table),
            Some(row) => Err(Invalid::value(Parameter::Steps, steps)
                .problem(format!(
                    "{sampler} cannot step from timestep {}, because two steps share a noise level, or because the \
                     prediction is undefined there (rescale_betas_zero_snr with prediction_type epsilon)",
                    table.rows[row].timestep
                ))
                .advice(sentence![
                    "try fewer steps, another ",
                    Parameter::Schedule,
                    " or another ",
                    Parameter::Sampler
                ])
                .error()),
        }
    }
}
