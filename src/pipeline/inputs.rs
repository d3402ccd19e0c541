//! What is written in front of a replay: times and noise.

use super::request::Request;
use super::stages::Tensors;
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
    backend.write(t.table, &padded(&table.pack(), t.table.len()))
}

/// Draws the initial latents and the noise of every row that wants some, each picture from its own
/// generator, in the order in which diffusers draws them.
pub(super) fn write_noise(
    backend: &mut dyn Backend,
    t: &Tensors,
    request: &Request,
    table: &Table,
) -> Result<()> {
    let [images, h, w, c] = t.latents.shape;
    let n = h * w * c;
    let noise_rows: Vec<usize> = table.noise_rows().collect();
    let last_row = noise_rows.last().map_or(0, |row| row + 1);
    let mut latents = vec![0f32; images * n];
    let mut noise = vec![0f32; last_row * images * n];
    let mut drawn = vec![0f32; n];
    for image in 0..images {
        let mut generator = request.rng.source(request.seed.wrapping_add(image as u64));
        generator.fill_normal(&mut drawn);
        let sigma = table.init_noise_sigma as f32;
        drawn.iter_mut().for_each(|x| *x *= sigma);
        to_nhwc(&drawn, c, &mut latents[image * n..][..n]);
        for row in &noise_rows {
            generator.fill_normal(&mut drawn);
            to_nhwc(&drawn, c, &mut noise[(row * images + image) * n..][..n]);
        }
    }
    backend.write(t.latents, bytemuck::cast_slice(&latents))?;
    if last_row > 0 {
        backend.write(t.noise.images(0, last_row * images), bytemuck::cast_slice(&noise))?;
    }
    Ok(())
}

/// Torch draws [c,h,w]; latents lie as [h,w,c].
fn to_nhwc(chw: &[f32], c: usize, hwc: &mut [f32]) {
    let hw = chw.len() / c;
    for (pixel, channels) in hwc.chunks_exact_mut(c).enumerate() {
        for (channel, x) in channels.iter_mut().enumerate() {
            *x = chw[channel * hw + pixel];
        }
    }
}

/// The bytes of `values`, followed by zeros up to `len` elements.
pub(super) fn padded(values: &[f32], len: usize) -> Vec<u8> {
    let mut padded = values.to_vec();
    padded.resize(len, 0.0);
    bytemuck::cast_slice(&padded).to_vec()
}
