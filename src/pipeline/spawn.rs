//! The denoising loop of a pipeline on another thread.

use std::sync::Arc;

use super::Pipeline;
use super::batch::Batch;
use super::prepare::Prepared;
use super::preview::PreviewMethod;
use super::program::Workspace;
use super::request::{Picture, Request};
use super::state::{BatchKey, Canvas};
use crate::error::Result;
use crate::ops::*;

/// What the denoising loop of a pipeline needs to run on another thread; the weights live as long as either.
pub struct SpawnDenoise {
    opener: Opener,
    weights: Vec<Arc<Region>>,
}

/// A backend that batches run on.
pub struct DenoiseContext {
    pub backend: Box<dyn Backend>,
    workspace: Workspace,
    _weights: Vec<Arc<Region>>,
}

impl SpawnDenoise {
    /// Opens the backend, on the thread that is to run the batches.
    pub fn open(self) -> Result<DenoiseContext> {
        Ok(DenoiseContext {
            backend: (self.opener)()?,
            workspace: Workspace::default(),
            _weights: self.weights,
        })
    }
}

impl DenoiseContext {
    /// A batch of up to `capacity` images.
    pub fn batch<P>(&mut self, key: BatchKey, capacity: usize) -> Result<Batch<P>> {
        Batch::new(&mut *self.backend, &mut self.workspace, key, capacity)
    }

    /// Bytes of the activations of all batches.
    pub fn bytes(&self) -> usize {
        self.workspace.bytes()
    }

    /// Gives the activations back where no batch uses them.
    pub fn drop_unused(&mut self) {
        self.workspace.clear();
    }
}

/// A pipeline whose denoising loop runs elsewhere: it prepares and decodes. The loop reads the same weights at any time,
/// so nothing here can change them.
pub struct SharedPipeline(Pipeline);

impl SharedPipeline {
    pub fn new(pipeline: Pipeline) -> (Self, SpawnDenoise) {
        let spawn = SpawnDenoise {
            opener: pipeline.backend.beside(),
            weights: pipeline.of_all_models().map(|pipeline| pipeline.weights.clone()).collect(),
        };
        (SharedPipeline(pipeline), spawn)
    }

    /// [`Pipeline::batch_keys`].
    pub fn batch_keys(&mut self, request: &Request) -> Result<Vec<BatchKey>> {
        self.0.batch_keys(request)
    }

    /// [`Pipeline::prepare`].
    pub fn prepare(
        &mut self,
        request: &Request,
        pass: usize,
        before: Option<&[Vec<f32>]>,
    ) -> Result<Prepared> {
        self.0.prepare(request, pass, before)
    }

    /// [`Pipeline::decode`].
    pub fn decode(&mut self, request: &Request, canvas: Canvas, latents: &[f32]) -> Result<Vec<Picture>> {
        self.0.decode(request, canvas, latents)
    }

    /// [`Pipeline::preview`].
    pub fn preview(
        &mut self,
        request: &Request,
        canvas: Canvas,
        method: PreviewMethod,
        samples: &[f32],
    ) -> Result<Vec<Picture>> {
        self.0.preview(request, canvas, method, samples)
    }

    /// [`Pipeline::bytes`].
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }
}
