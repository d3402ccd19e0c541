//! Floats of the host, and tensors of any dtype that floats are kept in.

use crate::error::Result;
use crate::ops::{Backend, DType, Tensor};
use crate::weights::pack;

/// Rounds `values`, as many as the tensor has elements.
pub(super) fn write_floats(backend: &mut dyn Backend, to: Tensor, values: &[f32]) -> Result<()> {
    let mut bytes = vec![0; to.bytes()];
    pack::from_f32(values, to.dtype, &mut bytes);
    backend.write(to, &bytes)
}

pub(super) fn read_floats(backend: &mut dyn Backend, from: Tensor) -> Result<Vec<f32>> {
    let mut values = vec![0f32; from.len()];
    if from.dtype == DType::F32 {
        backend.read(from, bytemuck::cast_slice_mut(&mut values))?;
    } else {
        let mut bytes = vec![0; from.bytes()];
        backend.read(from, &mut bytes)?;
        pack::convert(from.dtype, &bytes, 1.0, DType::F32, bytemuck::cast_slice_mut(&mut values));
    }
    Ok(values)
}

/// The bytes of `values`, followed by zeros up to `len` elements.
pub(super) fn padded(values: &[f32], len: usize) -> Vec<u8> {
    let mut padded = values.to_vec();
    padded.resize(len, 0.0);
    bytemuck::cast_slice(&padded).to_vec()
}
