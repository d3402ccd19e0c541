//! What the latents start as, and what is known of them while a part is painted.

use super::encoded::Encoded;
use super::numbers::write_floats;
use super::slots::SlotTensors;
use crate::error::Result;
use crate::ops::Backend;
use crate::rng::NoiseSource;
use crate::sampler::{Mix, Table};

/// What an image starts from, besides noise.
pub(super) struct Start<'a> {
    /// The image of the request.
    pub picture: Option<&'a Encoded>,
    pub before: Option<Before>,
}

/// The latents of the pass before: [h,w,c].
pub(super) enum Before {
    /// Enlarged, to be denoised again.
    Enlarged(Vec<f32>),
    /// Of the same schedule, whose noise is still in them.
    HandedOver {
        latents: Vec<f32>,
        /// How often the pass before has drawn noise beyond what is drawn here.
        drawn: usize,
    },
}

/// Writes what the loop starts from to the slot of an image: its latents, what is known of them, the noise of every
/// row that wants some, and the sampler's table.
///
/// Each image draws from its own generator, in the order in which diffusers draws: for the latents of its picture, for
/// the initial noise, for the latents of its masked picture (also where no model sees them), then for the rows. A tiny
/// VAE's latents of a picture are not drawn. A pass that goes on with a schedule goes on with the generator.
pub(super) fn write_latents(
    backend: &mut dyn Backend,
    slots: &SlotTensors,
    [slot, first_row]: [usize; 2],
    generator: &mut dyn NoiseSource,
    table: &Table,
    Start { picture: encoded, before }: Start,
) -> Result<()> {
    let [_, h, w, c] = slots.latents.shape;
    let n = h * w * c;
    let mut draw = || draw(generator, n, c);
    let picture =
        encoded.and_then(|encoded| encoded.picture.as_ref()).map(|picture| picture.sample(&mut draw));
    let picture = picture.unwrap_or_else(|| vec![0.0; n]);
    let noise = draw();
    let latents: Vec<f32> = match &before {
        None => {
            mixed(encoded.map_or(table.noise(), |encoded| encoded.start(table)), &picture, &noise).collect()
        }
        Some(Before::Enlarged(latents)) => mixed(table.start(), latents, &noise).collect(),
        Some(Before::HandedOver { latents, .. }) => latents.clone(),
    };
    backend.write(slots.latents.images(slot, 1), bytemuck::cast_slice(&latents))?;
    let masked = encoded.and_then(|encoded| encoded.masked.as_ref());
    let masked_latents = masked.map(|masked| match &masked.picture {
        Some(picture) => picture.sample(&mut draw),
        None if masked.is_drawn => draw(),
        None => Vec::new(),
    });

    if let Some(Before::HandedOver { drawn, .. }) = before {
        (0..drawn).for_each(|_| drop(draw()));
    }
    let noise_rows: Vec<usize> = table.noise_rows().collect();
    if let Some(last) = noise_rows.last() {
        let mut row_noise = vec![0f32; (last + 1) * n];
        for row in &noise_rows {
            row_noise[row * n..][..n].copy_from_slice(&draw());
        }
        backend.write(slots.noise.images(first_row, last + 1), bytemuck::cast_slice(&row_noise))?;
    }
    let rows = slots.table.table_rows(first_row, table.evaluations());
    backend.write(rows, bytemuck::cast_slice(&table.pack()))?;

    if let Some(known) = slots.known {
        let mask = masked.map_or_else(|| vec![1.0; h * w], |masked| masked.mask.clone());
        backend.write(known.mask.images(slot, 1), bytemuck::cast_slice(&mask))?;
        if masked.is_some() {
            backend.write(known.latents.images(slot, 1), bytemuck::cast_slice(&picture))?;
            backend.write(known.noise.images(slot, 1), bytemuck::cast_slice(&noise))?;
        }
    }
    if let Some(beside) = slots.beside {
        let columns = match (masked, &masked_latents, encoded.and_then(|encoded| encoded.edited.as_ref())) {
            (Some(masked), Some(latents), _) => {
                let pixels = masked.mask.iter().zip(latents.chunks_exact(c));
                pixels.flat_map(|(mask, pixel)| std::iter::once(*mask).chain(pixel.iter().copied())).collect()
            }
            (_, _, Some(latents)) => latents.clone(),
            _ => Vec::new(),
        };
        if !columns.is_empty() {
            write_floats(backend, beside.images(slot, 1), &columns)?;
        }
    }
    Ok(())
}

fn mixed<'a>(mix: Mix, sample: &'a [f32], noise: &'a [f32]) -> impl Iterator<Item = f32> + 'a {
    let (signal, sigma) = (mix.signal as f32, mix.noise as f32);
    sample.iter().zip(noise).map(move |(sample, noise)| signal * sample + sigma * noise)
}

/// Draws latents of n numbers. Torch draws [c,h,w]; they lie as [h,w,c].
fn draw(generator: &mut dyn NoiseSource, n: usize, c: usize) -> Vec<f32> {
    let mut chw = vec![0f32; n];
    generator.fill_normal(&mut chw);
    let hw = n / c;
    (0..n).map(|i| chw[i % c * hw + i / c]).collect()
}
