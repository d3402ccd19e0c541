//! What the denoising loop does around the model.

use rayon::prelude::*;

use super::memory::{Memory, Rows};
use crate::ops::row::{IN_SCALE, KNOWN, NEXT, REMEMBER, REMEMBERED, SAVE};
use crate::ops::{ModelInput, SamplerStep, Tensor};

/// Pixels that are worth a task of their own.
const PIXELS: usize = 1 << 10;
/// Entries of an image's history.
const HISTORY: usize = 4;

/// The table row that an image is at, and its number.
fn table_row(memory: &Memory, table: Tensor, index: Tensor, image: usize) -> (usize, &[f32]) {
    let rows = memory.rows::<f32>(table);
    let step = memory.slice::<i32>(index)[image];
    let step = usize::try_from(step).ok().filter(|&step| step < rows.count);
    let step = step.unwrap_or_else(|| panic!("image {image} is past the {} rows of its table", rows.count));
    (step, rows.row(step))
}

pub fn model_input(memory: &Memory, v: &ModelInput) {
    let (x, c, pixels) = (memory.rows::<f32>(v.x), v.x.c(), v.x.tokens());
    let scales: Vec<f32> =
        (0..v.out.b()).map(|row| table_row(memory, v.table, v.index, row).1[IN_SCALE]).collect();
    let slots = memory.slice::<i32>(v.slot);
    let beside = v.beside.map(|beside| (memory.rows::<f32>(beside.x), memory.slice::<i32>(beside.shown)));
    memory.rows_mut::<f32>(v.out).par_rows(|row, out| {
        let (image, pixel) = (row / pixels, row % pixels);
        let at = slots[image] as usize * pixels + pixel;
        out.iter_mut().zip(x.row(at)).for_each(|(out, x)| *out = x * scales[image]);
        let behind = &mut out[c..];
        behind.fill(0.0);
        if let Some((x, shown)) = &beside
            && shown[image] != 0
        {
            behind.iter_mut().zip(x.row(at)).for_each(|(out, x)| *out = *x);
        }
    });
}

/// What the sampler does for one image, but for its tensors.
struct Image<'a> {
    slot: usize,
    /// Where it is in the table.
    step: usize,
    coefficients: &'a [f32],
    rows: [i32; 3],
    /// Guidance scale, guidance rescale, image guidance scale.
    guidance: [f32; 3],
    /// What the guided output is multiplied by.
    factor: f32,
}

impl Image<'_> {
    fn is_guided(&self) -> bool {
        self.rows[1] >= 0
    }

    /// The guided output of channel `j`, before it is rescaled.
    fn guided(&self, output: &Rows<f32>, pixels: usize, pixel: usize, j: usize) -> f32 {
        let at = |row: i32| output.row(row as usize * pixels + pixel)[j];
        let [scale, _, image_scale] = self.guidance;
        let [conditional, unconditional, with_image] = self.rows;
        let (c, u) = (at(conditional), at(unconditional));
        match with_image {
            ..0 => u + scale * (c - u),
            with_image => u + image_scale * (at(with_image) - u) + scale * (c - at(with_image)),
        }
    }

    /// The model's output of channel `j`, guided where there is guidance.
    fn output(&self, output: &Rows<f32>, pixels: usize, pixel: usize, j: usize) -> f32 {
        match self.is_guided() {
            true => self.factor * self.guided(output, pixels, pixel, j),
            false => output.row(self.rows[0] as usize * pixels + pixel)[j],
        }
    }

    /// What brings the guided output to the spread of the conditional one, as far as the rescale says.
    fn rescale_factor(&self, output: &Rows<f32>, pixels: usize) -> f32 {
        let phi = self.guidance[1];
        if !self.is_guided() || phi == 0.0 {
            return 1.0;
        }
        let all = || (0..pixels).flat_map(|pixel| (0..output.c).map(move |j| (pixel, j)));
        let conditional = self.rows[0] as usize * pixels;
        let spread = deviation(all().map(|(pixel, j)| output.row(conditional + pixel)[j]));
        let guided = deviation(all().map(|(pixel, j)| self.guided(output, pixels, pixel, j)));
        phi * (spread / guided) as f32 + (1.0 - phi)
    }
}

pub fn sampler_step(memory: &Memory, v: &SamplerStep) {
    let pixels = v.x.tokens();
    let (output, noise) = (memory.rows::<f32>(v.output), memory.rows::<f32>(v.noise));
    let [xs, saved, history] = [v.x, v.saved, v.history].map(|t| memory.rows_mut::<f32>(t));
    let known = v.known.map(|known| {
        let [mask, latents, noise] = [known.mask, known.latents, known.noise].map(|t| memory.rows::<f32>(t));
        (mask, latents, noise)
    });
    let (rows, _) = memory.slice::<i32>(v.rows).as_chunks::<3>();
    let guidance = memory.rows::<f32>(v.guidance);
    let slots = memory.slice::<i32>(v.slot);
    let image = |(i, &rows): (usize, &[i32; 3])| {
        let slot = slots[i] as usize;
        let (step, coefficients) = table_row(memory, v.table, v.index, i);
        let guidance = std::array::from_fn(|i| guidance.row(slot)[i]);
        let image = Image { slot, step, coefficients, rows, guidance, factor: 1.0 };
        Image { factor: image.rescale_factor(&output, pixels), ..image }
    };
    let images: Vec<Image> = rows.iter().enumerate().map(image).collect();

    (0..images.len() * pixels).into_par_iter().with_min_len(PIXELS).for_each(|i| {
        let (image, pixel) = (&images[i / pixels], i % pixels);
        let row = image.slot * pixels + pixel;
        let [next, save, remembered, known_mix] =
            [NEXT, SAVE, REMEMBERED, KNOWN].map(|field| &image.coefficients[field]);
        let remember = image.coefficients[REMEMBER];
        // SAFETY: slots are all different, so this row of `x`, of `saved` and of each history is one task's.
        let [x, saved] = [xs, saved].map(|rows| unsafe { rows.columns_mut(row, 0..rows.c) });
        let [h0, h1, h2, h3] = [0, 1, 2, 3].map(|age| {
            // SAFETY: as above.
            unsafe { history.columns_mut((HISTORY * image.slot + age) * pixels + pixel, 0..history.c) }
        });
        let noise = noise.row(image.step * pixels + pixel);
        for j in 0..x.len() {
            let e = image.output(&output, pixels, pixel, j);
            let basis = [x[j], e, saved[j], noise[j], h0[j], h1[j], h2[j], h3[j]];
            x[j] = combine(next, &basis);
            saved[j] = combine(save, &basis);
            if remember != 0.0 {
                (h3[j], h2[j], h1[j]) = (h2[j], h1[j], h0[j]);
                h0[j] = combine(remembered, &basis);
            }
            if let Some((mask, latents, noise)) = &known {
                let mask = mask.row(row)[0];
                let at_next = combine(known_mix, &[latents.row(row)[j], noise.row(row)[j]]);
                x[j] = combine(&[mask, 1.0 - mask], &[x[j], at_next]);
            }
        }
    });
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
