//! The names of samplers and schedules.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Invalid, Result};
use crate::parameter::Parameter;

/// A sampler, after the scheduler of diffusers that it equals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sampler {
    /// `DDIMScheduler`.
    Ddim,
    /// `PNDMScheduler` with `skip_prk_steps`: PLMS.
    Pndm,
    /// `EulerDiscreteScheduler`.
    Euler,
    /// `EulerAncestralDiscreteScheduler`.
    EulerAncestral,
    /// `HeunDiscreteScheduler`.
    Heun,
    /// `KDPM2DiscreteScheduler`.
    Dpm2,
    /// `KDPM2AncestralDiscreteScheduler`.
    Dpm2Ancestral,
    /// `sample_dpmpp_2s_ancestral` of k-diffusion, which diffusers does not have, over the noise levels of
    /// `EulerDiscreteScheduler`.
    DpmPp2sAncestral,
    /// `DPMSolverMultistepScheduler` with `algorithm_type` `dpmsolver++`.
    DpmPp2m,
    /// `DPMSolverMultistepScheduler` with `algorithm_type` `sde-dpmsolver++`.
    DpmPp2mSde,
    /// `sample_dpmpp_3m_sde` of k-diffusion over the noise levels of `DPMSolverMultistepScheduler`, whose own
    /// third order of `sde-dpmsolver++` has a sign the wrong way round. Noise is drawn afresh in every step,
    /// not from a Brownian tree.
    DpmPp3mSde,
    /// `DEISMultistepScheduler`.
    Deis,
    /// `sample_ipndm` of ComfyUI over the noise levels of `EulerDiscreteScheduler`. The `IPNDMScheduler` of
    /// diffusers has timesteps from 0 to 1 and a sine for a schedule, with which Stable Diffusion was not
    /// trained.
    Ipndm,
    /// `LMSDiscreteScheduler`.
    Lms,
    /// `UniPCMultistepScheduler`.
    UniPc,
    /// `LCMScheduler`.
    Lcm,
    /// `TCDScheduler`.
    Tcd,
    /// `DDPMScheduler`.
    Ddpm,
}

impl Sampler {
    pub const ALL: [Sampler; 18] = [
        Sampler::Ddim,
        Sampler::Pndm,
        Sampler::Euler,
        Sampler::EulerAncestral,
        Sampler::Heun,
        Sampler::Dpm2,
        Sampler::Dpm2Ancestral,
        Sampler::DpmPp2sAncestral,
        Sampler::DpmPp2m,
        Sampler::DpmPp2mSde,
        Sampler::DpmPp3mSde,
        Sampler::Deis,
        Sampler::Ipndm,
        Sampler::Lms,
        Sampler::UniPc,
        Sampler::Lcm,
        Sampler::Tcd,
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
            Sampler::Dpm2 => "dpm2",
            Sampler::Dpm2Ancestral => "dpm2-a",
            Sampler::DpmPp2sAncestral => "dpm++2s-a",
            Sampler::DpmPp2m => "dpm++2m",
            Sampler::DpmPp2mSde => "dpm++2m-sde",
            Sampler::DpmPp3mSde => "dpm++3m-sde",
            Sampler::Deis => "deis",
            Sampler::Ipndm => "ipndm",
            Sampler::Lms => "lms",
            Sampler::UniPc => "unipc",
            Sampler::Lcm => "lcm",
            Sampler::Tcd => "tcd",
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
            Sampler::Dpm2 => "DPM2",
            Sampler::Dpm2Ancestral => "DPM2 a",
            Sampler::DpmPp2sAncestral => "DPM++ 2S a",
            Sampler::DpmPp2m => "DPM++ 2M",
            Sampler::DpmPp2mSde => "DPM++ 2M SDE",
            Sampler::DpmPp3mSde => "DPM++ 3M SDE",
            Sampler::Deis => "DEIS",
            Sampler::Ipndm => "IPNDM",
            Sampler::Lms => "LMS",
            Sampler::UniPc => "UniPC",
            Sampler::Lcm => "LCM",
            Sampler::Tcd => "TCD",
            Sampler::Ddpm => "DDPM",
        }
    }

    /// Evaluations of the model in a step but the last.
    pub fn evaluations_of_step(self) -> usize {
        match self {
            Sampler::Heun | Sampler::Dpm2 | Sampler::Dpm2Ancestral | Sampler::DpmPp2sAncestral => 2,
            _ => 1,
        }
    }

    /// How much of the noise that a step takes away is drawn anew where nothing else is asked for; `None` for a
    /// sampler that has no such choice. DDIM's is the `eta` of `DDIMScheduler`, TCD's the gamma of
    /// `TCDScheduler`, the others' the `eta` of k-diffusion.
    pub fn default_eta(self) -> Option<f64> {
        match self {
            Sampler::Ddim => Some(0.0),
            Sampler::Tcd => Some(0.3),
            Sampler::EulerAncestral | Sampler::Dpm2Ancestral | Sampler::DpmPp2sAncestral => Some(1.0),
            Sampler::DpmPp2mSde | Sampler::DpmPp3mSde => Some(1.0),
            _ => None,
        }
    }

    /// The key of eta in the `parameters` text of a PNG, as A1111 writes it.
    pub fn eta_label(self) -> &'static str {
        if self == Sampler::Ddim { "Eta DDIM" } else { "Eta" }
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Letters and digits only, with `p` for `+` and `a` for `ancestral`: how names are compared.
fn essence(name: &str) -> String {
    name.replace('+', "p")
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect::<String>()
        .to_ascii_lowercase()
        .replace("ancestral", "a")
}

impl FromStr for Sampler {
    type Err = Error;

    /// Takes [`Sampler::name`], [`Sampler::label`], and both in any case and punctuation
    /// (`euler_a`, `dpmpp_2m`, `DPM++ 2M SDE`).
    fn from_str(name: &str) -> Result<Self> {
        let asked = essence(name);
        let alias = match asked.as_str() {
            "dpmppsde2m" => Some(Sampler::DpmPp2mSde),
            "kdpm2" => Some(Sampler::Dpm2),
            "kdpm2a" => Some(Sampler::Dpm2Ancestral),
            _ => None,
        };
        Sampler::ALL
            .into_iter()
            .find(|sampler| asked == essence(sampler.name()) || asked == essence(sampler.label()))
            .or(alias)
            .ok_or_else(|| {
                let names = Sampler::ALL.map(Sampler::name).join(", ");
                let problem = format!("no such sampler; there are {names}");
                Invalid::value(Parameter::Sampler, name).problem(problem).error()
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
    /// n + 1 timesteps evenly spaced from the last to the first, without the first: `sgm_uniform` of ComfyUI
    /// and A1111. For samplers over whole timesteps this is their linspace.
    SgmUniform,
    /// Noise levels evenly spaced in `sigma^(1/7)` (Karras et al. 2022, equation 5).
    Karras,
    /// Noise levels evenly spaced in `ln sigma`.
    Exponential,
    /// Noise levels at quantiles of a beta distribution (Lee et al. 2024): more at both ends.
    Beta,
    /// Align Your Steps (Sabour et al. 2024): the published noise levels of ten steps, for other numbers of
    /// steps interpolated in `ln sigma` as the paper's code, ComfyUI and sd.cpp do (A1111 spreads them over one
    /// step less and appends a step).
    Ays,
}

impl Schedule {
    pub const ALL: [Schedule; 9] = [
        Schedule::Model,
        Schedule::Leading,
        Schedule::Linspace,
        Schedule::Trailing,
        Schedule::SgmUniform,
        Schedule::Karras,
        Schedule::Exponential,
        Schedule::Beta,
        Schedule::Ays,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Schedule::Model => "model",
            Schedule::Leading => "leading",
            Schedule::Linspace => "linspace",
            Schedule::Trailing => "trailing",
            Schedule::SgmUniform => "sgm_uniform",
            Schedule::Karras => "karras",
            Schedule::Exponential => "exponential",
            Schedule::Beta => "beta",
            Schedule::Ays => "ays",
        }
    }

    /// The `Schedule type` in the `parameters` text of a PNG. A1111 has no names for the spacings.
    pub fn label(self) -> &'static str {
        match self {
            Schedule::Model => "Automatic",
            Schedule::Leading => "Leading",
            Schedule::Linspace => "Linspace",
            Schedule::Trailing => "Trailing",
            Schedule::SgmUniform => "SGM Uniform",
            Schedule::Karras => "Karras",
            Schedule::Exponential => "Exponential",
            Schedule::Beta => "Beta",
            Schedule::Ays => "Align Your Steps",
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
            .find(|schedule| asked == essence(schedule.name()) || asked == essence(schedule.label()))
            .or((asked == "default" || asked == "auto").then_some(Schedule::Model))
            .ok_or_else(|| {
                let names = Schedule::ALL.map(Schedule::name).join(", ");
                let problem = format!("no such schedule; there are {names}");
                Invalid::value(Parameter::Schedule, name).problem(problem).error()
            })
    }
}
