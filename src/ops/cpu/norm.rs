//! GroupNorm and LayerNorm, statistics in f64.

use rayon::prelude::*;

use super::math::{silu, sum, vectorized};
use super::memory::Memory;
use crate::ops::{GroupNorm, LayerNorm};

/// Elements whose channels are summed by one task; fixed, so that the order of the sum is.
const CHUNK: usize = 1 << 15;

pub fn group_norm(memory: &Memory, v: &GroupNorm) {
    let x = memory.rows::<f32>(v.x);
    let (weight, bias) = (memory.slice::<f32>(v.weight), memory.slice::<f32>(v.bias));
    let (b, pixels, c) = (v.x.b(), v.x.tokens(), v.x.c());
    let rows = (CHUNK / c).clamp(1, pixels);
    let chunks = pixels.div_ceil(rows);

    // Sum and sum of squares of each channel.
    let partial: Vec<Vec<[f64; 2]>> = (0..b * chunks)
        .into_par_iter()
        .map(|task| {
            let (image, first) = (task / chunks, task % chunks * rows);
            let mut moments = vec![[0.0; 2]; c];
            vectorized(|| {
                for row in first..pixels.min(first + rows) {
                    for ([sum, squares], &x) in moments.iter_mut().zip(x.row(image * pixels + row)) {
                        let x = f64::from(x);
                        *sum += x;
                        *squares += x * x;
                    }
                }
            });
            moments
        })
        .collect();

    // Per image and channel: mean and factor.
    let per_group = c / v.groups;
    let count = (pixels * per_group) as f64;
    let mut affine = Vec::with_capacity(b * c);
    for image in partial.chunks_exact(chunks) {
        for first in (0..c).step_by(per_group) {
            let channels = first..first + per_group;
            let moments = image.iter().flat_map(|moments| &moments[channels.clone()]);
            let [sum, squares] = moments.fold([0.0; 2], |[a, b], [x, y]| [a + x, b + y]);
            let mean = sum / count;
            let variance = (squares / count - mean * mean).max(0.0);
            let inverse = 1.0 / (variance + f64::from(v.eps)).sqrt();
            affine.extend(channels.map(|c| (mean as f32, (inverse * f64::from(weight[c])) as f32)));
        }
    }

    memory.rows_mut::<f32>(v.out).par_rows(|row, out| {
        let affine = &affine[row / pixels * c..][..c];
        vectorized(|| {
            for (((out, x), (mean, factor)), bias) in out.iter_mut().zip(x.row(row)).zip(affine).zip(bias) {
                let y = (x - mean) * factor + bias;
                *out = if v.silu { silu(y) } else { y };
            }
        });
    });
}

pub fn layer_norm(memory: &Memory, v: &LayerNorm) {
    let x = memory.rows::<f32>(v.x);
    let (weight, bias) = (memory.slice::<f32>(v.weight), memory.slice::<f32>(v.bias));
    let count = v.x.c() as f64;
    memory.rows_mut::<f32>(v.out).par_rows(|row, out| {
        let x = x.row(row);
        vectorized(|| {
            let mean = (sum(x, f64::from) / count) as f32;
            let variance = sum(x, |x| f64::from((x - mean) * (x - mean))) / count;
            let inverse = (1.0 / (variance + f64::from(v.eps)).sqrt()) as f32;
            for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                *out = (x - mean) * inverse * weight + bias;
            }
        });
    });
}
