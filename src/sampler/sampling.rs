//! What a user chooses about the steps.

use std::fmt;
use std::str::FromStr;

use super::name::{Sampler, Schedule};
use super::ramp::{ALIGNED_SD, AlignedLevels};
use crate::error::{Error, Invalid, Result};
use crate::parameter::{Parameter, sentence};

/// What a [`Table`](super::Table) is made for.
#[derive(Clone, Debug)]
pub struct Sampling {
    pub sampler: Sampler,
    pub schedule: Schedule,
    pub steps: usize,
    /// Steps that are left out at the start, where latents come from a picture: fewer than all.
    pub start: usize,
    /// How much of the noise that a step takes away is drawn anew, 0 to 1; `None` for
    /// [`Sampler::default_eta`].
    pub eta: Option<f64>,
    /// The noise levels by hand instead of a schedule; one more than steps.
    pub sigmas: Option<NoiseLevels>,
    /// The levels of [`Schedule::Ays`].
    pub aligned: AlignedLevels,
}

impl Sampling {
    pub fn new(sampler: Sampler, schedule: Schedule, steps: usize) -> Self {
        Sampling { sampler, schedule, steps, start: 0, eta: None, sigmas: None, aligned: ALIGNED_SD }
    }

    /// The eta of the sampler, 0 for one that has none.
    ///
    /// # Errors
    /// [`Error::Invalid`] if an eta is given that the sampler does not have, or that is not 0 to 1.
    pub(super) fn eta(&self) -> Result<f64> {
        let Sampling { sampler, .. } = self;
        match (self.eta, sampler.default_eta()) {
            (None, default) => Ok(default.unwrap_or(0.0)),
            (Some(eta), None) => {
                let have: Vec<&str> =
                    Sampler::ALL.iter().filter(|s| s.default_eta().is_some()).map(|s| s.name()).collect();
                Err(Invalid::value(Parameter::Eta, eta)
                    .problem(format!("{sampler} has no eta"))
                    .advice(sentence![
                        "leave ",
                        Parameter::Eta,
                        format!(" out, or choose one of {}", have.join(", "))
                    ])
                    .error())
            }
            (Some(eta), Some(_)) => Parameter::Eta.check(eta).map(|()| eta),
        }
    }

    /// The levels by hand.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there are not one more than steps, or if there is a schedule beside them.
    pub(super) fn sigmas(&self) -> Result<Option<&NoiseLevels>> {
        let Some(sigmas) = &self.sigmas else { return Ok(None) };
        if self.steps != sigmas.steps() {
            let (steps, count, fit) = (self.steps, sigmas.0.len(), sigmas.steps());
            return Err(Invalid::value(Parameter::Steps, steps)
                .problem(sentence![
                    format!("the {count} noise levels of "),
                    Parameter::Sigmas,
                    format!(" are {fit} steps")
                ])
                .advice(sentence!["leave ", Parameter::Steps, " out"])
                .error());
        }
        if self.schedule != Schedule::Model {
            return Err(Invalid::value(Parameter::Schedule, self.schedule)
                .problem(sentence!["the noise levels are given by ", Parameter::Sigmas])
                .advice("leave one of the two out")
                .error());
        }
        Ok(Some(sigmas))
    }
}

/// Noise levels, `sigma` in `x = sample + sigma·noise`: at least two, each below the one before it, none
/// negative.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseLevels(Vec<f64>);

impl NoiseLevels {
    /// # Errors
    /// [`Error::Invalid`] if the levels are not as the type says.
    pub fn new(levels: Vec<f64>) -> Result<Self> {
        let levels: Vec<f64> = levels.into_iter().map(|level| f64::from(level as f32)).collect();
        let invalid = || Invalid::of([Parameter::Sigmas]);
        if levels.len() < 2 {
            let expected = "at least two noise levels, such as \"14.6,7.8,0\"";
            return Err(invalid().expected(expected).error());
        }
        if let Some(level) = levels.iter().find(|level| !(0.0..f64::INFINITY).contains(*level)) {
            let problem = format!("{level} is not a noise level");
            return Err(invalid().problem(problem).expected("0 or more").error());
        }
        if let Some(pair) = levels.windows(2).find(|pair| pair[0] <= pair[1]) {
            let problem = format!("{} does not come below {}", pair[1], pair[0]);
            return Err(invalid().problem(problem).expected("noise levels from high to low").error());
        }
        Ok(NoiseLevels(levels))
    }

    pub fn steps(&self) -> usize {
        self.0.len() - 1
    }

    /// The levels, rounded to f32.
    pub fn as_slice(&self) -> &[f64] {
        &self.0
    }
}

impl FromStr for NoiseLevels {
    type Err = Error;

    /// Takes numbers between commas.
    fn from_str(text: &str) -> Result<Self> {
        let number = |word: &str| {
            word.trim().parse().map_err(|_| {
                Invalid::of([Parameter::Sigmas])
                    .problem(format!("{word:?} is not a number"))
                    .expected("\"14.6,7.8,0\" or the like")
                    .error()
            })
        };
        Self::new(text.split(',').map(number).collect::<Result<_>>()?)
    }
}

impl fmt::Display for NoiseLevels {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let levels: Vec<String> = self.0.iter().map(|&level| (level as f32).to_string()).collect();
        f.write_str(&levels.join(","))
    }
}
