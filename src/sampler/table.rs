//! Rows of a table: one model evaluation each, and the step that follows.

use std::ops::Range;

use super::terms::{NOISE, SAVED, Terms, X};
use crate::ops::row::{self, ROW_WIDTH};

/// Latents as a mixture, `signal·sample + noise·n` with n standard normal: `add_noise` of a scheduler.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    pub signal: f64,
    pub noise: f64,
}

impl Mix {
    /// No noise.
    pub(super) const SAMPLE: Mix = Mix { signal: 1.0, noise: 0.0 };

    /// Where the noise is added to the whole sample: the Euler family.
    pub(super) fn of_sigma(sigma: f64) -> Self {
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
    pub(super) fn new(timestep: f64, mix: Mix, next: Terms) -> Self {
        Row { timestep, mix, in_scale: 1.0, next, save: SAVED, remember: None, predicted: X }
    }

    /// Whether the step adds fresh noise.
    pub fn draws_noise(&self) -> bool {
        (self.next.0[NOISE.index()], self.save.0[NOISE.index()]) != (0.0, 0.0)
    }

    /// The row as the verbs read it ([`row`]), where the latents are `after` it.
    pub fn pack(&self, after: Mix) -> [f32; ROW_WIDTH] {
        let mut packed = [0.0; ROW_WIDTH];
        let mut put = |field: Range<usize>, numbers: &[f64]| {
            packed[field].iter_mut().zip(numbers).for_each(|(to, &number)| *to = number as f32);
        };
        put(row::IN_SCALE..row::IN_SCALE + 1, &[self.in_scale]);
        put(row::NEXT, &self.next.0);
        put(row::SAVE, &self.save.0);
        if let Some(remember) = self.remember {
            assert!(remember.0[2..].iter().all(|&c| c == 0.0), "{self:?}");
            put(row::REMEMBER..row::REMEMBER + 1, &[1.0]);
            put(row::REMEMBERED, &remember.0);
        }
        put(row::KNOWN, &[after.signal, after.noise]);
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
    /// What the latents are after the last row.
    pub end: Mix,
}

impl Table {
    /// Rows down to no noise.
    pub(super) fn of(rows: Vec<Row>, init_noise_sigma: f64) -> Self {
        Table { rows, init_noise_sigma, end: Mix::SAMPLE }
    }

    /// Evaluations of the model.
    pub fn evaluations(&self) -> usize {
        self.rows.len()
    }

    /// Steps, of so many rows each, that begin at a timestep or above it.
    pub fn steps_from(&self, timestep: f64, rows_of_step: usize) -> usize {
        let steps = self.rows.iter().step_by(rows_of_step);
        steps.take_while(|row| row.timestep >= timestep).count()
    }

    /// The first rows alone, which leave noise in the latents; fewer than all.
    pub fn first_rows(mut self, rows: usize) -> Self {
        self.end = self.rows[rows].mix;
        self.rows.truncate(rows);
        self
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
        let after = self.rows.iter().skip(1).map(|row| row.mix).chain([self.end]);
        self.rows.iter().zip(after).map(|(row, after)| row.pack(after))
    }

    /// All rows, packed one after the other.
    pub fn pack(&self) -> Vec<f32> {
        self.packed().flatten().collect()
    }
}
