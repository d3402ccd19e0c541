//! The verbs: what a model may ask of a backend. The doc comment of a verb is its specification.
//!
//! Every verb is a plain struct of tensors and scalars, output first. Accumulation, norm statistics
//! and softmax are f32 whatever the activations are; a result is rounded to the output's dtype once.
//! Outputs never overlap inputs, except where a field says so. No verb writes what another takes as its
//! weight: a backend may read weights ahead. An image of a result, `[b,..]`, has the same bytes however many
//! others there are.

use std::ops::Range;

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
    /// `x`: a copy.
    Identity,
}

/// Where a 3x3 kernel slides over the nearest 2x enlargement of a map, neighbouring rows of its taps fall on
/// the same row of the map, and so do columns. These are the sets that occur:
/// - 0 and 1 at an even row 2y of the output, on rows y-1 and y of the map;
/// - 2 and 3 at an odd row 2y+1, on rows y and y+1;
/// - 0 and 4 at the last of an odd number of rows, below which the enlargement is cut, on rows y-1 and y.
pub const TAP_SUMS: [Range<usize>; 5] = [0..1, 1..3, 0..2, 2..3, 1..2];

/// `out = conv(x, weight) + bias + row.table[row.index[b]] + residual`, cross-correlation as in torch.
///
/// The kernel is 1x1 or 3x3. Output pixel (i, j) reads input rows `i·stride - pad + (0..kh)` and
/// columns likewise; what lies outside is zero. `pad` is the padding above and to the left; below and
/// to the right it follows from the output's size, which is how the VAE encoder's asymmetric (0,1,0,1)
/// padding is written: stride 2, pad 0.
///
/// With `upsample`, a 3x3 kernel slides over the nearest 2x enlargement of `x`, cut to the output's size
/// (so that odd sizes come back from a halving). Nobody enlarges: an output pixel sees 2x2 pixels of `x`,
/// through a 2x2 kernel out of `weight`, which holds all sums of taps along both axes ([`TAP_SUMS`]).
#[derive(Clone, Copy, Debug)]
pub struct Conv2d {
    pub out: Tensor,              // [b,ho,wo,o]
    pub x: Tensor,                // [b,h,w,i], i a multiple of 4
    pub weight: Tensor,           // [o,kh,kw,i]; [o,5,5,i] with `upsample`
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
    pub out: Tensor,    // [b,h,w,c], may be x
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
/// `causal`: query i sees keys `0..=i` only. With `keys`, not together with `causal`, each image has a range of one
/// table of keys and values.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    pub out: Tensor, // [b,1,t,heads·d]
    pub q: Tensor,   // [b,1,t,heads·d]
    pub k: Tensor,   // [b,1,s,heads·d]; [1,1,tokens,heads·d] with `keys`
    pub v: Tensor,   // as `k`
    pub heads: usize,
    pub causal: bool,
    pub keys: Option<KeyRows>,
}

/// Which tokens of a table of keys and values belong to an image b: `first[b] .. first[b] + length[b]`.
///
/// What is behind an image's tokens, up to [`KeyRows::PADDING`] from its first one and up to a multiple of 16, lies in
/// the table too and is finite: a backend may read it, and weighs it with zero. The ranges do not change while a
/// recorded step runs.
#[derive(Clone, Copy, Debug)]
pub struct KeyRows {
    pub first: Tensor,  // i32 [1,1,1,at least b]
    pub length: Tensor, // i32 [1,1,1,at least b], each 1 to `longest`
    pub longest: usize,
}

impl KeyRows {
    /// Tokens that may be read of every range: a prompt of one chunk, filled up.
    pub const PADDING: usize = 80;
}

impl Attention {
    /// The most keys of an image.
    pub fn longest(&self) -> usize {
        self.keys.map_or(self.k.tokens(), |keys| keys.longest)
    }

    pub(super) fn check(&self) {
        let Attention { out, q, k, v, heads, causal, keys } = self;
        assert!(out.shape == q.shape && k.shape == v.shape && q.c() == k.c(), "{self:?}");
        assert!(q.c().is_multiple_of(*heads) && (!causal || q.tokens() == k.tokens()), "{self:?}");
        match keys {
            None => assert_eq!(q.b(), k.b(), "{self:?}"),
            Some(KeyRows { first, length, longest }) => {
                assert!(k.b() == 1 && !causal && *longest > 0, "{self:?}");
                for entries in [first, length] {
                    assert!(entries.dtype == DType::I32 && entries.c() >= q.b(), "{self:?}");
                }
            }
        }
    }
}

/// `out = activation(x)`
#[derive(Clone, Copy, Debug)]
pub struct Activate {
    pub out: Tensor, // [b,h,w,c], may be `x` itself
    pub x: Tensor,   // [b,h,w,c]
    pub activation: Activation,
}

/// `out[.., j] = p[.., j] · gelu(p[.., n+j])` with the projection `p = x · weightᵀ + bias`: values, then
/// gates, as checkpoints have them.
#[derive(Clone, Copy, Debug)]
pub struct Geglu {
    pub out: Tensor,    // [b,1,t,n]
    pub x: Tensor,      // [b,1,t,k]
    pub weight: Tensor, // [1,1,2n,k]
    pub bias: Tensor,   // [1,1,1,2n]
    pub hidden: Tensor, // [b,1,t,2n], room for the projection; what is left in it is not specified
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

/// `out = x · scale`, from f32 to the activations' dtype; with statistics, channel j of it times `deviation[j]`,
/// plus `mean[j]`.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    pub out: Tensor, // [b,h,w,c]
    pub x: Tensor,   // f32 [b,h,w,c]
    pub scale: f32,
    pub statistics: Option<Statistics>,
}

/// Mean and standard deviation of each channel; of channel j, the entries `j mod 16`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Statistics {
    pub mean: [f32; Statistics::CHANNELS],
    pub deviation: [f32; Statistics::CHANNELS],
}

impl Statistics {
    /// Most channels that have statistics of their own.
    pub const CHANNELS: usize = 16;
}

impl Scale {
    /// Factor and summand of each channel, `j mod 16` of channel j.
    pub fn factors(&self) -> [[f32; Statistics::CHANNELS]; 2] {
        match self.statistics {
            None => [[self.scale; Statistics::CHANNELS], [0.0; Statistics::CHANNELS]],
            Some(Statistics { mean, deviation }) => [deviation.map(|deviation| self.scale * deviation), mean],
        }
    }
}

/// `out[r] = x[slot[r]] · in_scale`, with `in_scale` from the row of the sampler table at `index[r]`.
///
/// In the columns behind, `out[r]` has `beside.x[slot[r]]` where `beside.shown[r]` is not 0, and else zeros; further
/// columns are zeros.
#[derive(Clone, Copy, Debug)]
pub struct ModelInput {
    pub out: Tensor, // [r,h,w,at least c + e]
    pub x: Tensor,   // f32 [slots,h,w,c]
    pub beside: Option<Beside>,
    pub table: Tensor, // f32 [1,1,n,row::ROW_WIDTH]
    pub index: Tensor, // i32 [1,1,1,at least r]
    pub slot: Tensor,  // i32 [1,1,1,at least r]
}

/// What a model sees beside the latents: a mask and a masked image, or another image.
#[derive(Clone, Copy, Debug)]
pub struct Beside {
    pub x: Tensor,     // [slots,h,w,e]
    pub shown: Tensor, // i32 [1,1,1,at least r]
}

/// Classifier-free guidance and one row of the sampler table, all in f32.
///
/// For the image at place b, `rows[b]` says which rows of `output` are the conditional one `c`, the unconditional one
/// `u`, and `m`, which sees an image but no prompt; -1 where there is none. With the numbers of its slot
/// `guidance[slot[b]] = [s, phi, t]`,
/// ```text
/// g = u + s·(c - u)                 without m
/// g = u + t·(m - u) + s·(c - m)     with m (InstructPix2Pix: Brooks et al. 2023, section 3.2.1)
/// e = phi·(std(c)/std(g))·g + (1 - phi)·g
/// ```
/// with the standard deviations over the whole image, divided by n - 1 (`rescale_noise_cfg` of diffusers; Lin et
/// al. 2023, section 3.4). They are not computed where `phi` is 0. Without `u`, `e` is `c`.
///
/// With `row = table[index[b]]` (layout: [`super::row`]), and on the right hand side the values of its slot before the step:
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
    pub x: Tensor,        // f32 [slots,h,w,c], updated
    pub saved: Tensor,    // f32 [slots,h,w,c], updated
    pub history: Tensor,  // f32 [4·slots,h,w,c]: h0 to h3 of the first slot, then of the next; updated
    pub output: Tensor,   // [rows,h,w,c]
    pub rows: Tensor,     // i32 [1,1,b,3]
    pub noise: Tensor,    // f32 [n,h,w,c]
    pub table: Tensor,    // f32 [1,1,n,row::ROW_WIDTH]
    pub index: Tensor,    // i32 [1,1,1,at least b]
    pub slot: Tensor,     // i32 [1,1,1,at least b], all different
    pub guidance: Tensor, // f32 [1,1,slots,3]
    pub known: Option<Known>,
}

/// What is known of a picture of which a part is painted.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    pub mask: Tensor,    // f32 [slots,h,w,1]: 1 is painted, 0 is known
    pub latents: Tensor, // f32 [slots,h,w,c]
    pub noise: Tensor,   // f32 [slots,h,w,c]: what the latents started with
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

    /// A 3x3 convolution of the nearest 2x enlargement of `x`.
    pub fn upsampling(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Self {
        Conv2d { pad: 1, upsample: true, ..Conv2d::new(out, x, weight, bias) }
    }

    /// The same as a linear layer on pixels, if it is one whose rows are made of 16-byte vectors in halves.
    pub fn as_linear(&self) -> Option<Linear> {
        let (i, o) = (self.x.c(), self.out.c());
        let is_linear = self.weight.tokens() == 1 && self.stride == 1 && self.row.is_none() && !self.upsample;
        let vectors = [i, o, self.x.pitch, self.out.pitch].iter().all(|n| n.is_multiple_of(8));
        (is_linear && vectors).then(|| Linear {
            out: self.out.as_tokens(),
            x: self.x.as_tokens(),
            weight: Tensor { shape: [1, 1, o, i], ..self.weight },
            bias: self.bias,
            activation: None,
            residual: self.residual.map(Tensor::as_tokens),
        })
    }

    /// The same for images `start .. start + count` alone.
    pub fn images(&self, start: usize, count: usize) -> Conv2d {
        Conv2d {
            out: self.out.images(start, count),
            x: self.x.images(start, count),
            row: self.row.map(|row| TableRow { index: row.index.columns(start, count), ..row }),
            residual: self.residual.map(|residual| residual.images(start, count)),
            ..*self
        }
    }

    /// Side of the kernel that an output pixel sees `x` through.
    pub fn kernel(&self) -> usize {
        if self.upsample { 2 } else { self.weight.h() }
    }

    /// How many kinds of rows and of columns the output has, by the taps that they see.
    pub fn kinds(&self) -> [usize; 2] {
        let kinds = |n: usize| if self.upsample { 2 + n % 2 } else { 1 };
        [kinds(self.out.h()), kinds(self.out.w())]
    }

    pub(super) fn check(&self) {
        let Conv2d { out, x, weight, .. } = self;
        let [o, kh, kw, i] = weight.shape;
        assert!(x.c() == i && out.c() == o && x.b() == out.b() && i.is_multiple_of(4), "{self:?}");
        if self.upsample {
            assert!(kh == TAP_SUMS.len() && kw == kh && self.stride == 1 && self.pad == 1, "{self:?}");
            assert!(x.h() == out.h().div_ceil(2) && x.w() == out.w().div_ceil(2), "{self:?}");
        } else {
            assert!(kh == kw && (kh == 1 || kh == 3), "{self:?}");
            // The last output pixel may reach at most one row of padding below and to the right.
            for (n, n_out) in [(x.h(), out.h()), (x.w(), out.w())] {
                let (end, padded) = ((n_out - 1) * self.stride + kh, n + self.pad);
                assert!(self.pad < kh && end <= padded + 1 && end + self.stride > padded, "{self:?}");
            }
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

    pub(super) fn check(&self) {
        let Linear { out, x, weight, .. } = self;
        assert!(out.rows() == x.rows() && weight.shape == [1, 1, out.c(), x.c()], "{self:?}");
        assert!(self.activation.is_none() || self.residual.is_none(), "{self:?}");
        check_epilogue(out, self.bias, self.residual);
    }
}

impl ModelInput {
    pub(super) fn check(&self) {
        let ModelInput { out, x, beside, table, index, slot } = self;
        let e = beside.map_or(0, |beside| beside.x.c());
        assert!(out.shape[1..3] == x.shape[1..3] && out.c() >= x.c() + e, "{self:?}");
        assert!(x.dtype == DType::F32 && x.is_dense() && table.is_dense(), "{self:?}");
        if let Some(Beside { x: beside, .. }) = beside {
            assert!(beside.shape[..3] == x.shape[..3] && beside.is_dense(), "{self:?}");
            assert_eq!(beside.dtype, out.dtype, "{self:?}");
        }
        for entries in [Some(*index), Some(*slot), beside.map(|beside| beside.shown)].into_iter().flatten() {
            assert!(entries.dtype == DType::I32 && entries.c() >= out.b(), "{self:?}");
        }
    }
}

impl SamplerStep {
    pub(super) fn check(&self) {
        let SamplerStep { x, saved, history, output, rows, noise, table, index, slot, guidance, known } =
            self;
        let [slots, h, w, _] = x.shape;
        assert!(x.shape == saved.shape && output.shape[1..] == x.shape[1..], "{self:?}");
        assert!(history.b() == 4 * slots && noise.b() == table.rows(), "{self:?}");
        assert!(rows.c() == 3 && guidance.shape == [1, 1, slots, 3], "{self:?}");
        for entries in [index, slot] {
            assert!(entries.dtype == DType::I32 && entries.c() >= rows.tokens(), "{self:?}");
        }
        let known = known.map(|known| [known.mask, known.latents, known.noise]);
        if let Some([mask, latents, noise]) = known {
            assert!(latents.shape == x.shape && noise.shape == x.shape, "{self:?}");
            assert_eq!(mask.shape, [slots, h, w, 1], "{self:?}");
        }
        let dense = [x, saved, history, output, rows, noise, table, guidance];
        assert!(dense.into_iter().chain(known.iter().flatten()).all(Tensor::is_dense), "{self:?}");
    }
}

impl Geglu {
    /// The product alone.
    pub fn projection(&self) -> Linear {
        Linear::new(self.hidden, self.x, self.weight, Some(self.bias))
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
