//! A picture between its prompt and its VAE: everything that the denoising loop reads of it, in memory of its own.
//!
//! A [`Pipeline`](super::Pipeline) makes it ready, a [`Batch`](super::Batch) denoises it among others, and the
//! pipeline decodes its latents; each on a thread of its own.

use super::denoising::{Denoising, DenoisingShape};
use super::stages::Models;
use super::tensors::Shape;
use crate::error::Result;
use crate::ops::*;
use crate::sampler::Table;

/// What pictures that are denoised together have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BatchKey {
    /// Height and width of the latents.
    pub(super) map: [usize; 2],
    pub(super) evaluations: usize,
    /// Chunks of tokens of a prompt.
    pub(super) chunks: usize,
    pub(super) blended: bool,
}

impl BatchKey {
    /// Of pictures that are painted in a shape.
    pub(super) fn of(shape: &Shape, models: &Models) -> Self {
        let scale = models.config.vae.scale_factor();
        BatchKey {
            map: [shape.height / scale, shape.width / scale],
            evaluations: shape.evaluations,
            chunks: shape.chunks,
            blended: shape.blended,
        }
    }

    /// Latent pixels of a picture.
    pub fn pixels(&self) -> usize {
        self.map[0] * self.map[1]
    }

    /// Of so many pictures, the first `guided` of which have guidance.
    pub(super) fn shape(&self, models: &Models, images: usize, guided: usize) -> DenoisingShape {
        let rows_share_time = models.config.unet.text_time.is_none();
        DenoisingShape {
            images,
            guided,
            map: self.map,
            evaluations: self.evaluations,
            chunks: self.chunks,
            time_tables: if rows_share_time { images } else { images + guided },
            blended: self.blended,
        }
    }
}

/// A picture that can be denoised. Dropping it waits for the device; give it back to its pipeline instead.
pub struct Ready {
    pub key: BatchKey,
    pub guided: bool,
    /// The shape that the pipeline decodes it in.
    pub shape: Shape,
    pub(super) table: Table,
    /// Evaluations done.
    pub done: usize,
    pub(super) denoising: Denoising,
    pub(super) region: Region,
}

impl Ready {
    /// Takes memory for a picture.
    pub(super) fn reserve(
        backend: &mut dyn Backend,
        models: &Models,
        key: BatchKey,
        guided: bool,
    ) -> Result<(Denoising, Region)> {
        let shape = key.shape(models, 1, usize::from(guided));
        let dtype = backend.dtype();
        let mut count = count::Count::over(Arena::unbounded(), dtype);
        Denoising::new(&mut count, models, &shape);
        let region = backend.reserve(count.peak_bytes(), "a waiting picture")?;
        let before = backend.use_arena(Arena::new(region.base, region.bytes));
        let denoising = Denoising::new(backend, models, &shape);
        backend.use_arena(before);
        Ok((denoising, region))
    }

    /// Model evaluations of the whole pass.
    pub fn evaluations(&self) -> usize {
        self.table.evaluations()
    }

    /// Bytes of its memory.
    pub fn bytes(&self) -> usize {
        self.region.bytes
    }
}

impl Denoising {
    /// Copies everything of picture `i` of `from`, whose table is `table`, to picture `to`. What ControlNets read
    /// is not copied.
    pub(super) fn copy_picture(
        &self,
        backend: &mut dyn Backend,
        to: usize,
        from: &Denoising,
        i: usize,
        table: &Table,
    ) -> Result<()> {
        let mut copy = |ours: Tensor, theirs: Tensor, n: usize| {
            backend.copy(ours.images(n * to, n), theirs.images(n * i, n))
        };
        copy(self.latents, from.latents, 1)?;
        copy(self.saved, from.saved, 1)?;
        copy(self.history, from.history, 4)?;
        if let (Some(ours), Some(theirs)) = (self.known, from.known) {
            copy(ours.mask, theirs.mask, 1)?;
            copy(ours.latents, theirs.latents, 1)?;
            copy(ours.noise, theirs.noise, 1)?;
        }
        for (ours, theirs) in [(self.guidance, from.guidance), (self.rescale, from.rescale)] {
            backend.copy(ours.columns(to, 1), theirs.columns(i, 1))?;
        }
        let n = self.shape.evaluations;
        assert_eq!(n, from.shape.evaluations, "tables of different lengths");
        let rows = |tensor: Tensor, first: usize, count: usize| {
            let first = tensor.row(first);
            Tensor { shape: [1, 1, count, tensor.c()], ..first }
        };
        let evaluations = table.evaluations();
        backend.copy(rows(self.table, n * to, evaluations), rows(from.table, n * i, evaluations))?;
        if let Some(last) = table.noise_rows().last() {
            let noise = |d: &Denoising, picture: usize| d.noise.images(n * picture, last + 1);
            backend.copy(noise(self, to), noise(from, i))?;
        }
        for (ours, theirs) in self.shape.rows_of(to).zip(from.shape.rows_of(i)) {
            backend.copy(self.context.images(ours, 1), from.context.images(theirs, 1))?;
            let time = |d: &Denoising, row: usize| {
                rows(d.time_table.images(d.shape.time_table_of(row), 1), 0, evaluations)
            };
            backend.copy(time(self, ours), time(from, theirs))?;
            if let (Some(to), Some(from)) = (self.input, from.input) {
                let image = |tensor: Tensor, row: usize| tensor.images(row % tensor.b(), 1);
                backend.copy(image(to, ours), image(from, theirs))?;
            }
        }
        Ok(())
    }

    /// The same of what a step changes: the latents, and what is remembered of them.
    pub(super) fn copy_state(
        &self,
        backend: &mut dyn Backend,
        to: usize,
        from: &Denoising,
        i: usize,
    ) -> Result<()> {
        backend.copy(self.latents.images(to, 1), from.latents.images(i, 1))?;
        backend.copy(self.saved.images(to, 1), from.saved.images(i, 1))?;
        backend.copy(self.history.images(4 * to, 4), from.history.images(4 * i, 4))
    }
}
