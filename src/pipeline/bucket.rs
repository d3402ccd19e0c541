//! The recorded stages of one shape.

use super::stages::{Counted, Models};
use super::tensors::{Canvas, Shape, Tensors};
use crate::error::Result;
use crate::ops::*;

/// The graphs of one shape and their memory.
pub(super) struct Bucket {
    pub tensors: Tensors,
    pub prompts: Graph,
    /// Behind `prompts`.
    pub times: Graph,
    /// Of whole pictures to start from.
    pub encode_picture: Option<Graph>,
    pub denoise: Graph,
    /// Of whole pictures.
    pub decode: Option<Graph>,
    /// Of whole pictures, where there is a VAE for previews.
    pub decode_preview: Option<Graph>,
    pub region: Region,
}

impl Bucket {
    pub(super) fn new(backend: &mut dyn Backend, models: &Models, shape: &Shape) -> Result<Self> {
        let dtype = backend.dtype();
        let bytes = Counted::new(models, shape, dtype, Arena::unbounded()).arena_bytes();
        let region = backend.reserve(bytes, "the latents and activations")?;
        let before = backend.use_arena(Arena::new(region.base, region.bytes));
        let tensors = Tensors::new(backend, models, shape);
        let recorded = Self::record(backend, models, tensors, region);
        backend.use_arena(before);
        recorded
    }

    fn record(backend: &mut dyn Backend, models: &Models, tensors: Tensors, region: Region) -> Result<Self> {
        let mut of_whole = |wanted: bool, stage: &dyn Fn(&mut dyn Ops)| {
            let wanted = wanted && matches!(tensors.canvas, Canvas::Whole { .. });
            wanted.then(|| backend.record(&mut |ops| stage(ops))).transpose()
        };
        let picture = tensors.picture;
        Ok(Bucket {
            encode_picture: of_whole(picture.is_some(), &|ops| {
                picture.iter().for_each(|picture| models.encode_picture(ops, picture));
            })?,
            decode: of_whole(true, &|ops| models.decode(ops, &tensors))?,
            decode_preview: of_whole(models.preview_vae.is_some(), &|ops| {
                models.decode_preview(ops, &tensors);
            })?,
            prompts: backend.record(&mut |ops| models.encode_prompts(ops, &tensors))?,
            times: backend.record(&mut |ops| models.encode_times(ops, &tensors))?,
            denoise: backend.record_steps(tensors.denoising.index, &mut |ops| {
                models.denoise(ops, &tensors.denoising);
            })?,
            tensors,
            region,
        })
    }

    /// Runs verbs that are not recorded, with their scratch behind the tensors.
    pub(super) fn unrecorded<T>(
        &self,
        backend: &mut dyn Backend,
        models: &Models,
        shape: &Shape,
        run: impl FnOnce(&mut dyn Backend) -> Result<T>,
    ) -> Result<T> {
        let before = backend.use_arena(Arena::new(self.region.base, self.region.bytes));
        // Takes the tensors' place.
        Tensors::new(backend, models, shape);
        let ran = run(backend);
        backend.use_arena(before);
        ran
    }
}
