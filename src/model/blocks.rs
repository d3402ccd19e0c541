//! The parts that the three models share: layers' weights, resnets, transformer blocks.
//!
//! A constructor walks the checkpoint's structure over a [`Plan`], a `forward` issues the verbs.
//! Fields carry the checkpoint's own path segments.
//!
//! Easy to get wrong: GEGLU multiplies the first half of the projection by the gelu of the second;
//! GroupNorm's eps is the configuration's in resnets but 1e-6 in front of a transformer and all over
//! the VAE; LayerNorm's is 1e-5; `attention_head_dim` of a U-Net counts heads.

use crate::ops::*;
use crate::weights::plan::Plan;

/// How small the residual stream of a model is carried: at this share, a power of two, of what its
/// weights say.
///
/// XL's VAE has feature maps of up to hundreds of thousands, beyond what a half can hold. Group norm undoes
/// any factor (its eps takes the factor's square), so whoever writes into the stream can write less: the
/// layers behind a norm have weights and biases multiplied by the share, those along the stream their
/// biases alone. A power of two changes no digit of f32, and of halves only what gets subnormal, so the
/// picture stays the same; nothing is added at run time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Carried(f32);

impl Carried {
    pub const WHOLE: Carried = Carried(1.0);
    /// Room for maps of two million.
    pub const IN_A_HALF: Carried = Carried(1.0 / 32.0);

    /// The eps of a group norm that reads the stream.
    pub fn eps(self, eps: f32) -> f32 {
        eps * self.0 * self.0
    }

    /// Plans a layer between a norm and the stream.
    pub fn into_stream<R>(self, plan: &mut Plan, layer: impl FnOnce(&mut Plan) -> R) -> R {
        plan.scaled(self.0, layer)
    }

    /// Plans a conv of `o` outputs from the stream to the stream.
    fn along_stream(
        self,
        plan: &mut Plan,
        name: &str,
        o: usize,
        weight: impl FnOnce(&mut Plan) -> Tensor,
    ) -> Conv {
        plan.scope(name, |plan| Conv {
            weight: weight(plan),
            bias: plan.scaled(self.0, |plan| plan.vector("bias", o)),
        })
    }
}

/// A conv layer's weights.
#[derive(Clone, Copy)]
pub struct Conv {
    pub weight: Tensor, // [o,k,k,i], [o,5,5,i] of an upsampler
    pub bias: Tensor,   // [o]
}

impl Conv {
    pub fn new(plan: &mut Plan, name: impl ToString, o: usize, i: usize, k: usize) -> Self {
        plan.scope(name, |plan| Conv { weight: plan.conv("weight", o, i, k), bias: plan.vector("bias", o) })
    }

    /// The conv that halves a map of `c` channels.
    pub fn downsampler(plan: &mut Plan, c: usize, carried: Carried) -> Self {
        carried.along_stream(plan, "downsamplers.0.conv", c, |plan| plan.conv("weight", c, c, 3))
    }

    /// The conv of an enlarged map of `c` channels, for [`Conv::upsample`] alone.
    pub fn upsampler(plan: &mut Plan, c: usize, carried: Carried) -> Self {
        carried.along_stream(plan, "upsamplers.0.conv", c, |plan| plan.upsampling_conv("weight", c, c))
    }

    /// The verb that applies it; keeps the map's size unless its fields are changed.
    pub fn to(&self, out: Tensor, x: Tensor) -> Conv2d {
        Conv2d::new(out, x, self.weight, self.bias)
    }

    /// The verb that applies it to the nearest 2x enlargement of `x`.
    pub fn upsample(&self, out: Tensor, x: Tensor) -> Conv2d {
        Conv2d::upsampling(out, x, self.weight, self.bias)
    }
}

/// A linear layer's weights.
#[derive(Clone, Copy)]
pub struct Dense {
    pub weight: Tensor, // [n,k]
    pub bias: Option<Tensor>,
}

impl Dense {
    pub fn new(plan: &mut Plan, name: impl ToString, n: usize, k: usize) -> Self {
        plan.scope(name, |plan| Dense {
            weight: plan.matrix("weight", n, k),
            bias: Some(plan.vector("bias", n)),
        })
    }

    /// Several layers of the same input in one product, their outputs side by side.
    pub fn stacked(plan: &mut Plan, names: &[&str], n: usize, k: usize, bias: bool) -> Self {
        let keys = |kind: &str| names.iter().map(|name| format!("{name}.{kind}")).collect::<Vec<_>>();
        let (weights, biases) = (keys("weight"), keys("bias"));
        let weights: Vec<&str> = weights.iter().map(String::as_str).collect();
        let biases: Vec<&str> = biases.iter().map(String::as_str).collect();
        Dense {
            weight: plan.stacked_matrices(&weights, n, k),
            bias: bias.then(|| plan.stacked_vectors(&biases, n)),
        }
    }

    pub fn to(&self, out: Tensor, x: Tensor) -> Linear {
        Linear::new(out, x, self.weight, self.bias)
    }
}

/// A norm's scale and offset.
#[derive(Clone, Copy)]
pub struct Norm {
    pub weight: Tensor,
    pub bias: Tensor,
}

impl Norm {
    pub fn new(plan: &mut Plan, name: impl ToString, c: usize) -> Self {
        plan.scope(name, |plan| Norm { weight: plan.vector("weight", c), bias: plan.vector("bias", c) })
    }

    pub fn layer(&self, out: Tensor, x: Tensor, eps: f32) -> LayerNorm {
        LayerNorm { out, x, weight: self.weight, bias: self.bias, eps }
    }
    pub fn group(&self, out: Tensor, x: Tensor, groups: usize, eps: f32) -> GroupNorm {
        GroupNorm { out, x, weight: self.weight, bias: self.bias, groups, eps, silu: false }
    }
}

/// `ResnetBlock2D`: `out = shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + time)))`.
pub struct Resnet {
    norm1: Norm,
    conv1: Conv,
    norm2: Norm,
    conv2: Conv,
    conv_shortcut: Option<Conv>,
    /// First of this resnet's columns in the U-Net's time table.
    time_column: usize,
    groups: usize,
    eps: f32,
}

impl Resnet {
    pub fn new(plan: &mut Plan, i: usize, o: usize, groups: usize, eps: f32) -> Self {
        Self::carried(plan, i, o, groups, eps, Carried::WHOLE)
    }

    /// A resnet without time whose maps, that between its convs included, are all `carried` small.
    pub fn carried(plan: &mut Plan, i: usize, o: usize, groups: usize, eps: f32, carried: Carried) -> Self {
        Resnet {
            norm1: Norm::new(plan, "norm1", i),
            conv1: carried.into_stream(plan, |plan| Conv::new(plan, "conv1", o, i, 3)),
            norm2: Norm::new(plan, "norm2", o),
            conv2: carried.into_stream(plan, |plan| Conv::new(plan, "conv2", o, o, 3)),
            conv_shortcut: (i != o)
                .then(|| carried.along_stream(plan, "conv_shortcut", o, |plan| plan.conv("weight", o, i, 1))),
            time_column: 0,
            groups,
            eps: carried.eps(eps),
        }
    }

    /// The same, fed with the time embedding from columns `time_column..` of a table.
    pub fn with_time(self, time_column: usize) -> Self {
        Resnet { time_column, ..self }
    }

    /// `out` may be `x` itself when they have as many channels. `time` is the whole time table.
    pub fn forward(&self, ops: &mut dyn Ops, name: &str, out: Tensor, x: Tensor, time: Option<TableRow>) {
        ops.scope(name, |ops| {
            // Where `out` waits for its residual it can hold norm1's output.
            let normed = match self.conv_shortcut {
                None if out.address != x.address => out,
                _ => ops.alloc(x.shape),
            };
            self.forward_with(ops, out, x, normed, time);
        });
    }

    /// The same for an `x` that nobody reads again: a resnet with a shortcut norms it in place, and takes no
    /// more memory than the map between its convs. `out` is not `x`.
    pub fn forward_last(&self, ops: &mut dyn Ops, name: &str, out: Tensor, x: Tensor) {
        assert_ne!(out.address, x.address, "{name}");
        let normed = if self.conv_shortcut.is_some() { x } else { out };
        ops.scope(name, |ops| self.forward_with(ops, out, x, normed, None));
    }

    /// `normed` is where the first norm writes: of x's shape, and `x` only where there is a shortcut, `out` only
    /// where there is none.
    fn forward_with(
        &self,
        ops: &mut dyn Ops,
        out: Tensor,
        x: Tensor,
        normed: Tensor,
        time: Option<TableRow>,
    ) {
        let hidden = ops.alloc(out.shape);
        let norm =
            |norm: &Norm, out, x| GroupNorm { silu: true, ..norm.group(out, x, self.groups, self.eps) };
        let residual = match &self.conv_shortcut {
            Some(conv) => {
                ops.conv2d(conv.to(out, x));
                out
            }
            None => x,
        };
        ops.group_norm(norm(&self.norm1, normed, x));
        let row = time
            .map(|time| TableRow { table: time.table.columns(self.time_column, out.c()), index: time.index });
        ops.conv2d(Conv2d { row, ..self.conv1.to(hidden, normed) });
        ops.group_norm(norm(&self.norm2, hidden, hidden));
        ops.conv2d(Conv2d { residual: Some(residual), ..self.conv2.to(out, hidden) });
    }
}

/// The keys and values of all cross-attentions, in a table of the tokens of many texts.
#[derive(Clone, Copy)]
pub struct Context {
    pub table: Tensor, // [1,1,tokens,context_columns]
    /// The tokens of each image.
    pub keys: KeyRows,
}

impl Context {
    /// The tokens of `count` images from `start` on.
    fn keys_of(&self, start: usize, count: usize) -> KeyRows {
        let KeyRows { first, length, longest } = self.keys;
        KeyRows { first: first.columns(start, count), length: length.columns(start, count), longest }
    }
}

/// `BasicTransformerBlock`: self-attention, cross-attention, GEGLU feed-forward, each with its residual.
struct TransformerBlock {
    norm1: Norm,
    attn1_qkv: Dense,
    attn1_out: Dense,
    norm2: Norm,
    attn2_q: Dense,
    attn2_kv: Dense,
    attn2_out: Dense,
    norm3: Norm,
    ff_in: Dense,
    ff_out: Dense,
    /// First of this block's columns in the U-Net's context table: keys, then values.
    context_column: usize,
}

const LAYER_NORM_EPS: f32 = 1e-5;

impl TransformerBlock {
    fn new(plan: &mut Plan, c: usize, context_dim: usize, context_column: usize) -> Self {
        TransformerBlock {
            norm1: Norm::new(plan, "norm1", c),
            attn1_qkv: Dense::stacked(plan, &["attn1.to_q", "attn1.to_k", "attn1.to_v"], c, c, false),
            attn1_out: Dense::new(plan, "attn1.to_out.0", c, c),
            norm2: Norm::new(plan, "norm2", c),
            attn2_q: Dense { weight: plan.matrix("attn2.to_q.weight", c, c), bias: None },
            attn2_kv: Dense::stacked(plan, &["attn2.to_k", "attn2.to_v"], c, context_dim, false),
            attn2_out: Dense::new(plan, "attn2.to_out.0", c, c),
            norm3: Norm::new(plan, "norm3", c),
            ff_in: Dense {
                weight: plan.matrix("ff.net.0.proj.weight", 8 * c, c),
                bias: Some(plan.vector("ff.net.0.proj.bias", 8 * c)),
            },
            ff_out: Dense::new(plan, "ff.net.2", c, 4 * c),
            context_column,
        }
    }

    /// Updates `x` in place up to the cross-attention, whose result and what follows are in `out`. That may be
    /// `x` too, or a multiple of its images: one of each for each context. `context` is that of the images of `out`.
    fn forward(&self, ops: &mut dyn Ops, out: Tensor, x: Tensor, heads: usize, context: Context) {
        let [b, _, t, c] = x.shape;
        let rows = out.b();
        let normed = ops.alloc([rows, 1, t, c]);
        let attended = ops.alloc([rows, 1, t, c]);
        let [normed_x, attended_x] = [normed, attended].map(|tensor| tensor.images(0, b));
        ops.scope("attn1", |ops| {
            let qkv = ops.alloc([b, 1, t, 3 * c]);
            ops.layer_norm(self.norm1.layer(normed_x, x, LAYER_NORM_EPS));
            ops.linear(self.attn1_qkv.to(qkv, normed_x));
            let [q, k, v] = [0, c, 2 * c].map(|column| qkv.columns(column, c));
            ops.attention(Attention { out: attended_x, q, k, v, heads, causal: false, keys: None });
            ops.linear(Linear { residual: Some(x), ..self.attn1_out.to(x, attended_x) });
        });
        ops.scope("attn2", |ops| {
            let q = ops.alloc([b, 1, t, c]);
            ops.layer_norm(self.norm2.layer(normed_x, x, LAYER_NORM_EPS));
            ops.linear(self.attn2_q.to(q, normed_x));
            let k = context.table.columns(self.context_column, c);
            let v = context.table.columns(self.context_column + c, c);
            let copies = out.split_images(b).zip(attended.split_images(b));
            for (i, (out, attended)) in copies.enumerate() {
                let keys = Some(context.keys_of(i * b, b));
                ops.attention(Attention { out: attended, q, k, v, heads, causal: false, keys });
                ops.linear(Linear { residual: Some(x), ..self.attn2_out.to(out, attended) });
            }
        });
        ops.scope("ff", |ops| {
            let hidden = ops.alloc([rows, 1, t, 8 * c]);
            let gated = ops.alloc([rows, 1, t, 4 * c]);
            ops.layer_norm(self.norm3.layer(normed, out, LAYER_NORM_EPS));
            let Dense { weight, bias } = self.ff_in;
            let bias = bias.expect("ff.net.0.proj has a bias");
            ops.geglu(Geglu { out: gated, x: normed, weight, bias, hidden });
            ops.linear(Linear { residual: Some(out), ..self.ff_out.to(out, gated) });
        });
    }
}

/// `Transformer2DModel`: norm, projection in, transformer blocks, projection out, residual.
pub struct Transformer {
    norm: Norm,
    proj_in: Dense,
    transformer_blocks: Vec<TransformerBlock>,
    proj_out: Dense,
    heads: usize,
    groups: usize,
}

impl Transformer {
    /// Takes its columns of the context table from `context_columns`, the count so far.
    pub fn new(
        plan: &mut Plan,
        c: usize,
        layers: usize,
        heads: usize,
        groups: usize,
        context_dim: usize,
        context_columns: &mut usize,
    ) -> Self {
        Transformer {
            norm: Norm::new(plan, "norm", c),
            // A 1x1 conv or a linear layer: the same product on NHWC.
            proj_in: Dense::new(plan, "proj_in", c, c),
            transformer_blocks: (0..layers)
                .map(|i| {
                    let column = *context_columns;
                    *context_columns += 2 * c;
                    plan.scope(format!("transformer_blocks.{i}"), |plan| {
                        TransformerBlock::new(plan, c, context_dim, column)
                    })
                })
                .collect(),
            proj_out: Dense::new(plan, "proj_out", c, c),
            heads,
            groups,
        }
    }

    /// Keys and values of a prompt's hidden states, into this transformer's columns of `out`.
    pub fn context(&self, ops: &mut dyn Ops, out: Tensor, hidden_states: Tensor) {
        for block in &self.transformer_blocks {
            let columns = out.columns(block.context_column, block.attn2_kv.weight.w());
            ops.linear(block.attn2_kv.to(columns, hidden_states));
        }
    }

    /// `out` may have a multiple of the images of `x`: one of each for each context. What comes
    /// before the first cross-attention is then computed once.
    pub fn forward(&self, ops: &mut dyn Ops, name: &str, out: Tensor, x: Tensor, context: Context) {
        ops.scope(name, |ops| {
            let normed = ops.alloc(x.shape);
            let [b, _, t, c] = x.as_tokens().shape;
            let hidden = ops.alloc([out.b(), 1, t, c]);
            let first = if out.b() == b { hidden } else { ops.alloc([b, 1, t, c]) };
            ops.group_norm(self.norm.group(normed, x, self.groups, 1e-6));
            ops.linear(self.proj_in.to(first, normed.as_tokens()));
            for (i, block) in self.transformer_blocks.iter().enumerate() {
                ops.scope(&format!("transformer_blocks.{i}"), |ops| {
                    let input = if i == 0 { first } else { hidden };
                    block.forward(ops, hidden, input, self.heads, context);
                });
            }
            let residual = Some(x.as_tokens());
            for (out, hidden) in out.as_tokens().split_images(b).zip(hidden.split_images(b)) {
                ops.linear(Linear { residual, ..self.proj_out.to(out, hidden) });
            }
        });
    }
}
