//! Timesteps and noise levels.
//!
//! diffusers computes these in a mixture of f32 (torch) and f64 (numpy). Where a rounding of f32 is
//! amplified later (zero terminal SNR, the inverse of sigma) it is repeated here, so that whole
//! trajectories agree; everything else is f64.

use super::config::{SchedulerConfig, choose};
use super::name::{Sampler, Schedule};
use super::noise_model::{Level, NoiseModel, Prediction, edm_timestep};
use super::ramp::{KARRAS, Ramp};
use super::sampling::{NoiseLevels, Sampling};
use super::terms::{E, Terms, X};
use super::training::{alphas_cumprod, interpolate, timestep_of};
use super::{Mix, Table};
use crate::error::{Error, Invalid, Result};
use crate::parameter::{Parameter, sentence};

/// No model was trained on more timesteps; every model of the family on 1000.
const MOST_TIMESTEPS: usize = 1 << 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    Leading,
    Linspace,
    Trailing,
    SgmUniform,
}

/// The family of a scheduler decides how its timesteps are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grid {
    /// n whole timesteps: DDIM, PNDM, DDPM.
    Whole,
    /// n whole timesteps of those that the model was distilled on: LCM, TCD.
    Distilled,
    /// n timesteps, whole or not: the Euler family.
    Continuous,
    /// n + 1 whole timesteps without the smallest: DPM-Solver, DEIS and UniPC.
    Open,
}

impl Grid {
    fn of(sampler: Sampler) -> Self {
        match sampler {
            Sampler::Ddim | Sampler::Ddpm | Sampler::Pndm => Grid::Whole,
            Sampler::Lcm | Sampler::Tcd => Grid::Distilled,
            Sampler::Euler | Sampler::EulerAncestral | Sampler::Heun | Sampler::Lms => Grid::Continuous,
            Sampler::Dpm2 | Sampler::Dpm2Ancestral | Sampler::DpmPp2sAncestral => Grid::Continuous,
            Sampler::Ipndm => Grid::Continuous,
            Sampler::DpmPp2m | Sampler::DpmPp2mSde | Sampler::DpmPp3mSde => Grid::Open,
            Sampler::Deis | Sampler::UniPc => Grid::Open,
        }
    }

    /// Whether the sampler goes from noise level to noise level, not from timestep to timestep.
    fn has_levels(self) -> bool {
        matches!(self, Grid::Continuous | Grid::Open)
    }
}

/// A request for a table, with the configuration's words resolved.
pub struct Settings<'a> {
    pub sampler: Sampler,
    pub config: &'a SchedulerConfig,
    /// All, also those that are left out at the start.
    pub steps: usize,
    /// Steps that are left out at the start.
    pub start: usize,
    pub prediction: Prediction,
    pub noise: NoiseModel,
    pub spacing: Spacing,
    /// 0 for a sampler that has none.
    pub eta: f64,
    ramp: Option<Ramp>,
    given: Option<&'a NoiseLevels>,
    /// Whether the noise ends at zero, where the configuration may say so.
    ends_at_zero: bool,
    grid: Grid,
}

impl<'a> Settings<'a> {
    pub fn new(config: &'a SchedulerConfig, sampling: &'a Sampling) -> Result<Self> {
        let &Sampling { sampler, schedule, steps, start, .. } = sampling;
        let noise = config.noise_model()?;
        config.check(sampler, noise)?;
        let train = config.num_train_timesteps;
        if !(2..=MOST_TIMESTEPS).contains(&train) {
            return Err(Error::invalid(format!(
                "scheduler_config.json: num_train_timesteps is {train}; expected 2 to {MOST_TIMESTEPS}"
            )));
        }
        if steps == 0 || steps > train {
            return Err(Invalid::value(Parameter::Steps, steps).expected(format!("1 to {train}")).error());
        }
        assert!(start < steps, "{start} of {steps} steps are left out");
        let prediction = choose(
            "prediction_type",
            config.prediction_type.as_deref().unwrap_or("epsilon"),
            &[
                ("epsilon", Prediction::Epsilon),
                ("v_prediction", Prediction::Velocity),
                ("sample", Prediction::Sample),
            ],
        )?;
        let grid = Grid::of(sampler);
        let is_possible = match noise {
            NoiseModel::VariancePreserving => true,
            NoiseModel::Edm(_) => grid.has_levels(),
            NoiseModel::Flow { .. } => sampler == Sampler::Euler,
        };
        if !is_possible {
            let other = if let NoiseModel::Edm(_) = noise { "euler or dpm++2m" } else { "euler" };
            return Err(Invalid::value(Parameter::Sampler, sampler)
                .problem(format!("not defined for this model, which was trained with {}", noise.words()))
                .advice(sentence!["try ", Parameter::Sampler, format!(" {other}")])
                .error());
        }
        let has_no_timesteps = !matches!(noise, NoiseModel::VariancePreserving);
        let is_spaced_by_levels =
            matches!(schedule, Schedule::Model | Schedule::Karras | Schedule::Exponential | Schedule::Beta);
        let is_flow = matches!(noise, NoiseModel::Flow { .. });
        if has_no_timesteps && (!is_spaced_by_levels || is_flow && schedule != Schedule::Model) {
            let others = if is_flow { "" } else { ", or take karras, exponential or beta" };
            return Err(Invalid::value(Parameter::Schedule, schedule)
                .problem(format!("not defined for this model, which was trained with {}", noise.words()))
                .advice(sentence!["leave ", Parameter::Schedule, format!(" out{others}")])
                .error());
        }
        let given = sampling.sigmas()?;
        if given.is_some() && !grid.has_levels() {
            return Err(Invalid::of([Parameter::Sigmas])
                .problem(format!("{sampler} goes by timesteps, not by noise levels"))
                .advice(sentence!["try ", Parameter::Sampler, " euler or dpm++2m"])
                .error());
        }
        if grid == Grid::Distilled && schedule != Schedule::Model {
            return Err(Invalid::value(Parameter::Schedule, schedule)
                .problem(format!("{sampler} has the timesteps of its distillation and no other"))
                .advice(sentence!["leave ", Parameter::Schedule, " out"])
                .error());
        }
        let spacing = match (schedule, config.timestep_spacing.as_deref()) {
            (Schedule::Leading, _) => Spacing::Leading,
            (Schedule::Linspace, _) => Spacing::Linspace,
            (Schedule::Trailing, _) => Spacing::Trailing,
            (Schedule::SgmUniform, _) => Spacing::SgmUniform,
            (_, None) if !grid.has_levels() => Spacing::Leading,
            (_, None) => Spacing::Linspace,
            (_, Some(name)) => choose(
                "timestep_spacing",
                name,
                &[
                    ("leading", Spacing::Leading),
                    ("linspace", Spacing::Linspace),
                    ("trailing", Spacing::Trailing),
                ],
            )?,
        };
        // EulerAncestralDiscreteScheduler does not know these keys; asked for, its levels are as Euler's.
        let knows = |key: Option<bool>| {
            key == Some(true) && grid.has_levels() && sampler != Sampler::EulerAncestral && given.is_none()
        };
        let ramp = match schedule {
            Schedule::Model if has_no_timesteps => match noise {
                NoiseModel::Edm(edm) => Some(edm.ramp),
                _ => None,
            },
            Schedule::Karras => Some(match noise {
                NoiseModel::Edm(edm) if edm.ramp != Ramp::Exponential => edm.ramp,
                _ => KARRAS,
            }),
            Schedule::Exponential => Some(Ramp::Exponential),
            Schedule::Beta => Some(Ramp::Beta),
            Schedule::Ays => Some(Ramp::Aligned(sampling.aligned)),
            Schedule::Model if knows(config.use_karras_sigmas) => Some(KARRAS),
            Schedule::Model if knows(config.use_exponential_sigmas) => Some(Ramp::Exponential),
            Schedule::Model if knows(config.use_beta_sigmas) => Some(Ramp::Beta),
            _ => None,
        };
        if (ramp.is_some() || spacing == Spacing::SgmUniform) && !grid.has_levels() {
            return Err(Invalid::value(Parameter::Schedule, schedule)
                .problem(format!("{sampler} goes by whole timesteps and has no such schedule"))
                .advice(sentence![
                    "try leading, linspace or trailing, or ",
                    Parameter::Sampler,
                    " euler or dpm++2m"
                ])
                .error());
        }
        let ends_at_zero = choose(
            "final_sigmas_type",
            config.final_sigmas_type.as_deref().unwrap_or("zero"),
            &[("zero", true), ("sigma_min", false)],
        )?;
        let eta = sampling.eta()?;
        Ok(Settings {
            sampler,
            config,
            steps,
            start,
            prediction,
            noise,
            spacing,
            eta,
            ramp,
            given,
            ends_at_zero,
            grid,
        })
    }

    /// Training timesteps between two steps, as the DDIM family counts them.
    pub fn stride(&self) -> i64 {
        (self.config.num_train_timesteps / self.steps) as i64
    }

    /// n timesteps in descending order (`set_timesteps`).
    ///
    /// numpy's `arange(T, 0, -T/n)` yields n + 1 values for a few n (61 is the first), from which
    /// diffusers gets a last timestep of -1. There is no such step here.
    fn timesteps(&self) -> Vec<f64> {
        let train = self.config.num_train_timesteps;
        let open = usize::from(self.grid == Grid::Open || self.spacing == Spacing::SgmUniform);
        let points = self.steps + open;
        match self.spacing {
            Spacing::Linspace | Spacing::SgmUniform => {
                let last = (train - 1) as f64;
                let step = last / (points.max(2) - 1) as f64;
                (open..points)
                    .rev()
                    .map(|i| if i > 0 && i + 1 == points { last } else { i as f64 * step })
                    .map(|t| match self.grid {
                        Grid::Continuous => t as f32 as f64,
                        Grid::Whole | Grid::Distilled | Grid::Open => t.round_ties_even(),
                    })
                    .collect()
            }
            Spacing::Leading => {
                let offset = self.config.steps_offset.unwrap_or(0);
                (open..points).rev().map(|i| (i * (train / points) + offset) as f64).collect()
            }
            Spacing::Trailing => {
                let start = train as f64;
                // numpy adds multiples of the difference of the first two elements.
                let step = (start - start / self.steps as f64) - start;
                (0..self.steps).map(|i| (start + i as f64 * step).round_ties_even() - 1.0).collect()
            }
        }
    }

    /// The timesteps of a sampler that looks noise up by whole timesteps, also those that are left out.
    pub fn whole_timesteps(&self) -> Result<Vec<i64>> {
        let timesteps = self.timesteps();
        let last = self.config.num_train_timesteps - 1;
        if timesteps[0] > last as f64 {
            return Err(Invalid::value(Parameter::Steps, self.steps)
                .problem(format!(
                    "with steps_offset, the first timestep would be {}, beyond the last one that the model was \
                     trained on ({last})",
                    timesteps[0]
                ))
                .advice("take fewer steps")
                .error());
        }
        Ok(timesteps.into_iter().map(|t| t as i64).collect())
    }

    pub fn alphas(&self) -> Result<Alphas> {
        let zero_snr = match self.sampler {
            Sampler::Pndm => false, // PNDMScheduler does not know rescale_betas_zero_snr.
            _ => self.config.rescale_betas_zero_snr == Some(true),
        };
        let cumulative = alphas_cumprod(self.config, zero_snr)?;
        let to_one = match self.sampler {
            Sampler::Ddpm => true,
            sampler => self.config.set_alpha_to_one.unwrap_or(sampler != Sampler::Pndm),
        };
        Ok(Alphas { last: if to_one { 1.0 } else { f64::from(cumulative[0]) }, cumulative })
    }

    /// Fills in [`Row::predicted`](super::Row::predicted).
    pub fn predict(&self, table: &mut Table) -> Result<()> {
        match self.noise {
            NoiseModel::VariancePreserving => {
                let alphas = self.alphas()?;
                for row in &mut table.rows {
                    // Where it is not 1, latents are `sample + sigma·noise`, and it is the share of signal in what
                    // the model sees.
                    let alpha = match row.in_scale {
                        1.0 => alphas.interpolated(row.timestep).sqrt(),
                        in_scale => in_scale,
                    };
                    let sigma = (1.0 - alpha * alpha).sqrt();
                    row.predicted = self.prediction.sample(row.in_scale * X, alpha, sigma);
                }
            }
            NoiseModel::Edm(edm) => {
                for row in &mut table.rows {
                    row.predicted = edm.denoised(self.prediction, edm.sigma(row.in_scale));
                }
            }
            NoiseModel::Flow { .. } => {
                let train = self.config.num_train_timesteps as f64;
                for row in &mut table.rows {
                    row.predicted = X - (row.timestep / train) * E;
                }
            }
        }
        Ok(())
    }

    /// The model sees latents `sample + sigma·noise`, or those of a flow, times this.
    pub fn in_scale(&self, sigma: f64) -> f64 {
        match self.noise {
            NoiseModel::VariancePreserving => 1.0 / (sigma * sigma + 1.0).sqrt(),
            NoiseModel::Edm(edm) => edm.in_scale(sigma),
            NoiseModel::Flow { .. } => 1.0,
        }
    }

    /// The clean sample in such latents.
    pub fn denoised(&self, sigma: f64) -> Terms {
        match self.noise {
            NoiseModel::VariancePreserving => {
                let alpha = self.in_scale(sigma);
                self.prediction.sample(alpha * X, alpha, sigma * alpha)
            }
            NoiseModel::Edm(edm) => edm.denoised(self.prediction, sigma),
            NoiseModel::Flow { .. } => X - sigma * E,
        }
    }

    /// The derivative of such latents by sigma.
    pub fn derivative(&self, sigma: f64) -> Terms {
        match self.noise {
            NoiseModel::Flow { .. } => E,
            _ => (X - self.denoised(sigma)) / sigma,
        }
    }

    /// How such latents mix sample and noise.
    pub fn mix(&self, sigma: f64) -> Mix {
        match self.noise {
            NoiseModel::Flow { .. } => Mix { signal: 1.0 - sigma, noise: sigma },
            _ => Mix::of_sigma(sigma),
        }
    }

    /// A noise level for solvers in logarithmic SNR; `ratio` is that of noise to sample.
    pub fn level(&self, ratio: f64) -> Level {
        let (alpha, in_scale) = match self.noise {
            NoiseModel::Edm(edm) => (1.0, edm.in_scale(ratio)),
            _ => (1.0 / (ratio * ratio + 1.0).sqrt(), 1.0),
        };
        Level { alpha, sigma: ratio * alpha, lambda: -ratio.ln(), in_scale }
    }

    /// The clean sample in latents at a level.
    pub fn sample(&self, level: Level) -> Terms {
        match self.noise {
            NoiseModel::Edm(edm) => edm.denoised(self.prediction, level.sigma),
            _ => self.prediction.sample(X, level.alpha, level.sigma),
        }
    }

    /// The noise in latents at a level.
    pub fn noise(&self, level: Level) -> Terms {
        match self.noise {
            NoiseModel::Edm(_) => self.derivative(level.sigma),
            _ => self.prediction.noise(X, level.alpha, level.sigma),
        }
    }

    /// What standard normal noise is multiplied by to start from it (`init_noise_sigma`).
    pub fn init_noise_sigma(&self, sigmas: &Sigmas) -> f64 {
        let max = sigmas.levels.iter().copied().fold(0.0, f64::max);
        let above = match (self.noise, self.grid, self.spacing) {
            (NoiseModel::Flow { .. }, ..) => return 1.0,
            (NoiseModel::VariancePreserving, Grid::Open, _) => return 1.0,
            (NoiseModel::VariancePreserving, _, spacing) => spacing == Spacing::Leading,
            (NoiseModel::Edm(edm), ..) => edm.starts_above,
        };
        if above { (max * max + 1.0).sqrt() } else { max }
    }

    pub fn sigmas(&self) -> Result<Sigmas> {
        match self.noise {
            NoiseModel::VariancePreserving => self.sigmas_of_betas(),
            NoiseModel::Edm(edm) => {
                let ramp = self.ramp.expect("a schedule of levels");
                let levels = ramp.levels(edm.sigma_max, edm.sigma_min, self.steps);
                let end = if self.ends_at_zero { 0.0 } else { edm.sigma_min };
                Ok(self.sigmas_of_levels(levels, end, edm_timestep))
            }
            NoiseModel::Flow { shift } => {
                let train = self.config.num_train_timesteps as f64;
                let shifted = |s: f64| shift * s / (1.0 + (shift - 1.0) * s);
                // Between the first and the last level of training, which are shifted already.
                let (first, last) = (1.0, shifted(1.0 / train));
                let step = (last - first) / (self.steps.max(2) - 1) as f64;
                let levels = (0..self.steps).map(|i| shifted(first + i as f64 * step)).collect();
                Ok(self.sigmas_of_levels(levels, 0.0, |sigma| f64::from((train * sigma) as f32)))
            }
        }
    }

    /// The noise levels of the steps, or those given by hand, and the timesteps that stand for them.
    fn sigmas_of_levels(&self, mut levels: Vec<f64>, end: f64, timestep: impl Fn(f64) -> f64) -> Sigmas {
        match self.given {
            Some(given) => levels = given.as_slice().to_vec(),
            None => levels.push(end),
        }
        let levels: Vec<f64> =
            levels.into_iter().skip(self.start).map(|level| f64::from(level as f32)).collect();
        let timesteps = levels[..levels.len() - 1].iter().map(|&level| timestep(level)).collect();
        Sigmas { timesteps, levels, logs: Vec::new() }
    }

    fn sigmas_of_betas(&self) -> Result<Sigmas> {
        let zero_snr = match self.sampler {
            // Their schedulers do not know rescale_betas_zero_snr.
            Sampler::Heun | Sampler::Lms | Sampler::Dpm2 | Sampler::Dpm2Ancestral | Sampler::Deis => false,
            _ => self.config.rescale_betas_zero_snr == Some(true),
        };
        let mut cumulative = alphas_cumprod(self.config, zero_snr)?;
        if zero_snr {
            // Instead of zero, so that sigma is finite.
            *cumulative.last_mut().expect("timesteps") = 2f32.powi(-24);
        }
        let train: Vec<f32> = cumulative.iter().map(|&a| ((1.0 - a) / a).sqrt()).collect();
        let logs: Vec<f32> = train.iter().map(|s| s.ln()).collect();
        let mut timesteps = self.timesteps();
        let mut levels: Vec<f64> = timesteps.iter().map(|&t| interpolate(&train, t)).collect();
        if let Some(ramp) = self.ramp {
            // The Euler family ramps between its own first and last level, the others between
            // those of training.
            let (first, last) = match self.grid {
                Grid::Open => (f64::from(train[train.len() - 1]), f64::from(train[0])),
                _ => (levels[0], levels[levels.len() - 1]),
            };
            levels = ramp.levels(first, last, self.steps);
        }
        match self.given {
            Some(given) => levels = given.as_slice().to_vec(),
            None => levels.push(self.end(&levels, train[0])),
        }
        if self.given.is_some() || self.ramp.is_some() {
            let timestep = |&level: &f64| self.rounded(timestep_of(level, &logs));
            timesteps = levels[..self.steps].iter().map(timestep).collect();
        }
        let levels = levels.into_iter().skip(self.start).map(|level| f64::from(level as f32)).collect();
        timesteps.drain(..self.start);
        Ok(Sigmas { timesteps, levels, logs })
    }

    /// The level where the last step ends, after the `levels` of the steps; `lowest` is the lowest of training.
    fn end(&self, levels: &[f64], lowest: f32) -> f64 {
        let lowest = f64::from(lowest);
        let end_of_ramp = match self.ramp {
            Some(ramp) if ramp.has_end() => levels[levels.len() - 1],
            _ => lowest,
        };
        match self.sampler {
            // DEISMultistepScheduler does not know final_sigmas_type.
            Sampler::Deis => end_of_ramp,
            _ if self.ends_at_zero => 0.0,
            Sampler::UniPc => end_of_ramp,
            Sampler::Euler | Sampler::DpmPp2m | Sampler::DpmPp2mSde | Sampler::DpmPp3mSde => lowest,
            _ => 0.0,
        }
    }

    /// A timestep that stands for a noise level, as the scheduler rounds it.
    fn rounded(&self, timestep: f64) -> f64 {
        let dpm = matches!(self.sampler, Sampler::DpmPp2m | Sampler::DpmPp2mSde | Sampler::DpmPp3mSde);
        let cosine = dpm && self.config.beta_schedule.as_deref() == Some("squaredcos_cap_v2");
        let dpm2 = matches!(self.sampler, Sampler::Dpm2 | Sampler::Dpm2Ancestral);
        match (self.grid, self.ramp) {
            (Grid::Open, Some(Ramp::Exponential | Ramp::Beta)) => timestep.trunc(),
            (Grid::Open, Some(Ramp::Karras { .. })) if cosine => timestep.trunc(),
            (Grid::Open, _) => timestep.round_ties_even(),
            (_, Some(Ramp::Karras { .. })) if dpm2 => timestep.round_ties_even(),
            _ => f64::from(timestep as f32),
        }
    }
}

/// Signal and noise by timestep, for samplers whose latents have unit variance.
pub struct Alphas {
    cumulative: Vec<f32>,
    /// The cumulative alpha before the first timestep.
    last: f64,
}

impl Alphas {
    /// The product of all alphas up to timestep `t`, or up to before the first if negative.
    pub fn cumulative(&self, t: i64) -> f64 {
        usize::try_from(t).map_or(self.last, |t| f64::from(self.cumulative[t]))
    }

    /// Between whole timesteps, too.
    pub fn interpolated(&self, t: f64) -> f64 {
        interpolate(&self.cumulative, t)
    }

    /// `alpha` and `sigma` of `x = alpha·sample + sigma·noise`.
    pub fn at(&self, t: i64) -> (f64, f64) {
        let cumulative = self.cumulative(t);
        (cumulative.sqrt(), (1.0 - cumulative).sqrt())
    }

    pub fn mix(&self, t: i64) -> Mix {
        let (signal, noise) = self.at(t);
        Mix { signal, noise }
    }
}

/// Noise levels of the steps, and the timesteps that stand for them.
pub struct Sigmas {
    pub timesteps: Vec<f64>,
    /// One more than timesteps: where the last step ends. Rounded to f32, as diffusers keeps them.
    pub levels: Vec<f64>,
    /// Logarithms of the levels of training; none where they are continuous.
    logs: Vec<f32>,
}

impl Sigmas {
    /// The timestep, not necessarily whole, that stands for a noise level.
    pub fn timestep(&self, level: f64) -> f64 {
        if self.logs.is_empty() {
            edm_timestep(level)
        } else {
            f64::from(timestep_of(level, &self.logs) as f32)
        }
    }
}
