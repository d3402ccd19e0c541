//! From an image to latents, all at once or tile by tile.

use super::Programs;
use crate::error::Result;
use crate::model::config::RGB;
use crate::ops::{Backend, Ops, Tensor};
use crate::pipeline::models::Models;
use crate::pipeline::numbers::{read_floats, write_floats};
use crate::pipeline::program::Program;
use crate::pipeline::tiles::{Tiles, Window};

/// The colour in -1..1 of a pixel, by its row and column.
pub(in crate::pipeline) type Colours<'a> = &'a dyn Fn(usize, usize) -> [f32; RGB];

/// The VAE's encoder over a whole image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::pipeline) struct EncodeProgram {
    /// Height and width of the image.
    pub size: [usize; 2],
}

/// The VAE's encoder over tiles of at most one size. Few tiles have the same size, so nothing is recorded for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::pipeline) struct TileEncodeProgram {
    /// Height and width of the largest tile in latent pixels.
    pub tile: [usize; 2],
}

#[derive(Clone, Copy)]
pub(in crate::pipeline) struct EncodeTensors {
    image: Tensor, // [1,height,width,4] in -1..1, the fourth channel zero
    /// Mean and logarithm of the variance of its latents; the latents where they are not drawn.
    encoded: Tensor, // [1,h,w,encoded_channels]
}

impl EncodeTensors {
    fn new(models: &Models, ops: &mut dyn Ops, [h, w]: [usize; 2]) -> Self {
        let vae = &models.config.vae;
        let scale = vae.scale_factor();
        EncodeTensors {
            image: ops.alloc([1, scale * h, scale * w, models.vae.picture_channels()]),
            encoded: ops.alloc([1, h, w, vae.encoded_channels()]),
        }
    }

    fn encode(&self, models: &Models, ops: &mut dyn Ops) {
        ops.scope("encode_image", |ops| models.vae.encode(ops, self.encoded, self.image));
    }
}

impl Program for EncodeProgram {
    type Tensors = EncodeTensors;

    fn tensors(&self, models: &Models, ops: &mut dyn Ops) -> EncodeTensors {
        EncodeTensors::new(models, ops, models.latent_size(self.size))
    }

    fn run(&self, models: &Models, ops: &mut dyn Ops, t: &EncodeTensors) {
        t.encode(models, ops);
    }
}

impl Program for TileEncodeProgram {
    type Tensors = EncodeTensors;

    fn tensors(&self, models: &Models, ops: &mut dyn Ops) -> EncodeTensors {
        EncodeTensors::new(models, ops, self.tile)
    }

    fn run(&self, models: &Models, ops: &mut dyn Ops, t: &EncodeTensors) {
        t.encode(models, ops);
    }
}

impl Programs {
    /// Encodes an image of this height and width: the elements [h,w,encoded_channels], before the scaling factor.
    pub fn encode_image(
        &mut self,
        backend: &mut dyn Backend,
        models: &Models,
        size: [usize; 2],
        tile: Option<[usize; 2]>,
        colours: Colours,
    ) -> Result<Vec<f32>> {
        if let Some(tile) = tile {
            let program = TileEncodeProgram { tile };
            return program.unrecorded(backend, models, &mut self.workspace, |backend, &largest| {
                encode_in_tiles(backend, models, largest, models.latent_size(size), colours)
            });
        }
        let recorded = self.encode.get(backend, models, &mut self.workspace, EncodeProgram { size })?;
        let t = recorded.tensors;
        write_floats(backend, t.image, &pixels([0, 0], t.image, colours))?;
        recorded.replay(backend)?;
        read_floats(backend, t.encoded)
    }
}

/// `largest` is the memory for the largest tile.
fn encode_in_tiles(
    backend: &mut dyn Backend,
    models: &Models,
    largest: EncodeTensors,
    size: [usize; 2],
    colours: Colours,
) -> Result<Vec<f32>> {
    let EncodeTensors { image, encoded } = largest;
    let scale = image.h() / encoded.h();
    let tiles = Tiles { picture: size, largest: [encoded.h(), encoded.w()] };
    tiles.join(1, encoded.c(), |x| x, &mut |Window { top, left, h, w }| {
        let tile = EncodeTensors {
            image: Tensor { shape: [1, scale * h, scale * w, image.c()], ..image },
            encoded: Tensor { shape: [1, h, w, encoded.c()], ..encoded },
        };
        write_floats(backend, tile.image, &pixels([scale * top, scale * left], tile.image, colours))?;
        backend.run(&mut |ops| tile.encode(models, ops))?;
        read_floats(backend, tile.encoded)
    })
}

/// The elements of `image`, whose first pixel is at `top`, `left`; what fills its channels up is zero.
fn pixels([top, left]: [usize; 2], image: Tensor, colours: Colours) -> Vec<f32> {
    let mut pixels = vec![0f32; image.len()];
    let (w, c) = (image.w(), image.c());
    for (i, pixel) in pixels.chunks_exact_mut(c).enumerate() {
        pixel[..RGB].copy_from_slice(&colours(top + i / w, left + i % w));
    }
    pixels
}
