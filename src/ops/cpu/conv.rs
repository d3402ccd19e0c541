//! Convolution: patches of a few output pixels are gathered side by side, then it is a product.

use std::ops::Range;

use super::memory::{Memory, Rows};
use super::product::{Product, Start, Transposed, with_panel};
use crate::ops::Conv2d;

pub fn conv2d(memory: &Memory, transposed: &mut Vec<f32>, v: &Conv2d) {
    let x = memory.rows::<f32>(v.x);
    let taps = v.weight.h() * v.weight.w();
    let k = taps * v.x.c();
    let weight = memory.slice::<f32>(v.weight);
    let weight = Transposed::new(transposed, v.out.c(), k, |o| &weight[o * k..][..k]);
    let rows = v.row.map(|row| (memory.rows::<f32>(row.table), memory.slice::<i32>(row.index)));
    let row = |image: usize| {
        rows.map(|(table, index)| {
            let chosen = usize::try_from(index[image]).expect("table index below zero");
            table.row(chosen)
        })
    };
    let start = Start::new(memory, v.out, v.bias, row, v.residual);
    let product = Product { out: memory.rows_mut(v.out), start, activation: None };
    if taps == 1 && v.stride == 1 && !v.upsample {
        product.run(&weight, |pixels, multiply| multiply(x.pointer(pixels.start), x.pitch));
    } else {
        product.run(&weight, |pixels, multiply| {
            with_panel(pixels.len() * k, |panel| {
                gather(v, x, pixels, panel);
                multiply(panel.as_ptr(), k);
            });
        });
    }
}

/// Writes what each output pixel's kernel sees, `[kh,kw,i]`, one pixel after another.
fn gather(v: &Conv2d, x: Rows<f32>, pixels: Range<usize>, panel: &mut [f32]) {
    let [_, h, w, i] = v.x.shape;
    let (virtual_h, virtual_w) = v.virtual_size();
    let (kernel, halve) = (v.weight.h(), usize::from(v.upsample));
    let mut taps = panel.chunks_exact_mut(i);
    for pixel in pixels {
        let (image, place) = (pixel / v.out.tokens(), pixel % v.out.tokens());
        let (top, left) = (place / v.out.w() * v.stride, place % v.out.w() * v.stride);
        for row in top..top + kernel {
            for (column, tap) in (left..left + kernel).zip(&mut taps) {
                // Coordinates are shifted by `pad`, so that they stay unsigned.
                let inside =
                    (v.pad..v.pad + virtual_h).contains(&row) && (v.pad..v.pad + virtual_w).contains(&column);
                if inside {
                    let (row, column) = ((row - v.pad) >> halve, (column - v.pad) >> halve);
                    tap.copy_from_slice(x.row((image * h + row) * w + column));
                } else {
                    tap.fill(0.0);
                }
            }
        }
    }
}
