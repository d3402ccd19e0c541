//! From latents to colours, all at once or tile by tile.

use super::Programs;
use crate::error::Result;
use crate::model::autoencoder::Autoencoder;
use crate::model::config::RGB;
use crate::ops::*;
use crate::pipeline::models::Models;
use crate::pipeline::numbers::{read_floats, write_floats};
use crate::pipeline::program::Program;
use crate::pipeline::tiles::{Tiles, Window};

/// A decoder over the latents of whole images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::pipeline) struct DecodeProgram {
    pub images: usize,
    /// Height and width of an image.
    pub size: [usize; 2],
    /// Whether by the VAE for previews, which the model then has.
    pub preview: bool,
}

/// A decoder over tiles of at most one size. Few tiles have the same size, so nothing is recorded for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::pipeline) struct TileDecodeProgram {
    /// Height and width of the largest tile in latent pixels.
    pub tile: [usize; 2],
    pub preview: bool,
}

#[derive(Clone, Copy)]
pub(in crate::pipeline) struct DecodeTensors {
    latents: Tensor, // f32 [images,h,w,c]
    rgb: Tensor,     // u8 [images,height,width,3]
}

#[derive(Clone, Copy)]
pub(in crate::pipeline) struct TileDecodeTensors {
    latents: Tensor, // f32 [1,h,w,c]
    image: Tensor,   // [1,8h,8w,3]
}

impl Models {
    fn decoder(&self, preview: bool) -> (&'static str, &Autoencoder) {
        match &self.preview_vae {
            Some(vae) if preview => ("decode_preview", vae),
            _ => ("decode", &self.vae),
        }
    }
}

impl Program for DecodeProgram {
    type Tensors = DecodeTensors;

    fn tensors(&self, models: &Models, ops: &mut dyn Ops) -> DecodeTensors {
        let ([height, width], [h, w]) = (self.size, models.latent_size(self.size));
        let c = models.config.vae.latent_channels();
        DecodeTensors {
            latents: ops.arena().alloc([self.images, h, w, c], DType::F32),
            rgb: ops.arena().alloc([self.images, height, width, RGB], DType::U8),
        }
    }

    fn run(&self, models: &Models, ops: &mut dyn Ops, t: &DecodeTensors) {
        let (name, vae) = models.decoder(self.preview);
        ops.scope(name, |ops| {
            let image = ops.alloc(t.rgb.shape);
            vae.decode(ops, image, t.latents);
            ops.to_rgb8(ToRgb8 { out: t.rgb, x: image });
        });
    }
}

impl Program for TileDecodeProgram {
    type Tensors = TileDecodeTensors;

    fn tensors(&self, models: &Models, ops: &mut dyn Ops) -> TileDecodeTensors {
        let ([h, w], vae) = (self.tile, &models.config.vae);
        let scale = vae.scale_factor();
        let image = ops.alloc([1, scale * h, scale * w, RGB]);
        let latents = ops.arena().alloc([1, h, w, vae.latent_channels()], DType::F32);
        TileDecodeTensors { latents, image }
    }

    fn run(&self, models: &Models, ops: &mut dyn Ops, t: &TileDecodeTensors) {
        let (name, vae) = models.decoder(self.preview);
        ops.scope(name, |ops| vae.decode(ops, t.image, t.latents));
    }
}

impl Programs {
    /// Decodes latents [h,w,c] of one or more images: the colours of each.
    pub fn decode(
        &mut self,
        backend: &mut dyn Backend,
        models: &Models,
        program: DecodeProgram,
        tile: Option<[usize; 2]>,
        latents: &[f32],
    ) -> Result<Vec<Vec<u8>>> {
        let DecodeProgram { preview, size, .. } = program;
        // Where the model has no VAE for previews, the same recording serves both.
        let preview = preview && models.preview_vae.is_some();
        if let Some(tile) = tile {
            let program = TileDecodeProgram { tile, preview };
            return program.unrecorded(backend, models, &mut self.workspace, |backend, t| {
                decode_in_tiles(backend, models, program, t, models.latent_size(size), latents)
            });
        }
        let program = DecodeProgram { preview, ..program };
        let recorded = self.decode.get(backend, models, &mut self.workspace, program)?;
        let t = recorded.tensors;
        backend.write(t.latents, bytemuck::cast_slice(latents))?;
        recorded.replay(backend)?;
        let colours = t.rgb.split_images(1).map(|image| {
            let mut colours = vec![0; image.bytes()];
            backend.read(image, &mut colours)?;
            Ok(colours)
        });
        colours.collect()
    }
}

/// `largest` is the memory for the largest tile.
fn decode_in_tiles(
    backend: &mut dyn Backend,
    models: &Models,
    program: TileDecodeProgram,
    largest: &TileDecodeTensors,
    [h, w]: [usize; 2],
    latents: &[f32],
) -> Result<Vec<Vec<u8>>> {
    let TileDecodeTensors { latents: input, image } = *largest;
    let (c, scale) = (input.c(), image.h() / input.h());
    let tiles = Tiles { picture: [h, w], largest: program.tile };
    let decode_image = |latents: &[f32]| {
        let mut decode = |window: Window| {
            let tile = TileDecodeTensors {
                latents: Tensor { shape: [1, window.h, window.w, c], ..input },
                image: Tensor { shape: [1, scale * window.h, scale * window.w, RGB], ..image },
            };
            let row = |y: usize| &latents[(y * w + window.left) * c..][..window.w * c];
            let rows = (window.top..window.top + window.h).flat_map(row);
            write_floats(backend, tile.latents, &rows.copied().collect::<Vec<f32>>())?;
            backend.run(&mut |ops| program.run(models, ops, &tile))?;
            read_floats(backend, tile.image)
        };
        tiles.join(scale, RGB, ToRgb8::level, &mut decode)
    };
    latents.chunks_exact(h * w * c).map(decode_image).collect()
}
