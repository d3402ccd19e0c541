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
    let run = if v.upsample || x.pitch != i { 1 } else { kw };
    let (mut tap, mut rest) = (taps.start, patch);
    while tap < taps.end {
        // Outside above and to the left wraps around to a huge number.
        let row = (top + tap / kw).wrapping_sub(v.pad);
        let column = (left + tap % kw).wrapping_sub(v.pad);
        // Taps whose pixels are neighbours in memory are copied at once.
        let count = run.min(kw - tap % kw).min(taps.end - tap);
        let inside = row < virtual_h && column < virtual_w;
        let count = if inside { count.min(virtual_w - column) } else { 1 };
        let (values, after) = rest.split_at_mut(count * i);
        if inside {
            values.copy_from_slice(x.run((image * h + (row >> halve)) * w + (column >> halve), values.len()));
        } else {
            values.fill(0.0);
        }
        (tap, rest) = (tap + count, after);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Cpu;
    use super::*;
    use crate::ops::{Arena, Backend, DType, Ops};

    /// Shapes that are cut into several tiles, along the kernel's taps too, with either form of the weight.
    #[test]
    fn large_shapes_equal_the_plain_sum() {
        let mut cpu = Cpu::new();
        let region = cpu.reserve(16 << 20, "tests").unwrap();
        for ([h, w], i, o) in [([8, 9], 640, 136), ([64, 33], 128, 68), ([96, 96], 4, 4)] {
            cpu.use_arena(Arena::new(region.base, region.bytes));
            let shapes = [[1, h, w, i], [o, 3, 3, i], [1, 1, 1, o], [1, h, w, o]];
            let [x, weight, bias, out] = shapes.map(|shape| cpu.arena().alloc(shape, DType::F32));
            let mut state = 1_u32;
            let values = [x, weight, bias].map(|tensor| {
                let mut next = || {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 8) as f32 / (1 << 23) as f32 - 1.0
                };
                let values: Vec<f32> = (0..tensor.len()).map(|_| next()).collect();
                cpu.write(tensor, bytemuck::cast_slice(&values)).unwrap();
                values
            });
            cpu.run(&mut |ops| ops.conv2d(Conv2d::new(out, x, weight, bias))).unwrap();
            let mut got = vec![0.0_f32; out.len()];
            cpu.read(out, bytemuck::cast_slice_mut(&mut got)).unwrap();

            let [x, weight, bias] = &values;
            // Every seventh pixel and fifth channel: in all tiles, at a fraction of the time.
            for pixel in (0..h * w).step_by(7) {
                for channel in (0..o).step_by(5) {
                    let mut want = bias[channel];
                    for tap in 0..9 {
                        let (row, column) = (pixel / w + tap / 3, pixel % w + tap % 3);
                        if (1..=h).contains(&row) && (1..=w).contains(&column) {
                            let x = &x[((row - 1) * w + column - 1) * i..][..i];
                            let weight = &weight[(channel * 9 + tap) * i..][..i];
                            want += x.iter().zip(weight).map(|(x, weight)| x * weight).sum::<f32>();
                        }
                    }
                    let got = got[pixel * o + channel];
                    assert!((got - want).abs() < 1e-4 * (i as f32).sqrt(), "{h}x{w}x{i}: {got}, not {want}");
                }
            }
        }
    }
}
