//! From a prompt to images.
//!
//! ```text
//! Request --prepare--> State --+
//!                      State --+--> Batch: one loop, any number of images --> latents --decode--> Picture
//!                      ...   --+
//! ```
//! [`Pipeline::prepare`] encodes prompts, images and schedules, [`Batch::run`] denoises, [`Pipeline::decode`] makes
//! pixels. [`Pipeline::paint`] is a batch of its own images; the engine's batches are joined and left at every step.
//! What each part computes is a program, recorded once for a key and replayed for every request.

mod batch;
mod canvas;
mod check;
mod colours;
mod control;
mod count;
mod encoded;
mod enlarge;
mod family;
mod init;
mod latents;
mod loras;
mod model;
mod models;
mod numbers;
mod paint;
mod passes;
mod patch;
mod predicted;
mod prepare;
mod preview;
mod program;
mod programs;
mod prompts;
mod request;
mod slots;
mod spawn;
mod state;
mod step;
mod tiles;
mod tiling;

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

pub use self::batch::{Batch, Member};
pub use self::control::Control;
pub use self::count::{Counted, Footprint, Stage};
use self::enlarge::enlarge;
pub use self::family::{Distillation, Family};
pub use self::init::{Hires, Init};
pub use self::loras::LoraUse;
use self::loras::Loras;
pub use self::model::{Description, KnownShapes, Model, ModelFiles};
pub use self::models::Models;
use self::numbers::write_floats;
pub use self::passes::Pass;
pub use self::patch::{Kind, RequestPatch};
pub use self::prepare::Prepared;
pub use self::preview::{OnPreview, PreviewMethod, Previews};
use self::programs::{Programs, TextCache};
pub use self::request::{Painting, Picture, Request, SizeConditioning, Times};
use self::slots::{Contexts, Slots};
pub use self::spawn::{DenoiseContext, SharedPipeline, SpawnDenoise};
pub use self::state::{BatchKey, Canvas, State};
pub use self::tiling::{Tiled, Tiling};
use crate::error::Result;
use crate::ops::*;
use crate::text::{Inversions, Tokenizer};
use crate::weights::{Plan, RandomWeights, Source, fill_requests};

/// Weights that are filled at once: enough for all cores, few enough to say how far it is.
const REQUESTS_AT_ONCE: usize = 32;

/// Called while weights load, with bytes done and bytes in all.
pub type OnLoad<'a> = &'a mut dyn FnMut(usize, usize);
/// Called between steps, with model evaluations done and in all; may break off.
pub type OnStep<'a> = &'a mut dyn FnMut(usize, usize) -> ControlFlow<()>;

/// A model on a backend, and all that is recorded and kept for its requests.
pub struct Pipeline {
    /// Of the batches that [`Pipeline::paint`] runs.
    batches: Vec<Batch<usize>>,
    programs: Programs,
    texts: TextCache,
    /// One for each size of image, and older ones as long as images are in them.
    slots: Vec<Arc<Slots>>,
    contexts: Option<Arc<Contexts>>,
    /// Numbers and sizes of images that did not fit memory whole, and so are encoded and decoded in tiles.
    too_large: HashSet<(usize, [usize; 2])>,
    /// How many images of a size there may be at once, and of how many model evaluations.
    room: [usize; 2],
    models: Arc<Models>,
    /// One for each text encoder.
    tokenizers: Arc<[Tokenizer]>,
    inversions: Inversions,
    description: Description,
    loras: Loras,
    weights: Arc<Region>,
    /// What does the last steps, on the same machine.
    refiner: Option<Box<Pipeline>>,
    backend: Box<dyn Backend>,
}

impl Model {
    /// A pipeline of this model, with all weights on the backend.
    pub fn load(&self, backend: Box<dyn Backend>, on_load: OnLoad) -> Result<Pipeline> {
        match self {
            Model::Files(files) => Pipeline::load(files, backend, on_load),
            Model::Random { .. } => Pipeline::random(self.describe()?, backend, on_load),
        }
    }
}

impl Pipeline {
    /// Loads a model folder in the layout of diffusers, or a single file.
    pub fn load(files: &ModelFiles, backend: Box<dyn Backend>, on_load: OnLoad) -> Result<Self> {
        let (description, checkpoint) = files.open()?;
        let encoders = description.config.text_encoders.iter().map(|encoder| &encoder.clip);
        let widths: Vec<usize> = encoders.clone().map(|clip| clip.hidden_size).collect();
        let inversions = Inversions::read(
            &files.embeddings,
            encoders.map(|clip| clip.vocab_size).min().expect("a text encoder"),
            &widths,
        )?;
        let mut pipeline = Self::fill(description, inversions, Box::new(checkpoint), backend, on_load)?;
        if let Some(refiner) = files.refiner() {
            let beside = pipeline.backend.beside()()?;
            pipeline.refiner = Some(Box::new(Self::load(&refiner, beside, on_load)?));
        }
        Ok(pipeline)
    }

    /// A model with random weights of the given shapes: for measuring without a checkpoint.
    pub fn random(description: Description, backend: Box<dyn Backend>, on_load: OnLoad) -> Result<Self> {
        Self::fill(description, Inversions::default(), Box::new(RandomWeights), backend, on_load)
    }

    fn fill(
        description: Description,
        inversions: Inversions,
        source: Box<dyn Source>,
        mut backend: Box<dyn Backend>,
        on_load: OnLoad,
    ) -> Result<Self> {
        let dtype = backend.dtype();
        let config = &description.config;
        let encoders = description.tokenizers.iter().zip(&config.text_encoders);
        let tokenizers: Arc<[Tokenizer]> = encoders
            .map(|(folder, encoder)| Tokenizer::for_encoder(folder.as_ref(), &encoder.clip))
            .collect::<Result<_>>()?;
        let new_tokens = inversions.vectors();
        let mut plan = Plan::measure(dtype);
        Models::new(config, new_tokens, &mut plan);
        source.check(&plan.requests)?;
        let bytes = plan.bytes();
        let weights = backend.reserve(bytes, "the weights")?;
        let mut plan = Plan::new(weights.base, weights.bytes, dtype);
        let tokens = tokenizers.iter().map(Tokenizer::max_length).fold(config.max_tokens(), usize::min);
        let models = Arc::new(Models { tokens, ..Models::new(config, new_tokens, &mut plan) });
        // Kernels for speed alone have the bytes of the server's up to two rows, and an image has three here.
        if models.has_image_guidance() {
            backend.keep_alike();
        }
        let start = Instant::now();
        let mut done = 0;
        for requests in plan.requests.chunks(REQUESTS_AT_ONCE) {
            fill_requests(&mut *backend, &*source, requests)?;
            done +=
                requests.iter().map(|r| r.tensor.bytes().next_multiple_of(tensor::ALIGNMENT)).sum::<usize>();
            on_load(done, bytes);
        }
        backend.finish_fill()?;
        tracing::debug!(bytes, time = ?start.elapsed(), "filled the weights");
        for (encoder, text_encoder) in models.text_encoders.iter().enumerate().filter(|_| new_tokens > 0) {
            let rows = text_encoder.new_tokens();
            write_floats(&mut *backend, rows, inversions.rows(encoder))?;
        }
        let loras = Loras::new(source, plan.requests);
        Ok(Pipeline {
            batches: Vec::new(),
            programs: Programs::default(),
            texts: TextCache::default(),
            slots: Vec::new(),
            contexts: None,
            too_large: HashSet::new(),
            room: [1, 0],
            models,
            tokenizers,
            inversions,
            description,
            loras,
            weights: Arc::new(weights),
            refiner: None,
            backend,
        })
    }

    /// Makes these the LoRAs that the weights have in them, in any order; none gives the model as it was
    /// loaded, bit for bit. Nothing is re-recorded. A set that is there already costs nothing.
    ///
    /// Returns what the user should know, such as keys that mean nothing in this model.
    ///
    /// # Errors
    /// A LoRA that does not fit the model: the set stays as it was. A backend's failure: the next set is filled
    /// in whole.
    pub fn set_loras(&mut self, loras: &[LoraUse]) -> Result<Vec<String>> {
        self.texts.clear();
        self.loras.set(&mut *self.backend, loras, self.description.family.name)
    }

    pub fn description(&self) -> &Description {
        &self.description
    }
    pub fn backend(&mut self) -> &mut dyn Backend {
        &mut *self.backend
    }

    /// Bytes of all that was taken on the machine: weights, activations, images and prompts.
    pub fn bytes(&self) -> usize {
        let slots: usize = self.slots.iter().map(|slots| slots.bytes()).sum();
        let contexts = self.contexts.as_ref().map_or(0, |contexts| contexts.bytes());
        let batches: usize = self.batches.iter().map(Batch::bytes).sum();
        let kept = self.programs.workspace.bytes() + self.texts.bytes();
        let refiner = self.refiner.as_ref().map_or(0, |refiner| refiner.bytes());
        self.weights.bytes + slots + contexts + batches + kept + refiner
    }

    /// Bytes of all weights but the refiner's.
    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes
    }

    /// The request that the model suggests, for an empty prompt.
    pub fn defaults(&self) -> Result<Request> {
        Ok(Request::defaults(&self.description, self.description.scheduler.default_sampler()?))
    }

    /// Keeps so many encoded texts from now on.
    pub fn cache_texts(&mut self, room: usize) {
        self.texts = TextCache::with_room(room);
        self.refiner.iter_mut().for_each(|refiner| refiner.cache_texts(room));
    }

    /// Makes room for so many images of a size at once from now on, each of so many model evaluations.
    pub fn expect_images(&mut self, images: usize, evaluations: usize) {
        self.room = [images, evaluations];
        self.refiner.iter_mut().for_each(|refiner| refiner.expect_images(images, evaluations));
    }

    /// This one, and that of the refiner.
    fn of_all_models(&self) -> impl Iterator<Item = &Pipeline> {
        std::iter::once(self).chain(self.refiner.as_deref())
    }

    /// The pipeline whose networks run a pass.
    fn of_pass(&mut self, pass: &Pass) -> &mut Pipeline {
        if !pass.is_refined {
            return self;
        }
        self.refiner.as_deref_mut().expect("a request with a refiner is checked against a model that has one")
    }
}
