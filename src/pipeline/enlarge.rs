//! Latents of one size as those of another.

/// Bilinear interpolation of `latents` [b,h,w,c] to [b,height,width,c], as torch's `interpolate` with `bilinear`
/// and without `align_corners`: A1111's upscaler `Latent`.
pub(super) fn enlarge(latents: &[f32], [b, h, w, c]: [usize; 4], [height, width]: [usize; 2]) -> Vec<f32> {
    let (rows, columns) = (taps(h, height), taps(w, width));
    let mut out = Vec::with_capacity(b * height * width * c);
    for image in latents.chunks_exact(h * w * c) {
        for &(top, bottom, down) in &rows {
            for &(left, right, across) in &columns {
                for channel in 0..c {
                    let at = |y: usize, x: usize| image[(y * w + x) * c + channel];
                    let along = |y: usize| (1.0 - across) * at(y, left) + across * at(y, right);
                    out.push((1.0 - down) * along(top) + down * along(bottom));
                }
            }
        }
    }
    out
}

/// For every place of `to`, its two neighbours of `from`, and how near the second is, 0 to 1.
fn taps(from: usize, to: usize) -> Vec<(usize, usize, f32)> {
    let scale = from as f32 / to as f32;
    let tap = |i: usize| {
        let place = (scale * (i as f32 + 0.5) - 0.5).max(0.0);
        let first = (place as usize).min(from - 1);
        (first, (first + 1).min(from - 1), place - first as f32)
    };
    (0..to).map(tap).collect()
}
