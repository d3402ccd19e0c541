//! Lanczos resampling, bit for bit as Pillow's `Image.resize` with `LANCZOS`, which diffusers brings pictures to
//! size with: a window of three lobes, widened when a picture shrinks, in weights of 22 bits; columns first, and
//! eight bits between the two passes.

use std::f64::consts::PI;

use rayon::prelude::*;

use super::Raster;

const LOBES: f64 = 3.0;
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// The part of a line that one pixel of the new line is made of.
struct Window {
    start: usize,
    weights: Vec<i32>,
}

impl Raster {
    pub fn resized(&self, width: usize, height: usize) -> Raster {
        let wide = if width == self.width { self.clone() } else { self.with_width(width) };
        if height == wide.height { wide } else { wide.with_height(height) }
    }

    fn with_width(&self, width: usize) -> Raster {
        let windows = windows(self.width, width);
        let mut rgb = vec![0; 3 * width * self.height];
        let rows = self.rgb.par_chunks_exact(3 * self.width);
        rows.zip(rgb.par_chunks_exact_mut(3 * width)).for_each(|(row, out)| {
            for (out, Window { start, weights }) in out.as_chunks_mut::<3>().0.iter_mut().zip(&windows) {
                let pixels = &row.as_chunks::<3>().0[*start..];
                *out = [0, 1, 2].map(|i| weighted(weights, pixels.iter().map(|pixel| pixel[i])));
            }
        });
        Raster { width, height: self.height, rgb }
    }

    fn with_height(&self, height: usize) -> Raster {
        let windows = windows(self.height, height);
        let pitch = 3 * self.width;
        let mut rgb = vec![0; pitch * height];
        rgb.par_chunks_exact_mut(pitch).zip(&windows).for_each(|(out, Window { start, weights })| {
            for (i, out) in out.iter_mut().enumerate() {
                *out = weighted(weights, self.rgb[start * pitch + i..].iter().step_by(pitch).copied());
            }
        });
        Raster { width: self.width, height, rgb }
    }
}

fn weighted(weights: &[i32], bytes: impl Iterator<Item = u8>) -> u8 {
    let half = 1 << (PRECISION_BITS - 1);
    let sum = weights.iter().zip(bytes).fold(half, |sum, (weight, byte)| sum + weight * i32::from(byte));
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

fn windows(from: usize, to: usize) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let widened = scale.max(1.0);
    let support = LOBES * widened;
    let window = |i: usize| {
        let center = (i as f64 + 0.5) * scale;
        let start = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let weights: Vec<f64> =
            (start..end).map(|x| lanczos((x as f64 - center + 0.5) * (1.0 / widened))).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: &f64| (weight / sum * f64::from(1 << PRECISION_BITS)).round() as i32;
        Window { start, weights: weights.iter().map(fixed).collect() }
    };
    (0..to).map(window).collect()
}

fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) };
    if (-LOBES..LOBES).contains(&x) { sinc(x) * sinc(x / LOBES) } else { 0.0 }
}
