//! What a network of the denoising loop computes outside of a step: tables of times and of prompts.

use super::blocks::Transformer;
use super::time::TimeInputs;
use crate::ops::*;

/// A network that takes times and prompts out of tables: a backbone, or a ControlNet beside one.
pub trait Conditioned {
    /// Memory for what a time table is made of: the timesteps of a schedule, for so many tables.
    fn time_inputs(&self, ops: &mut dyn Ops, tables: usize, timesteps: usize) -> TimeInputs;

    /// Columns of a time table.
    fn time_columns(&self) -> usize;

    /// What every layer reads at each timestep: `out` [tables,1,n,time_columns].
    fn time_table(&self, ops: &mut dyn Ops, out: Tensor, inputs: TimeInputs);

    /// Columns of the context table.
    fn context_columns(&self) -> usize;

    /// What every layer reads of each token: `out` [b,1,s,context_columns] of `hidden_states` [b,1,s,c].
    fn context(&self, ops: &mut dyn Ops, out: Tensor, hidden_states: Tensor);
}

/// [`Conditioned::context`] of cross-attentions: their keys and values, side by side.
pub(super) fn keys_and_values<'a>(
    transformers: impl Iterator<Item = &'a Transformer>,
    ops: &mut dyn Ops,
    out: Tensor,
    hidden_states: Tensor,
) {
    ops.scope("context", |ops| {
        for transformer in transformers {
            transformer.context(ops, out, hidden_states);
        }
    });
}
