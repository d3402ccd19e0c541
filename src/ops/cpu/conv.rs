//! Convolution: patches of a few output pixels are gathered side by side, then it is a product.

use std::ops::Range;

use super::memory::{Memory, Rows};
use super::product::{Block, Product, Start, Weight, with_scratch};
use crate::ops::Conv2d;

/// Floats of a pixel's gathered patch: those of a tile's pixels, at most 256, stay in a core's second-level
/// cache beside the weight. The same for all shapes, as sums are cut here.
const PATCH: usize = 1 << 10;

pub fn conv2d(memory: &Memory, transposed: &mut Vec<f32>, v: &Conv2d) {
    let x = memory.rows::<f32>(v.x);
    let [o, kh, kw, i] = v.weight.shape;
    let taps = kh * kw;
    let weight = Weight::new(memory.slice(v.weight), [o, taps * i], v.out.rows(), transposed);
    let rows = v.row.map(|row| (memory.rows::<f32>(row.table), memory.slice::<i32>(row.index)));
    let row = |image: usize| {
        rows.map(|(table, index)| table.row(usize::try_from(index[image]).expect("index below zero")))
    };
    let start = Start::new(memory, v.out, v.bias, row, v.residual);
    let product = Product { out: memory.rows_mut(v.out), start, activation: None };
    if taps == 1 && v.stride == 1 && !v.upsample && v.x.shape[..3] == v.out.shape[..3] {
        product.run(&weight, |pixels, multiply| {
            multiply(Block { x: x.pointer(pixels.start), pitch: x.pitch, depth: 0..i });
        });
        return;
    }
    product.run(&weight, |pixels, multiply| {
        let at_once = (PATCH / i).clamp(1, taps);
        with_scratch(pixels.len() * at_once * i, |panel| {
            for first in (0..taps).step_by(at_once) {
                let some = first..taps.min(first + at_once);
                let pitch = some.len() * i;
                for (patch, pixel) in panel.chunks_exact_mut(pitch).zip(pixels.clone()) {
                    gather(v, x, pixel, some.clone(), patch);
                }
                multiply(Block { x: panel.as_ptr(), pitch, depth: first * i..some.end * i });
            }
        });
    });
}

/// Writes what some taps of the kernel, counted along `[kh,kw]`, see at an output pixel.
fn gather(v: &Conv2d, x: Rows<f32>, pixel: usize, taps: Range<usize>, patch: &mut [f32]) {
    let [_, h, w, i] = v.x.shape;
    let (virtual_h, virtual_w) = v.virtual_size();
    let (kw, halve) = (v.weight.w(), usize::from(v.upsample));
    let (image, place) = (pixel / v.out.tokens(), pixel % v.out.tokens());
    let (top, left) = (place / v.out.w() * v.stride, place % v.out.w() * v.stride);
    for (tap, values) in taps.zip(patch.chunks_exact_mut(i)) {
        // Outside above and to the left wraps around to a huge number.
        let row = (top + tap / kw).wrapping_sub(v.pad);
        let column = (left + tap % kw).wrapping_sub(v.pad);
        if row < virtual_h && column < virtual_w {
            values.copy_from_slice(x.row((image * h + (row >> halve)) * w + (column >> halve)));
        } else {
            values.fill(0.0);
        }
    }
}
