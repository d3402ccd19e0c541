//! Painting in three parts, for pictures that are denoised in company: a [`Pipeline`] begins and finishes them, a
//! [`Batch`] on another thread does what is between.

use std::sync::Arc;

use super::batch::Batch;
use super::denoising::Denoising;
use super::enlarge::enlarge;
use super::prompt_cache::PromptCache;
use super::prompts::Prompts;
use super::ready::{BatchKey, Ready};
use super::request::{Picture, Request, Times};
use super::stages::Models;
use super::tensors::Shape;
use super::{Pipeline, PreviewMethod};
use crate::error::Result;
use crate::ops::*;

/// Memory of a picture, to be used again.
pub(super) struct Spare {
    key: BatchKey,
    guided: bool,
    denoising: Denoising,
    region: Region,
}

/// A picture that can be denoised.
pub struct Begun {
    pub ready: Ready,
    pub times: Times,
    /// What the user should know, such as words that did not fit the text encoder.
    pub warnings: Vec<String>,
}

/// What the loop of a pipeline needs to run on another thread; the weights live as long as either.
pub struct Loop {
    opener: Opener,
    models: Arc<Models>,
    weights: Arc<Region>,
}

/// A backend that batches run on.
pub struct OpenLoop {
    pub backend: Box<dyn Backend>,
    models: Arc<Models>,
    _weights: Arc<Region>,
}

impl Loop {
    /// On the thread that is to run the batches.
    pub fn open(self) -> Result<OpenLoop> {
        Ok(OpenLoop { backend: (self.opener)()?, models: self.models, _weights: self.weights })
    }
}

impl OpenLoop {
    pub fn batch<P>(&mut self, key: BatchKey, capacity: usize) -> Result<Batch<P>> {
        Batch::new(&mut *self.backend, &self.models, key, capacity)
    }
}

impl Pipeline {
    /// Keeps so many encoded prompts from now on.
    pub fn cache_prompts(&mut self, room: usize) {
        self.prompt_cache = PromptCache::with_room(room);
    }

    /// The loop of this pipeline, for another thread.
    pub fn detach_loop(&self) -> Loop {
        let (models, weights) = (self.models.clone(), self.weights.clone());
        Loop { opener: self.backend.beside(), models, weights }
    }

    /// What the first pass of a request has in common with others that can be denoised together.
    pub fn batch_key(&self, request: &Request) -> Result<BatchKey> {
        let pass = &request.check(&self.description)?[0];
        Ok(BatchKey::of(&request.shape(&self.description.config, pass), &self.models))
    }

    /// Does all that comes before the steps of a pass of a request for one picture: the first, or one that begins
    /// with the latents of the one before, [h,w,c].
    ///
    /// # Errors
    /// A value that cannot be used, or memory that is not there.
    pub fn begin(&mut self, request: &Request, pass: usize, before: Option<&[f32]>) -> Result<Begun> {
        assert_eq!(request.images, 1, "pictures are begun one by one");
        let passes = request.check(&self.description)?;
        let guided = request.is_guided(&self.description.config);
        let tokenizers = self.tokenizers.clone();
        let prompts = Prompts::new(request, guided, &tokenizers, &self.inversions)?;
        let (vae, pass) = (&self.description.config.vae, &passes[pass]);
        let scale = vae.scale_factor();
        let latents = before.map(|latents| {
            let from = [1, passes[0].height / scale, passes[0].width / scale, vae.latent_channels()];
            enlarge(latents, from, [pass.height / scale, pass.width / scale])
        });
        let mut times = Times::default();
        let shape = self.start(request, &prompts, pass, latents, &mut times)?;

        let key = BatchKey::of(&shape, &self.models);
        let fits = |spare: &Spare| spare.key == key && spare.guided == guided;
        let (denoising, region) = match self.spare.iter().position(fits).map(|at| self.spare.swap_remove(at))
        {
            Some(Spare { denoising, region, .. }) => (denoising, region),
            None => Ready::reserve(&mut *self.backend, &self.models, key, guided)?,
        };
        let table = pass.table.clone();
        let from = &self.buckets[&shape].tensors.denoising;
        denoising.copy_picture(&mut *self.backend, 0, from, 0, &table)?;
        self.backend.wait()?;
        let ready = Ready { key, guided, shape, table, done: 0, denoising, region };
        Ok(Begun { ready, times, warnings: prompts.warnings })
    }

    /// Decodes latents [h,w,c] that a batch has denoised in a shape.
    pub fn finish(&mut self, request: &Request, shape: Shape, latents: &[f32]) -> Result<Picture> {
        let shape = Self::prepare_bucket(&mut self.buckets, &mut *self.backend, &self.models, shape, None)?;
        let bucket = &self.buckets[&shape];
        self.backend.write(bucket.tensors.denoising.latents, bytemuck::cast_slice(latents))?;
        let rgb = bucket.decode(&mut *self.backend, &self.models, &shape)?;
        Ok(one(request.pictures(shape.width, shape.height, &rgb)))
    }

    /// Shows a clean sample [h,w,c] that a batch has predicted.
    pub fn show(
        &mut self,
        request: &Request,
        shape: Shape,
        method: PreviewMethod,
        sample: &[f32],
    ) -> Result<Picture> {
        let shape = Self::prepare_bucket(&mut self.buckets, &mut *self.backend, &self.models, shape, None)?;
        let bucket = &self.buckets[&shape];
        let pictures = bucket.show(&mut *self.backend, &self.models, &shape, request, method, sample)?;
        Ok(one(pictures))
    }

    /// Takes the memory of a picture back that has been denoised, or is not wanted any more.
    pub fn put_back(&mut self, ready: Ready) {
        let Ready { key, guided, denoising, region, .. } = ready;
        self.spare.push(Spare { key, guided, denoising, region });
    }

    pub(super) fn spare_bytes(&self) -> usize {
        self.spare.iter().map(|spare| spare.region.bytes).sum()
    }

    /// Gives the memory of all pictures back that are not in use.
    pub fn drop_spare(&mut self) {
        self.spare.clear();
    }
}

fn one(pictures: Vec<Picture>) -> Picture {
    pictures.into_iter().next().expect("a request for one picture")
}
