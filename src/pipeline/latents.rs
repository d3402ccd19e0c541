//! What the latents start as, and what is known of them while a part is painted.

use super::denoising::Denoising;
use super::encoded::{Encoded, Masked};
use super::numbers::write_floats;
use super::request::Request;
use crate::error::Result;
use crate::ops::Backend;
use crate::rng::NoiseSource;
use crate::sampler::{Mix, Table};

/// What a pass starts from.
pub(super) enum Start {
    Noise,
    Picture(Encoded),
    /// Of every picture, [images,h,w,c].
    Latents(Vec<f32>),
}

/// Writes the initial latents, what is known of them, and the noise of every row that wants some. Each picture draws
/// from its own generator, in the order in which diffusers draws: for the latents of its picture, for the initial
/// noise, for the latents of its masked picture (also where no model sees them), then for the rows. A tiny VAE's
/// latents of a picture are not drawn.
pub(super) fn write_latents(
    backend: &mut dyn Backend,
    d: &Denoising,
    request: &Request,
    table: &Table,
    start: &Start,
) -> Result<()> {
    let [images, h, w, c] = d.latents.shape;
    let n = h * w * c;
    let noise_rows: Vec<usize> = table.noise_rows().collect();
    let last_row = noise_rows.last().map_or(0, |row| row + 1);
    let mut row_noise = vec![0f32; last_row * n];
    let [mut latents, mut init, mut noise, mut masked_latents] = [(); 4].map(|()| Vec::<f32>::new());
    for image in 0..images {
        let mut generator = request.rng.source(request.seed.wrapping_add(image as u64));
        let mut draw = || draw(&mut *generator, n, c);
        let picture = match start {
            Start::Noise => None,
            Start::Picture(encoded) => encoded.picture.as_ref().map(|picture| picture.sample(&mut draw)),
            Start::Latents(latents) => Some(latents[image * n..][..n].to_vec()),
        };
        let picture = picture.unwrap_or_else(|| vec![0.0; n]);
        let drawn = draw();
        let mix = match start {
            Start::Noise => table.noise(),
            Start::Picture(encoded) => encoded.start(table),
            Start::Latents(_) => table.start(),
        };
        latents.extend(mixed(mix, &picture, &drawn));
        if let Some(masked) = masked(start) {
            match &masked.picture {
                Some(picture) => masked_latents.extend(picture.sample(&mut draw)),
                None if masked.is_drawn => drop(draw()),
                None => {}
            }
        }
        init.extend(picture);
        noise.extend(drawn);
        for row in &noise_rows {
            row_noise[row * n..][..n].copy_from_slice(&draw());
        }
        if last_row > 0 {
            let rows = d.noise.images(image * d.shape.evaluations, last_row);
            backend.write(rows, bytemuck::cast_slice(&row_noise))?;
        }
    }
    backend.write(d.latents, bytemuck::cast_slice(&latents))?;
    let Some(masked) = masked(start) else { return Ok(()) };
    if let Some(known) = d.known {
        backend.write(known.mask, bytemuck::cast_slice(&masked.mask.repeat(images)))?;
        backend.write(known.latents, bytemuck::cast_slice(&init))?;
        backend.write(known.noise, bytemuck::cast_slice(&noise))?;
    }
    write_input(backend, d, masked, &masked_latents)
}

/// Writes what an inpainting U-Net sees beside its latents.
fn write_input(backend: &mut dyn Backend, d: &Denoising, masked: &Masked, latents: &[f32]) -> Result<()> {
    let Some(input) = d.input else { return Ok(()) };
    let c = d.latents.c();
    let mut columns = vec![0f32; input.len()];
    let masks = masked.mask.iter().cycle();
    // The pictures come twice where both rows of guidance have an input.
    let pixels = latents.chunks_exact(c).cycle();
    for (row, (mask, pixel)) in columns.chunks_exact_mut(input.c()).zip(masks.zip(pixels)) {
        row[c] = *mask;
        row[c + 1..2 * c + 1].copy_from_slice(pixel);
    }
    write_floats(backend, input, &columns)
}

fn masked(start: &Start) -> Option<&Masked> {
    match start {
        Start::Picture(encoded) => encoded.masked.as_ref(),
        Start::Noise | Start::Latents(_) => None,
    }
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
