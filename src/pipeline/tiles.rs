//! What is made tile by tile of what is too large.
//!
//! Tiles and the seams between them are those of diffusers' `AutoencoderKL` (`tiled_encode`, `tiled_decode`): tiles
//! overlap by a quarter, and where two do, one fades into the other. Where four do, what fades has faded before, so the
//! fades do not quite meet: up to a quarter of what the tiles differ by is left at the corners.

use crate::error::Result;

/// A part of the latents, in latent pixels.
#[derive(Clone, Copy)]
pub(super) struct Window {
    pub top: usize,
    pub left: usize,
    pub h: usize,
    pub w: usize,
}

/// The tiles of one picture, in latent pixels.
pub(super) struct Tiles {
    /// Height and width of the picture.
    pub picture: [usize; 2],
    /// Height and width of the largest tile.
    pub largest: [usize; 2],
}

impl Tiles {
    /// Joins what `make` makes of each window: a map of `scale` pixels along one latent pixel and of `c` channels.
    /// Returns the elements [scale·h,scale·w,c] of the whole.
    pub fn join<T: Clone + Default>(
        &self,
        scale: usize,
        c: usize,
        element: fn(f32) -> T,
        make: &mut dyn FnMut(Window) -> Result<Vec<f32>>,
    ) -> Result<Vec<T>> {
        let ([h, w], [tile_h, tile_w]) = (self.picture, self.largest);
        // The picture may be narrower than a tile one way, not both ways.
        let side = tile_h.max(tile_w);
        let step = side * 3 / 4;
        let blended = scale * (side - step);
        let mut whole = vec![T::default(); scale * h * scale * w * c];
        let mut above: Vec<Map> = Vec::new();
        for top in (0..h).step_by(step) {
            let mut row: Vec<Map> = Vec::new();
            for (j, left) in (0..w).step_by(step).enumerate() {
                let window = Window { top, left, h: tile_h.min(h - top), w: tile_w.min(w - left) };
                let mut tile = Map { h: scale * window.h, w: scale * window.w, c, values: make(window)? };
                if let Some(above) = above.get(j) {
                    tile.fade_from_above(above, blended);
                }
                if let Some(before) = row.last() {
                    tile.fade_from_left(before, blended);
                }
                // What is left of it where the next begin.
                let columns = tile.w.min(scale * step) * c;
                for y in 0..tile.h.min(scale * step) {
                    let start = ((scale * top + y) * scale * w + scale * left) * c;
                    let values = whole[start..][..columns].iter_mut().zip(tile.row(y));
                    values.for_each(|(out, &x)| *out = element(x));
                }
                row.push(tile);
            }
            above = row;
        }
        Ok(whole)
    }
}

/// Numbers [h,w,c].
struct Map {
    h: usize,
    w: usize,
    c: usize,
    values: Vec<f32>,
}

impl Map {
    fn row(&self, y: usize) -> &[f32] {
        &self.values[y * self.w * self.c..][..self.w * self.c]
    }

    /// `blend_v`: the last rows of `above` fade into the first of this.
    fn fade_from_above(&mut self, above: &Self, rows: usize) {
        let rows = rows.min(above.h).min(self.h);
        for y in 0..rows {
            let share = y as f32 / rows as f32;
            let from = above.row(above.h - rows + y);
            let width = self.w * self.c;
            fade(from, &mut self.values[y * width..][..width], share);
        }
    }

    /// `blend_h`: the last columns of `before` fade into the first of this.
    fn fade_from_left(&mut self, before: &Self, columns: usize) {
        let columns = columns.min(before.w).min(self.w);
        let (w, c) = (self.w, self.c);
        for y in 0..self.h {
            let from = &before.row(y)[(before.w - columns) * c..];
            let to = &mut self.values[y * w * c..][..columns * c];
            for (x, (from, to)) in from.chunks_exact(c).zip(to.chunks_exact_mut(c)).enumerate() {
                fade(from, to, x as f32 / columns as f32);
            }
        }
    }
}

/// From `from` to `to`: `share` of the latter.
fn fade(from: &[f32], to: &mut [f32], share: f32) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from * (1.0 - share) + *to * share);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCALE: usize = 2;
    /// Sizes of a picture and of its largest tile.
    type Sizes = ([usize; 2], [usize; 2]);
    const SQUARE: Sizes = ([18, 14], [8, 8]);
    const COLUMN: Sizes = ([21, 5], [8, 5]);
    const ROW: Sizes = ([9, 40], [9, 12]);

    fn join(tiles: &Tiles, pixel: &dyn Fn(Window, usize, usize) -> [f32; 2]) -> Vec<f32> {
        let mut make = |window: Window| {
            let pixels = (0..SCALE * window.h).flat_map(|y| (0..SCALE * window.w).map(move |x| (y, x)));
            Ok(pixels.flat_map(|(y, x)| pixel(window, y, x)).collect())
        };
        tiles.join(SCALE, 2, |x| x, &mut make).unwrap()
    }

    #[test]
    fn tiles_that_agree_are_the_whole() {
        for (picture, largest) in [SQUARE, ROW, COLUMN] {
            let joined = join(&Tiles { picture, largest }, &|window, y, x| {
                [SCALE * window.top + y, SCALE * window.left + x].map(|place| place as f32)
            });
            let width = SCALE * picture[1];
            assert_eq!(joined.len(), 2 * SCALE * picture[0] * width);
            for (i, place) in joined.chunks_exact(2).enumerate() {
                let difference =
                    (place[0] - (i / width) as f32).abs() + (place[1] - (i % width) as f32).abs();
                assert!(difference < 1e-4, "{place:?} of pixel {i}");
            }
        }
    }

    /// A row and a column of tiles of levels 0 and 1 by turns: there is no larger step than that of a fade over the
    /// overlap.
    #[test]
    fn tiles_that_differ_leave_no_seams() {
        for (picture, largest) in [ROW, COLUMN] {
            let side = largest[0].max(largest[1]);
            let step = side * 3 / 4;
            let joined = join(&Tiles { picture, largest }, &|window, _, _| {
                [((window.top + window.left) / step % 2) as f32, 0.0]
            });
            let width = SCALE * picture[1];
            let levels: Vec<f32> = joined.iter().step_by(2).copied().collect();
            let across =
                levels.chunks_exact(width).flat_map(|row| row.windows(2).map(|pair| pair[1] - pair[0]));
            let down = levels.iter().zip(&levels[width..]).map(|(above, below)| below - above);
            let largest = across.chain(down).fold(0f32, |largest, step| largest.max(step.abs()));
            let fade = 1.0 / (SCALE * (side - step)) as f32;
            assert!(largest > 0.0 && largest < 1.01 * fade, "a step of {largest}, fades of {fade}");
        }
    }
}
