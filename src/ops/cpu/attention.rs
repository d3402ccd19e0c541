//! Attention: a few queries of one head at a time, against all of their keys.

use rayon::prelude::*;

use super::math::{exp, vectorized};
use super::memory::Memory;
use super::product::{gemm, with_scratch};
use crate::ops::Attention;

/// Queries of one task.
const TILE: usize = 64;

/// Queries whose softmax is computed side by side.
const LANES: usize = 16;

pub fn attention(memory: &Memory, v: &Attention) {
    let (q, k, values) = (memory.rows::<f32>(v.q), memory.rows::<f32>(v.k), memory.rows::<f32>(v.v));
    let out = memory.rows_mut::<f32>(v.out);
    let (t, s, d) = (v.q.tokens(), v.k.tokens(), v.q.c() / v.heads);
    let tiles = t.div_ceil(TILE);
    (0..v.q.b() * v.heads * tiles).into_par_iter().for_each(|task| {
        let (image, head, tile) = (task / tiles / v.heads, task / tiles % v.heads, task % tiles);
        let first = tile * TILE;
        let queries = TILE.min(t - first);
        let (begin, s) = match v.keys {
            Some(keys) => (
                memory.slice::<i32>(keys.first)[image] as usize,
                memory.slice::<i32>(keys.length)[image] as usize,
            ),
            None => (image * s, s),
        };
        let keys = if v.causal { first + queries } else { s };
        let pitch = queries.next_multiple_of(LANES);
        let at = head * d;
        let query = q.pointer(image * t + first).wrapping_add(at);
        let key = k.pointer(begin).wrapping_add(at);
        let value = values.pointer(begin).wrapping_add(at);
        let to = out.pointer(image * t + first).wrapping_add(at);

        // Scores are kept key by key, [keys, pitch], so that the softmax runs over queries in vectors.
        with_scratch(keys * pitch, |scores| {
            let scale = 1.0 / (d as f32).sqrt();
            // SAFETY: columns at..at+d of `queries` and `keys` rows, which the asserts of
            // `Attention::check` put inside the tensors; the output's are this task's alone.
            unsafe {
                let scores = (scores.as_mut_ptr(), 1, pitch);
                gemm([queries, keys, d], scores, false, (query, q.pitch, 1), (key, 1, k.pitch), scale);
            }
            if v.causal {
                for (j, scores) in scores.chunks_exact_mut(pitch).enumerate().skip(first + 1) {
                    scores[..j - first].fill(f32::NEG_INFINITY);
                }
            }
            let sums = softmax(scores, pitch);
            // SAFETY: as above.
            unsafe {
                let weights = (scores.as_ptr(), pitch, 1);
                gemm([d, queries, keys], (to, 1, out.pitch), false, (value, 1, values.pitch), weights, 1.0);
            }
            for (i, sum) in sums.iter().take(queries).enumerate() {
                // SAFETY: as above.
                let row = unsafe { out.columns_mut(image * t + first + i, at..at + d) };
                row.iter_mut().for_each(|x| *x /= sum);
            }
        });
    });
}

vectorized! {
    /// Replaces every column's scores by `e^(score - max)`; returns the sum of each column.
    fn softmax(scores: &mut [f32], pitch: usize) -> [f32; TILE] {
        let mut sums = [0.0; TILE];
        for lane in (0..pitch).step_by(LANES) {
            let mut max = [f32::NEG_INFINITY; LANES];
            for row in scores.chunks_exact(pitch) {
                for (max, &score) in max.iter_mut().zip(&row[lane..lane + LANES]) {
                    *max = if *max > score { *max } else { score };
                }
            }
            let mut sum = [0.0; LANES];
            for row in scores.chunks_exact_mut(pitch) {
                for ((score, max), sum) in row[lane..lane + LANES].iter_mut().zip(&max).zip(&mut sum) {
                    *score = exp(*score - max);
                    *sum += *score;
                }
            }
            sums[lane..lane + LANES].copy_from_slice(&sum);
        }
        sums
    }
}
