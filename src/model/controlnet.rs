//! `ControlNetModel`: a copy of a U-Net's encoder that reads a picture besides, and adds to the skip
//! connections and the middle of the U-Net that it steers.
//!
//! The picture is embedded once per request ([`ControlNet::embed`]), and as with the U-Net times and prompts
//! come in tables. How much is added is data: a gain for each row of a batch at each step.

use super::blocks::{Context, Conv, Dense};
use super::conditioned::{Conditioned, keys_and_values};
use super::config::ControlNetConfig;
use super::encoder::{Builder, Encoder};
use super::time::{TimeEmbedding, TimeInputs};
use crate::ops::*;
use crate::weights::plan::Plan;

pub struct ControlNet {
    pub config: ControlNetConfig,
    time: TimeEmbedding,
    encoder: Encoder,
    controlnet_cond_embedding: CondEmbedding,
    /// Where the encoder's skip connections leave the ControlNet.
    controlnet_down_blocks: Vec<Dense>,
    controlnet_mid_block: Dense,
    context_columns: usize,
}

/// `ControlNetConditioningEmbedding`: 3x3 convs with SiLU, of which every second block halves the map.
struct CondEmbedding {
    conv_in: Conv,
    blocks: Vec<Conv>,
    conv_out: Conv,
}

/// What a ControlNet reads in a step.
#[derive(Clone, Copy)]
pub struct ControlInputs {
    /// Of [`ControlNet::embed`].
    pub embedding: Tensor, // [b,h,w,c], as many images as the latents
    /// Of [`Conditioned::time_table`].
    pub time: TableRow,
    /// Of [`Conditioned::context`].
    pub context: Context,
    /// How much is added of what it says.
    pub gain: TableRow, // f32, one number a row
}

impl ControlNet {
    pub fn new(config: &ControlNetConfig, plan: &mut Plan) -> Self {
        let mut builder = Builder::new(&config.encoder, plan);
        let encoder = Encoder::new(&mut builder, plan);
        let channels = &config.encoder.block_out_channels;
        let controlnet_cond_embedding = plan.scope("controlnet_cond_embedding", |plan| {
            let widths = &config.embedding_channels;
            let pairs = widths.windows(2).flat_map(|pair| [[pair[0], pair[0]], [pair[1], pair[0]]]);
            CondEmbedding {
                conv_in: Conv::new(plan, "conv_in", widths[0], ControlNetConfig::HINT_CHANNELS, 3),
                blocks: pairs
                    .enumerate()
                    .map(|(i, [out, x])| Conv::new(plan, format!("blocks.{i}"), out, x, 3))
                    .collect(),
                conv_out: Conv::new(plan, "conv_out", channels[0], widths[widths.len() - 1], 3),
            }
        });
        // 1x1 convs: the same product on NHWC.
        let controlnet_down_blocks = encoder.skip_channels().into_iter().enumerate();
        let controlnet_down_blocks = controlnet_down_blocks
            .map(|(i, c)| Dense::new(plan, format!("controlnet_down_blocks.{i}"), c, c))
            .collect();
        let deepest = channels[channels.len() - 1];
        ControlNet {
            controlnet_mid_block: Dense::new(plan, "controlnet_mid_block", deepest, deepest),
            config: config.clone(),
            time: builder.time,
            encoder,
            controlnet_cond_embedding,
            controlnet_down_blocks,
            context_columns: builder.context_columns,
        }
    }

    /// What is added to the latents behind the first conv: the same for each image of `out` [b,h,w,c].
    ///
    /// `hint` [1,height,width,4] is the picture from 0 to 1, with an empty fourth channel.
    pub fn embed(&self, ops: &mut dyn Ops, out: Tensor, hint: Tensor) {
        let CondEmbedding { conv_in, blocks, conv_out } = &self.controlnet_cond_embedding;
        ops.scope("controlnet_cond_embedding", |ops| {
            let mut x = hint;
            let strides = std::iter::once(1).chain([1, 2].into_iter().cycle());
            for (conv, stride) in std::iter::once(conv_in).chain(blocks).zip(strides) {
                let [_, h, w, _] = x.shape;
                let next = ops.alloc([1, h.div_ceil(stride), w.div_ceil(stride), conv.weight.b()]);
                ops.conv2d(Conv2d { stride, ..conv.to(next, x) });
                ops.activate(Activate { out: next, x: next, activation: Activation::Silu });
                x = next;
            }
            for image in 0..out.b() {
                ops.conv2d(conv_out.to(out.images(image, 1), x));
            }
        });
    }

    /// Adds to the skip connections and to the middle of the U-Net for latents `x`, of which those of a U-Net
    /// for inpainting have more channels behind.
    pub fn forward(
        &self,
        ops: &mut dyn Ops,
        skips: &[Tensor],
        mid: Tensor,
        x: Tensor,
        inputs: &ControlInputs,
    ) {
        let ControlInputs { embedding, time, context, gain } = *inputs;
        let x = x.columns(0, self.config.encoder.in_channels);
        ops.scope("controlnet", |ops| {
            let shapes = self.encoder.skip_shapes([mid.b(), x.h(), x.w()]);
            let own: Vec<Tensor> = shapes.into_iter().map(|shape| ops.alloc(shape)).collect();
            self.encoder.down(ops, &own, x, Some(embedding), time, context);
            let own_mid = ops.alloc(mid.shape);
            self.encoder.mid(ops, own_mid, own[own.len() - 1], time, context);

            let added = self.controlnet_down_blocks.iter().zip(own.into_iter().zip(skips.iter().copied()));
            for (i, (zero_conv, (from, to))) in added.enumerate() {
                ops.scope(&format!("controlnet_down_blocks.{i}"), |ops| {
                    accumulate(ops, zero_conv, to, from, gain);
                });
            }
            ops.scope("controlnet_mid_block", |ops| {
                accumulate(ops, &self.controlnet_mid_block, mid, own_mid, gain);
            });
        });
    }
}

impl Conditioned for ControlNet {
    fn time_inputs(&self, ops: &mut dyn Ops, tables: usize, timesteps: usize) -> TimeInputs {
        self.time.inputs(ops, tables, timesteps)
    }
    fn time_columns(&self) -> usize {
        self.time.columns()
    }
    fn time_table(&self, ops: &mut dyn Ops, out: Tensor, inputs: TimeInputs) {
        self.time.table(ops, out, inputs);
    }
    fn context_columns(&self) -> usize {
        self.context_columns
    }
    fn context(&self, ops: &mut dyn Ops, out: Tensor, hidden_states: Tensor) {
        keys_and_values(self.encoder.transformers(), ops, out, hidden_states);
    }
}

fn accumulate(ops: &mut dyn Ops, zero_conv: &Dense, to: Tensor, from: Tensor, gain: TableRow) {
    let added = ops.alloc(from.shape);
    ops.linear(zero_conv.to(added.as_tokens(), from.as_tokens()));
    ops.accumulate(Accumulate { x: to, y: added, gain });
}
