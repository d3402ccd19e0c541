//! Templates of calls at SD's own and at odd shapes.

use sdrt::ops::*;

use crate::common::placed::{key_stride, templates};

/// Columns in the middle of a wider tensor.
fn slice(ops: &mut dyn Ops, [b, h, w, c]: [usize; 4]) -> Tensor {
    ops.alloc([b, h, w, c + 16]).columns(8, c)
}

fn vector(ops: &mut dyn Ops, c: usize) -> Tensor {
    ops.alloc([1, 1, 1, c])
}

/// Dense for even numbers, columns of something wider for odd ones.
fn laid_out(ops: &mut dyn Ops, number: usize, shape: [usize; 4]) -> Tensor {
    if number.is_multiple_of(2) { ops.alloc(shape) } else { slice(ops, shape) }
}

/// A convolution from `x` to `[h, w, o]`; `number` chooses what is added and how tensors lie.
fn conv(ops: &mut dyn Ops, number: usize, x: [usize; 4], [h, w, o]: [usize; 3], k: usize) -> Conv2d {
    let [b, _, _, i] = x;
    let out = laid_out(ops, number / 2, [b, h, w, o]);
    let x = laid_out(ops, number, x);
    let weight = ops.alloc([o, k, k, i]);
    let bias = vector(ops, o);
    let mut call = Conv2d::new(out, x, weight, bias);
    match number % 5 {
        0 => call.bias = None,
        1 => call.residual = Some(out),
        2 => call.residual = Some(laid_out(ops, number / 5, out.shape)),
        3 => {
            let table = laid_out(ops, number / 5, [1, 1, 6, o]);
            let index = ops.arena().alloc([1, 1, 1, b], DType::I32);
            call.row = Some(TableRow { table, index });
        }
        _ => {}
    }
    call
}

/// Convolutions that keep the size, from i to o channels with a k x k kernel, over maps of b, h, w.
pub fn conv2d(dtype: DType, maps: &[[usize; 3]], channels: &[[usize; 3]]) -> Vec<Call> {
    templates(dtype, |ops| {
        let mut number = 0;
        for &[b, h, w] in maps {
            for &[i, o, k] in channels {
                let call = conv(ops, number, [b, h, w, i], [h, w, o], k);
                ops.conv2d(call);
                number += 1;
            }
        }
    })
}

/// Convolutions that halve the size, with padding on both sides and on one, and those that double it.
pub fn conv2d_resizing(dtype: DType, maps: &[[usize; 3]], channels: &[[usize; 2]]) -> Vec<Call> {
    templates(dtype, |ops| {
        let mut number = 0;
        for &[b, h, w] in maps {
            for &[i, o] in channels {
                for pad in [0, 1] {
                    let [ho, wo] = [h, w].map(|n| (n + pad - 2) / 2 + 1);
                    let call = conv(ops, number, [b, h, w, i], [ho, wo, o], 3);
                    ops.conv2d(Conv2d { stride: 2, pad, ..call });
                    number += 1;
                }
                let call = conv(ops, number, [b, h.div_ceil(2), w.div_ceil(2), i], [h, w, o], TAP_SUMS.len());
                ops.conv2d(Conv2d { pad: 1, upsample: true, ..call });
                number += 1;
            }
        }
    })
}

/// Linear layers from k to n columns of each number of tokens.
pub fn linear(dtype: DType, tokens: &[usize], sizes: &[[usize; 2]]) -> Vec<Call> {
    use Activation::{Gelu, QuickGelu, Silu};
    templates(dtype, |ops| {
        let mut number = 0;
        for &t in tokens {
            for &[k, n] in sizes {
                let b = 1 + number % 3;
                let out = laid_out(ops, number / 2, [b, 1, t, n]);
                let x = laid_out(ops, number, [b, 1, t, k]);
                let weight = ops.alloc([1, 1, n, k]);
                let bias = (number % 4 != 3).then(|| vector(ops, n));
                let mut call = Linear::new(out, x, weight, bias);
                match number % 7 {
                    0 => call.activation = Some(Silu),
                    1 => call.activation = Some(Gelu),
                    2 => call.activation = Some(QuickGelu),
                    3 => call.residual = Some(out),
                    4 => call.residual = Some(laid_out(ops, number / 7, out.shape)),
                    _ => {}
                }
                ops.linear(call);
                number += 1;
            }
        }
    })
}

/// Group norms of c channels in so many groups, over maps of b, h, w.
pub fn group_norm(dtype: DType, maps: &[[usize; 3]], channels: &[[usize; 2]]) -> Vec<Call> {
    templates(dtype, |ops| {
        let mut number = 0;
        for &[b, h, w] in maps {
            for &[c, groups] in channels {
                let out = laid_out(ops, number / 2, [b, h, w, c]);
                let x = laid_out(ops, number, [b, h, w, c]);
                let (weight, bias) = (vector(ops, c), vector(ops, c));
                let (eps, silu) = if number.is_multiple_of(3) { (1e-6, false) } else { (1e-5, true) };
                ops.group_norm(GroupNorm { out, x, weight, bias, groups, eps, silu });
                number += 1;
            }
        }
    })
}

/// The same with results that take their inputs' places.
pub fn group_norm_in_place(dtype: DType, maps: &[[usize; 3]], channels: &[[usize; 2]]) -> Vec<Call> {
    let in_place = |call| match call {
        Call::GroupNorm(v) => Call::GroupNorm(GroupNorm { x: v.out, ..v }),
        other => other,
    };
    group_norm(dtype, maps, channels).into_iter().map(in_place).collect()
}

pub fn layer_norm(dtype: DType, tokens: &[usize], channels: &[usize]) -> Vec<Call> {
    templates(dtype, |ops| {
        for (number, &t) in tokens.iter().enumerate() {
            for &c in channels {
                let b = 1 + number % 3;
                let out = laid_out(ops, number / 2, [b, 1, t, c]);
                let x = laid_out(ops, number, [b, 1, t, c]);
                let (weight, bias) = (vector(ops, c), vector(ops, c));
                ops.layer_norm(LayerNorm { out, x, weight, bias, eps: 1e-5 });
            }
        }
    })
}

/// Attention of heads of d columns, t queries against s keys; where t = s, causal too, and q, k and v
/// are columns of one tensor.
pub fn attention(dtype: DType, sizes: &[[usize; 2]], head_dims: &[usize]) -> Vec<Call> {
    templates(dtype, |ops| {
        let mut number = 0;
        for &[t, s] in sizes {
            for &d in head_dims {
                let b = 1 + number % 3;
                let heads = if d == 512 { 1 } else { 1 + number % 4 };
                let c = heads * d;
                let out = laid_out(ops, number, [b, 1, t, c]);
                let (q, k, v) = if t == s {
                    let fused = ops.alloc([b, 1, t, 3 * c]);
                    (fused.columns(0, c), fused.columns(c, c), fused.columns(2 * c, c))
                } else {
                    let keys = laid_out(ops, number / 2, [b, 1, s, c]);
                    (laid_out(ops, number, [b, 1, t, c]), keys, laid_out(ops, number / 2, [b, 1, s, c]))
                };
                ops.attention(Attention { out, q, k, v, heads, causal: false, keys: None });
                if t == s {
                    ops.attention(Attention { out, q, k, v, heads, causal: true, keys: None });
                }
                number += 1;
            }
        }
    })
}

/// What touches every element once, at each number of tokens.
pub fn elementwise(dtype: DType, tokens: &[usize]) -> Vec<Call> {
    use Activation::{FromUnit, Gelu, Identity, QuickGelu, Relu, Silu, Tanh3, ToUnit};
    templates(dtype, |ops| {
        for (number, &t) in tokens.iter().enumerate() {
            let b = 1 + number % 3;
            for c in [1, 4, 12, 40, 1280] {
                let x = ops.alloc([b, t, 3, c]);
                let out = ops.alloc(x.shape);
                let row = laid_out(ops, number, [b, t, 3, c.next_multiple_of(8)]).columns(0, c);
                for activation in [Silu, Gelu, QuickGelu, Relu, Tanh3, FromUnit, ToUnit, Identity] {
                    ops.activate(Activate { out, x, activation });
                    ops.activate(Activate { out: row, x: row, activation });
                }
            }
            for n in [8, 40, 1280] {
                let out = laid_out(ops, number / 2, [b, 1, t, n]);
                let k = [8, 72, 320][number % 3];
                let x = laid_out(ops, number, [b, 1, t, k]);
                let (weight, bias) = (ops.alloc([1, 1, 2 * n, k]), ops.alloc([1, 1, 1, 2 * n]));
                let hidden = ops.alloc([b, 1, t, 2 * n]);
                ops.geglu(Geglu { out, x, weight, bias, hidden });
            }
            for c in [8, 320] {
                let (x, y) = (laid_out(ops, number, [b, t, 5, c]), laid_out(ops, number / 2, [b, t, 5, c]));
                let table = ops.arena().alloc([1, 1, 6, 1], DType::F32);
                let index = ops.arena().alloc([1, 1, 1, b], DType::I32);
                ops.accumulate(Accumulate { x, y, gain: TableRow { table, index } });
            }
            for c in [40, 768] {
                let out = ops.alloc([b, 1, t, c]);
                let ids = ops.arena().alloc([b, 1, 1, t], DType::I32);
                let (tokens, positions) = (ops.alloc([1, 1, 514, c]), ops.alloc([1, 1, t + 3, c]));
                ops.embed(Embed { out, ids, tokens, positions: Some(positions) });
                let tokens = laid_out(ops, number, [1, 1, 514, c]);
                ops.embed(Embed { out, ids, tokens, positions: None });
                let x = laid_out(ops, number, [b, 1, t, c]);
                let weight = ops.arena().alloc([b, 1, 1, t], DType::F32);
                for restore_mean in [false, true] {
                    ops.emphasize(Emphasize { x, weight, restore_mean });
                }
            }
            for c in [3, 4, 8, 20] {
                let x = ops.arena().alloc([b, t, 5, c], DType::F32);
                let out = ops.alloc(x.shape);
                ops.scale(Scale { out, x, scale: 0.18215, statistics: None });
                let [mean, deviation] =
                    [0.5, 3.0].map(|start| std::array::from_fn(|j| start - 0.1 * j as f32));
                ops.scale(Scale { out, x, scale: 2.0, statistics: Some(Statistics { mean, deviation }) });
            }
            for (rows, width, e) in [(b, 4, 0), (2 * b, 4, 0), (2 * b, 12, 5), (b, 8, 4)] {
                let x = ops.arena().alloc([b, t, 5, 4], DType::F32);
                let out = ops.alloc([rows, t, 5, width]);
                let beside = (e > 0).then(|| ops.alloc([b, t, 5, e]));
                let table = ops.arena().alloc([1, 1, 20, sdrt::ops::row::ROW_WIDTH], DType::F32);
                let [index, slot, shown] = [0; 3].map(|_| ops.arena().alloc([1, 1, 1, rows], DType::I32));
                let beside = beside.map(|x| Beside { x, shown });
                ops.model_input(ModelInput { out, x, beside, table, index, slot });
            }
        }
    })
}

/// Attention of images with ranges of one table of keys: up to `longest` of them ([`KeyRows`]).
pub fn attention_of_ranges(
    dtype: DType,
    queries: &[usize],
    longest: &[usize],
    head_dims: &[usize],
) -> Vec<Call> {
    let mut number = 0;
    templates(dtype, |ops| {
        for &t in queries {
            for (&longest, &d) in
                longest.iter().flat_map(|longest| head_dims.iter().map(move |d| (longest, d)))
            {
                let (b, heads) = (1 + number % 5, 1 + number % 3);
                let [out, q] = [number, number + 1].map(|number| laid_out(ops, number, [b, 1, t, heads * d]));
                let tokens = b * key_stride(longest) + 3;
                // Keys and values are columns of one wide table.
                let table = ops.alloc([1, 1, tokens, 3 * heads * d]);
                let [k, v] = [0, 2].map(|part| table.columns(part * heads * d, heads * d));
                let [first, length] = [0; 2].map(|_| ops.arena().alloc([1, 1, 1, b], DType::I32));
                let keys = Some(KeyRows { first, length, longest });
                ops.attention(Attention { out, q, k, v, heads, causal: false, keys });
                number += 1;
            }
        }
    })
}

/// Sinusoids of timesteps.
pub fn timestep_embedding(dtype: DType) -> Vec<Call> {
    templates(dtype, |ops| {
        for (n, c, flip_sin_to_cos, freq_shift) in
            [(1, 320, true, 0.0), (128, 320, false, 1.0), (7, 32, true, 0.5)]
        {
            let out = ops.alloc([1, 1, n, c]);
            let timesteps = ops.arena().alloc([1, 1, 1, n], DType::F32);
            ops.timestep_embedding(TimestepEmbedding { out, timesteps, flip_sin_to_cos, freq_shift });
        }
    })
}

/// Pictures of odd sizes.
pub fn to_rgb8(dtype: DType) -> Vec<Call> {
    templates(dtype, |ops| {
        for (number, [b, h, w]) in [[1, 1, 1], [2, 9, 7], [3, 8, 64], [1, 120, 88]].into_iter().enumerate() {
            let x = laid_out(ops, number, [b, h, w, 3]);
            let out = ops.arena().alloc([b, h, w, 3], DType::U8);
            ops.to_rgb8(ToRgb8 { out, x });
        }
    })
}
