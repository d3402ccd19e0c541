//! The names of samplers and schedules.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A sampler, after the scheduler of diffusers that it equals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sampler {
    /// `DDIMScheduler` with `eta = 0`.
    Ddim,
    /// `PNDMScheduler` with `skip_prk_steps`: PLMS.
    Pndm,
    /// `EulerDiscreteScheduler`.
    Euler,
    /// `EulerAncestralDiscreteScheduler`.
    EulerAncestral,
    /// `HeunDiscreteScheduler`.
    Heun,
    /// `DPMSolverMultistepScheduler` with `algorithm_type` `dpmsolver++`.
    DpmPp2m,
    /// `DPMSolverMultistepScheduler` with `algorithm_type` `sde-dpmsolver++`.
    DpmPp2mSde,
    /// `LMSDiscreteScheduler`.
    Lms,
    /// `UniPCMultistepScheduler`.
    UniPc,
    /// `LCMScheduler`.
    Lcm,
    /// `DDPMScheduler`.
    Ddpm,
}

impl Sampler {
    pub const ALL: [Sampler; 11] = [
        Sampler::Ddim,
        Sampler::Pndm,
        Sampler::Euler,
        Sampler::EulerAncestral,
        Sampler::Heun,
        Sampler::DpmPp2m,
        Sampler::DpmPp2mSde,
        Sampler::Lms,
        Sampler::UniPc,
        Sampler::Lcm,
        Sampler::Ddpm,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Sampler::Ddim => "ddim",
            Sampler::Pndm => "pndm",
            Sampler::Euler => "euler",
            Sampler::EulerAncestral => "euler-a",
            Sampler::Heun => "heun",
            Sampler::DpmPp2m => "dpm++2m",
            Sampler::DpmPp2mSde => "dpm++2m-sde",
            Sampler::Lms => "lms",
            Sampler::UniPc => "unipc",
            Sampler::Lcm => "lcm",
            Sampler::Ddpm => "ddpm",
        }
    }

    /// The name in the `parameters` text of a PNG, as A1111 writes it.
    pub fn label(self) -> &'static str {
        match self {
            Sampler::Ddim => "DDIM",
            Sampler::Pndm => "PLMS",
            Sampler::Euler => "Euler",
            Sampler::EulerAncestral => "Euler a",
            Sampler::Heun => "Heun",
            Sampler::DpmPp2m => "DPM++ 2M",
            Sampler::DpmPp2mSde => "DPM++ 2M SDE",
            Sampler::Lms => "LMS",
            Sampler::UniPc => "UniPC",
            Sampler::Lcm => "LCM",
            Sampler::Ddpm => "DDPM",
        }
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Letters and digits only, with `p` for `+`: how names are compared.
fn essence(name: &str) -> String {
    name.replace('+', "p")
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect::<String>()
        .to_ascii_lowercase()
}

impl FromStr for Sampler {
    type Err = Error;

    /// Takes [`Sampler::name`], [`Sampler::label`], and both in any case and punctuation
    /// (`euler_a`, `dpmpp_2m`, `DPM++ 2M SDE`).
    fn from_str(name: &str) -> Result<Self> {
        let asked = essence(name);
        let alias = match asked.as_str() {
            "eulerancestral" => Some(Sampler::EulerAncestral),
            "dpmppsde2m" => Some(Sampler::DpmPp2mSde),
            _ => None,
        };
        Sampler::ALL
            .into_iter()
            .find(|sampler| asked == essence(sampler.name()) || asked == essence(sampler.label()))
            .or(alias)
            .ok_or_else(|| {
                let names = Sampler::ALL.map(Sampler::name).join(", ");
                Error::invalid(format!("--sampler {name}: no such sampler; there are {names}"))
            })
    }
}

/// How the timesteps, or the noise levels, of the steps are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Schedule {
    /// As the model's `scheduler_config.json` says.
    #[default]
    Model,
    /// Every `T/n`-th timestep from the first on, plus `steps_offset`.
    Leading,
    /// Evenly spaced from the first to the last training timestep.
    Linspace,
    /// Every `T/n`-th timestep back from the last one.
    Trailing,
    /// Noise levels evenly spaced in `sigma^(1/7)` (Karras et al. 2022, equation 5).
    Karras,
    /// Noise levels evenly spaced in `ln sigma`.
    Exponential,
}

impl Schedule {
    pub const ALL: [Schedule; 6] = [
        Schedule::Model,
        Schedule::Leading,
        Schedule::Linspace,
        Schedule::Trailing,
        Schedule::Karras,
        Schedule::Exponential,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Schedule::Model => "model",
            Schedule::Leading => "leading",
            Schedule::Linspace => "linspace",
            Schedule::Trailing => "trailing",
            Schedule::Karras => "karras",
            Schedule::Exponential => "exponential",
        }
    }

    /// The `Schedule type` in the `parameters` text of a PNG. A1111 has no names for the spacings.
    pub fn label(self) -> &'static str {
        match self {
            Schedule::Model => "Automatic",
            Schedule::Leading => "Leading",
            Schedule::Linspace => "Linspace",
            Schedule::Trailing => "Trailing",
            Schedule::Karras => "Karras",
            Schedule::Exponential => "Exponential",
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Schedule {
    type Err = Error;

    /// Takes [`Schedule::name`] or [`Schedule::label`] in any case, and `default` or `auto` for the model's.
    fn from_str(name: &str) -> Result<Self> {
        let asked = essence(name);
        Schedule::ALL
            .into_iter()
            .find(|schedule| asked == schedule.name() || asked == essence(schedule.label()))
            .or((asked == "default" || asked == "auto").then_some(Schedule::Model))
            .ok_or_else(|| {
                let names = Schedule::ALL.map(Schedule::name).join(", ");
                Error::invalid(format!("--schedule {name}: no such schedule; there are {names}"))
            })
    }
}
