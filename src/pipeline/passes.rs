//! The runs of the denoising loop that a request is made of: its own, that of hires fix, that of a refiner.

use super::init::{Init, skipped_steps};
use super::model::Description;
use super::request::Request;
use crate::error::{Invalid, Result};
use crate::model::config::ModelConfig;
use crate::parameter::{Parameter, sentence};
use crate::sampler::{Sampling, SchedulerConfig, Table};

/// One run of the denoising loop.
#[derive(Clone, Debug)]
pub struct Pass {
    pub width: usize,
    pub height: usize,
    pub table: Table,
    /// Whether the refiner runs it, on the latents of the pass before.
    pub is_refined: bool,
    /// Model evaluations of the schedule that the pass before does, and of the whole schedule.
    schedule: [usize; 2],
}

impl Pass {
    /// Whether guidance acts at each model evaluation.
    pub fn guided(&self, request: &Request, config: &ModelConfig) -> Vec<bool> {
        self.shares().map(|[i, n]| request.is_guided_at(config, i, n)).collect()
    }

    /// The image that the pass encodes. What a refiner goes on with has it in it already, but for the parts that a mask
    /// keeps.
    pub(super) fn encodes<'a>(&self, request: &'a Request) -> Option<&'a Init> {
        request.init.as_ref().filter(|init| !self.is_refined || init.mask.is_some())
    }

    /// Which model evaluation of how many each one is, of the whole schedule.
    pub(super) fn shares(&self) -> impl Iterator<Item = [usize; 2]> + use<> {
        let [first, all] = self.schedule;
        (first..first + self.table.evaluations()).map(move |i| [i, all])
    }
}

impl Request {
    /// Checks every value against a model; returns the passes: one, with hires fix two, and the refiner's.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid), with the parameter.
    pub fn check(&self, model: &Description) -> Result<Vec<Pass>> {
        self.check_values(model)?;
        let config = &model.config;
        let strength = self.init.as_ref().map(|init| init.strength);
        let skipped = |strength| skipped_steps(Parameter::Strength, strength, self.steps);
        let skipped = strength.map_or(Ok(0), skipped)?;
        let pass = |width, height, steps, skipped| {
            let table = self.table(model, steps, skipped)?;
            Ok(Pass { width, height, schedule: [0, table.evaluations()], table, is_refined: false })
        };
        let mut passes = vec![pass(self.width, self.height, self.steps, skipped)?];
        if let Some(hires) = &self.hires {
            Parameter::HiresScale.check(hires.scale)?;
            let [width, height] =
                [self.width, self.height].map(|side| hires.side(side, config.vae.scale_factor()));
            self.check_size(config, width, height)?;
            hires.steps.map_or(Ok(()), |steps| Parameter::HiresSteps.check(steps))?;
            let steps = hires.steps.unwrap_or(self.steps);
            let skipped = skipped_steps(Parameter::HiresStrength, hires.strength, steps)?;
            passes.push(pass(width, height, steps, skipped)?);
        }
        if let Some(start) = self.refined_from() {
            let last = passes.pop().expect("the model's own pass");
            passes.extend(self.refined(model, last, start)?);
        }
        Ok(passes)
    }

    /// Divides the last pass between the model and its refiner, by timestep as diffusers does.
    fn refined(&self, model: &Description, pass: Pass, start: f64) -> Result<[Pass; 2]> {
        let invalid = || Invalid::value(Parameter::RefinerStart, start);
        let Some(refiner) = &model.refiner else {
            let advice = sentence!["give one with ", Parameter::Refiner, ", or leave it out"];
            return Err(invalid().problem("there is no refiner").advice(advice).error());
        };
        Parameter::RefinerStart.check(start)?;
        self.check_size(&refiner.config, pass.width, pass.height)?;
        let steps = match self.hires.and_then(|hires| hires.steps) {
            Some(steps) => steps,
            None => self.steps,
        };
        let rows_of_step = self.sampler.evaluations_of_step();
        let train = model.scheduler.num_train_timesteps as f64;
        let cut = (train - start * train).round_ties_even();
        let own = rows_of_step * pass.table.steps_from(cut, rows_of_step);
        let skipped = self.table(model, steps, 0)?.steps_from(cut, rows_of_step);
        let left = pass.table.evaluations().saturating_sub(own);
        if own == 0 || left == 0 || skipped >= steps {
            let init = self.init.as_ref().map(|_| Parameter::Strength);
            let strength = init.or(self.hires.map(|_| Parameter::HiresStrength));
            let (who, advice) = match (own, strength) {
                (0, Some(strength)) => {
                    ("the model", sentence!["raise it or ", strength, ", or take more ", Parameter::Steps])
                }
                (0, None) => ("the model", sentence!["raise it, or take more ", Parameter::Steps]),
                _ => ("the refiner", sentence!["lower it, or take more ", Parameter::Steps]),
            };
            let problem = format!("of {steps} steps it leaves none to {who}");
            return Err(invalid().problem(problem).advice(advice).error());
        }
        // The noise levels of one schedule, whatever spacing the refiner's file has.
        let prediction_type = refiner.scheduler.prediction_type.clone();
        let scheduler = SchedulerConfig { prediction_type, ..model.scheduler.clone() };
        let table = Table::new(&scheduler, &self.sampling(model, steps, skipped))?;
        let Pass { width, height, .. } = pass;
        let all = own + table.evaluations();
        let refined = Pass { table, is_refined: true, schedule: [own, all], width, height };
        Ok([Pass { table: pass.table.first_rows(own), schedule: [0, all], ..pass }, refined])
    }

    fn table(&self, model: &Description, steps: usize, start: usize) -> Result<Table> {
        Table::new(&model.scheduler, &self.sampling(model, steps, start))
    }

    fn sampling(&self, model: &Description, steps: usize, start: usize) -> Sampling {
        Sampling {
            sampler: self.sampler,
            schedule: self.schedule,
            steps,
            start,
            eta: self.eta,
            sigmas: self.sigmas.clone(),
            aligned: model.family.aligned,
        }
    }
}
