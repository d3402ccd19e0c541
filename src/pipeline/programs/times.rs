//! From the timesteps of a schedule to what every resnet adds at each of them.

use super::Programs;
use crate::error::Result;
use crate::model::conditioned::Conditioned;
use crate::model::time::TimeInputs;
use crate::ops::*;
use crate::pipeline::models::Models;
use crate::pipeline::numbers::padded;
use crate::pipeline::program::Program;

/// Time tables of the U-Net and of the first ControlNets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::pipeline) struct TimesProgram {
    /// Tables of each: XL's take in a text, so that there is one for each.
    pub tables: usize,
    /// Model evaluations, rounded up so that similar schedules share a recording.
    evaluations: usize,
    pub controls: usize,
}

/// Model evaluations that a recording has room for at least, so that few requests need a second one.
const EVALUATIONS: usize = 128;

impl TimesProgram {
    pub fn new(tables: usize, evaluations: usize, controls: usize) -> Self {
        let evaluations = evaluations.next_power_of_two().max(EVALUATIONS);
        TimesProgram { tables, evaluations, controls }
    }
}

pub(in crate::pipeline) struct TimesTensors {
    inputs: TimeInputs,
    /// Of the U-Net, then of each ControlNet.
    tables: Vec<Tensor>, // [tables,1,evaluations,time columns]
}

/// What the tables are made of.
pub(in crate::pipeline) struct TimesInputs<'a> {
    pub timesteps: &'a [f32],
    /// For models with guidance distilled into them.
    pub guidance_scale: f32,
    /// Of XL: the pooled output of the text of each table, [1,1,1,c].
    pub pooled: &'a [Tensor],
    /// Of XL: the numbers about size for the text of each table, or more.
    pub time_ids: &'a [Vec<f32>],
}

impl Program for TimesProgram {
    type Tensors = TimesTensors;

    fn tensors(&self, models: &Models, ops: &mut dyn Ops) -> TimesTensors {
        let columns = std::iter::once(models.backbone.time_columns());
        let columns =
            columns.chain(models.controlnets[..self.controls].iter().map(Conditioned::time_columns));
        let tables = columns.map(|c| ops.alloc([self.tables, 1, self.evaluations, c])).collect();
        TimesTensors { inputs: models.backbone.time_inputs(ops, self.tables, self.evaluations), tables }
    }

    fn run(&self, models: &Models, ops: &mut dyn Ops, t: &TimesTensors) {
        ops.scope("encode", |ops| {
            models.backbone.time_table(ops, t.tables[0], t.inputs);
            for (net, &table) in models.controlnets.iter().zip(&t.tables[1..]) {
                ops.scope("controlnet", |ops| net.time_table(ops, table, t.inputs));
            }
        });
    }
}

impl Programs {
    /// Writes the time tables of a schedule to tensors of as many rows as it has timesteps: for the numbers of tables
    /// those of the U-Net and of the ControlNets.
    pub fn write_times<T: Iterator<Item = Tensor>>(
        &mut self,
        backend: &mut dyn Backend,
        models: &Models,
        program: TimesProgram,
        inputs: &TimesInputs,
        to: impl Iterator<Item = (usize, T)>,
    ) -> Result<()> {
        let recorded = self.times.get(backend, models, &mut self.workspace, program)?;
        let TimesTensors { inputs: t, tables } = &recorded.tensors;
        backend.write(t.timesteps, &padded(inputs.timesteps, t.timesteps.len()))?;
        if let Some(guidance) = t.guidance {
            let thousandths = 1000.0 * (inputs.guidance_scale - 1.0);
            backend.write(guidance, bytemuck::cast_slice(&vec![thousandths; guidance.len()]))?;
        }
        if let Some(added) = t.added {
            for (i, &pooled) in inputs.pooled.iter().enumerate() {
                backend.copy(added.embeds.row(i).columns(0, pooled.c()), pooled)?;
            }
            let time_ids = inputs.time_ids[..program.tables].concat();
            backend.write(added.time_ids, bytemuck::cast_slice(&time_ids))?;
        }
        recorded.replay(backend)?;
        for (number, to) in to {
            for (to, table) in to.zip(tables) {
                backend.copy(to, table.images(number, 1).table_rows(0, to.tokens()))?;
            }
        }
        Ok(())
    }
}
