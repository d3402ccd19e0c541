//! The way down of a U-Net and its middle, which a ControlNet is a copy of; and the blocks of both ways.

use super::blocks::{Carried, Context, Conv, Resnet, Transformer};
use super::config::{MidBlock, UNetConfig};
use super::time::TimeEmbedding;
use crate::ops::*;
use crate::weights::plan::Plan;

/// A resnet, and the transformer after it in a cross-attention block.
pub struct Layer {
    resnet: Resnet,
    attention: Option<Transformer>,
}

pub struct Block {
    pub layers: Vec<Layer>,
    /// The conv of `downsamplers.0` or `upsamplers.0`.
    pub resample: Option<Conv>,
    pub c: usize,
}

/// The middle; without the rest behind its first resnet, `UNetMidBlock2D` of no layers.
struct Mid {
    first: Resnet,
    rest: Option<(Transformer, Resnet)>,
}

/// Plans resnets and transformers, and hands out their columns of the time and context tables.
pub struct Builder<'a> {
    config: &'a UNetConfig,
    pub time: TimeEmbedding,
    pub context_columns: usize,
}

impl<'a> Builder<'a> {
    pub fn new(config: &'a UNetConfig, plan: &mut Plan) -> Self {
        Builder { config, time: TimeEmbedding::new(config, plan), context_columns: 0 }
    }

    fn resnet(&mut self, plan: &mut Plan, name: impl ToString, i: usize, o: usize) -> Resnet {
        let UNetConfig { norm_num_groups, norm_eps, .. } = *self.config;
        plan.scope(name, |plan| {
            let time_column = self.time.project(plan, o);
            Resnet::new(plan, i, o, norm_num_groups, norm_eps).with_time(time_column)
        })
    }

    fn transformer(
        &mut self,
        plan: &mut Plan,
        name: impl ToString,
        level: usize,
        layers: usize,
    ) -> Transformer {
        let config = self.config;
        let c = config.block_out_channels[level];
        let (heads, groups) = (config.heads[level], config.norm_num_groups);
        let (context_dim, columns) = (config.cross_attention_dim, &mut self.context_columns);
        plan.scope(name, |plan| Transformer::new(plan, c, layers, heads, groups, context_dim, columns))
    }

    /// Layer `j` of a block at `level`, of `i` channels to those of the level. `depths` are those of the block's
    /// transformers, if it has any.
    pub fn layer(&mut self, plan: &mut Plan, depths: &[usize], level: usize, j: usize, i: usize) -> Layer {
        let resnet = self.resnet(plan, format!("resnets.{j}"), i, self.config.block_out_channels[level]);
        let depth = depths.get(j);
        let attention = depth.map(|&depth| self.transformer(plan, format!("attentions.{j}"), level, depth));
        Layer { resnet, attention }
    }
}

impl Layer {
    /// With a transformer, `x` may have fewer images than `out`: see [`Transformer::forward`].
    pub fn forward(
        &self,
        ops: &mut dyn Ops,
        j: usize,
        out: Tensor,
        x: Tensor,
        time: TableRow,
        context: Context,
    ) {
        match &self.attention {
            None => self.resnet.forward(ops, &format!("resnets.{j}"), out, x, Some(time)),
            Some(attention) => {
                let mark = ops.arena().mark();
                let [_, h, w, c] = out.shape;
                let hidden = ops.alloc([x.b(), h, w, c]);
                self.resnet.forward(ops, &format!("resnets.{j}"), hidden, x, Some(time));
                attention.forward(ops, &format!("attentions.{j}"), out, hidden, context);
                ops.arena().release(mark);
            }
        }
    }
}

impl Block {
    pub fn transformers(&self) -> impl Iterator<Item = &Transformer> {
        self.layers.iter().filter_map(|layer| layer.attention.as_ref())
    }
}

pub struct Encoder {
    conv_in: Conv,
    down_blocks: Vec<Block>,
    mid_block: Option<Mid>,
}

impl Encoder {
    pub fn new(builder: &mut Builder, plan: &mut Plan) -> Self {
        let config = builder.config;
        let channels = &config.block_out_channels;
        let last = channels.len() - 1;
        let conv_in = Conv::new(plan, "conv_in", channels[0], config.in_channels, 3);
        let mut hidden = channels[0];
        let mut down_blocks = Vec::new();
        for (level, &c) in channels.iter().enumerate() {
            down_blocks.push(plan.scope(format!("down_blocks.{level}"), |plan| {
                let mut layers = Vec::new();
                for j in 0..config.layers_per_block[level] {
                    layers.push(builder.layer(plan, &config.down_depths[level], level, j, hidden));
                    hidden = c;
                }
                let resample = (level < last).then(|| Conv::downsampler(plan, c, Carried::WHOLE));
                Block { layers, resample, c }
            }));
        }
        let mid_block = plan.scope("mid_block", |plan| {
            let c = channels[last];
            let mut resnet = |plan: &mut Plan, name: &str| builder.resnet(plan, name, c, c);
            match config.mid_block {
                MidBlock::None => None,
                MidBlock::Resnet => Some(Mid { first: resnet(plan, "resnets.0"), rest: None }),
                MidBlock::CrossAttention { depth } => {
                    let first = resnet(plan, "resnets.0");
                    let attention = builder.transformer(plan, "attentions.0", last, depth);
                    Some(Mid { first, rest: Some((attention, builder.resnet(plan, "resnets.1", c, c))) })
                }
            }
        });
        Encoder { conv_in, down_blocks, mid_block }
    }

    pub fn transformers(&self) -> impl Iterator<Item = &Transformer> {
        let rest = self.mid_block.iter().filter_map(|mid| mid.rest.as_ref());
        let mid = rest.map(|(attention, _)| attention);
        self.down_blocks.iter().flat_map(Block::transformers).chain(mid)
    }

    /// Channels of the input as the first convolution reads it: filled up with zeros.
    pub fn input_channels(&self) -> usize {
        self.conv_in.weight.c()
    }

    /// Channels of each skip connection.
    pub fn skip_channels(&self) -> Vec<usize> {
        let mut channels = vec![self.conv_in.weight.b()];
        for block in &self.down_blocks {
            channels.extend(std::iter::repeat_n(block.c, block.layers.len()));
            channels.extend(block.resample.map(|_| block.c));
        }
        channels
    }

    /// The shape of each skip connection for latents [b,h,w].
    pub fn skip_shapes(&self, [b, mut h, mut w]: [usize; 3]) -> Vec<[usize; 4]> {
        let mut shapes = vec![[b, h, w, self.conv_in.weight.b()]];
        for block in &self.down_blocks {
            shapes.extend(block.layers.iter().map(|_| [b, h, w, block.c]));
            if block.resample.is_some() {
                (h, w) = (h.div_ceil(2), w.div_ceil(2));
                shapes.push([b, h, w, block.c]);
            }
        }
        shapes
    }

    /// Writes all skip connections, of which the last is the deepest hidden state. `added`, of as many images
    /// as `x`, is added to the first. There may be fewer images of `x` than of the skip connections: see
    /// [`UNet::forward`](super::unet::UNet::forward).
    pub fn down(
        &self,
        ops: &mut dyn Ops,
        skips: &[Tensor],
        x: Tensor,
        added: Option<Tensor>,
        time: TableRow,
        context: Context,
    ) {
        let mut skips = skips.iter().copied();
        let mut skip = || skips.next().expect("as many skips as down layers");
        let mut hidden = skip();
        for copy in hidden.split_images(x.b()) {
            ops.conv2d(Conv2d { residual: added, ..self.conv_in.to(copy, x) });
        }
        for (i, block) in self.down_blocks.iter().enumerate() {
            ops.scope(&format!("down_blocks.{i}"), |ops| {
                for (j, layer) in block.layers.iter().enumerate() {
                    let next = skip();
                    let is_first = i == 0 && j == 0;
                    let shared = is_first && layer.attention.is_some();
                    let input = if shared { hidden.images(0, x.b()) } else { hidden };
                    layer.forward(ops, j, next, input, time, context);
                    hidden = next;
                }
                if let Some(conv) = &block.resample {
                    let next = skip();
                    ops.conv2d(Conv2d { stride: 2, ..conv.to(next, hidden) });
                    hidden = next;
                }
            });
        }
    }

    /// The middle, from the deepest hidden state `x`.
    pub fn mid(&self, ops: &mut dyn Ops, out: Tensor, x: Tensor, time: TableRow, context: Context) {
        let Some(Mid { first, rest }) = &self.mid_block else {
            return ops.activate(Activate { out, x, activation: Activation::Identity });
        };
        ops.scope("mid_block", |ops| {
            let Some((attention, last)) = rest else {
                return first.forward(ops, "resnets.0", out, x, Some(time));
            };
            let [a, b] = [ops.alloc(x.shape), ops.alloc(x.shape)];
            first.forward(ops, "resnets.0", a, x, Some(time));
            attention.forward(ops, "attentions.0", b, a, context);
            last.forward(ops, "resnets.1", out, b, Some(time));
        });
    }
}
