//! From the order of numbers in a checkpoint to the order that the kernels read ([`Packing`]).

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::plan::{Packing, Request};
use crate::ops::{DType, TAP_SUMS};

/// Reads elements of one of a request's keys, in the checkpoint's order. Arguments: which key, which
/// elements, as which dtype, where to.
pub type ReadElements<'a> = &'a dyn Fn(usize, Range<usize>, DType, &mut [u8]);

/// Writes `rows` of the packed tensor of `request` to `out`.
pub fn pack(request: &Request, rows: Range<usize>, out: &mut [u8], read: ReadElements) {
    let dtype = request.tensor.dtype;
    let size = dtype.size();
    let row_bytes = request.tensor.c() * size;
    assert!(rows.end <= request.tensor.rows() && out.len() == rows.len() * row_bytes, "{request:?} {rows:?}");
    match request.packing {
        Packing::Rows => stack(request, rows, out, read),
        Packing::Ohwi => {
            let [_, i, kh, kw] = request.shape[..] else { panic!("not a conv weight: {request:?}") };
            if kh * kw == 1 && i == request.tensor.c() {
                stack(request, rows, out, read);
            } else if size == 4 {
                conv::<u32>(request, rows, bytemuck::cast_slice_mut(out), read);
            } else {
                conv::<u16>(request, rows, bytemuck::cast_slice_mut(out), read);
            }
        }
        Packing::TapSums => tap_sums(request, rows, out, read),
    }
}

/// The keys' elements, one key after another.
fn stack(request: &Request, rows: Range<usize>, mut out: &mut [u8], read: ReadElements) {
    let size = request.tensor.dtype.size();
    let key_len = request.shape.iter().product::<usize>();
    let c = request.tensor.c();
    let mut element = rows.start * c;
    while element < rows.end * c {
        let (key, start) = (element / key_len, element % key_len);
        let count = (key_len - start).min(rows.end * c - element);
        let (part, rest) = out.split_at_mut(count * size);
        read(key, start..start + count, request.tensor.dtype, part);
        out = rest;
        element += count;
    }
}

/// OIHW to OHWI. An output channel's `i·kh·kw` elements lie together on both sides and fit the caches,
/// so one at a time is read and transposed. `E` is an integer as wide as an element.
fn conv<E: bytemuck::Pod>(request: &Request, rows: Range<usize>, out: &mut [E], read: ReadElements) {
    let [_, i, kh, kw] = request.shape[..] else { panic!("not a conv weight: {request:?}") };
    let (taps, c) = (kh * kw, request.tensor.c());
    let mut stored = vec![E::zeroed(); i * taps];
    let mut row = rows.start;
    for out in chunks_to_boundaries(out, c * taps, row % taps * c) {
        let (o, first_tap) = (row / taps, row % taps);
        let elements = o * i * taps..(o + 1) * i * taps;
        read(0, elements, request.tensor.dtype, bytemuck::cast_slice_mut(&mut stored));
        if taps == 9 && out.len() == 9 * c {
            transpose::<E, 9>(&stored, out, c);
        } else {
            for (tap, out) in (first_tap..).zip(out.chunks_exact_mut(c)) {
                let (out, padding) = out.split_at_mut(i);
                out.iter_mut().zip(stored[tap..].iter().step_by(taps)).for_each(|(out, &x)| *out = x);
                padding.fill(E::zeroed());
            }
        }
        row += out.len() / c;
    }
}

/// OIHW with a 3x3 kernel to sums of its taps, [o,5,5,i]: by [`TAP_SUMS`] along both axes. Summed in f32, and
/// rounded once.
fn tap_sums(request: &Request, rows: Range<usize>, out: &mut [u8], read: ReadElements) {
    const SUMS: usize = TAP_SUMS.len() * TAP_SUMS.len();
    let [_, i, 3, 3] = request.shape[..] else { panic!("not a 3x3 conv weight: {request:?}") };
    let (c, dtype) = (request.tensor.c(), request.tensor.dtype);
    let mut stored = vec![0f32; 9 * i];
    let mut taps = vec![0f32; 9 * c];
    let mut sum = vec![0f32; c];
    let mut channel = None;
    for (row, out) in rows.zip(out.chunks_exact_mut(c * dtype.size())) {
        let (o, place) = (row / SUMS, row % SUMS);
        if channel.replace(o) != Some(o) {
            read(0, 9 * o * i..9 * (o + 1) * i, DType::F32, bytemuck::cast_slice_mut(&mut stored));
            transpose::<f32, 9>(&stored, &mut taps, c);
        }
        let [ys, xs] = [place / TAP_SUMS.len(), place % TAP_SUMS.len()].map(|at| TAP_SUMS[at].clone());
        sum.fill(0.0);
        for tap in ys.flat_map(|y| xs.clone().map(move |x| 3 * y + x)) {
            sum.iter_mut().zip(&taps[tap * c..]).for_each(|(sum, tap)| *sum += tap);
        }
        from_f32(&sum, dtype, out);
    }
}

/// Splits `out`, which begins `offset` elements after a multiple of `chunk`, at the multiples of `chunk`.
fn chunks_to_boundaries<E>(out: &mut [E], chunk: usize, offset: usize) -> impl Iterator<Item = &mut [E]> {
    let first = if offset == 0 { 0 } else { (chunk - offset).min(out.len()) };
    let (head, tail) = out.split_at_mut(first);
    let head = (!head.is_empty()).then_some(head);
    head.into_iter().chain(tail.chunks_mut(chunk))
}

/// `[i, TAPS]` to `[TAPS, c]`, zeros from column i on.
fn transpose<E: bytemuck::Pod, const TAPS: usize>(stored: &[E], out: &mut [E], c: usize) {
    let mut rows = out.chunks_exact_mut(c);
    let mut rows: [&mut [E]; TAPS] = std::array::from_fn(|_| rows.next().expect("TAPS rows of c elements"));
    let (stored, _) = stored.as_chunks::<TAPS>();
    for (column, taps) in stored.iter().enumerate() {
        for (row, &x) in rows.iter_mut().zip(taps) {
            row[column] = x;
        }
    }
    for row in rows {
        row[stored.len()..].fill(E::zeroed());
    }
}

/// Elements converted at once: they stay in the first-level cache with their source and their result.
const CHUNK: usize = 1024;

/// Copies elements of dtype `from`, times `factor`, to elements of dtype `to`, rounding to nearest, ties
/// to even. `stored` may lie at any address, as in a mapped file; `out` must be aligned.
///
/// # Panics
/// When a dtype is not a float, or the lengths differ.
pub fn convert(from: DType, stored: &[u8], factor: f32, to: DType, out: &mut [u8]) {
    if from == to && factor == 1.0 {
        out.copy_from_slice(stored);
        return;
    }
    let mut floats = [0f32; CHUNK];
    assert_eq!(stored.len() / from.size(), out.len() / to.size(), "{from} to {to}");
    for (stored, out) in stored.chunks(CHUNK * from.size()).zip(out.chunks_mut(CHUNK * to.size())) {
        let floats = &mut floats[..stored.len() / from.size()];
        to_f32(from, stored, floats);
        if factor != 1.0 {
            floats.iter_mut().for_each(|x| *x *= factor);
        }
        from_f32(floats, to, out);
    }
}

fn to_f32(from: DType, stored: &[u8], floats: &mut [f32]) {
    // The address may be odd: `halves` brings the elements to a place where they are aligned.
    let mut halves = [0u16; CHUNK];
    match from {
        DType::F32 => bytemuck::cast_slice_mut(floats).copy_from_slice(stored),
        DType::F16 | DType::BF16 => {
            let halves = &mut halves[..floats.len()];
            bytemuck::cast_slice_mut(halves).copy_from_slice(stored);
            if from == DType::F16 {
                bytemuck::cast_slice::<u16, f16>(halves).convert_to_f32_slice(floats);
            } else {
                bytemuck::cast_slice::<u16, bf16>(halves).convert_to_f32_slice(floats);
            }
        }
        DType::I32 | DType::U8 => panic!("{from} is not a dtype of weights"),
    }
}

/// Rounds `floats` to the dtype `to`.
pub fn from_f32(floats: &[f32], to: DType, out: &mut [u8]) {
    match to {
        DType::F32 => out.copy_from_slice(bytemuck::cast_slice(floats)),
        DType::F16 => bytemuck::cast_slice_mut::<u8, f16>(out).convert_from_f32_slice(floats),
        DType::BF16 => bytemuck::cast_slice_mut::<u8, bf16>(out).convert_from_f32_slice(floats),
        DType::I32 | DType::U8 => panic!("{to} is not a dtype of weights"),
    }
}
