//! GroupNorm and LayerNorm, statistics in f64.

use rayon::prelude::*;

use super::math::{moment, silu, vectorized};
use super::memory::Memory;
use crate::ops::{GroupNorm, LayerNorm};

/// Elements whose channels are summed by one task; fixed, so that the order of the sum is.
const CHUNK: usize = 1 << 15;

pub fn group_norm(memory: &Memory, v: &GroupNorm) {
    let (weight, bias) = (memory.slice::<f32>(v.weight), memory.slice::<f32>(v.bias));
    let (b, pixels, c) = (v.x.b(), v.x.tokens(), v.x.c());
    let rows = (CHUNK / c).clamp(1, pixels);
    let chunks = pixels.div_ceil(rows);

    // Of each channel the sum, then of each the sum of squares.
    let x = memory.rows::<f32>(v.x);
    let partial: Vec<Vec<f64>> = (0..b * chunks)
        .into_par_iter()
        .map(|task| {
            let (image, first) = (task / chunks, task % chunks * rows);
            let mut moments = vec![0.0; 2 * c];
            let (sums, squares) = moments.split_at_mut(c);
            for row in first..pixels.min(first + rows) {
                add_moments(sums, squares, x.row(image * pixels + row));
            }
            moments
        })
        .collect();

    let per_group = c / v.groups;
    let count = (pixels * per_group) as f64;
    let (mut means, mut factors) = (Vec::with_capacity(b * c), Vec::with_capacity(b * c));
    for image in partial.chunks_exact(chunks) {
        for first in (0..c).step_by(per_group) {
            let total = |offset: usize| -> f64 {
                image.iter().flat_map(|moments| &moments[offset + first..][..per_group]).sum()
            };
            let mean = total(0) / count;
            let variance = (total(c) / count - mean * mean).max(0.0);
            let inverse = 1.0 / (variance + f64::from(v.eps)).sqrt();
            means.extend(std::iter::repeat_n(mean as f32, per_group));
            factors.extend(weight[first..][..per_group].iter().map(|&w| (inverse * f64::from(w)) as f32));
        }
    }

    let in_place = v.out.address == v.x.address;
    memory.rows_mut::<f32>(v.out).par_rows(|row, out| {
        if !in_place {
            out.copy_from_slice(memory.rows::<f32>(v.x).row(row));
        }
        let first = row / pixels * c;
        normalize(out, &means[first..][..c], &factors[first..][..c], bias, v.silu);
    });
}

pub fn layer_norm(memory: &Memory, v: &LayerNorm) {
    let x = memory.rows::<f32>(v.x);
    let (weight, bias) = (memory.slice::<f32>(v.weight), memory.slice::<f32>(v.bias));
    memory.rows_mut::<f32>(v.out).par_rows(|row, out| layer_norm_row(out, x.row(row), weight, bias, v.eps));
}

vectorized! {
    fn add_moments(sums: &mut [f64], squares: &mut [f64], x: &[f32]) {
        for ((sum, square), &x) in sums.iter_mut().zip(squares).zip(x) {
            let x = f64::from(x);
            *sum += x;
            *square += x * x;
        }
    }

    fn normalize(x: &mut [f32], means: &[f32], factors: &[f32], bias: &[f32], with_silu: bool) {
        for (((x, mean), factor), bias) in x.iter_mut().zip(means).zip(factors).zip(bias) {
            *x = (*x - mean) * factor + bias;
        }
        if with_silu {
            for x in x {
                *x = silu(*x);
            }
        }
    }

    fn layer_norm_row(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
        let mean = (moment(x, 0.0, 1) / x.len() as f64) as f32;
        let variance = moment(x, mean, 2) / x.len() as f64;
        let inverse = (1.0 / (variance + f64::from(eps)).sqrt()) as f32;
        for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
            *out = (x - mean) * inverse * weight + bias;
        }
    }
}
