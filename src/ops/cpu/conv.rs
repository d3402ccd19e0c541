//! Convolution: patches of a few output pixels are gathered side by side, then it is a product.

use std::ops::Range;

use super::memory::{Memory, Rows};
use super::product::{Block, Product, Start, Weight, with_scratch};
use crate::ops::{Conv2d, TAP_SUMS};

/// Floats of a pixel's gathered patch: those of a tile's pixels, at most 256, stay in a core's second-level
/// cache beside the weight. The same for all shapes, as sums are cut here.
const PATCH: usize = 1 << 10;

pub fn conv2d(memory: &Memory, transposed: &mut Vec<f32>, v: &Conv2d) {
    let x = memory.rows::<f32>(v.x);
    let stored = memory.slice(v.weight);
    let [o, _, _, i] = v.weight.shape;
    let taps = v.kernel().pow(2);
    let rows = v.row.map(|row| (memory.rows::<f32>(row.table), memory.slice::<i32>(row.index)));
    let row = |image: usize| {
        rows.map(|(table, index)| table.row(usize::try_from(index[image]).expect("index below zero")))
    };
    let start = Start::new(memory, v.out, v.bias, row, v.residual);
    let product = Product { out: memory.rows_mut(v.out), start, activation: None };
    if v.upsample {
        for part in Part::all(v) {
            with_scratch(o * taps * i, |kernel| {
                part.kernel(stored, i, kernel);
                let weight = Weight::new(kernel, [o, taps * i], part.pixels(), transposed);
                let place = |pixel: usize| part.place(v, pixel);
                product.run_rows(&weight, part.pixels(), Some(&place), patches(v, x, &part));
            });
        }
        return;
    }
    let weight = Weight::new(stored, [o, taps * i], v.out.rows(), transposed);
    if taps == 1 && v.stride == 1 && v.x.shape[..3] == v.out.shape[..3] {
        product.run(&weight, |pixels, multiply| {
            multiply(Block { x: x.pointer(pixels.start), pitch: x.pitch, depth: 0..i });
        });
    } else {
        product.run(&weight, patches(v, x, &Part::whole(v)));
    }
}

/// The rows of a part of the output, or its columns.
#[derive(Clone)]
struct Side {
    first: usize,
    step: usize,
    count: usize,
    /// The patch of row n begins at row `start + n·stride - pad` of x.
    start: usize,
    /// Rows of the weight that the patch is multiplied with.
    taps: Vec<usize>,
}

/// Pixels of the output, the same of all images, that see the same taps of the weight.
struct Part {
    images: usize,
    rows: Side,
    columns: Side,
}

impl Side {
    fn whole(count: usize, kernel: usize) -> Side {
        Side { first: 0, step: 1, count, start: 0, taps: (0..kernel).collect() }
    }

    /// The kinds of [`TAP_SUMS`] among `n` rows.
    fn upsampled(n: usize) -> impl Iterator<Item = Side> {
        let side = |first: usize, count, taps: [usize; 2]| {
            let start = first.div_ceil(2);
            Side { first, step: 2, count, start, taps: taps.into() }
        };
        let sides = [side(0, n / 2, [0, 1]), side(1, n / 2, [2, 3]), side(n - 1, n % 2, [0, 4])];
        sides.into_iter().filter(|side| side.count > 0)
    }
}

impl Part {
    fn whole(v: &Conv2d) -> Part {
        let side = |n| Side::whole(n, v.kernel());
        Part { images: v.out.b(), rows: side(v.out.h()), columns: side(v.out.w()) }
    }

    /// All parts of an upsampling convolution's output.
    fn all(v: &Conv2d) -> impl Iterator<Item = Part> {
        let [h, w] = [v.out.h(), v.out.w()];
        let sides =
            Side::upsampled(h).flat_map(move |rows| Side::upsampled(w).map(move |c| (rows.clone(), c)));
        sides.map(|(rows, columns)| Part { images: v.out.b(), rows, columns })
    }

    fn pixels(&self) -> usize {
        self.images * self.rows.count * self.columns.count
    }

    /// Image, row and column, the latter two counted in the part.
    fn position(&self, pixel: usize) -> [usize; 3] {
        let pixels = self.rows.count * self.columns.count;
        let (image, place) = (pixel / pixels, pixel % pixels);
        [image, place / self.columns.count, place % self.columns.count]
    }

    /// Which of the output's pixels one of the part is.
    fn place(&self, v: &Conv2d, pixel: usize) -> usize {
        let [image, row, column] = self.position(pixel);
        let [row, column] =
            [(&self.rows, row), (&self.columns, column)].map(|(side, n)| side.first + n * side.step);
        (image * v.out.h() + row) * v.out.w() + column
    }

    /// Writes the part's taps of a weight [o,5,5,i] side by side.
    fn kernel(&self, stored: &[f32], i: usize, kernel: &mut [f32]) {
        let sums = TAP_SUMS.len();
        let taps = self.rows.taps.iter();
        let taps = taps.flat_map(|row| self.columns.taps.iter().map(move |column| sums * row + column));
        let taps: Vec<usize> = taps.collect();
        let stored = stored.chunks_exact(sums * sums * i);
        for (kernel, stored) in kernel.chunks_exact_mut(taps.len() * i).zip(stored) {
            for (values, tap) in kernel.chunks_exact_mut(i).zip(&taps) {
                values.copy_from_slice(&stored[tap * i..][..i]);
            }
        }
    }
}

/// Gathers what pixels of a part see, some taps at once.
fn patches<'a>(
    v: &'a Conv2d,
    x: Rows<'a, f32>,
    part: &'a Part,
) -> impl Fn(Range<usize>, &mut dyn FnMut(Block)) + Sync + 'a {
    let (i, taps) = (v.x.c(), v.kernel().pow(2));
    let at_once = (PATCH / i).clamp(1, taps);
    move |pixels, multiply| {
        with_scratch(pixels.len() * at_once * i, |panel| {
            for first in (0..taps).step_by(at_once) {
                let some = first..taps.min(first + at_once);
                let pitch = some.len() * i;
                for (patch, pixel) in panel.chunks_exact_mut(pitch).zip(pixels.clone()) {
                    gather(v, x, part, pixel, some.clone(), patch);
                }
                multiply(Block { x: panel.as_ptr(), pitch, depth: first * i..some.end * i });
            }
        });
    }
}

/// Writes what some taps of the kernel see at a pixel of a part.
fn gather(v: &Conv2d, x: Rows<f32>, part: &Part, pixel: usize, taps: Range<usize>, patch: &mut [f32]) {
    let [_, h, w, i] = v.x.shape;
    let k = v.kernel();
    let [image, row, column] = part.position(pixel);
    let (top, left) = (part.rows.start + row * v.stride, part.columns.start + column * v.stride);
    let run = if x.pitch == i { k } else { 1 };
    let (mut tap, mut rest) = (taps.start, patch);
    while tap < taps.end {
        // Outside above and to the left wraps around to a huge number.
        let row = (top + tap / k).wrapping_sub(v.pad);
        let column = (left + tap % k).wrapping_sub(v.pad);
        // Taps whose pixels are neighbours in memory are copied at once.
        let count = run.min(k - tap % k).min(taps.end - tap);
        let inside = row < h && column < w;
        let count = if inside { count.min(w - column) } else { 1 };
        let (values, after) = rest.split_at_mut(count * i);
        if inside {
            values.copy_from_slice(x.run((image * h + row) * w + column, values.len()));
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
    use crate::ops::{Arena, Backend, DType, Ops, TAP_SUMS};

    fn random(len: usize) -> Vec<f32> {
        let mut state = len as u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    fn run(cpu: &mut Cpu, call: Conv2d) -> Vec<f32> {
        cpu.run(&mut |ops| ops.conv2d(call)).unwrap();
        let mut out = vec![0.0_f32; call.out.len()];
        cpu.read(call.out, bytemuck::cast_slice_mut(&mut out)).unwrap();
        out
    }

    /// Shapes that are cut into several tiles, along the kernel's taps too, with either form of the weight.
    #[test]
    fn large_shapes_equal_the_plain_sum() {
        let mut cpu = Cpu::new();
        let region = cpu.reserve(16 << 20, "tests").unwrap();
        for ([h, w], i, o) in [([8, 9], 640, 136), ([64, 33], 128, 68), ([96, 96], 4, 4)] {
            cpu.use_arena(Arena::new(region.base, region.bytes));
            let shapes = [[1, h, w, i], [o, 3, 3, i], [1, 1, 1, o], [1, h, w, o]];
            let [x, weight, bias, out] = shapes.map(|shape| cpu.arena().alloc(shape, DType::F32));
            let values = [x, weight, bias].map(|tensor| random(tensor.len()));
            for (tensor, values) in [x, weight, bias].iter().zip(&values) {
                cpu.write(*tensor, bytemuck::cast_slice(values)).unwrap();
            }
            let got = run(&mut cpu, Conv2d::new(out, x, weight, bias));

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

    /// In several tiles, with either form of the weight.
    #[test]
    fn upsampling_is_a_convolution_of_the_enlarged_map() {
        let mut cpu = Cpu::new();
        let region = cpu.reserve(16 << 20, "tests").unwrap();
        for ([b, ho, wo], i, o) in [([2, 16, 16], 256, 136), ([1, 17, 31], 128, 68), ([1, 127, 96], 4, 4)] {
            cpu.use_arena(Arena::new(region.base, region.bytes));
            let [h, w] = [ho, wo].map(|n: usize| n.div_ceil(2));
            let shapes =
                [[b, h, w, i], [b, ho, wo, i], [o, 3, 3, i], [o, 5, 5, i], [1, 1, 1, o], [b, ho, wo, o]];
            let [x, enlarged, weight, sums, bias, out] =
                shapes.map(|shape| cpu.arena().alloc(shape, DType::F32));
            let (pixels, taps) = (random(x.len()), random(weight.len()));
            let place = |at: usize| [at / i / wo / ho * h + at / i / wo % ho / 2, at / i % wo / 2, at % i];
            let larger =
                (0..enlarged.len()).map(place).map(|[row, column, c]| pixels[(row * w + column) * i + c]);
            let summed = (0..sums.len()).map(|at| [at / i / 25, at / i / 5 % 5, at / i % 5, at % i]).map(
                |[channel, row, column, c]| {
                    let rows = TAP_SUMS[row].clone();
                    let pairs =
                        rows.flat_map(|row| TAP_SUMS[column].clone().map(move |column| 3 * row + column));
                    pairs.map(|tap| taps[(channel * 9 + tap) * i + c]).sum()
                },
            );
            for (tensor, values) in [
                (x, pixels.clone()),
                (enlarged, larger.collect()),
                (weight, taps.clone()),
                (sums, summed.collect()),
                (bias, random(o)),
            ] {
                cpu.write(tensor, bytemuck::cast_slice(&values)).unwrap();
            }
            let want = run(&mut cpu, Conv2d::new(out, enlarged, weight, bias));
            let got = run(&mut cpu, Conv2d::upsampling(out, x, sums, bias));
            let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4 * (i as f32).sqrt(), "{b}x{ho}x{wo}x{i}: {worst}");
        }
    }
}
