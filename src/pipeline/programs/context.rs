//! From hidden states of a prompt to the keys and values of all cross-attentions.

use super::Programs;
use crate::error::Result;
use crate::model::conditioned::Conditioned;
use crate::ops::*;
use crate::pipeline::models::Models;
use crate::pipeline::numbers::write_floats;
use crate::pipeline::program::Program;
use crate::pipeline::slots::ContextRange;

/// Keys and values of the U-Net and of the first ControlNets for one text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::pipeline) struct ContextProgram {
    /// Filled up to what the attention kernels may read ([`KeyRows`]).
    pub tokens: usize,
    pub controls: usize,
}

pub(in crate::pipeline) struct ContextTensors {
    /// Zeros behind the prompt's own, so that their keys and values are zeros: there are no biases.
    states: Tensor, // [1,1,tokens,cross_attention_dim]
    context: Tensor,       // [1,1,tokens,context columns]
    controls: Vec<Tensor>, // likewise
}

impl Program for ContextProgram {
    type Tensors = ContextTensors;

    fn tensors(&self, models: &Models, ops: &mut dyn Ops) -> ContextTensors {
        let mut rows = |c: usize| ops.alloc([1, 1, self.tokens, c]);
        let controls = &models.controlnets[..self.controls];
        ContextTensors {
            states: rows(models.config.unet.cross_attention_dim),
            context: rows(models.unet.context_columns()),
            controls: controls.iter().map(|net| rows(net.context_columns())).collect(),
        }
    }

    fn run(&self, models: &Models, ops: &mut dyn Ops, t: &ContextTensors) {
        ops.scope("encode", |ops| {
            models.unet.context(ops, t.context, t.states);
            for (net, &context) in models.controlnets.iter().zip(&t.controls) {
                ops.scope("controlnet", |ops| net.context(ops, context, t.states));
            }
        });
    }
}

impl Programs {
    /// Writes the keys and values of hidden states [1,1,n,c] to their range.
    pub fn write_context(
        &mut self,
        backend: &mut dyn Backend,
        models: &Models,
        program: ContextProgram,
        states: Tensor,
        to: &ContextRange,
    ) -> Result<()> {
        let recorded = self.context.get(backend, models, &mut self.workspace, program)?;
        let t = &recorded.tensors;
        let n = states.tokens();
        backend.copy(t.states.table_rows(0, n), states)?;
        if program.tokens > n {
            let tail = t.states.table_rows(n, program.tokens - n);
            write_floats(backend, tail, &vec![0.0; tail.len()])?;
        }
        recorded.replay(backend)?;
        let tables = to.tables(program.controls);
        for (to, from) in tables.into_iter().zip(std::iter::once(&t.context).chain(&t.controls)) {
            backend.copy(to, *from)?;
        }
        Ok(())
    }
}
