//! Matrix products: tiles of the output in parallel, each through the gemm crate on one thread.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::math;
use super::memory::{Memory, Rows, RowsMut};
use crate::ops::{Activation, Linear, Tensor};

thread_local! {
    static PANEL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Lends `body` this thread's scratch memory, at least `len` long, with anything in it.
pub fn with_panel<R>(len: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
    PANEL.with_borrow_mut(|panel| {
        if panel.len() < len {
            panel.resize(len, 0.0);
        }
        body(&mut panel[..len])
    })
}

/// A matrix `[n,k]` turned into `[k,n]`: then gemm reads it as it is, instead of once more per tile.
pub struct Transposed<'a> {
    data: &'a [f32],
    pub n: usize,
    pub k: usize,
    pitch: usize,
}

/// Side of the blocks that a matrix is transposed in: a cache line of f32.
const BLOCK: usize = 16;

impl<'a> Transposed<'a> {
    /// `row(j)` is row j of the matrix, of length k.
    pub fn new<'b>(
        buffer: &'a mut Vec<f32>,
        n: usize,
        k: usize,
        row: impl Fn(usize) -> &'b [f32] + Sync,
    ) -> Self {
        let pitch = n.next_multiple_of(BLOCK);
        if buffer.len() < k * pitch {
            buffer.resize(k * pitch, 0.0);
        }
        let data = &mut buffer[..k * pitch];
        data.par_chunks_mut(BLOCK * pitch).enumerate().for_each(|(chunk, out)| {
            let (first, depth) = (chunk * BLOCK, out.len() / pitch);
            for j in (0..n).step_by(BLOCK) {
                for column in j..n.min(j + BLOCK) {
                    let values = &row(column)[first..first + depth];
                    for (line, &value) in values.iter().enumerate() {
                        out[line * pitch + column] = value;
                    }
                }
            }
        });
        Transposed { data, n, k, pitch }
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

/// Takes the address of some rows of x and the distance between them.
type Multiply<'a> = &'a mut dyn FnMut(*const f32, usize);

/// `out = activation(start + x · weightᵀ)`.
pub struct Product<'a> {
    pub out: RowsMut<'a, f32>,
    pub start: Start<'a>,
    pub activation: Option<Activation>,
}

impl Product<'_> {
    /// `panel` finds or makes the rows of x that it is asked for, and calls back with them.
    pub fn run(&self, weight: &Transposed, panel: impl Fn(Range<usize>, Multiply) + Sync) {
        let Product { out, start, .. } = self;
        let (n, k) = (weight.n, weight.k);
        let (tile_rows, tile_columns) = tile(out.count, n, k);
        let columns = n.div_ceil(tile_columns);
        (0..out.count.div_ceil(tile_rows) * columns).into_par_iter().for_each(|tile| {
            let (r, c) = (tile / columns * tile_rows, tile % columns * tile_columns);
            let (rows, columns) = (r..out.count.min(r + tile_rows), c..n.min(c + tile_columns));
            for row in rows.clone() {
                // SAFETY: this tile is this task's alone.
                start.write(row, columns.clone(), unsafe { out.columns_mut(row, columns.clone()) });
            }
            panel(rows.clone(), &mut |x, x_pitch| {
                let to = out.pointer(rows.start).wrapping_add(columns.start);
                let weight_at = weight.data[columns.start..].as_ptr();
                // Column-major in gemm's eyes: its rows are our columns.
                // SAFETY: the tile lies in `out` and is this task's alone, the weight's columns lie
                // in `data`, and `panel` vouches for the rows of x.
                unsafe {
                    gemm(
                        [columns.len(), rows.len(), k],
                        (to, 1, out.pitch),
                        true,
                        (weight_at, 1, weight.pitch),
                        (x, x_pitch, 1),
                        1.0,
                    );
                }
            });
            if let Some(activation) = self.activation {
                for row in rows {
                    // SAFETY: as above.
                    math::activate(activation, unsafe { out.columns_mut(row, columns.clone()) });
                }
            }
        });
    }
}

/// Rows and columns of an output tile.
fn tile(rows: usize, n: usize, k: usize) -> (usize, usize) {
    // Rows of x that stay in a core's second-level cache, but enough to be worth passing over the weight.
    let cached = ((1 << 18) / k).clamp(32, 256);
    let tasks = 4 * rayon::current_num_threads();
    let tile_rows = rows.div_ceil(tasks).clamp(32, cached);
    // gemm's own tiles are up to 64 wide.
    let splits = tasks.div_ceil(2 * rows.div_ceil(tile_rows));
    (tile_rows, n.div_ceil(splits).next_multiple_of(64))
}

/// `dst = (accumulate ? dst : 0) + scale·a·b`, with `[m, n, k]` and per matrix (address, distance of
/// neighbours in a column, in a row): `a` is m by k, `b` k by n.
///
/// # Safety
/// The matrices lie in live memory; nothing else uses `dst`.
pub unsafe fn gemm(
    [m, n, k]: [usize; 3],
    (dst, dst_down, dst_right): (*mut f32, usize, usize),
    accumulate: bool,
    (a, a_down, a_right): (*const f32, usize, usize),
    (b, b_right, b_down): (*const f32, usize, usize),
    scale: f32,
) {
    let stride = |n: usize| n as isize;
    // SAFETY: the caller's word.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst,
            stride(dst_right),
            stride(dst_down),
            accumulate,
            a,
            stride(a_right),
            stride(a_down),
            b,
            stride(b_right),
            stride(b_down),
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// With so few rows a weight is read once and not worth transposing.
const FEW_ROWS: usize = 8;

pub fn linear(memory: &Memory, transposed: &mut Vec<f32>, v: &Linear) {
    let x = memory.rows::<f32>(v.x);
    let weight = memory.rows::<f32>(v.weight);
    let out = memory.rows_mut(v.out);
    let start = Start::new(memory, v.out, v.bias, |_| None, v.residual);
    if x.count <= FEW_ROWS {
        let task = (4096 / x.c).max(1);
        (0..weight.count).into_par_iter().with_min_len(task).for_each(|j| {
            for row in 0..x.count {
                // SAFETY: column j is this task's alone.
                let out = unsafe { out.columns_mut(row, j..j + 1) };
                start.write(row, j..j + 1, out);
                out[0] += math::vectorized(|| math::dot(x.row(row), weight.row(j)));
                if let Some(activation) = v.activation {
                    math::activate(activation, out);
                }
            }
        });
        return;
    }
    let weight = Transposed::new(transposed, weight.count, weight.c, |j| weight.row(j));
    let product = Product { out, start, activation: v.activation };
    product.run(&weight, |rows, multiply| multiply(x.pointer(rows.start), x.pitch));
}
