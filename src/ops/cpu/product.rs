//! Matrix products: tiles of the output in parallel, each through the gemm crate on one thread.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::math;
use super::memory::{Memory, Rows, RowsMut};
use crate::ops::{Activation, Linear, Tensor};

thread_local! {
    static SPARE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Lends `body` memory of this thread, with anything in it.
pub fn with_scratch<R>(len: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut scratch = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    let result = body(&mut scratch[..len]);
    SPARE.with_borrow_mut(|spare| spare.push(scratch));
    result
}

/// A weight `[n,k]`, placed so that gemm reads little more than once.
///
/// gemm multiplies fastest along adjacent outputs of one row, for which it wants the transpose `[k,n]`.
/// Making that costs `n·k`; leaving the weight as it is and multiplying along adjacent rows of the
/// output costs rearranging x and the output instead, which is less when they have few rows.
pub struct Weight<'a> {
    data: &'a [f32],
    n: usize,
    pitch: usize,
    transposed: bool,
}

/// Side of the blocks that a matrix is transposed in: a cache line of f32.
const BLOCK: usize = 16;

impl<'a> Weight<'a> {
    /// `weight` is dense, for an output of `rows`; a transpose goes to `buffer`. A single row is never
    /// multiplied by one: gemm would add up otherwise than for several.
    pub fn new(weight: &'a [f32], [n, k]: [usize; 2], rows: usize, buffer: &'a mut Vec<f32>) -> Self {
        assert_eq!(weight.len(), n * k);
        if n * k > rows * (n + k) || rows == 1 {
            return Weight { data: weight, n, pitch: k, transposed: false };
        }
        let pitch = n.next_multiple_of(BLOCK);
        if buffer.len() < k * pitch {
            buffer.resize(k * pitch, 0.0);
        }
        let data = &mut buffer[..k * pitch];
        data.par_chunks_mut(BLOCK * pitch).enumerate().for_each(|(chunk, out)| {
            let (first, depth) = (chunk * BLOCK, out.len() / pitch);
            for j in (0..n).step_by(BLOCK) {
                let mut block = [[0.0; BLOCK]; BLOCK];
                for (column, row) in weight[j * k..].chunks(k).take(BLOCK).enumerate() {
                    for (line, &value) in block.iter_mut().zip(&row[first..first + depth]) {
                        line[column] = value;
                    }
                }
                for (line, values) in out.chunks_exact_mut(pitch).zip(&block) {
                    line[j..j + BLOCK].copy_from_slice(values);
                }
            }
        });
        Weight { data, n, pitch, transposed: true }
    }

    /// How many tiles of the output, each of them a task, lie above each other, and the columns of one.
    fn tiles(&self, rows: usize) -> (usize, usize) {
        let tasks = 4 * rayon::current_num_threads();
        let most = if self.transposed { rows.div_ceil(tasks).clamp(32, 256) } else { 128 };
        let down = rows.div_ceil(most);
        let splits = tasks.div_ceil(2 * down);
        // gemm's own tiles are up to 64 wide.
        (down, self.n.div_ceil(splits).next_multiple_of(64))
    }
}

/// What a product is added to: `offsets[image] + residual`.
pub struct Start<'a> {
    offsets: Vec<f32>,
    n: usize,
    rows_per_image: usize,
    residual: Option<Rows<'a, f32>>,
    in_place: bool,
}

impl<'a> Start<'a> {
    /// `row(image)` is added to every row of an image.
    pub fn new(
        memory: &'a Memory,
        out: Tensor,
        bias: Option<Tensor>,
        row: impl Fn(usize) -> Option<&'a [f32]>,
        residual: Option<Tensor>,
    ) -> Self {
        let mut offsets = vec![0.0; out.b() * out.c()];
        for (image, offsets) in offsets.chunks_exact_mut(out.c()).enumerate() {
            for term in [bias.map(|bias| memory.slice(bias)), row(image)].into_iter().flatten() {
                offsets.iter_mut().zip(term).for_each(|(sum, x)| *sum += x);
            }
        }
        let in_place = residual.is_some_and(|residual| residual.address == out.address);
        assert!(!in_place || residual.is_some_and(|residual| residual.pitch == out.pitch), "{out}");
        let residual = residual.filter(|_| !in_place).map(|residual| memory.rows(residual));
        Start { offsets, n: out.c(), rows_per_image: out.tokens(), residual, in_place }
    }

    fn write(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        let image = row / self.rows_per_image;
        let offsets = &self.offsets[image * self.n..][columns.clone()];
        if let Some(residual) = self.residual {
            let terms = residual.row(row)[columns].iter().zip(offsets);
            out.iter_mut().zip(terms).for_each(|(out, (residual, offset))| *out = residual + offset);
        } else if self.in_place {
            out.iter_mut().zip(offsets).for_each(|(out, offset)| *out += offset);
        } else {
            out.copy_from_slice(offsets);
        }
    }
}

/// Some columns of x, for some rows: address and distance between rows.
pub struct Block {
    pub x: *const f32,
    pub pitch: usize,
    pub depth: Range<usize>,
}

impl Block {
    /// Calls back with pieces of at most [`DEPTH`] columns.
    fn cut(self, mut multiply: impl FnMut(Block)) {
        for start in self.depth.clone().step_by(DEPTH) {
            let depth = start..self.depth.end.min(start + DEPTH);
            let x = self.x.wrapping_add(start - self.depth.start);
            multiply(Block { x, pitch: self.pitch, depth });
        }
    }
}

/// Columns of sums that are moved together, so that they stay in the first-level cache.
const SUM_COLUMNS: usize = 64;

/// Most terms that gemm is given to add up. It cuts longer sums by the shape of the tile, and then the
/// last bits of a picture would depend on its neighbours in the batch.
const DEPTH: usize = 512;

/// Up to so many results, gemm adds up otherwise where the terms of both matrices lie side by side.
const FEW: usize = 16 * 16;

/// Copies rows of x so that their elements are not side by side, down or across.
///
/// # Safety
/// `x` points to `rows` rows of `depth` elements, which lie `pitch` apart.
unsafe fn spread(
    (x, pitch): (*const f32, usize),
    [rows, depth]: [usize; 2],
    out: &mut [f32],
) -> Matrix<*const f32> {
    for row in 0..rows {
        // SAFETY: the caller's word.
        let x = unsafe { std::slice::from_raw_parts(x.wrapping_add(row * pitch), depth) };
        out[2 * row..].iter_mut().step_by(2 * rows).zip(x).for_each(|(out, x)| *out = *x);
    }
    (out.as_ptr(), 2, 2 * rows)
}

/// `out = activation(start + x · weightᵀ)`.
pub struct Product<'a> {
    pub out: RowsMut<'a, f32>,
    pub start: Start<'a>,
    pub activation: Option<Activation>,
}

/// Which row of the output a row of the product is.
pub type Place<'a> = &'a (dyn Fn(usize) -> usize + Sync);

impl Product<'_> {
    /// `blocks` finds or makes the rows of x that it is asked for, and calls back with blocks that
    /// together have all columns.
    pub fn run(&self, weight: &Weight, blocks: impl Fn(Range<usize>, &mut dyn FnMut(Block)) + Sync) {
        self.run_rows(weight, self.out.count, None, blocks);
    }

    /// The same for a product of `count` rows, which are not all of the output's if they have a `place`:
    /// a different one for each of them.
    pub fn run_rows(
        &self,
        weight: &Weight,
        count: usize,
        place: Option<Place>,
        blocks: impl Fn(Range<usize>, &mut dyn FnMut(Block)) + Sync,
    ) {
        let Product { out, start, .. } = self;
        let (down, tile_columns) = weight.tiles(count);
        let across = weight.n.div_ceil(tile_columns);
        (0..down * across).into_par_iter().for_each(|tile| {
            let (r, c) = (tile / across, tile % across * tile_columns);
            // Of equal heights, but for one: a single row would be added up otherwise.
            let rows = r * count / down..(r + 1) * count / down;
            let columns = c..weight.n.min(c + tile_columns);
            let out_row = |row: usize| place.map_or(row, |place| place(row));
            // SAFETY: the rows are visited one after another, and the tile is this task's alone.
            let row_mut = |row: usize| unsafe { out.columns_mut(out_row(row), columns.clone()) };
            rows.clone().for_each(|row| start.write(out_row(row), columns.clone(), row_mut(row)));
            if weight.transposed {
                let multiply = |to: *mut f32, to_pitch: usize| {
                    blocks(rows.clone(), &mut |block| {
                        block.cut(|Block { x, pitch, depth }| {
                            let shape = [columns.len(), rows.len(), depth.len()];
                            let at = weight.data[depth.start * weight.pitch + columns.start..].as_ptr();
                            // SAFETY: `to` is this task's tile of `out` or its scratch, the block of the
                            // weight lies in `data`; `blocks` vouches for x.
                            unsafe {
                                gemm(
                                    shape,
                                    (to, 1, to_pitch),
                                    true,
                                    (at, 1, weight.pitch),
                                    (x, 1, pitch),
                                    1.0,
                                )
                            };
                        });
                    })
                };
                if place.is_none() {
                    multiply(out.pointer(rows.start).wrapping_add(columns.start), out.pitch);
                } else {
                    with_scratch(rows.len() * columns.len(), |sums| {
                        let sums_of = |row: usize| (row - rows.start) * columns.len();
                        for row in rows.clone() {
                            sums[sums_of(row)..][..columns.len()].copy_from_slice(row_mut(row));
                        }
                        multiply(sums.as_mut_ptr(), columns.len());
                        for row in rows.clone() {
                            row_mut(row).copy_from_slice(&sums[sums_of(row)..][..columns.len()]);
                        }
                    });
                }
            } else {
                let height = rows.len();
                with_scratch(columns.len() * height, |sums| {
                    for (i, sums) in sums.chunks_mut(SUM_COLUMNS * height).enumerate() {
                        for row in rows.clone() {
                            let out = &row_mut(row)[i * SUM_COLUMNS..];
                            let sums = sums[row - rows.start..].iter_mut().step_by(height);
                            sums.zip(out).for_each(|(sum, out)| *sum = *out);
                        }
                    }
                    let few = height * columns.len() <= FEW || height == 1;
                    let spread_out = if few { 2 * height * DEPTH } else { 0 };
                    blocks(rows.clone(), &mut |block| {
                        block.cut(|Block { x, pitch, depth }| {
                            let shape = [height, columns.len(), depth.len()];
                            let at = weight.data[columns.start * weight.pitch + depth.start..].as_ptr();
                            let to = sums.as_mut_ptr();
                            with_scratch(spread_out, |spread_out| {
                                let x = if few {
                                    // SAFETY: `blocks` vouches for `height` rows of x.
                                    unsafe { spread((x, pitch), [height, depth.len()], spread_out) }
                                } else {
                                    (x, pitch, 1)
                                };
                                // SAFETY: as above, with `sums` for `out`.
                                unsafe { gemm(shape, (to, 1, height), true, x, (at, 1, weight.pitch), 1.0) };
                            });
                        });
                    });
                    for (i, sums) in sums.chunks(SUM_COLUMNS * height).enumerate() {
                        for row in rows.clone() {
                            let out = &mut row_mut(row)[i * SUM_COLUMNS..];
                            let sums = sums[row - rows.start..].iter().step_by(height);
                            out.iter_mut().zip(sums).for_each(|(out, sum)| *out = *sum);
                        }
                    }
                });
            }
            if let Some(activation) = self.activation {
                rows.for_each(|row| math::activate(activation, row_mut(row)));
            }
        });
    }
}

/// An f32 matrix: address, distance of neighbours in a column, in a row.
type Matrix<P> = (P, usize, usize);

/// `dst = scale·a·b + (accumulate ? dst : 0)`, where `dst` is m by n and `a` m by k.
///
/// # Safety
/// The matrices lie in live memory; nothing else uses `dst`.
pub unsafe fn gemm(
    [m, n, k]: [usize; 3],
    (dst, dst_down, dst_right): Matrix<*mut f32>,
    accumulate: bool,
    (a, a_down, a_right): Matrix<*const f32>,
    (b, b_down, b_right): Matrix<*const f32>,
    scale: f32,
) {
    let [dst_down, dst_right, a_down, a_right, b_down, b_right] =
        [dst_down, dst_right, a_down, a_right, b_down, b_right].map(|stride| stride as isize);
    let one_thread = gemm::Parallelism::None;
    // SAFETY: the caller's word.
    unsafe {
        gemm::gemm(
            m, n, k, dst, dst_right, dst_down, accumulate, a, a_right, a_down, b, b_right, b_down, 1.0,
            scale, false, false, false, one_thread,
        );
    }
}

pub fn linear(memory: &Memory, transposed: &mut Vec<f32>, v: &Linear) {
    let x = memory.rows::<f32>(v.x);
    let weight = Weight::new(memory.slice(v.weight), [v.out.c(), v.x.c()], x.count, transposed);
    let start = Start::new(memory, v.out, v.bias, |_| None, v.residual);
    let product = Product { out: memory.rows_mut(v.out), start, activation: v.activation };
    product.run(&weight, |rows, multiply| {
        multiply(Block { x: x.pointer(rows.start), pitch: x.pitch, depth: 0..x.c });
    });
}
