//! `AutoencoderKL`: latents to pictures and back.
//!
//! Easy to get wrong: latents are divided by the scaling factor before decoding; the encoder's
//! downsampling pads below and to the right only; every norm has eps 1e-6; decoder blocks go from the
//! coarsest level to the finest and have one resnet more than encoder blocks.

use super::blocks::{Carried, Conv, Dense, Norm, Resnet};
use super::config::VaeConfig;
use crate::ops::*;
use crate::weights::plan::Plan;

const EPS: f32 = 1e-6;

/// What all group norms outside of resnets share.
#[derive(Clone, Copy)]
struct NormSettings {
    groups: usize,
    eps: f32,
}

/// The single-headed attention of the mid block.
struct SelfAttention {
    group_norm: Norm,
    to_qkv: Dense,
    to_out: Dense,
}

struct Mid {
    first: Resnet,
    attention: Option<SelfAttention>,
    last: Resnet,
}

/// Makes the conv of a number of channels that ends a block.
type Resample = fn(&mut Plan, usize, Carried) -> Conv;

struct Block {
    resnets: Vec<Resnet>,
    /// The conv of `downsamplers.0` or `upsamplers.0`.
    resample: Option<Conv>,
    c: usize,
}

/// The encoder and the decoder have the same outline: conv, blocks and a mid block, norm, conv.
struct Coder {
    conv_in: Conv,
    mid_block: Mid,
    blocks: Vec<Block>,
    conv_norm_out: Norm,
    conv_out: Conv,
}

pub struct Vae {
    pub config: VaeConfig,
    /// Of all norms.
    eps: f32,
    encoder: Coder,
    quant_conv: Option<Conv>,
    post_quant_conv: Option<Conv>,
    decoder: Coder,
}

impl Vae {
    pub fn new(config: &VaeConfig, carried: Carried, plan: &mut Plan) -> Self {
        let channels = &config.block_out_channels;
        let levels = channels.len();
        let groups = config.norm_num_groups;
        let deepest = channels[levels - 1];
        let resnet = |plan: &mut Plan, name: &str, i: usize, o: usize| {
            plan.scope(name, |plan| Resnet::carried(plan, i, o, groups, EPS, carried))
        };
        let mid_block = |plan: &mut Plan| {
            plan.scope("mid_block", |plan| Mid {
                first: resnet(plan, "resnets.0", deepest, deepest),
                attention: config.mid_block_add_attention.then(|| {
                    plan.scope("attentions.0", |plan| SelfAttention {
                        group_norm: Norm::new(plan, "group_norm", deepest),
                        to_qkv: Dense::stacked(plan, &["to_q", "to_k", "to_v"], deepest, deepest, true),
                        to_out: carried
                            .into_stream(plan, |plan| Dense::new(plan, "to_out.0", deepest, deepest)),
                    })
                }),
                last: resnet(plan, "resnets.1", deepest, deepest),
            })
        };
        let block = |plan: &mut Plan,
                     name: String,
                     i: usize,
                     c: usize,
                     resnets: usize,
                     resample: Option<Resample>| {
            plan.scope(name, |plan| Block {
                resnets: (0..resnets)
                    .map(|j| resnet(plan, &format!("resnets.{j}"), if j == 0 { i } else { c }, c))
                    .collect(),
                resample: resample.map(|conv| conv(plan, c, carried)),
                c,
            })
        };

        let encoder = plan.scope("encoder", |plan| Coder {
            conv_in: carried
                .into_stream(plan, |plan| Conv::new(plan, "conv_in", channels[0], config.in_channels, 3)),
            blocks: (0..levels)
                .map(|level| {
                    let i = channels[level.saturating_sub(1)];
                    let resample = (level + 1 < levels).then_some(Conv::downsampler as Resample);
                    let name = format!("down_blocks.{level}");
                    block(plan, name, i, channels[level], config.layers_per_block, resample)
                })
                .collect(),
            mid_block: mid_block(plan),
            conv_norm_out: Norm::new(plan, "conv_norm_out", deepest),
            conv_out: Conv::new(plan, "conv_out", 2 * config.latent_channels, deepest, 3),
        });
        let decoder = plan.scope("decoder", |plan| Coder {
            conv_in: carried
                .into_stream(plan, |plan| Conv::new(plan, "conv_in", deepest, config.latent_channels, 3)),
            mid_block: mid_block(plan),
            blocks: (0..levels)
                .map(|up| {
                    let level = levels - 1 - up;
                    let i = channels[(level + 1).min(levels - 1)];
                    let resample = (level > 0).then_some(Conv::upsampler as Resample);
                    block(
                        plan,
                        format!("up_blocks.{up}"),
                        i,
                        channels[level],
                        config.layers_per_block + 1,
                        resample,
                    )
                })
                .collect(),
            conv_norm_out: Norm::new(plan, "conv_norm_out", channels[0]),
            conv_out: Conv::new(plan, "conv_out", config.out_channels, channels[0], 3),
        });
        let latent = config.latent_channels;
        Vae {
            config: config.clone(),
            eps: carried.eps(EPS),
            encoder,
            decoder,
            quant_conv: config
                .use_quant_conv
                .then(|| Conv::new(plan, "quant_conv", 2 * latent, 2 * latent, 1)),
            post_quant_conv: config
                .use_post_quant_conv
                .then(|| Conv::new(plan, "post_quant_conv", latent, latent, 1)),
        }
    }

    /// Channels of a picture that is encoded: red, green, blue and what fills up.
    pub fn picture_channels(&self) -> usize {
        self.encoder.conv_in.weight.c()
    }

    fn norm(&self) -> NormSettings {
        NormSettings { groups: self.config.norm_num_groups, eps: self.eps }
    }

    /// The picture `out` [b,8h,8w,3] in -1..1 of latents f32 [b,h,w,latent_channels].
    pub fn decode(&self, ops: &mut dyn Ops, out: Tensor, latents: Tensor) {
        ops.scope("vae", |ops| {
            let scaled = ops.alloc(latents.shape);
            let (scale, statistics) = (1.0 / self.config.scaling_factor, self.config.statistics);
            ops.scale(Scale { out: scaled, x: latents, scale, statistics });
            let x = match &self.post_quant_conv {
                Some(conv) => {
                    let x = ops.alloc(latents.shape);
                    ops.conv2d(conv.to(x, scaled));
                    x
                }
                None => scaled,
            };
            ops.scope("decoder", |ops| {
                let coder = &self.decoder;
                let mut maps = Maps::new(ops, latents.b() * self.config.largest_pair(out.h(), out.w()));
                let [b, h, w, _] = x.shape;
                let mut hidden = maps.next([b, h, w, coder.conv_in.weight.b()]);
                ops.conv2d(coder.conv_in.to(hidden, x));
                hidden = coder.mid_block.forward(ops, &mut maps, hidden, self.norm());
                for (i, block) in coder.blocks.iter().enumerate() {
                    ops.scope(&format!("up_blocks.{i}"), |ops| {
                        hidden = block.forward(ops, &mut maps, hidden);
                        if let Some(conv) = &block.resample {
                            let next = maps.next([b, 2 * hidden.h(), 2 * hidden.w(), block.c]);
                            ops.conv2d(conv.upsample(next, hidden));
                            hidden = next;
                        }
                    });
                }
                coder.finish(ops, out, hidden, self.norm());
            });
        });
    }

    /// Mean and log variance, side by side, of the latents of a picture, before the scaling factor:
    /// `out` [b,h/8,w/8,2·latent_channels] of `picture` [b,h,w,4] in -1..1, whose fourth channel is zero.
    pub fn encode(&self, ops: &mut dyn Ops, out: Tensor, picture: Tensor) {
        ops.scope("vae", |ops| {
            let moments = if self.quant_conv.is_some() { ops.alloc(out.shape) } else { out };
            ops.scope("encoder", |ops| {
                let coder = &self.encoder;
                let [b, h, w, _] = picture.shape;
                let mut maps = Maps::new(ops, b * self.config.largest_pair(h, w));
                let mut hidden = maps.next([b, h, w, coder.conv_in.weight.b()]);
                ops.conv2d(coder.conv_in.to(hidden, picture));
                for (i, block) in coder.blocks.iter().enumerate() {
                    ops.scope(&format!("down_blocks.{i}"), |ops| {
                        hidden = block.forward(ops, &mut maps, hidden);
                        if let Some(conv) = &block.resample {
                            let next = maps.next([b, hidden.h() / 2, hidden.w() / 2, block.c]);
                            ops.conv2d(Conv2d { stride: 2, pad: 0, ..conv.to(next, hidden) });
                            hidden = next;
                        }
                    });
                }
                hidden = coder.mid_block.forward(ops, &mut maps, hidden, self.norm());
                coder.finish(ops, moments, hidden, self.norm());
            });
            if let Some(conv) = &self.quant_conv {
                ops.conv2d(conv.to(out, moments));
            }
        });
    }
}

/// The maps of a chain of layers, each of which reads the one before: at the two ends of one buffer, in turn.
struct Maps {
    buffer: Tensor,
    at_end: bool,
    /// Elements that the last one occupies.
    last: usize,
}

impl Maps {
    /// Elements that maps begin at multiples of: 256 bytes of halves.
    const ALIGNMENT: usize = 128;

    /// Room for any two successive maps, which have at most so many elements.
    fn new(ops: &mut dyn Ops, elements: usize) -> Self {
        let buffer = ops.alloc([1, 1, 1, elements.next_multiple_of(Self::ALIGNMENT) + Self::ALIGNMENT]);
        Maps { buffer, at_end: false, last: 0 }
    }

    fn next(&mut self, shape: [usize; 4]) -> Tensor {
        let Tensor { address, dtype, .. } = self.buffer;
        let elements = shape.iter().product::<usize>();
        let occupied = elements.next_multiple_of(Self::ALIGNMENT);
        assert!(self.last + occupied <= self.buffer.len(), "{shape:?} is larger than planned");
        self.at_end = !self.at_end;
        self.last = occupied;
        let start = if self.at_end { self.buffer.len() - occupied } else { 0 };
        Tensor::new(address + (start * dtype.size()) as u64, shape, dtype)
    }
}

impl Coder {
    fn finish(&self, ops: &mut dyn Ops, out: Tensor, hidden: Tensor, norm: NormSettings) {
        ops.group_norm(GroupNorm {
            silu: true,
            ..self.conv_norm_out.group(hidden, hidden, norm.groups, norm.eps)
        });
        ops.conv2d(self.conv_out.to(out, hidden));
    }
}

impl Block {
    /// All resnets; what follows them is the coder's.
    fn forward(&self, ops: &mut dyn Ops, maps: &mut Maps, x: Tensor) -> Tensor {
        let mut hidden = x;
        for (j, resnet) in self.resnets.iter().enumerate() {
            let [b, h, w, _] = hidden.shape;
            let next = maps.next([b, h, w, self.c]);
            resnet.forward_last(ops, &format!("resnets.{j}"), next, hidden);
            hidden = next;
        }
        hidden
    }
}

impl Mid {
    fn forward(&self, ops: &mut dyn Ops, maps: &mut Maps, x: Tensor, norm: NormSettings) -> Tensor {
        ops.scope("mid_block", |ops| {
            let mut hidden = maps.next(x.shape);
            self.first.forward_last(ops, "resnets.0", hidden, x);
            if let Some(attention) = &self.attention {
                attention.forward(ops, hidden, norm);
            }
            let out = maps.next(x.shape);
            self.last.forward_last(ops, "resnets.1", out, hidden);
            hidden = out;
            hidden
        })
    }
}

impl SelfAttention {
    /// Updates `x` in place.
    fn forward(&self, ops: &mut dyn Ops, x: Tensor, norm: NormSettings) {
        ops.scope("attentions.0", |ops| {
            let normed = ops.alloc(x.shape);
            let [b, h, w, c] = x.shape;
            let qkv = ops.alloc([b, 1, h * w, 3 * c]);
            ops.group_norm(self.group_norm.group(normed, x, norm.groups, norm.eps));
            ops.linear(self.to_qkv.to(qkv, normed.as_tokens()));
            let [q, k, v] = [0, c, 2 * c].map(|column| qkv.columns(column, c));
            let attended = normed.as_tokens();
            ops.attention(Attention { out: attended, q, k, v, heads: 1, causal: false, keys: None });
            let x = x.as_tokens();
            ops.linear(Linear { residual: Some(x), ..self.to_out.to(x, attended) });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::count::Count;

    /// Maps that do not fit the buffer would be a panic.
    #[test]
    fn any_channels_fit_the_planned_maps() {
        for channels in [&[16][..], &[8, 32], &[64, 8], &[8, 64, 8, 16], &[16, 16, 32, 32]] {
            let block_out_channels = channels.to_vec();
            let config = VaeConfig { block_out_channels, norm_num_groups: 8, ..VaeConfig::sd15() };
            let vae = Vae::new(&config, Carried::WHOLE, &mut Plan::measure(DType::F16));
            for [h, w] in [[1, 1], [3, 5], [16, 8]] {
                let scale = config.scale_factor();
                let ops: &mut dyn Ops = &mut Count::new(DType::F16);
                let latents = ops.arena().alloc([2, h, w, 4], DType::F32);
                let out = ops.alloc([2, scale * h, scale * w, 3]);
                vae.decode(ops, out, latents);
                let moments = ops.alloc([2, h, w, 8]);
                let picture = ops.alloc([2, scale * h, scale * w, vae.picture_channels()]);
                vae.encode(ops, moments, picture);
            }
        }
    }
}
