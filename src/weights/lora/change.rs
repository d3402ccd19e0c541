//! The numbers of a change, and how rows of a weight are changed by them, in f32.

use rayon::prelude::*;

use super::form::{Axis, Factor, Form, Kernel, Magnitude, Product, Shape};
use crate::weights::component::Shard;

/// A change of a weight, ready to be made.
pub struct Change {
    kind: Kind,
    /// What it is multiplied by.
    scale: f32,
    magnitude: Option<(Vec<f32>, Axis)>,
}

enum Kind {
    Product(Factors),
    Hadamard(Factors, Factors),
    Kronecker { w1: Vec<f32>, w2: Vec<f32>, shape: [Shape; 2] },
    Full(Vec<f32>),
}

/// `up · down`.
struct Factors {
    up: Vec<f32>,   // [o,r]
    down: Vec<f32>, // [r,k]
    rank: usize,
}

impl Change {
    pub fn read(file: &Shard, form: &Form, scale: f32, magnitude: Option<&Magnitude>) -> Self {
        let kind = match form {
            Form::Product(product) => Kind::Product(Factors::read(file, product)),
            Form::Hadamard(a, b) => Kind::Hadamard(Factors::read(file, a), Factors::read(file, b)),
            Form::Kronecker(a, b) => {
                let [w1, w2] = [a, b].map(|factor| match factor {
                    Factor::Whole(stored) => file.to_f32(stored),
                    Factor::Product(product) => {
                        let (rows, columns) = product.shape;
                        let mut whole = vec![0.0; rows * columns];
                        Factors::read(file, product).add_rows(0, columns, &mut whole, 1.0);
                        whole
                    }
                });
                Kind::Kronecker { w1, w2, shape: [a.shape(), b.shape()] }
            }
            Form::Full(stored) => Kind::Full(file.to_f32(stored)),
        };
        let magnitude = magnitude.map(|magnitude| (file.to_f32(&magnitude.stored), magnitude.axis));
        Change { kind, scale, magnitude }
    }

    /// Whether whole columns are scaled at the end, for which all rows must have been changed.
    pub fn scales_columns(&self) -> bool {
        matches!(self.magnitude, Some((_, Axis::Inputs)))
    }

    /// Changes the rows of a weight [o,k] from `first` on, all but [`Change::scale_columns`].
    pub fn change_rows(&self, first: usize, columns: usize, rows: &mut [f32]) {
        self.add_rows(first, columns, rows);
        if let Some((magnitude, Axis::Outputs)) = &self.magnitude {
            for (row, &length) in rows.chunks_exact_mut(columns).zip(&magnitude[first..]) {
                let factor = length / floor(squares(row).sqrt());
                row.iter_mut().for_each(|x| *x *= factor);
            }
        }
    }

    /// Gives the columns of each input their length.
    pub fn scale_columns(&self, weight: &mut [f32], columns: usize) {
        let Some((magnitude, Axis::Inputs)) = &self.magnitude else { return };
        let taps = columns / magnitude.len();
        let mut sums = vec![0f64; magnitude.len()];
        for row in weight.chunks_exact(columns) {
            sums.iter_mut().zip(row.chunks_exact(taps)).for_each(|(sum, taps)| *sum += squares(taps));
        }
        let factors = magnitude.iter().zip(&sums).map(|(&length, sum)| length / floor(sum.sqrt()));
        let factors: Vec<f32> = factors.collect();
        weight.par_chunks_exact_mut(columns).for_each(|row| {
            for (taps, factor) in row.chunks_exact_mut(taps).zip(&factors) {
                taps.iter_mut().for_each(|x| *x *= factor);
            }
        });
    }

    /// Adds the change's rows from `first` on to those of the weight.
    fn add_rows(&self, first: usize, columns: usize, weight: &mut [f32]) {
        match &self.kind {
            Kind::Product(factors) => factors.add_rows(first, columns, weight, self.scale),
            Kind::Hadamard(a, b) => {
                let [a, b] = [a, b].map(|factors| {
                    let mut rows = vec![0.0; weight.len()];
                    factors.add_rows(first, columns, &mut rows, 1.0);
                    rows
                });
                let both = a.iter().zip(&b);
                weight.iter_mut().zip(both).for_each(|(x, (a, b))| *x += self.scale * a * b);
            }
            Kind::Kronecker { w1, w2, shape: [(_, columns1), (rows2, columns2)] } => {
                for (row, weight) in weight.chunks_exact_mut(columns).enumerate() {
                    let (row1, row2) = ((first + row) / rows2, (first + row) % rows2);
                    let w2 = &w2[row2 * columns2..][..*columns2];
                    let w1 = &w1[row1 * columns1..][..*columns1];
                    for (weight, w1) in weight.chunks_exact_mut(*columns2).zip(w1) {
                        let factor = self.scale * w1;
                        weight.iter_mut().zip(w2).for_each(|(x, w2)| *x += factor * w2);
                    }
                }
            }
            Kind::Full(diff) => {
                let diff = &diff[first * columns..];
                weight.iter_mut().zip(diff).for_each(|(x, diff)| *x += self.scale * diff);
            }
        }
    }
}

impl Factors {
    fn read(file: &Shard, product: &Product) -> Self {
        let Product { rank, shape: (rows, columns), .. } = *product;
        let (mut up, mut down) = (file.to_f32(&product.up), file.to_f32(&product.down));
        if let Some(Kernel { stored, up_is_transposed }) = &product.kernel {
            let up_rank = up.len() / rows;
            if *up_is_transposed {
                up = (0..rows * up_rank).map(|i| up[i % up_rank * rows + i / up_rank]).collect();
            }
            down = through_kernel(&file.to_f32(stored), &down, [up_rank, rank], columns);
            return Factors { up, down, rank: up_rank };
        }
        Factors { up, down, rank }
    }

    /// `rows += scale · (up · down)[first.., :]`.
    fn add_rows(&self, first: usize, columns: usize, rows: &mut [f32], scale: f32) {
        let count = rows.len() / columns;
        let up = &self.up[first * self.rank..][..count * self.rank];
        multiply_add(rows, up, &self.down, [count, columns, self.rank], scale);
    }
}

/// `kernel` [r1,r2,taps] times `down` [r2,i], summed over r2: [r1,i·taps].
fn through_kernel(kernel: &[f32], down: &[f32], [r1, r2]: [usize; 2], columns: usize) -> Vec<f32> {
    let (taps, inputs) = (kernel.len() / (r1 * r2), down.len() / r2);
    assert_eq!(columns, inputs * taps);
    let mut out = vec![0f32; r1 * columns];
    out.par_chunks_mut(columns).zip(kernel.par_chunks(r2 * taps)).for_each(|(out, kernel)| {
        for (kernel, down) in kernel.chunks_exact(taps).zip(down.chunks_exact(inputs)) {
            for (out, x) in out.chunks_exact_mut(taps).zip(down) {
                out.iter_mut().zip(kernel).for_each(|(out, kernel)| *out += kernel * x);
            }
        }
    });
    out
}

/// `out += scale · a · b` with `out` [m,n], `a` [m,k] and `b` [k,n].
fn multiply_add(out: &mut [f32], a: &[f32], b: &[f32], [m, n, k]: [usize; 3], scale: f32) {
    assert_eq!((out.len(), a.len(), b.len()), (m * n, m * k, k * n));
    let [n_step, k_step] = [n as isize, k as isize];
    // As the product of the transposes: gemm is fastest along neighbours in memory.
    // SAFETY: the strides are those of dense matrices of these lengths, and `out` is borrowed alone.
    unsafe {
        gemm::gemm(
            n,
            m,
            k,
            out.as_mut_ptr(),
            n_step,
            1,
            true,
            b.as_ptr(),
            n_step,
            1,
            a.as_ptr(),
            k_step,
            1,
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

fn squares(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x) * f64::from(x)).sum()
}

/// Keeps weights that are all zero at zero.
fn floor(length: f64) -> f32 {
    (length as f32).max(f32::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_added_row_by_row() {
        // [2,3] + 2·[2,2]·[2,3], whole and from its second row on.
        let factors = Factors { up: vec![1., 2., 3., 4.], down: vec![1., 0., -1., 2., 1., 0.], rank: 2 };
        let mut whole = vec![1f32; 6];
        factors.add_rows(0, 3, &mut whole, 2.0);
        assert_eq!(whole, [11., 5., -1., 23., 9., -5.]);
        let mut last = vec![1f32; 3];
        factors.add_rows(1, 3, &mut last, 2.0);
        assert_eq!(last, whole[3..]);
    }
}
