//! What is written in front of a replay, but for prompts and latents.

use super::denoising::Denoising;
use super::request::Request;
use super::tensors::Tensors;
use crate::error::Result;
use crate::ops::Backend;
use crate::sampler::Table;

/// Writes what the tables of times and of the sampler are made of.
pub(super) fn write_times(
    backend: &mut dyn Backend,
    t: &Tensors,
    request: &Request,
    table: &Table,
) -> Result<()> {
    let timesteps = t.time.timesteps;
    backend.write(timesteps, &padded(&table.timesteps(), timesteps.len()))?;
    if let Some(guidance) = t.time.guidance {
        let thousandths = 1000.0 * (request.guidance_scale - 1.0);
        backend.write(guidance, bytemuck::cast_slice(&vec![thousandths; guidance.len()]))?;
    }
    let Denoising { table: tables, shape, .. } = &t.denoising;
    let one = padded(&table.pack(), tables.len() / shape.images);
    backend.write(*tables, &one.repeat(shape.images))
}

/// The bytes of `values`, followed by zeros up to `len` elements.
pub(super) fn padded(values: &[f32], len: usize) -> Vec<u8> {
    let mut padded = values.to_vec();
    padded.resize(len, 0.0);
    bytemuck::cast_slice(&padded).to_vec()
}
