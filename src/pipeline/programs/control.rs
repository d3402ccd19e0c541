//! From a control image to what a ControlNet adds behind its first convolution.

use super::Programs;
use crate::error::Result;
use crate::ops::*;
use crate::pipeline::models::Models;
use crate::pipeline::numbers::write_floats;
use crate::pipeline::program::Program;
use crate::raster::Raster;

/// The embedding of a control image by one of the model's ControlNets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::pipeline) struct ControlProgram {
    pub net: usize,
    /// Height and width of the image.
    pub size: [usize; 2],
}

pub(in crate::pipeline) struct ControlTensors {
    hint: Tensor,      // [1,height,width,4], the fourth channel empty
    embedding: Tensor, // [1,h,w,c]
}

impl Program for ControlProgram {
    type Tensors = ControlTensors;

    fn tensors(&self, models: &Models, ops: &mut dyn Ops) -> ControlTensors {
        let ([height, width], [h, w]) = (self.size, models.latent_size(self.size));
        let c = models.controlnets[self.net].config.encoder.block_out_channels[0];
        ControlTensors { hint: ops.alloc([1, height, width, 4]), embedding: ops.alloc([1, h, w, c]) }
    }

    fn run(&self, models: &Models, ops: &mut dyn Ops, t: &ControlTensors) {
        let scoped = |ops: &mut dyn Ops| models.controlnets[self.net].embed(ops, t.embedding, t.hint);
        ops.scope("encode", |ops| ops.scope("controlnet", scoped));
    }
}

impl Programs {
    /// Embeds a control image, brought to size, for each of the tensors `to` [1,h,w,c].
    pub fn embed_control(
        &mut self,
        backend: &mut dyn Backend,
        models: &Models,
        program: ControlProgram,
        image: &Raster,
        to: impl Iterator<Item = Tensor>,
    ) -> Result<()> {
        let recorded = self.control.get(backend, models, &mut self.workspace, program)?;
        let t = &recorded.tensors;
        let order = if models.controlnets[program.net].config.is_bgr { [2, 1, 0] } else { [0, 1, 2] };
        let [height, width] = program.size;
        let image = image.resized(width, height);
        let pixels = image.rgb.chunks_exact(3).flat_map(|pixel| {
            let [r, g, b] = order.map(|channel| f32::from(pixel[channel]) / 255.0);
            [r, g, b, 0.0]
        });
        write_floats(backend, t.hint, &pixels.collect::<Vec<f32>>())?;
        recorded.replay(backend)?;
        for to in to {
            backend.copy(to, t.embedding)?;
        }
        Ok(())
    }
}
