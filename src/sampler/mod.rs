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
mod pndm;
mod prediction;
mod ramp;
mod sampling;
mod schedules;
mod terms;
mod training;
mod unipc;

pub use config::SchedulerConfig;
pub use name::{Sampler, Schedule};
pub use prediction::prediction_type;
pub use sampling::{NoiseLevels, Sampling};
pub use terms::Terms;

use crate::error::{Invalid, Result};
use crate::parameter::{Parameter, sentence};
use schedules::Settings;
use terms::{NOISE, SAVED, X};

/// Floats of one packed row.
pub const ROW_WIDTH: usize = 22;

/// Latents as a mixture, `signal·sample + noise·n` with n standard normal: `add_noise` of a scheduler.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    pub signal: f64,
    pub noise: f64,
}

impl Mix {
    /// No noise.
    const SAMPLE: Mix = Mix { signal: 1.0, noise: 0.0 };

    /// Where the noise is added to the whole sample: the Euler family.
    fn of_sigma(sigma: f64) -> Self {
        Mix { signal: 1.0, noise: sigma }
    }
}

/// One evaluation of the model and what follows from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What the model is told; not necessarily whole.
    pub timestep: f64,
    /// What the latents are before the step.
    pub mix: Mix,
    /// The model sees the latents times this.
    pub in_scale: f64,
    /// The latents after the step.
    pub next: Terms,
    /// `saved` after the step.
    pub save: Terms,
    /// What becomes the newest entry of the history; of `x` and `e` only.
    pub remember: Option<Terms>,
    /// The clean sample that the model predicts, as the latents would be without noise; of `x` and `e` only. No
    /// part of the step; [`Table::new`] fills it in.
    pub predicted: Terms,
}

impl Row {
    /// A row that scales nothing, saves nothing and remembers nothing.
    fn new(timestep: f64, mix: Mix, next: Terms) -> Self {
        Row { timestep, mix, in_scale: 1.0, next, save: SAVED, remember: None, predicted: X }
    }

    /// Whether the step adds fresh noise.
    pub fn draws_noise(&self) -> bool {
        (self.next.0[NOISE.index()], self.save.0[NOISE.index()]) != (0.0, 0.0)
    }

    /// The row as the verbs read it, where the latents are `after` it:
    ///
    /// | floats | meaning |
    /// |--------|---------|
    /// | 0      | `in_scale` |
    /// | 1..9   | coefficients of `x, e, saved, noise, h0, h1, h2, h3` in the next `x` |
    /// | 9..17  | the same in the next `saved` |
    /// | 17     | 1 if something is remembered, else 0 |
    /// | 18, 19 | coefficients of `x` and `e` in what is remembered |
    /// | 20, 21 | signal and noise of what is known of the next `x` ([`Known`](crate::ops::Known)) |
    pub fn pack(&self, after: Mix) -> [f32; ROW_WIDTH] {
        let mut packed = [0.0; ROW_WIDTH];
        packed[0] = self.in_scale as f32;
        for i in 0..8 {
            packed[1 + i] = self.next.0[i] as f32;
            packed[9 + i] = self.save.0[i] as f32;
        }
        if let Some(remember) = self.remember {
            assert!(remember.0[2..].iter().all(|&c| c == 0.0), "{self:?}");
            packed[17] = 1.0;
            packed[18] = remember.0[0] as f32;
            packed[19] = remember.0[1] as f32;
        }
        packed[20] = after.signal as f32;
        packed[21] = after.noise as f32;
        packed
    }
}

/// A sampler, a schedule and a number of steps, worked out.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// One row for each evaluation of the model. There are as many as steps, except that PNDM
    /// evaluates its second timestep twice (n + 1), and that Heun and the DPM2s evaluate twice in all steps but
    /// the last (2n - 1).
    pub rows: Vec<Row>,
    /// Without a picture to start from, the latents start as standard normal noise times this.
    pub init_noise_sigma: f64,
}

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
        let alphas = settings.alphas()?;
        for row in &mut table.rows {
            row.predicted = settings.predicted(&alphas, row.timestep, row.in_scale);
        }
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

    /// Evaluations of the model.
    pub fn evaluations(&self) -> usize {
        self.rows.len()
    }

    /// The timestep of each row.
    pub fn timesteps(&self) -> Vec<f32> {
        self.rows.iter().map(|row| row.timestep as f32).collect()
    }

    /// The rows that add fresh noise, in the order in which it is drawn.
    pub fn noise_rows(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.rows.len()).filter(|&row| self.rows[row].draws_noise())
    }

    /// What the latents start as, without a picture.
    pub fn noise(&self) -> Mix {
        Mix { signal: 0.0, noise: self.init_noise_sigma }
    }

    /// What the latents start as, from a picture.
    pub fn start(&self) -> Mix {
        self.rows[0].mix
    }

    /// The rows as the verbs read them ([`Row::pack`]).
    pub fn packed(&self) -> impl Iterator<Item = [f32; ROW_WIDTH]> + '_ {
        let after = self.rows.iter().skip(1).map(|row| row.mix).chain([Mix::SAMPLE]);
        self.rows.iter().zip(after).map(|(row, after)| row.pack(after))
    }

    /// All rows, packed one after the other.
    pub fn pack(&self) -> Vec<f32> {
        self.packed().flatten().collect()
    }
}
