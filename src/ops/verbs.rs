//! The verbs: what a model may ask of a backend. The doc comment of a verb is its specification.
//!
//! Every verb is a plain struct of tensors and scalars, output first. Accumulation, norm statistics
//! and softmax are f32 whatever the activations are; a result is rounded to the output's dtype once.
//! Outputs never overlap inputs, except where a field says so.

use super::tensor::Tensor;
use crate::dtype::DType;

/// One row of a table, chosen per image on the device: `table[index[b], ..]`.
#[derive(Clone, Copy, Debug)]
pub struct TableRow {
    pub table: Tensor, // [1,1,n,c]
    pub index: Tensor, // i32 [1,1,1,at least b]
}

/// Elementwise functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x·sigmoid(x)`
    Silu,
    /// The exact one, `x·Φ(x)`.
    Gelu,
    /// CLIP's `x·sigmoid(1.702·x)`.
    QuickGelu,
    /// `max(x, 0)`; a NaN stays one.
    Relu,
    /// `3·tanh(x/3)`: TAESD's soft clamp.
    Tanh3,
    /// `2·x - 1`: from 0..1 to -1..1.
    FromUnit,
    /// `x/2 + 1/2`: from -1..1 to 0..1.
    ToUnit,
}

/// `out = conv(x, weight) + bias + row.table[row.index[b]] + residual`, cross-correlation as in torch.
///
/// The kernel is 1x1 or 3x3. Output pixel (i, j) reads input rows `i·stride - pad + (0..kh)` and
/// columns likewise; what lies outside is zero. With `upsample`, `x` is read as its nearest 2x
/// enlargement, cut to the output's size (so that odd sizes come back from a halving). `pad` is the
/// padding above and to the left; below and to the right it follows from the output's size, which
/// is how the VAE encoder's asymmetric (0,1,0,1) padding is written: stride 2, pad 0.
#[derive(Clone, Copy, Debug)]
pub struct Conv2d {
    pub out: Tensor,              // [b,ho,wo,o]
    pub x: Tensor,                // [b,h,w,i], i a multiple of 4
    pub weight: Tensor,           // [o,kh,kw,i]
    pub bias: Option<Tensor>,     // [1,1,1,o]
    pub row: Option<TableRow>,    // rows of o, added to every pixel of an image
    pub residual: Option<Tensor>, // [b,ho,wo,o], may be `out` itself
    pub stride: usize,
    pub pad: usize,
    pub upsample: bool,
}

/// `out = activation(x · weightᵀ + bias) + residual`.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    pub out: Tensor,                    // [b,1,t,n]
    pub x: Tensor,                      // [b,1,t,k]
    pub weight: Tensor,                 // [1,1,n,k]
    pub bias: Option<Tensor>,           // [1,1,1,n]
    pub activation: Option<Activation>, // not together with `residual`
    pub residual: Option<Tensor>,       // [b,1,t,n], may be `out` itself
}

/// `out = (x - mean) / sqrt(var + eps) · weight + bias`, then `silu` if asked for; mean and biased
/// variance over the pixels and the `c / groups` adjacent channels of a group of one image.
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm {
    pub out: Tensor,    // [b,h,w,c]
    pub x: Tensor,      // [b,h,w,c]
    pub weight: Tensor, // [1,1,1,c]
    pub bias: Tensor,   // [1,1,1,c]
    pub groups: usize,
    pub eps: f32,
    pub silu: bool,
}

/// `out = (x - mean) / sqrt(var + eps) · weight + bias`, mean and biased variance over a row.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm {
    pub out: Tensor,    // [b,1,t,c]
    pub x: Tensor,      // [b,1,t,c]
    pub weight: Tensor, // [1,1,1,c]
    pub bias: Tensor,   // [1,1,1,c]
    pub eps: f32,
}

/// `out = softmax(q · kᵀ / sqrt(d)) · v` for each image and head; head j owns columns `j·d .. (j+1)·d`.
/// `causal`: query i sees keys `0..=i` only.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    pub out: Tensor, // [b,1,t,heads·d]
    pub q: Tensor,   // [b,1,t,heads·d]
    pub k: Tensor,   // [b,1,s,heads·d]
    pub v: Tensor,   // [b,1,s,heads·d]
    pub heads: usize,
    pub causal: bool,
}

/// `out = activation(x)`
#[derive(Clone, Copy, Debug)]
pub struct Activate {
    pub out: Tensor, // [b,h,w,c], may be `x` itself
    pub x: Tensor,   // [b,h,w,c]
    pub activation: Activation,
}

/// `out[.., j] = x[.., 2j] · gelu(x[.., 2j+1])`: the two halves of the GEGLU projection are
/// interleaved at load (value, gate, value, gate, ...), so that one tile of a product holds both.
#[derive(Clone, Copy, Debug)]
pub struct Geglu {
    pub out: Tensor, // [b,1,t,n]
    pub x: Tensor,   // [b,1,t,2n]
}

/// `x[b] = x[b] + gain.table[gain.index[b]] · y[b]`. Where the gain is zero, `x` stays as it is whatever `y` holds.
#[derive(Clone, Copy, Debug)]
pub struct Accumulate {
    pub x: Tensor,      // [b,h,w,c], updated
    pub y: Tensor,      // [b,h,w,c]
    pub gain: TableRow, // f32, one number a row
}

/// `out[b, t] = tokens[ids[b, t]] + positions[t]`, or without positions the rows of a table by their
/// numbers. An id outside the table reads its last row.
#[derive(Clone, Copy, Debug)]
pub struct Embed {
    pub out: Tensor,               // [b,1,t,c]
    pub ids: Tensor,               // i32 [b,1,1,t]
    pub tokens: Tensor,            // [1,1,vocabulary,c]
    pub positions: Option<Tensor>, // [1,1,at least t,c]
}

/// `x[b, t] = x[b, t] · weight[b, t] · r[b]`: how much the tokens of a prompt weigh. With `restore_mean`,
/// `r[b]` is the mean of all `x[b]` before over that after the weights (1 where the latter is zero), as in
/// A1111's `EmphasisOriginal`; otherwise 1. Weights of 1 leave every bit as it is.
#[derive(Clone, Copy, Debug)]
pub struct Emphasize {
    pub x: Tensor,      // [b,1,t,c], updated
    pub weight: Tensor, // f32 [b,1,1,t]
    pub restore_mean: bool,
}

/// Sinusoidal features of a timestep, as `get_timestep_embedding` of diffusers: with `half = c/2` and
/// `f[i] = exp(-ln(10000)·i / (half - freq_shift))`, the row is `[sin(t·f) | cos(t·f)]`, or
/// `[cos | sin]` with `flip_sin_to_cos`. Computed in f32, rounded once.
#[derive(Clone, Copy, Debug)]
pub struct TimestepEmbedding {
    pub out: Tensor,       // [1,1,n,c]
    pub timesteps: Tensor, // f32 [1,1,1,n]
    pub flip_sin_to_cos: bool,
    pub freq_shift: f32,
}

/// `out = x · scale`, from f32 to the activations' dtype.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    pub out: Tensor, // [b,h,w,c]
    pub x: Tensor,   // f32 [b,h,w,c]
    pub scale: f32,
}

/// `out[r] = x[r mod b] · in_scale`, with `in_scale` from the row of the sampler table at `index[r mod b]`.
/// With guidance `out` has 2b images (unconditional first), without it b.
#[derive(Clone, Copy, Debug)]
pub struct ModelInput {
    pub out: Tensor,   // [b or 2b,h,w,c], of which the columns may be some of a wider tensor's
    pub x: Tensor,     // f32 [b,h,w,c]
    pub table: Tensor, // f32 [1,1,n,sampler::ROW_WIDTH]
    pub index: Tensor, // i32 [1,1,1,at least b]
}

/// Classifier-free guidance and one row of the sampler table, all in f32.
///
/// With `u` and `c` the unconditional and conditional halves of `output`, and `phi = guidance_rescale[b]`,
/// ```text
/// g = u + guidance[b]·(c - u)
/// e = phi·(std(c)/std(g))·g + (1 - phi)·g
/// ```
/// with the standard deviations over the whole image, divided by n - 1 (`rescale_noise_cfg` of diffusers; Lin et
/// al. 2023, section 3.4). They are not computed where `phi` is 0. Without guidance, `output` has b images and
/// is `e`.
///
/// With `row = table[index[b]]` (layout:
/// [`crate::sampler::Row::pack`]), and on the right hand side the values before the step:
/// ```text
/// basis = [x, e, saved, noise[index[b]], h0, h1, h2, h3]
/// x     = row.next · basis
/// saved = row.save · basis
/// if row.remember: h3, h2, h1, h0 = h2, h1, h0, remember_x·x + remember_e·e
/// ```
/// A coefficient of exactly zero leaves its term out, whatever the memory holds.
///
/// With `known`, only a part of the picture is painted, as in diffusers' `StableDiffusionInpaintPipeline` with a
/// U-Net of four channels: at last, and in `x` alone,
/// ```text
/// x = mask·x + (1 - mask)·(row.known · [latents, noise])
/// ```
/// where a mask of exactly 1 leaves `x` as it is, and one of 0 leaves nothing of it.
#[derive(Clone, Copy, Debug)]
pub struct SamplerStep {
    pub x: Tensor,                // f32 [b,h,w,c], updated
    pub saved: Tensor,            // f32 [b,h,w,c], updated
    pub history: Tensor,          // f32 [4·b,h,w,c]: h0 of all images, then h1, ...; updated
    pub output: Tensor,           // [b or 2b,h,w,c]
    pub noise: Tensor,            // f32 [n·b,h,w,c]: row 0 of all images, then row 1, ...
    pub table: Tensor,            // f32 [1,1,n,sampler::ROW_WIDTH]
    pub index: Tensor,            // i32 [1,1,1,at least b]
    pub guidance: Tensor,         // f32 [1,1,1,b]
    pub guidance_rescale: Tensor, // f32 [1,1,1,b]
    pub known: Option<Known>,
}

/// What is known of a picture of which a part is painted.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    pub mask: Tensor,    // f32 [b,h,w,1]: 1 is painted, 0 is known
    pub latents: Tensor, // f32 [b,h,w,c]
    pub noise: Tensor,   // f32 [b,h,w,c]: what the latents started with
}

/// `out = round(clamp(x/2 + 1/2, 0, 1) · 255)`, halves to even; a NaN becomes 0.
#[derive(Clone, Copy, Debug)]
pub struct ToRgb8 {
    pub out: Tensor, // u8 [b,h,w,3]
    pub x: Tensor,   // [b,h,w,3]
}

impl ToRgb8 {
    /// The formula for one colour.
    pub fn level(x: f32) -> u8 {
        // `as` turns a NaN into 0.
        ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
    }
}

/// One verb with its arguments: what a backend executes, records, counts or times.
#[expect(clippy::large_enum_variant, reason = "a stage has a few hundred calls, and they are to be Copy")]
#[derive(Clone, Copy, Debug)]
pub enum Call {
    Conv2d(Conv2d),
    Linear(Linear),
    GroupNorm(GroupNorm),
    LayerNorm(LayerNorm),
    Attention(Attention),
    Activate(Activate),
    Geglu(Geglu),
    Accumulate(Accumulate),
    Embed(Embed),
    Emphasize(Emphasize),
    TimestepEmbedding(TimestepEmbedding),
    Scale(Scale),
    ModelInput(ModelInput),
    SamplerStep(SamplerStep),
    ToRgb8(ToRgb8),
}

impl Conv2d {
    /// A 3x3 or 1x1 convolution that keeps the map's size.
    pub fn new(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Self {
        let pad = weight.h() / 2;
        Conv2d {
            out,
            x,
            weight,
            bias: Some(bias),
            row: None,
            residual: None,
            stride: 1,
            pad,
            upsample: false,
        }
    }

    /// Height and width of the map that the kernel slides over: that of `x`, or its enlargement.
    pub fn virtual_size(&self) -> (usize, usize) {
        if self.upsample { (self.out.h(), self.out.w()) } else { (self.x.h(), self.x.w()) }
    }

    fn check(&self) {
        let Conv2d { out, x, weight, .. } = self;
        let [o, kh, kw, i] = weight.shape;
        assert!(kh == kw && (kh == 1 || kh == 3), "{self:?}");
        assert!(x.c() == i && out.c() == o && x.b() == out.b() && i.is_multiple_of(4), "{self:?}");
        let (h, w) = self.virtual_size();
        if self.upsample {
            assert!(x.h() == h.div_ceil(2) && x.w() == w.div_ceil(2) && self.stride == 1, "{self:?}");
        }
        // The last output pixel may reach at most one row of padding below and to the right.
        for (n, n_out) in [(h, out.h()), (w, out.w())] {
            let end = (n_out - 1) * self.stride + kh;
            assert!(self.pad < kh && end <= n + self.pad + 1 && end + self.stride > n + self.pad, "{self:?}");
        }
        check_epilogue(out, self.bias, self.residual);
        if let Some(TableRow { table, index }) = self.row {
            assert!(table.c() == o && index.dtype == DType::I32 && index.c() >= out.b(), "{self:?}");
        }
    }
}

impl Linear {
    pub fn new(out: Tensor, x: Tensor, weight: Tensor, bias: Option<Tensor>) -> Self {
        Linear { out, x, weight, bias, activation: None, residual: None }
    }

    fn check(&self) {
        let Linear { out, x, weight, .. } = self;
        assert!(out.rows() == x.rows() && weight.shape == [1, 1, out.c(), x.c()], "{self:?}");
        assert!(self.activation.is_none() || self.residual.is_none(), "{self:?}");
        check_epilogue(out, self.bias, self.residual);
    }
}

fn check_epilogue(out: &Tensor, bias: Option<Tensor>, residual: Option<Tensor>) {
    if let Some(bias) = bias {
        assert_eq!(bias.shape, [1, 1, 1, out.c()], "bias of {out}");
    }
    if let Some(residual) = residual {
        assert_eq!((residual.shape, residual.dtype), (out.shape, out.dtype), "residual of {out}");
    }
}

impl Call {
    /// The verb's name, the same word in kernels, tests, benches and the log.
    pub fn name(&self) -> &'static str {
        match self {
            Call::Conv2d(_) => "conv2d",
            Call::Linear(_) => "linear",
            Call::GroupNorm(_) => "group_norm",
            Call::LayerNorm(_) => "layer_norm",
            Call::Attention(_) => "attention",
            Call::Activate(_) => "activate",
            Call::Geglu(_) => "geglu",
            Call::Accumulate(_) => "accumulate",
            Call::Embed(_) => "embed",
            Call::Emphasize(_) => "emphasize",
            Call::TimestepEmbedding(_) => "timestep_embedding",
            Call::Scale(_) => "scale",
            Call::ModelInput(_) => "model_input",
            Call::SamplerStep(_) => "sampler_step",
            Call::ToRgb8(_) => "to_rgb8",
        }
    }

    /// What the verb writes.
    pub fn out(&self) -> Tensor {
        match self {
            Call::Conv2d(v) => v.out,
            Call::Linear(v) => v.out,
            Call::GroupNorm(v) => v.out,
            Call::LayerNorm(v) => v.out,
            Call::Attention(v) => v.out,
            Call::Activate(v) => v.out,
            Call::Geglu(v) => v.out,
            Call::Accumulate(v) => v.x,
            Call::Embed(v) => v.out,
            Call::Emphasize(v) => v.x,
            Call::TimestepEmbedding(v) => v.out,
            Call::Scale(v) => v.out,
            Call::ModelInput(v) => v.out,
            Call::SamplerStep(v) => v.x,
            Call::ToRgb8(v) => v.out,
        }
    }

    /// Asserts that shapes and dtypes fit; every backend may rely on it.
    ///
    /// # Panics
    /// With the whole call in the message: a wrong shape is a bug of the model's code.
    pub fn check(&self) {
        match self {
            Call::Conv2d(v) => v.check(),
            Call::Linear(v) => v.check(),
            Call::GroupNorm(v) => {
                assert!(v.out.shape == v.x.shape && v.x.c().is_multiple_of(v.groups), "{v:?}");
                assert!(v.weight.c() == v.x.c() && v.bias.c() == v.x.c(), "{v:?}");
            }
            Call::LayerNorm(v) => {
                assert!(
                    v.out.shape == v.x.shape && v.weight.c() == v.x.c() && v.bias.c() == v.x.c(),
                    "{v:?}"
                );
            }
            Call::Attention(v) => {
                assert!(v.out.shape == v.q.shape && v.k.shape == v.v.shape, "{v:?}");
                assert!(v.q.b() == v.k.b() && v.q.c() == v.k.c() && v.q.c().is_multiple_of(v.heads), "{v:?}");
                assert!(!v.causal || v.q.tokens() == v.k.tokens(), "{v:?}");
            }
            Call::Activate(v) => {
                assert!(v.out.shape == v.x.shape && v.out.dtype == v.x.dtype, "{v:?}");
            }
            Call::Geglu(v) => assert!(v.out.rows() == v.x.rows() && v.x.c() == 2 * v.out.c(), "{v:?}"),
            Call::Accumulate(v) => {
                let TableRow { table, index } = v.gain;
                assert!(v.x.shape == v.y.shape && table.c() == 1 && table.dtype == DType::F32, "{v:?}");
                assert!(index.dtype == DType::I32 && index.c() >= v.x.b(), "{v:?}");
            }
            Call::Embed(v) => {
                assert!(v.ids.dtype == DType::I32 && v.ids.len() == v.out.rows(), "{v:?}");
                assert!(v.tokens.c() == v.out.c(), "{v:?}");
                let fits =
                    |positions: Tensor| positions.c() == v.out.c() && positions.rows() >= v.out.tokens();
                assert!(v.positions.is_none_or(fits), "{v:?}");
            }
            Call::Emphasize(v) => {
                let [b, h, t, _] = v.x.shape;
                assert!(h == 1 && v.weight.shape == [b, 1, 1, t], "{v:?}");
                assert!(v.weight.dtype == DType::F32 && v.weight.is_dense(), "{v:?}");
            }
            Call::TimestepEmbedding(v) => {
                assert!(v.timesteps.len() == v.out.rows() && v.out.c().is_multiple_of(2), "{v:?}");
                assert_eq!(v.timesteps.dtype, DType::F32);
            }
            Call::Scale(v) => assert!(v.out.shape == v.x.shape && v.x.dtype == DType::F32, "{v:?}"),
            Call::ModelInput(v) => {
                assert!(v.out.shape[1..] == v.x.shape[1..] && v.out.b().is_multiple_of(v.x.b()), "{v:?}");
                assert!(v.x.dtype == DType::F32 && v.index.c() >= v.x.b(), "{v:?}");
            }
            Call::SamplerStep(v) => {
                assert!(v.x.shape == v.saved.shape && v.output.shape[1..] == v.x.shape[1..], "{v:?}");
                assert!(v.output.b() == v.x.b() || v.output.b() == 2 * v.x.b(), "{v:?}");
                assert!(v.history.b() == 4 * v.x.b() && v.noise.b() == v.table.rows() * v.x.b(), "{v:?}");
                if let Some(known) = v.known {
                    let [b, h, w, _] = v.x.shape;
                    assert!(known.latents.shape == v.x.shape && known.noise.shape == v.x.shape, "{v:?}");
                    assert!(known.mask.shape == [b, h, w, 1], "{v:?}");
                }
            }
            Call::ToRgb8(v) => assert!(v.out.shape == v.x.shape && v.out.dtype == DType::U8, "{v:?}"),
        }
    }

    /// Floating-point operations of the matrix products (a multiply and an add count two); zero for
    /// the verbs that only move data.
    pub fn flops(&self) -> u64 {
        let n = match self {
            Call::Conv2d(v) => 2 * v.out.len() * v.weight.len() / v.weight.b(),
            Call::Linear(v) => 2 * v.out.len() * v.x.c(),
            Call::Attention(v) => {
                let pairs = v.q.b() * v.q.tokens() * v.k.tokens();
                4 * pairs * v.q.c() / if v.causal { 2 } else { 1 }
            }
            _ => 0,
        };
        n as u64
    }

    /// Bytes that must move: every input read once, every output written once.
    pub fn bytes(&self) -> u64 {
        let optional = |t: Option<Tensor>| t.map_or(0, |t| t.bytes());
        let n = match self {
            Call::Conv2d(v) => {
                let row = v.row.map_or(0, |row| v.out.b() * row.table.c() * row.table.dtype.size());
                v.out.bytes() + v.x.bytes() + v.weight.bytes() + optional(v.bias) + optional(v.residual) + row
            }
            Call::Linear(v) => {
                v.out.bytes() + v.x.bytes() + v.weight.bytes() + optional(v.bias) + optional(v.residual)
            }
            Call::GroupNorm(v) => v.out.bytes() + v.x.bytes() + v.weight.bytes() + v.bias.bytes(),
            Call::LayerNorm(v) => v.out.bytes() + v.x.bytes() + v.weight.bytes() + v.bias.bytes(),
            Call::Attention(v) => v.out.bytes() + v.q.bytes() + v.k.bytes() + v.v.bytes(),
            Call::Activate(v) => v.out.bytes() + v.x.bytes(),
            Call::Geglu(v) => v.out.bytes() + v.x.bytes(),
            Call::Accumulate(v) => 2 * v.x.bytes() + v.y.bytes(),
            Call::Embed(v) => {
                let rows = if v.positions.is_some() { 3 } else { 2 };
                rows * v.out.bytes() + v.ids.bytes()
            }
            Call::Emphasize(v) => 2 * v.x.bytes() + v.weight.bytes(),
            Call::TimestepEmbedding(v) => v.out.bytes() + v.timesteps.bytes(),
            Call::Scale(v) => v.out.bytes() + v.x.bytes(),
            Call::ModelInput(v) => v.out.bytes() + v.x.bytes(),
            // x and saved are read and written; history and noise only where the row asks for them, and the
            // output a second time only where guidance is rescaled.
            Call::SamplerStep(v) => {
                let known = v.known.map_or(0, |known| known.mask.bytes() + 2 * known.latents.bytes());
                4 * v.x.bytes() + v.output.bytes() + known
            }
            Call::ToRgb8(v) => v.out.bytes() + v.x.bytes(),
        };
        n as u64
    }

    /// The shape in one phrase, for benches and profiles.
    pub fn shape(&self) -> String {
        match self {
            Call::Conv2d(v) => {
                let [b, h, w, i] = v.x.shape;
                let (o, k) = (v.weight.b(), v.weight.h());
                let up = if v.upsample { " up2" } else { "" };
                let stride = if v.stride == 1 { String::new() } else { format!(" /{}", v.stride) };
                format!("{b}x{h}x{w}x{i} -> {o} {k}x{k}{stride}{up}")
            }
            Call::Linear(v) => format!("m={} k={} n={}", v.x.rows(), v.x.c(), v.out.c()),
            Call::Attention(v) => {
                let causal = if v.causal { " causal" } else { "" };
                let (b, heads, t, s) = (v.q.b(), v.heads, v.q.tokens(), v.k.tokens());
                format!("b={b} heads={heads} t={t} s={s} d={}{causal}", v.q.c() / heads)
            }
            other => {
                let [b, h, w, c] = other.out().shape;
                format!("{b}x{h}x{w}x{c}")
            }
        }
    }
}
