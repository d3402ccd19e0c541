//! Training noise, timesteps and noise levels.
//!
//! diffusers computes these in a mixture of f32 (torch) and f64 (numpy). Where a rounding of f32 is
//! amplified later (zero terminal SNR, the inverse of sigma) it is repeated here, so that whole
//! trajectories agree; everything else is f64.

use super::config::{SchedulerConfig, choose};
use super::name::{Sampler, Schedule};
use super::terms::{E, Terms};
use crate::error::{Error, Result};

/// No model was trained on more timesteps; every model of the family on 1000.
const MOST_TIMESTEPS: usize = 1 << 16;

/// What the model's output means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    Epsilon,
    Velocity,
    Sample,
}

impl Prediction {
    /// The clean sample, from latents `x = alpha·sample + sigma·noise` with `alpha² + sigma² = 1`.
    pub fn sample(self, x: Terms, alpha: f64, sigma: f64) -> Terms {
        match self {
            Prediction::Epsilon => (x - sigma * E) / alpha,
            Prediction::Velocity => alpha * x - sigma * E,
            Prediction::Sample => E,
        }
    }

    /// The noise in such latents.
    pub fn noise(self, x: Terms, alpha: f64, sigma: f64) -> Terms {
        match self {
            Prediction::Epsilon => E,
            Prediction::Velocity => alpha * E + sigma * x,
            Prediction::Sample => (x - alpha * E) / sigma,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    Leading,
    Linspace,
    Trailing,
}

/// Noise levels that are spaced by a formula instead of following from timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ramp {
    Karras,
    Exponential,
}

/// The family of a scheduler decides how its timesteps are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grid {
    /// n whole timesteps: DDIM, PNDM, DDPM.
    Whole,
    /// n timesteps, whole or not: the Euler family.
    Continuous,
    /// n + 1 whole timesteps without the smallest: DPM-Solver and UniPC.
    Open,
}

/// A request for a table, with the configuration's words resolved.
pub struct Settings<'a> {
    pub sampler: Sampler,
    pub config: &'a SchedulerConfig,
    pub steps: usize,
    pub prediction: Prediction,
    pub spacing: Spacing,
    pub ramp: Option<Ramp>,
    /// Of the Euler family: whether the noise ends at zero.
    pub ends_at_zero: bool,
    grid: Grid,
}

impl<'a> Settings<'a> {
    pub fn new(
        sampler: Sampler,
        config: &'a SchedulerConfig,
        schedule: Schedule,
        steps: usize,
    ) -> Result<Self> {
        config.check(sampler)?;
        let train = config.num_train_timesteps;
        if !(2..=MOST_TIMESTEPS).contains(&train) {
            return Err(Error::invalid(format!(
                "scheduler_config.json: num_train_timesteps is {train}; expected 2 to {MOST_TIMESTEPS}"
            )));
        }
        if steps == 0 || steps > train {
            return Err(Error::invalid(format!("--steps {steps}: must be between 1 and {train}")));
        }
        let prediction = choose(
            "prediction_type",
            config.prediction_type.as_deref().unwrap_or("epsilon"),
            &[
                ("epsilon", Prediction::Epsilon),
                ("v_prediction", Prediction::Velocity),
                ("sample", Prediction::Sample),
            ],
        )?;
        let grid = match sampler {
            Sampler::Ddim | Sampler::Ddpm | Sampler::Pndm | Sampler::Lcm => Grid::Whole,
            Sampler::Euler | Sampler::EulerAncestral | Sampler::Heun | Sampler::Lms => Grid::Continuous,
            Sampler::DpmPp2m | Sampler::DpmPp2mSde | Sampler::UniPc => Grid::Open,
        };
        let spacing = match (schedule, config.timestep_spacing.as_deref()) {
            (Schedule::Leading, _) => Spacing::Leading,
            (Schedule::Linspace, _) => Spacing::Linspace,
            (Schedule::Trailing, _) => Spacing::Trailing,
            (_, None) if grid == Grid::Whole => Spacing::Leading,
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
        let ramps = grid != Grid::Whole && sampler != Sampler::EulerAncestral;
        let ramp = match schedule {
            Schedule::Karras => Some(Ramp::Karras),
            Schedule::Exponential => Some(Ramp::Exponential),
            Schedule::Model if ramps && config.use_karras_sigmas == Some(true) => Some(Ramp::Karras),
            Schedule::Model if ramps && config.use_exponential_sigmas == Some(true) => {
                Some(Ramp::Exponential)
            }
            _ => None,
        };
        if ramp.is_some() && !ramps {
            return Err(Error::invalid(format!(
                "--schedule {schedule}: {sampler} has no such schedule; euler, heun, lms, dpm++2m, \
                 dpm++2m-sde and unipc have"
            )));
        }
        if sampler == Sampler::Lcm && schedule != Schedule::Model {
            return Err(Error::invalid(format!(
                "--schedule {schedule}: lcm has the timesteps of its distillation and no other; leave \
                 --schedule out"
            )));
        }
        let ends_at_zero = choose(
            "final_sigmas_type",
            config.final_sigmas_type.as_deref().unwrap_or("zero"),
            &[("zero", true), ("sigma_min", false)],
        )?;
        Ok(Settings { sampler, config, steps, prediction, spacing, ramp, ends_at_zero, grid })
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
        let open = usize::from(self.grid == Grid::Open);
        let points = self.steps + open;
        match self.spacing {
            Spacing::Linspace => {
                let last = (train - 1) as f64;
                let step = last / (points.max(2) - 1) as f64;
                (open..points)
                    .rev()
                    .map(|i| if i > 0 && i + 1 == points { last } else { i as f64 * step })
                    .map(|t| match self.grid {
                        Grid::Continuous => t as f32 as f64,
                        Grid::Whole | Grid::Open => t.round_ties_even(),
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

    /// The timesteps of a sampler that looks noise up by whole timesteps.
    pub fn whole_timesteps(&self) -> Result<Vec<i64>> {
        let timesteps = self.timesteps();
        let last = self.config.num_train_timesteps - 1;
        if timesteps[0] > last as f64 {
            return Err(Error::invalid(format!(
                "--steps {}: with steps_offset, the first timestep would be {}, beyond the last one that the \
                 model was trained on ({last}); take fewer steps",
                self.steps, timesteps[0]
            )));
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

    pub fn sigmas(&self) -> Result<Sigmas> {
        let zero_snr = match self.sampler {
            // Their schedulers do not know rescale_betas_zero_snr.
            Sampler::Heun | Sampler::Lms => false,
            _ => self.config.rescale_betas_zero_snr == Some(true),
        };
        let mut cumulative = alphas_cumprod(self.config, zero_snr)?;
        if zero_snr {
            // Instead of zero, so that sigma is finite.
            *cumulative.last_mut().expect("timesteps") = 2f32.powi(-24);
        }
        let train: Vec<f32> = cumulative.iter().map(|&a| ((1.0 - a) / a).sqrt()).collect();
        let mut timesteps = self.timesteps();
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| interpolate(&train, t)).collect();
        if let Some(ramp) = self.ramp {
            // The Euler family ramps between its own first and last level, the others between
            // those of training.
            let (first, last) = match self.grid {
                Grid::Open => (f64::from(train[train.len() - 1]), f64::from(train[0])),
                _ => (sigmas[0], sigmas[sigmas.len() - 1]),
            };
            sigmas = ramp.levels(first, last, self.steps);
            let logs: Vec<f32> = train.iter().map(|s| s.ln()).collect();
            let cosine = self.config.beta_schedule == "squaredcos_cap_v2" && self.sampler != Sampler::UniPc;
            timesteps = sigmas
                .iter()
                .map(|&sigma| timestep_of(sigma, &logs))
                .map(|t| match (self.grid, ramp) {
                    (Grid::Open, Ramp::Karras) if !cosine => t.round_ties_even(),
                    (Grid::Open, _) => t.trunc(),
                    _ => f64::from(t as f32),
                })
                .collect();
        }
        let last = match self.sampler {
            _ if self.ends_at_zero => 0.0,
            Sampler::EulerAncestral | Sampler::Heun | Sampler::Lms => 0.0,
            Sampler::UniPc if self.ramp.is_some() => sigmas[sigmas.len() - 1],
            _ => f64::from(train[0]),
        };
        sigmas.push(last);
        let levels = sigmas.into_iter().map(|sigma| f64::from(sigma as f32)).collect();
        Ok(Sigmas { timesteps, levels })
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

    /// `alpha` and `sigma` of `x = alpha·sample + sigma·noise`.
    pub fn at(&self, t: i64) -> (f64, f64) {
        let cumulative = self.cumulative(t);
        (cumulative.sqrt(), (1.0 - cumulative).sqrt())
    }
}

/// Noise levels of the steps, and the timesteps that stand for them.
pub struct Sigmas {
    pub timesteps: Vec<f64>,
    /// One more than timesteps: where the last step ends. Rounded to f32, as diffusers keeps them.
    pub levels: Vec<f64>,
}

impl Sigmas {
    /// The first level, at which the Euler family starts (`init_noise_sigma`).
    pub fn initial(&self, spacing: Spacing) -> f64 {
        let max = self.levels.iter().copied().fold(0.0, f64::max);
        match spacing {
            Spacing::Linspace | Spacing::Trailing => max,
            Spacing::Leading => (max * max + 1.0).sqrt(),
        }
    }
}

impl Ramp {
    /// `count` levels between and with `first` and `last` (`_convert_to_karras`, `_convert_to_exponential`).
    fn levels(self, first: f64, last: f64, count: usize) -> Vec<f64> {
        let step = 1.0 / (count.max(2) - 1) as f64;
        let along = (0..count).map(|i| if i > 0 && i + 1 == count { 1.0 } else { i as f64 * step });
        match self {
            Ramp::Karras => {
                const RHO: f64 = 7.0;
                let (first, last) = (first.powf(1.0 / RHO), last.powf(1.0 / RHO));
                along.map(|a| (first + a * (last - first)).powf(RHO)).collect()
            }
            Ramp::Exponential => {
                let (first, last) = (first.ln(), last.ln());
                along.map(|a| (first + a * (last - first)).exp()).collect()
            }
        }
    }
}

/// Linear interpolation between whole timesteps, constant beyond the ends (`numpy.interp`).
fn interpolate(values: &[f32], t: f64) -> f64 {
    let low = (t as usize).min(values.len() - 1);
    let high = (low + 1).min(values.len() - 1);
    let (a, b) = (f64::from(values[low]), f64::from(values[high]));
    a + (b - a) * (t - low as f64).min(1.0)
}

/// The timestep, not necessarily whole, with this noise level (`_sigma_to_t`).
fn timestep_of(sigma: f64, log_sigmas: &[f32]) -> f64 {
    let log_sigma = sigma.max(1e-10).ln();
    let below = log_sigmas.partition_point(|&log| f64::from(log) <= log_sigma);
    let low = below.saturating_sub(1).min(log_sigmas.len() - 2);
    let (a, b) = (f64::from(log_sigmas[low]), f64::from(log_sigmas[low + 1]));
    low as f64 + ((a - log_sigma) / (a - b)).clamp(0.0, 1.0)
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

/// The share of signal in the latents at each training timestep.
fn alphas_cumprod(config: &SchedulerConfig, zero_snr: bool) -> Result<Vec<f32>> {
    let train = config.num_train_timesteps;
    let (start, end) = (config.beta_start, config.beta_end);
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
        None => match config.beta_schedule.as_str() {
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
