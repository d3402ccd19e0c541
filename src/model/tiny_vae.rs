//! `AutoencoderTiny` (TAESD): latents to pictures and back through plain convolutions.
//!
//! Easy to get wrong: the layers count the activations and enlargements between them, which have no weights;
//! the decoder clamps its input softly; inside, a picture lies in 0..1; what follows a change of size has
//! no bias.

use super::config::{RGB, TinyCoderConfig, TinyVaeConfig};
use crate::ops::*;
use crate::weights::plan::Plan;

/// A 3x3 convolution; those between levels have no bias.
#[derive(Clone, Copy)]
struct Conv {
    weight: Tensor, // [o,3,3,i], [o,5,5,i] of an enlarged map
    bias: Option<Tensor>,
}

/// `AutoencoderTinyBlock`: `relu(conv(relu(conv(relu(conv(x))))) + x)`.
struct Block {
    convs: [Conv; 3],
}

/// Blocks, and the convolution behind them: to the next level, or out.
struct Level {
    blocks: Vec<Block>,
    conv: Conv,
}

struct Coder {
    conv_in: Conv,
    levels: Vec<Level>,
}

pub struct TinyVae {
    pub config: TinyVaeConfig,
    encoder: Option<Coder>,
    decoder: Coder,
}

impl TinyVae {
    pub fn new(config: &TinyVaeConfig, plan: &mut Plan) -> Self {
        let latent = config.latent_channels;
        let encoder = |coder: &TinyCoderConfig| {
            plan.scope("encoder.layers", |plan| {
                let conv_in = Conv::new(plan, 0, coder.channels, RGB, true);
                Coder { conv_in, levels: Coder::levels(plan, coder, latent, 1, false) }
            })
        };
        let encoder = config.encoder.as_ref().map(encoder);
        let decoder = plan.scope("decoder.layers", |plan| {
            let conv_in = Conv::new(plan, 0, config.decoder.channels, latent, true);
            // Layer 1 is an activation.
            Coder { conv_in, levels: Coder::levels(plan, &config.decoder, RGB, 2, true) }
        });
        TinyVae { config: config.clone(), encoder, decoder }
    }

    fn encoder(&self) -> &Coder {
        self.encoder.as_ref().expect("an encoder")
    }

    /// Channels of a picture that is encoded: red, green, blue and what fills up.
    ///
    /// # Panics
    /// If the configuration has no encoder.
    pub fn picture_channels(&self) -> usize {
        self.encoder().conv_in.weight.c()
    }

    /// The picture `out` [b,8h,8w,3] in -1..1 of latents f32 [b,h,w,latent_channels].
    pub fn decode(&self, ops: &mut dyn Ops, out: Tensor, latents: Tensor) {
        ops.scope("vae.decoder", |ops| {
            let coder = &self.decoder;
            let x = ops.alloc(latents.shape);
            ops.scale(Scale {
                out: x,
                x: latents,
                scale: 1.0 / self.config.scaling_factor,
                statistics: None,
            });
            ops.activate(Activate { out: x, x, activation: Activation::Tanh3 });
            let mut maps = Maps::new(ops, out.rows() * coder.conv_in.weight.b());
            let mut hidden = maps.next(latents.shape, coder.conv_in);
            ops.conv2d(coder.conv_in.to(hidden, x));
            relu(ops, hidden);
            for (i, level) in coder.levels.iter().enumerate() {
                hidden = level.blocks(ops, &mut maps, hidden);
                if i + 1 == coder.levels.len() {
                    ops.conv2d(level.conv.to(out, hidden));
                } else {
                    let [b, h, w, c] = hidden.shape;
                    let next = maps.next([b, 2 * h, 2 * w, c], level.conv);
                    ops.conv2d(Conv2d { upsample: true, ..level.conv.to(next, hidden) });
                    hidden = next;
                }
            }
            ops.activate(Activate { out, x: out, activation: Activation::FromUnit });
        });
    }

    /// The latents of a picture, before the scaling factor: `out` [b,h/8,w/8,latent_channels] of `picture`
    /// [b,h,w,4] in -1..1, whose fourth channel has no weights. There is no distribution to draw from.
    ///
    /// # Panics
    /// If the configuration has no encoder.
    pub fn encode(&self, ops: &mut dyn Ops, out: Tensor, picture: Tensor) {
        let coder = self.encoder();
        ops.scope("vae.encoder", |ops| {
            let x = ops.alloc(picture.shape);
            ops.activate(Activate { out: x, x: picture, activation: Activation::ToUnit });
            let mut maps = Maps::new(ops, picture.rows() * coder.conv_in.weight.b());
            let mut hidden = maps.next(picture.shape, coder.conv_in);
            ops.conv2d(coder.conv_in.to(hidden, x));
            for (i, level) in coder.levels.iter().enumerate() {
                hidden = level.blocks(ops, &mut maps, hidden);
                if i + 1 == coder.levels.len() {
                    ops.conv2d(level.conv.to(out, hidden));
                } else {
                    let [b, h, w, c] = hidden.shape;
                    let next = maps.next([b, h.div_ceil(2), w.div_ceil(2), c], level.conv);
                    ops.conv2d(Conv2d { stride: 2, ..level.conv.to(next, hidden) });
                    hidden = next;
                }
            }
        });
    }
}

impl Conv {
    fn new(plan: &mut Plan, name: impl ToString, o: usize, i: usize, bias: bool) -> Self {
        plan.scope(name, |plan| Conv {
            weight: plan.conv("weight", o, i, 3),
            bias: bias.then(|| plan.vector("bias", o)),
        })
    }

    /// The convolution of an enlarged map of `c` channels.
    fn upsampler(plan: &mut Plan, name: impl ToString, c: usize) -> Self {
        plan.scope(name, |plan| Conv { weight: plan.upsampling_conv("weight", c, c), bias: None })
    }

    fn to(&self, out: Tensor, x: Tensor) -> Conv2d {
        Conv2d {
            out,
            x,
            weight: self.weight,
            bias: self.bias,
            row: None,
            residual: None,
            stride: 1,
            pad: 1,
            upsample: false,
        }
    }
}

impl Coder {
    /// The levels from `layer` on. With `enlarges`, an enlargement without weights stands in front of each
    /// convolution to the next.
    fn levels(
        plan: &mut Plan,
        config: &TinyCoderConfig,
        out_channels: usize,
        mut layer: usize,
        enlarges: bool,
    ) -> Vec<Level> {
        let c = config.channels;
        let mut next = || {
            layer += 1;
            layer - 1
        };
        let last = config.blocks.len() - 1;
        let level = |(i, &blocks): (usize, &usize)| Level {
            blocks: (0..blocks)
                .map(|_| {
                    let block = next();
                    let conv = |j: usize| Conv::new(plan, format!("{block}.conv.{j}"), c, c, true);
                    Block { convs: [0, 2, 4].map(conv) }
                })
                .collect(),
            conv: if i == last {
                Conv::new(plan, next(), out_channels, c, true)
            } else if enlarges {
                next();
                Conv::upsampler(plan, next(), c)
            } else {
                Conv::new(plan, next(), c, c, false)
            },
        };
        config.blocks.iter().enumerate().map(level).collect()
    }
}

impl Level {
    fn blocks(&self, ops: &mut dyn Ops, maps: &mut Maps, x: Tensor) -> Tensor {
        self.blocks.iter().fold(x, |x, block| {
            let [first, second, third] = block.convs;
            // `a`, which the next block reads, is the buffer taken last.
            let [b, a] = [second, first].map(|conv| maps.next(x.shape, conv));
            ops.conv2d(first.to(a, x));
            relu(ops, a);
            ops.conv2d(second.to(b, a));
            relu(ops, b);
            ops.conv2d(Conv2d { residual: Some(x), ..third.to(a, b) });
            relu(ops, a);
            a
        })
    }
}

fn relu(ops: &mut dyn Ops, x: Tensor) {
    ops.activate(Activate { out: x, x, activation: Activation::Relu });
}

/// Three buffers that a chain of layers writes in turn: a block's input lives until its end.
struct Maps {
    buffers: [Tensor; 3],
    turn: usize,
}

impl Maps {
    fn new(ops: &mut dyn Ops, elements: usize) -> Self {
        Maps { buffers: [0, 1, 2].map(|_| ops.alloc([1, 1, 1, elements])), turn: 0 }
    }

    /// Room for the channels that `conv` writes.
    fn next(&mut self, [b, h, w, _]: [usize; 4], conv: Conv) -> Tensor {
        self.turn = (self.turn + 1) % 3;
        let buffer = self.buffers[self.turn];
        let shape = [b, h, w, conv.weight.b()];
        assert!(shape.iter().product::<usize>() <= buffer.len(), "{shape:?} is larger than planned");
        Tensor::new(buffer.address, shape, buffer.dtype)
    }
}
