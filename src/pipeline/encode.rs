//! From a picture to latents, all at once or tile by tile.

use super::bucket::Bucket;
use super::numbers::{read_floats, write_floats};
use super::stages::Models;
use super::tensors::{PictureTensors, Shape};
use super::tiles::{Tiles, Window};
use crate::error::Result;
use crate::model::config::RGB;
use crate::ops::{Backend, Tensor};

/// The colour in -1..1 of a pixel, by its row and column.
pub(super) type Colours<'a> = &'a dyn Fn(usize, usize) -> [f32; RGB];

impl Bucket {
    /// Encodes a picture of the shape's size: the elements [h,w,encoded_channels], before the scaling factor.
    pub(super) fn encode_picture(
        &self,
        backend: &mut dyn Backend,
        models: &Models,
        shape: &Shape,
        colours: Colours,
    ) -> Result<Vec<f32>> {
        let t = self.tensors.picture.expect("planned for a picture");
        let Some(graph) = &self.encode_picture else {
            return self.unrecorded(backend, models, shape, |backend| {
                encode_in_tiles(backend, models, t, [shape.height, shape.width], colours)
            });
        };
        write_floats(backend, t.picture, &pixels([0, 0], t.picture, colours))?;
        backend.replay(graph)?;
        read_floats(backend, t.encoded)
    }
}

/// `largest` is the memory for the largest tile. Few tiles have the same size, so nothing is recorded for them.
fn encode_in_tiles(
    backend: &mut dyn Backend,
    models: &Models,
    largest: PictureTensors,
    [height, width]: [usize; 2],
    colours: Colours,
) -> Result<Vec<f32>> {
    let PictureTensors { picture, encoded } = largest;
    let scale = picture.h() / encoded.h();
    let tiles = Tiles { picture: [height / scale, width / scale], largest: [encoded.h(), encoded.w()] };
    tiles.join(1, encoded.c(), |x| x, &mut |Window { top, left, h, w }| {
        let tile = PictureTensors {
            picture: Tensor { shape: [1, scale * h, scale * w, picture.c()], ..picture },
            encoded: Tensor { shape: [1, h, w, encoded.c()], ..encoded },
        };
        write_floats(backend, tile.picture, &pixels([scale * top, scale * left], tile.picture, colours))?;
        backend.run(&mut |ops| models.encode_picture(ops, &tile))?;
        read_floats(backend, tile.encoded)
    })
}

/// The elements of `picture`, whose first pixel is at `top`, `left`; what fills its channels up is zero.
fn pixels([top, left]: [usize; 2], picture: Tensor, colours: Colours) -> Vec<f32> {
    let mut pixels = vec![0f32; picture.len()];
    let (w, c) = (picture.w(), picture.c());
    for (i, pixel) in pixels.chunks_exact_mut(c).enumerate() {
        pixel[..RGB].copy_from_slice(&colours(top + i / w, left + i % w));
    }
    pixels
}
