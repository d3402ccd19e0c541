//! From latents to colours, all at once or tile by tile.
//!
//! Tiles and the seams between them are those of diffusers' `AutoencoderKL.tiled_decode`: tiles overlap by a
//! quarter, and where two do, one fades into the other.

use half::slice::HalfBitsSliceExt;
use half::{bf16, f16};

use super::bucket::Bucket;
use super::stages::Models;
use super::tensors::{Canvas, Shape, Tensors};
use crate::error::Result;
use crate::model::config::RGB;
use crate::ops::*;

impl Bucket {
    /// Decodes the latents: the colours of all pictures, one after the other.
    pub(super) fn decode(
        &self,
        backend: &mut dyn Backend,
        models: &Models,
        shape: &Shape,
    ) -> Result<Vec<u8>> {
        match self.tensors.canvas {
            Canvas::Whole { rgb } => {
                backend.replay(self.decode.as_ref().expect("recorded for whole pictures"))?;
                let mut colours = vec![0; rgb.bytes()];
                backend.read(rgb, &mut colours)?;
                Ok(colours)
            }
            Canvas::Tile { latents, picture } => {
                let arena = Arena::new(self.region.base, self.region.bytes);
                let before = backend.use_arena(arena);
                // Takes the tensors' place, so that scratch comes behind it.
                Tensors::new(backend, models, shape);
                let colours = Tiles { backend, models, latents, picture }.decode(self.tensors.latents);
                backend.use_arena(before);
                colours
            }
        }
    }
}

/// What tiles are decoded with. Few tiles have the same size, so nothing is recorded for them.
struct Tiles<'a> {
    backend: &'a mut dyn Backend,
    models: &'a Models,
    /// Memory for the largest tile.
    latents: Tensor,
    picture: Tensor,
}

impl Tiles<'_> {
    fn decode(&mut self, latents: Tensor) -> Result<Vec<u8>> {
        let mut values = vec![0f32; latents.len()];
        self.backend.read(latents, bytemuck::cast_slice_mut(&mut values))?;
        let [images, h, w, c] = latents.shape;
        let scale = self.picture.h() / self.latents.h();
        let mut colours = vec![0; images * scale * h * scale * w * RGB];
        for (values, colours) in
            values.chunks_exact(h * w * c).zip(colours.chunks_exact_mut(scale * h * scale * w * RGB))
        {
            self.decode_one(Map { h, w, c, values }, scale, colours)?;
        }
        Ok(colours)
    }

    fn decode_one(&mut self, latents: Map<&[f32]>, scale: usize, colours: &mut [u8]) -> Result<()> {
        let [tile_h, tile_w] = [self.latents.h(), self.latents.w()];
        // The picture may be narrower than a tile one way, not both ways.
        let side = tile_h.max(tile_w);
        let step = side * 3 / 4;
        let blended = scale * (side - step);
        let mut above: Vec<Map<Vec<f32>>> = Vec::new();
        for top in (0..latents.h).step_by(step) {
            let mut row: Vec<Map<Vec<f32>>> = Vec::new();
            for (j, left) in (0..latents.w).step_by(step).enumerate() {
                let size = [tile_h.min(latents.h - top), tile_w.min(latents.w - left)];
                let mut tile = self.decode_tile(latents.cut([top, left], size))?;
                if let Some(above) = above.get(j) {
                    tile.fade_from_above(above, blended);
                }
                if let Some(before) = row.last() {
                    tile.fade_from_left(before, blended);
                }
                tile.write([scale * top, scale * left], scale * step, scale * latents.w, colours);
                row.push(tile);
            }
            above = row;
        }
        Ok(())
    }

    fn decode_tile(&mut self, latents: Map<Vec<f32>>) -> Result<Map<Vec<f32>>> {
        let Map { h, w, c, values } = latents;
        let scale = self.picture.h() / self.latents.h();
        let input = Tensor::new(self.latents.address, [1, h, w, c], self.latents.dtype);
        let picture = [1, scale * h, scale * w, RGB];
        let picture = Tensor::new(self.picture.address, picture, self.picture.dtype);
        self.backend.write(input, bytemuck::cast_slice(&values))?;
        let models = self.models;
        self.backend.run(&mut |ops| models.decode_latents(ops, picture, input))?;
        let values = read_floats(self.backend, picture)?;
        Ok(Map { h: picture.h(), w: picture.w(), c: RGB, values })
    }
}

/// Reads activations.
fn read_floats(backend: &mut dyn Backend, from: Tensor) -> Result<Vec<f32>> {
    if from.dtype == DType::F32 {
        let mut floats = vec![0f32; from.len()];
        backend.read(from, bytemuck::cast_slice_mut(&mut floats))?;
        return Ok(floats);
    }
    let mut halves = vec![0u16; from.len()];
    backend.read(from, bytemuck::cast_slice_mut(&mut halves))?;
    Ok(match from.dtype {
        DType::BF16 => halves.reinterpret_cast::<bf16>().iter().map(|x| x.to_f32()).collect(),
        _ => halves.reinterpret_cast::<f16>().iter().map(|x| x.to_f32()).collect(),
    })
}

/// Numbers [h,w,c] on the host.
struct Map<T> {
    h: usize,
    w: usize,
    c: usize,
    values: T,
}

impl Map<&[f32]> {
    fn cut(&self, [top, left]: [usize; 2], [h, w]: [usize; 2]) -> Map<Vec<f32>> {
        let c = self.c;
        let row = |y: usize| &self.values[(y * self.w + left) * c..][..w * c];
        Map { h, w, c, values: (top..top + h).flat_map(row).copied().collect() }
    }
}

impl Map<Vec<f32>> {
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

    /// Writes what is left of the tile at `top`, `left` of a picture of this `width`, up to where the next begins.
    fn write(&self, [top, left]: [usize; 2], step: usize, width: usize, colours: &mut [u8]) {
        let columns = self.w.min(step);
        for y in 0..self.h.min(step) {
            let out = &mut colours[((top + y) * width + left) * RGB..][..columns * RGB];
            out.iter_mut().zip(self.row(y)).for_each(|(out, &x)| *out = ToRgb8::level(x));
        }
    }
}

/// From `from` to `to`: `share` of the latter.
fn fade(from: &[f32], to: &mut [f32], share: f32) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from * (1.0 - share) + *to * share);
}
