//! From latents to colours, all at once or tile by tile.

use super::bucket::Bucket;
use super::numbers::{read_floats, write_floats};
use super::stages::Models;
use super::tensors::{Canvas, Shape};
use super::tiles::{Tiles, Window};
use crate::error::Result;
use crate::model::autoencoder::Autoencoder;
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
        self.decode_by(&models.vae, self.decode.as_ref(), backend, models, shape)
    }

    /// The same by the VAE for previews, if there is one.
    pub(super) fn decode_preview(
        &self,
        backend: &mut dyn Backend,
        models: &Models,
        shape: &Shape,
    ) -> Result<Vec<u8>> {
        match &models.preview_vae {
            Some(vae) => self.decode_by(vae, self.decode_preview.as_ref(), backend, models, shape),
            None => self.decode(backend, models, shape),
        }
    }

    /// `graph` is that of `vae` where whole pictures are decoded.
    fn decode_by(
        &self,
        vae: &Autoencoder,
        graph: Option<&Graph>,
        backend: &mut dyn Backend,
        models: &Models,
        shape: &Shape,
    ) -> Result<Vec<u8>> {
        match self.tensors.canvas {
            Canvas::Whole { rgb } => {
                backend.replay(graph.expect("recorded for whole pictures"))?;
                let mut colours = vec![0; rgb.bytes()];
                backend.read(rgb, &mut colours)?;
                Ok(colours)
            }
            Canvas::Tile { latents, picture } => {
                let decoder = TileDecoder { vae, latents, picture };
                self.unrecorded(backend, models, shape, |backend| {
                    decoder.decode(backend, self.tensors.denoising.latents)
                })
            }
        }
    }
}

/// Few tiles have the same size, so nothing is recorded for them. `latents` and `picture` are the memory for the
/// largest.
struct TileDecoder<'a> {
    vae: &'a Autoencoder,
    latents: Tensor,
    picture: Tensor,
}

impl TileDecoder<'_> {
    fn decode(&self, backend: &mut dyn Backend, latents: Tensor) -> Result<Vec<u8>> {
        let [_, h, w, c] = latents.shape;
        let scale = self.picture.h() / self.latents.h();
        let tiles = Tiles { picture: [h, w], largest: [self.latents.h(), self.latents.w()] };
        let mut colours = Vec::new();
        for latents in read_floats(backend, latents)?.chunks_exact(h * w * c) {
            let mut decode = |window: Window| {
                let input = Tensor { shape: [1, window.h, window.w, c], ..self.latents };
                let picture = Tensor { shape: [1, scale * window.h, scale * window.w, RGB], ..self.picture };
                let row = |y: usize| &latents[(y * w + window.left) * c..][..window.w * c];
                let rows = (window.top..window.top + window.h).flat_map(row);
                write_floats(backend, input, &rows.copied().collect::<Vec<f32>>())?;
                backend.run(&mut |ops| self.vae.decode(ops, picture, input))?;
                read_floats(backend, picture)
            };
            colours.extend(tiles.join(scale, RGB, ToRgb8::level, &mut decode)?);
        }
        Ok(colours)
    }
}
