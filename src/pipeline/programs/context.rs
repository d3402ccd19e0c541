//! From hidden states of a prompt to the keys and values of all cross-attentions.

use super::Programs;
use crate::error::Result;
use crate::model::conditioned::Conditioned;
use crate::ops::*;
use crate::pipeline::models::Models;
use crate::pipeline::program::Program;
use crate::pipeline::slots::ContextRange;

/// Keys and values of the U-Net and of the first ControlNets for one or two texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::pipeline) struct ContextProgram {
    pub texts: usize,
    /// Of each text, filled up to what the attention kernels may read ([`KeyRows`]).
    pub tokens: usize,
    pub controls: usize,
}

pub(in crate::pipeline) struct ContextTensors {
    /// Zeros fill a text up, so that their keys and values are zeros: there are no biases.
    states: Tensor, // [1,1,texts·tokens,context_dim]
    context: Tensor,       // [1,1,texts·tokens,context columns]
    controls: Vec<Tensor>, // likewise
}

impl Program for ContextProgram {
    type Tensors = ContextTensors;

    fn tensors(&self, models: &Models, ops: &mut dyn Ops) -> ContextTensors {
        let mut rows = |c: usize| ops.alloc([1, 1, self.texts * self.tokens, c]);
        let controls = &models.controlnets[..self.controls];
        ContextTensors {
            states: rows(models.config.context_dim()),
            context: rows(models.backbone.context_columns()),
            controls: controls.iter().map(|net| rows(net.context_columns())).collect(),
        }
    }

    fn run(&self, models: &Models, ops: &mut dyn Ops, t: &ContextTensors) {
        ops.scope("encode", |ops| {
            models.backbone.context(ops, t.context, t.states);
            for (net, &context) in models.controlnets.iter().zip(&t.controls) {
                ops.scope("controlnet", |ops| net.context(ops, context, t.states));
            }
        });
    }
}

impl Programs {
    /// Writes the keys and values of texts, by their hidden states [1,1,tokens,c], to their ranges.
    pub fn write_contexts(
        &mut self,
        backend: &mut dyn Backend,
        models: &Models,
        program: ContextProgram,
        texts: &[(Tensor, &ContextRange)],
    ) -> Result<()> {
        let recorded = self.context.get(backend, models, &mut self.workspace, program)?;
        let t = &recorded.tensors;
        let of_text = |tensor: Tensor, i: usize| tensor.table_rows(i * program.tokens, program.tokens);
        for (i, (states, _)) in texts.iter().enumerate() {
            backend.copy(of_text(t.states, i), *states)?;
        }
        recorded.replay(backend)?;
        for (i, (_, range)) in texts.iter().enumerate() {
            let made = std::iter::once(&t.context).chain(&t.controls);
            for (to, &from) in range.tables(program.controls).into_iter().zip(made) {
                backend.copy(to, of_text(from, i))?;
            }
        }
        Ok(())
    }
}
