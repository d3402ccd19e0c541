//! The clean sample that an evaluation predicted, from what its step did.
//!
//! The model's output itself is gone after a step, but the sampler's row is linear: what the latents were before and
//! after the step says what it was. So the sample needs no kernel and no memory.

use super::numbers::read_floats;
use super::slots::SlotTensors;
use crate::error::Result;
use crate::ops::Backend;
use crate::sampler::Row;

/// What a row of the sampler's table reads of an image, as it is before the step.
pub(super) struct StepInputs {
    x: Vec<f32>,
    saved: Vec<f32>,
    noise: Vec<f32>,
    /// The newest, then the one before, ...
    history: Vec<f32>,
    /// Where a part is painted: the mask, and the latents that are kept where it is 0.
    known: Option<[Vec<f32>; 2]>,
}

impl StepInputs {
    /// Of the image in a slot, in front of a row of the tables.
    pub fn read(backend: &mut dyn Backend, slots: &SlotTensors, slot: usize, row: usize) -> Result<Self> {
        let mut read = |tensor| read_floats(backend, tensor);
        Ok(StepInputs {
            x: read(slots.latents.images(slot, 1))?,
            saved: read(slots.saved.images(slot, 1))?,
            noise: read(slots.noise.images(row, 1))?,
            history: read(slots.history.images(4 * slot, 4))?,
            known: match slots.known {
                Some(known) => {
                    Some([read(known.mask.images(slot, 1))?, read(known.latents.images(slot, 1))?])
                }
                None => None,
            },
        })
    }

    /// The clean sample that the model predicted in a row that made `after` of the latents; `None` if the latents do
    /// not depend on the model in it. Where the latents are kept after every step, they are what it comes to.
    pub fn predicted(&self, row: &Row, after: &[f32]) -> Option<Vec<f32>> {
        let n = after.len();
        let next = row.next.0;
        let of_output = next[1];
        let [of_x, of_e, ..] = row.predicted.0;
        let sample = |i: usize| {
            if let Some([mask, kept]) = &self.known
                && mask[i * mask.len() / n] == 0.0
            {
                return kept[i];
            }
            let history = [0, 1, 2, 3].map(|age| self.history[age * n + i]);
            let [h0, h1, h2, h3] = history;
            let basis = [self.x[i], 0.0, self.saved[i], self.noise[i], h0, h1, h2, h3];
            // What has no coefficient may be anything in memory.
            let rest: f64 =
                next.iter().zip(basis).filter(|(c, _)| **c != 0.0).map(|(c, x)| c * f64::from(x)).sum();
            let output = (f64::from(after[i]) - rest) / of_output;
            (of_x * f64::from(self.x[i]) + of_e * output) as f32
        };
        (of_output != 0.0).then(|| (0..n).map(sample).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::{Sampler, Sampling, Schedule, SchedulerConfig, Table};

    fn numbers(seed: u32, n: usize) -> Vec<f32> {
        (0..n as u32)
            .map(|i| ((seed + i).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0)
            .collect()
    }

    /// For every sampler and row: the latents after the step, and the prediction that follows from them.
    #[test]
    fn the_predicted_sample_follows_from_two_latents() {
        for sampler in Sampler::ALL {
            let sampling = Sampling::new(sampler, Schedule::Model, 6);
            let table = Table::new(&SchedulerConfig::sd15(), &sampling).unwrap();
            let n = 5;
            for (i, row) in table.rows.iter().enumerate() {
                let state = StepInputs {
                    x: numbers(1, n),
                    saved: numbers(100, n),
                    noise: numbers(200, n),
                    history: numbers(300, 4 * n),
                    known: None,
                };
                let output = numbers(400, n);
                let basis = |j: usize| {
                    let h = [0, 1, 2, 3].map(|age| state.history[age * n + j]);
                    [state.x[j], output[j], state.saved[j], state.noise[j], h[0], h[1], h[2], h[3]]
                        .map(f64::from)
                };
                let sum = |terms: [f64; 8], j: usize| -> f64 {
                    terms.iter().zip(basis(j)).map(|(c, x)| c * x).sum()
                };
                let after: Vec<f32> = (0..n).map(|j| sum(row.next.0, j) as f32).collect();
                let predicted = state.predicted(row, &after).expect("a row that depends on the output");
                for (j, got) in predicted.into_iter().enumerate() {
                    let want = sum(row.predicted.0, j);
                    let error = (f64::from(got) - want).abs();
                    assert!(error < 1e-4 * want.abs().max(1.0), "{sampler} row {i}: {got}, not {want}");
                }
            }
        }
    }

    /// Steps to no noise end at what was predicted.
    #[test]
    fn the_last_prediction_is_the_picture() {
        for sampler in
            [Sampler::Ddim, Sampler::Euler, Sampler::EulerAncestral, Sampler::DpmPp2m, Sampler::Lcm]
        {
            let sampling = Sampling::new(sampler, Schedule::Model, 6);
            let config = SchedulerConfig { set_alpha_to_one: Some(true), ..SchedulerConfig::sd15() };
            let table = Table::new(&config, &sampling).unwrap();
            let row = table.rows.last().unwrap();
            for (next, predicted) in row.next.0.iter().zip(row.predicted.0).take(2) {
                assert!((next - predicted).abs() < 1e-3, "{sampler}: {:?} and {:?}", row.next, row.predicted);
            }
        }
    }
}
