//! What the denoising loop does around the model; the layout of a row is `sampler::Row::pack`'s.

use super::memory::Memory;
use crate::ops::{ModelInput, SamplerStep, Tensor};
use crate::sampler::ROW_WIDTH;

/// Entries of an image's history.
const HISTORY: usize = 4;

/// The table row that an image is at, and its number.
fn table_row(memory: &Memory, table: Tensor, index: Tensor, image: usize) -> (usize, &[f32; ROW_WIDTH]) {
    let (rows, _) = memory.slice::<f32>(table).as_chunks();
    let step = memory.slice::<i32>(index)[image];
    let step = usize::try_from(step).ok().filter(|&step| step < rows.len());
    let step = step.unwrap_or_else(|| panic!("image {image} is past the {} rows of its table", rows.len()));
    (step, &rows[step])
}

pub fn model_input(memory: &Memory, v: &ModelInput) {
    let x = memory.rows::<f32>(v.x);
    let guided = v.out.b() - v.x.b();
    let scales: Vec<f32> =
        (0..v.x.b()).map(|image| table_row(memory, v.table, v.index, image).1[0]).collect();
    memory.rows_mut::<f32>(v.out).par_rows(|row, out| {
        let (shown, pixel) = (row / v.x.tokens(), row % v.x.tokens());
        let image = if shown < guided { shown } else { shown - guided };
        let x = x.row(image * v.x.tokens() + pixel);
        out.iter_mut().zip(x).for_each(|(out, x)| *out = x * scales[image]);
    });
}

pub fn sampler_step(memory: &Memory, v: &SamplerStep) {
    let (images, pixels) = (v.x.b(), v.x.tokens());
    let guided = v.output.b() - images;
    let is_guided = |image: usize| image < guided;
    let (output, noise) = (memory.rows::<f32>(v.output), memory.rows::<f32>(v.noise));
    let (saved, history) = (memory.rows_mut::<f32>(v.saved), memory.rows_mut::<f32>(v.history));
    let guidance = memory.slice::<f32>(v.guidance);
    let guide = |image: usize, (u, c): (f32, f32)| u + guidance[image] * (c - u);
    let factors: Vec<f32> = (0..images)
        .map(|image| match memory.slice::<f32>(v.guidance_rescale)[image] {
            phi if is_guided(image) && phi != 0.0 => {
                let halves = || {
                    let rows = image * pixels..(image + 1) * pixels;
                    rows.flat_map(|row| pairs(output.row(row), output.row(guided * pixels + row)))
                };
                let spread = deviation(halves().map(|(_, c)| c));
                let guided = deviation(halves().map(|pair| guide(image, pair)));
                phi * (spread / guided) as f32 + (1.0 - phi)
            }
            _ => 1.0,
        })
        .collect();
    let known = v.known.map(|known| {
        let [mask, latents, noise] = [known.mask, known.latents, known.noise].map(|t| memory.rows::<f32>(t));
        (mask, latents, noise)
    });
    let steps: Vec<_> = (0..images).map(|image| table_row(memory, v.table, v.index, image)).collect();

    memory.rows_mut::<f32>(v.x).par_rows(|row, x| {
        let (image, pixel) = (row / pixels, row % pixels);
        let (step, coefficients) = steps[image];
        let (next, save) = (&coefficients[1..9], &coefficients[9..17]);
        let [remember, remember_x, remember_e, known_signal, known_noise] = coefficients[17..] else {
            unreachable!("ROW_WIDTH is 22")
        };
        // SAFETY: this row of `saved` and of each history belongs to the task that has it of `x`.
        let saved = unsafe { saved.columns_mut(row, 0..saved.c) };
        let [h0, h1, h2, h3] = [0, 1, 2, 3].map(|age| {
            // SAFETY: as above.
            unsafe { history.columns_mut((HISTORY * image + age) * pixels + pixel, 0..history.c) }
        });
        let noise = noise.row(step * pixels + pixel);
        let conditional = output.row(guided * pixels + row);
        for j in 0..x.len() {
            let e = if is_guided(image) {
                factors[image] * guide(image, (output.row(row)[j], conditional[j]))
            } else {
                conditional[j]
            };
            let basis = [x[j], e, saved[j], noise[j], h0[j], h1[j], h2[j], h3[j]];
            x[j] = combine(next, &basis);
            saved[j] = combine(save, &basis);
            if remember != 0.0 {
                (h3[j], h2[j], h1[j]) = (h2[j], h1[j], h0[j]);
                h0[j] = combine(&[remember_x, remember_e], &basis);
            }
            if let Some((mask, latents, noise)) = &known {
                let mask = mask.row(row)[0];
                let at_next =
                    combine(&[known_signal, known_noise], &[latents.row(row)[j], noise.row(row)[j]]);
                x[j] = combine(&[mask, 1.0 - mask], &[x[j], at_next]);
            }
        }
    });
}

/// Numbers of two rows side by side.
fn pairs<'a>(a: &'a [f32], b: &'a [f32]) -> impl Iterator<Item = (f32, f32)> + Clone + 'a {
    a.iter().copied().zip(b.iter().copied())
}

/// The unbiased standard deviation.
fn deviation(numbers: impl Iterator<Item = f32> + Clone) -> f64 {
    let count = numbers.clone().count() as f64;
    let mean = numbers.clone().map(f64::from).sum::<f64>() / count;
    (numbers.map(|x| (f64::from(x) - mean).powi(2)).sum::<f64>() / (count - 1.0)).sqrt()
}

/// Sum of products, without the terms whose coefficient is zero: their memory may hold anything.
fn combine(coefficients: &[f32], basis: &[f32]) -> f32 {
    let terms = coefficients.iter().zip(basis).filter(|(coefficient, _)| **coefficient != 0.0);
    terms.map(|(coefficient, value)| coefficient * value).sum()
}
