//! What U-Nets and ControlNets read in a step and compute outside of it: tables of times and of prompts.

use super::blocks::Transformer;
use super::time::{TimeEmbedding, TimeInputs};
use crate::ops::*;

/// A network whose resnets take the time, and whose transformers the prompts, out of tables.
pub trait Conditioned {
    fn time_embedding(&self) -> &TimeEmbedding;

    fn transformers(&self) -> impl Iterator<Item = &Transformer>;

    /// Columns of the context table: keys and values of all cross-attentions.
    fn context_columns(&self) -> usize;

    /// Columns of the time table: the output channels of all resnets.
    fn time_columns(&self) -> usize {
        self.time_embedding().columns()
    }

    /// What every resnet adds at each timestep: `out` [rows,1,n,time_columns], where `rows` is 1 unless
    /// the embedding takes in what differs between the rows of a batch.
    fn time_table(&self, ops: &mut dyn Ops, out: Tensor, inputs: TimeInputs) {
        self.time_embedding().table(ops, out, inputs);
    }

    /// Keys and values of every cross-attention: `out` [b,1,s,context_columns] of `hidden_states` [b,1,s,c].
    fn context(&self, ops: &mut dyn Ops, out: Tensor, hidden_states: Tensor) {
        ops.scope("context", |ops| {
            for transformer in self.transformers() {
                transformer.context(ops, out, hidden_states);
            }
        });
    }
}
