//! `UNet2DConditionModel`: noisy latents, a time and a context to a prediction.
//!
//! Its tables are what every resnet adds at each timestep (XL's take in the prompt too) and the keys and values of all
//! cross-attentions. The skip connections cost nothing: a down block writes its output into the right columns of the
//! buffer that an up block will read as the concatenation.
//!
//! Easy to get wrong: the concatenation is `[hidden, skip]`; an up block has one resnet more than a
//! down block; up blocks take the levels' heads and depths in reverse; a map of odd size is halved
//! rounding up, and enlarged back to the size that the skip has; ControlNets add to the skip connections
//! only when the middle has read the last of them.

use super::backbone::Backbone;
use super::blocks::{Carried, Context, Conv, Norm};
use super::conditioned::{Conditioned, keys_and_values};
use super::config::UNetConfig;
use super::controlnet::{ControlInputs, ControlNet};
use super::encoder::{Block, Builder, Encoder};
use super::time::{TimeEmbedding, TimeInputs};
use crate::ops::*;
use crate::weights::plan::Plan;

pub struct UNet {
    pub config: UNetConfig,
    time: TimeEmbedding,
    encoder: Encoder,
    up_blocks: Vec<Block>,
    conv_norm_out: Norm,
    conv_out: Conv,
    context_columns: usize,
}

impl UNet {
    pub fn new(config: &UNetConfig, plan: &mut Plan) -> Self {
        let channels = &config.block_out_channels;
        let levels = channels.len();
        let mut builder = Builder::new(config, plan);
        let encoder = Encoder::new(&mut builder, plan);
        let mut skips = encoder.skip_channels();
        let mut up_blocks = Vec::new();
        let mut hidden = channels[levels - 1];
        for up in 0..levels {
            let level = levels - 1 - up;
            let c = channels[level];
            up_blocks.push(plan.scope(format!("up_blocks.{up}"), |plan| {
                let mut layers = Vec::new();
                for j in 0..=config.layers_per_block[level] {
                    let skip = skips.pop().expect("as many skips as up resnets");
                    layers.push(builder.layer(plan, &config.up_depths[up], level, j, hidden + skip));
                    hidden = c;
                }
                let resample = (level > 0).then(|| Conv::upsampler(plan, c, Carried::WHOLE));
                Block { layers, resample, c }
            }));
        }
        UNet {
            config: config.clone(),
            time: builder.time,
            encoder,
            up_blocks,
            conv_norm_out: Norm::new(plan, "conv_norm_out", channels[0]),
            conv_out: Conv::new(plan, "conv_out", config.out_channels, channels[0], 3),
            context_columns: builder.context_columns,
        }
    }

    /// Takes the inputs of all up resnets for latents [b,h,w], and finds in them the place of each skip
    /// connection.
    fn concatenations(&self, ops: &mut dyn Ops, map: [usize; 3]) -> Concatenations {
        let shapes = self.encoder.skip_shapes(map);
        let mut hidden = shapes[shapes.len() - 1][3];
        let mut skips = Vec::new();
        let mut inputs = Vec::new();
        let up_layers = self.up_blocks.iter().flat_map(|block| block.layers.iter().map(|_| block.c));
        for ([b, h, w, skip], c) in shapes.into_iter().rev().zip(up_layers) {
            let input = ops.alloc([b, h, w, hidden + skip]);
            skips.push(input.columns(hidden, skip));
            inputs.push(input);
            hidden = c;
        }
        skips.reverse();
        Concatenations { skips, inputs }
    }
}

impl Conditioned for UNet {
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
        let up = self.up_blocks.iter().flat_map(Block::transformers);
        keys_and_values(self.encoder.transformers().chain(up), ops, out, hidden_states);
    }
}

impl Backbone for UNet {
    fn input_channels(&self) -> usize {
        self.encoder.input_channels()
    }

    /// XL's time embedding takes in the pooled prompt.
    fn times_take_prompt(&self) -> bool {
        self.config.text_time.is_some()
    }

    /// The prompt comes in with the first cross-attention, unless the times take it in. What ControlNets add differs
    /// between the rows, but is added behind the middle, to the rows' own skip connections.
    fn begins_without_context(&self) -> bool {
        !self.times_take_prompt()
    }

    fn forward(
        &self,
        ops: &mut dyn Ops,
        out: Tensor,
        x: Tensor,
        time: TableRow,
        context: Context,
        controls: &[(&ControlNet, ControlInputs)],
    ) {
        assert!(x.b() == out.b() || self.begins_without_context(), "{x} for {out}");
        ops.scope("unet", |ops| {
            let Concatenations { skips, inputs } = self.concatenations(ops, [out.b(), x.h(), x.w()]);
            self.encoder.down(ops, &skips, x, None, time, context);

            let last = inputs[inputs.len() - 1];
            let c = self.conv_norm_out.weight.c();
            let result = ops.alloc([last.b(), last.h(), last.w(), c]);
            // Where the hidden states go in front of each up resnet: the concatenation's first columns.
            let mut inputs = inputs.into_iter().peekable();
            let hidden_columns = |input: Option<&Tensor>, c: usize| input.map_or(result, |x| x.columns(0, c));

            let hidden = skips[skips.len() - 1];
            let deepest = hidden_columns(inputs.peek(), hidden.c());
            self.encoder.mid(ops, deepest, hidden, time, context);
            for (net, control) in controls {
                net.forward(ops, &skips, deepest, x, control);
            }
            for (i, block) in self.up_blocks.iter().enumerate() {
                ops.scope(&format!("up_blocks.{i}"), |ops| {
                    for (j, layer) in block.layers.iter().enumerate() {
                        let input = inputs.next().expect("as many inputs as up layers");
                        let next = hidden_columns(inputs.peek(), block.c);
                        match &block.resample {
                            Some(conv) if j + 1 == block.layers.len() => {
                                let small = ops.alloc([input.b(), input.h(), input.w(), block.c]);
                                layer.forward(ops, j, small, input, time, context);
                                ops.conv2d(conv.upsample(next, small));
                            }
                            _ => layer.forward(ops, j, next, input, time, context),
                        }
                    }
                });
            }

            let normed = ops.alloc(result.shape);
            let norm =
                self.conv_norm_out.group(normed, result, self.config.norm_num_groups, self.config.norm_eps);
            ops.group_norm(GroupNorm { silu: true, ..norm });
            ops.conv2d(self.conv_out.to(out, normed));
        });
    }
}

struct Concatenations {
    /// In the order in which the down path writes them.
    skips: Vec<Tensor>,
    /// In the order in which the up path reads them.
    inputs: Vec<Tensor>,
}
