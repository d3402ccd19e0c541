//! From a prompt to a picture.
//!
//! ```text
//! prompt  -> token ids -> [encode] -> context, time table
//! picture              -> [encode picture] -> latents, where there is one
//! noise   -> latents   -> [denoise: one loop of U-Net + sampler row] -> latents
//! latents              -> [decode] -> RGB8
//! ```
//! The brackets are recorded once for each [`Shape`] and replayed for every request: steps,
//! sampler, guidance, seed and prompt are data that is written in front of them.

mod batch;
mod begin;
mod bucket;
mod control;
mod decode;
mod denoising;
mod encode;
mod encoded;
mod enlarge;
mod family;
mod init;
mod inputs;
mod latents;
mod loras;
mod model;
mod numbers;
mod patch;
mod predicted;
mod preview;
mod prompt_cache;
mod prompts;
mod ready;
mod request;
mod stages;
mod tensors;
mod tiles;
mod tiling;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

pub use self::batch::{Batch, Member};
use self::begin::Spare;
pub use self::begin::{Begun, Loop, OpenLoop};
use self::bucket::Bucket;
pub use self::control::Control;
use self::control::write_controls;
use self::encoded::Encoded;
use self::enlarge::enlarge;
pub use self::family::{Distillation, Family};
pub use self::init::{Hires, Init};
use self::inputs::{padded, write_times};
use self::latents::{Start, write_latents};
pub use self::loras::LoraUse;
use self::loras::Loras;
pub use self::model::{Description, KnownShapes, Model, ModelFiles};
use self::numbers::{read_floats, write_floats};
pub use self::patch::{Kind, RequestPatch};
pub use self::preview::{OnPreview, PreviewMethod, Previews};
use self::preview::{Watch, Watched};
use self::prompt_cache::PromptCache;
use self::prompts::Prompts;
pub use self::ready::{BatchKey, Ready};
pub use self::request::{Painting, Pass, Picture, Request, SizeConditioning, Times};
pub use self::stages::{Counted, Models, Stage, count};
pub use self::tensors::Shape;
pub use self::tiling::{Tiled, Tiling};
use crate::error::{Error, Result};
use crate::ops::*;
use crate::text::{Inversions, Tokenizer};
use crate::weights::{Plan, RandomWeights, Source, fill_requests};

/// Weights that are filled at once: enough for all cores, few enough to say how far it is.
const REQUESTS_AT_ONCE: usize = 32;

/// Called while weights load, with bytes done and bytes in all.
pub type OnLoad<'a> = &'a mut dyn FnMut(usize, usize);
/// Called between steps, with model evaluations done and in all; may break off.
pub type OnStep<'a> = &'a mut dyn FnMut(usize, usize) -> ControlFlow<()>;

pub struct Pipeline {
    buckets: HashMap<Shape, Bucket>,
    models: Arc<Models>,
    /// One for each text encoder.
    tokenizers: Arc<[Tokenizer]>,
    inversions: Inversions,
    description: Description,
    loras: Loras,
    prompt_cache: PromptCache,
    /// Memory of pictures that a batch has given back.
    spare: Vec<Spare>,
    weights: Arc<Region>,
    backend: Box<dyn Backend>,
}

impl Pipeline {
    /// Loads a model folder in the layout of diffusers, or a single file.
    pub fn load(files: &ModelFiles, backend: Box<dyn Backend>, on_load: OnLoad) -> Result<Self> {
        let (description, checkpoint) = files.open()?;
        let widths: Vec<usize> = description.config.text_encoders().map(|clip| clip.hidden_size).collect();
        let inversions = Inversions::read(&files.embeddings, description.config.clip.vocab_size, &widths)?;
        Self::fill(description, inversions, Box::new(checkpoint), backend, on_load)
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
        let encoders = description.tokenizers.iter().zip(config.text_encoders());
        let tokenizers: Arc<[Tokenizer]> = encoders
            .map(|(folder, clip)| Tokenizer::for_encoder(folder.as_ref(), clip))
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
        for (encoder, text_encoder) in models.text_encoders().enumerate().filter(|_| new_tokens > 0) {
            let rows = text_encoder.new_tokens();
            write_floats(&mut *backend, rows, inversions.rows(encoder))?;
        }
        let buckets = HashMap::new();
        let loras = Loras::new(source, plan.requests);
        Ok(Pipeline {
            buckets,
            models,
            tokenizers,
            inversions,
            description,
            loras,
            prompt_cache: PromptCache::default(),
            spare: Vec::new(),
            weights: Arc::new(weights),
            backend,
        })
    }

    /// Makes these the LoRAs that the weights have in them, in any order; none gives the model as it was
    /// loaded, bit for bit. Nothing is recorded anew. A set that is there already costs nothing.
    ///
    /// Returns what the user should know, such as keys that mean nothing in this model.
    ///
    /// # Errors
    /// A LoRA that does not fit the model: the set stays as it was. A backend's failure: the next set is filled
    /// in whole.
    pub fn set_loras(&mut self, loras: &[LoraUse]) -> Result<Vec<String>> {
        self.loras.set(&mut *self.backend, loras, &self.description.family.to_string())
    }

    pub fn description(&self) -> &Description {
        &self.description
    }
    pub fn backend(&mut self) -> &mut dyn Backend {
        &mut *self.backend
    }
    /// Bytes of all that was taken on the machine: weights, shapes, prompts and pictures that are kept.
    pub fn bytes(&self) -> usize {
        let buckets = self.buckets.values().map(|bucket| bucket.region.bytes);
        self.weights.bytes + buckets.sum::<usize>() + self.prompt_cache.bytes() + self.spare_bytes()
    }
    /// Bytes of all weights.
    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes
    }

    /// The request that the model suggests, for an empty prompt.
    pub fn defaults(&self) -> Result<Request> {
        Ok(Request::defaults(&self.description, self.description.scheduler.default_sampler()?))
    }

    /// Paints a request.
    ///
    /// # Errors
    /// A value that cannot be used, memory that is not there, or [`Error::Cancelled`].
    pub fn paint(&mut self, request: &Request, on_step: OnStep) -> Result<Painting> {
        self.paint_with_previews(request, on_step, None)
    }

    /// Paints a request, and shows it while it is painted. The picture is the same.
    ///
    /// # Errors
    /// Besides those of [`Pipeline::paint`], a [`PreviewMethod`] that the model does not have, and that of
    /// [`OnPreview`].
    pub fn paint_with_previews(
        &mut self,
        request: &Request,
        on_step: OnStep,
        mut previews: Option<Previews>,
    ) -> Result<Painting> {
        if let Some(previews) = &previews {
            assert!(previews.every > 0, "previews of every evaluation are every 1");
            previews.method.check(&self.description.config)?;
        }
        let passes = request.check(&self.description)?;
        let evaluations = passes.iter().map(|pass| pass.table.evaluations()).sum();
        let guided = request.is_guided(&self.description.config);
        let tokenizers = Arc::clone(&self.tokenizers);
        let prompts = Prompts::new(request, guided, &tokenizers, &self.inversions)?;
        let mut times = Times { evaluations, ..Times::default() };
        let asked = previews.as_ref().map(|previews| (previews.every, previews.method));
        let mut done = 0;
        let mut shape = None;
        for pass in &passes {
            let smaller = shape.map(|shape| self.enlarged(&shape, pass)).transpose()?;
            let mut on_preview = |in_pass, pictures| match &mut previews {
                Some(previews) => (previews.on_preview)(done + in_pass, pictures),
                None => Ok(()),
            };
            let watch = Watch {
                on_step: &mut |in_pass| on_step(done + in_pass, evaluations),
                previews: asked.map(|(every, method)| Previews {
                    every,
                    method,
                    on_preview: &mut on_preview,
                }),
            };
            match self.denoise(request, &prompts, pass, smaller, &mut times, watch) {
                Err(Error::Cancelled { done: in_pass, .. }) => {
                    return Err(Error::Cancelled { done: done + in_pass, steps: evaluations });
                }
                denoised => shape = Some(denoised?),
            }
            done += pass.table.evaluations();
        }

        let start = Instant::now();
        let shape = shape.expect("at least one pass");
        let rgb = self.buckets[&shape].decode(&mut *self.backend, &self.models, &shape)?;
        times.decode = start.elapsed();

        let pictures = request.pictures(shape.width, shape.height, &rgb);
        let mut warnings = prompts.warnings;
        if let (Some([h, w]), Tiled::Auto) = (shape.tile, request.tiling.when) {
            let done = if shape.from_picture { "encoded and decoded" } else { "decoded" };
            warnings.push(format!(
                "{done} in tiles of {w}x{h} latents: the whole picture does not fit; VAE tiling set to on avoids \
                 this warning"
            ));
        }
        Ok(Painting { pictures, times, warnings })
    }

    /// Runs a pass, from the latents of an earlier one if there are some; returns the shape that has its latents.
    fn denoise(
        &mut self,
        request: &Request,
        prompts: &Prompts,
        pass: &Pass,
        latents: Option<Vec<f32>>,
        times: &mut Times,
        watch: Watch,
    ) -> Result<Shape> {
        let shape = self.start(request, prompts, pass, latents, times)?;
        let start = Instant::now();
        let (bucket, models, table) = (&self.buckets[&shape], &self.models, &pass.table);
        let evaluations = table.evaluations();
        let backend = &mut *self.backend;
        let done = Watched { backend, models, bucket, shape, request, table }.denoise(watch)?;
        if done < evaluations {
            return Err(Error::Cancelled { done, steps: evaluations });
        }
        times.denoise += start.elapsed();
        Ok(shape)
    }

    /// Does all that comes before the steps of a pass; returns the shape whose tensors are ready for them.
    fn start(
        &mut self,
        request: &Request,
        prompts: &Prompts,
        pass: &Pass,
        latents: Option<Vec<f32>>,
        times: &mut Times,
    ) -> Result<Shape> {
        let (config, table) = (&self.description.config, &pass.table);
        let shape = Shape { chunks: prompts.chunks(), ..request.shape(config, pass) };
        let start = Instant::now();
        let tile = request.possible_tile(config, pass.width, pass.height);
        let shape = Self::prepare_bucket(&mut self.buckets, &mut *self.backend, &self.models, shape, tile)?;
        times.record += start.elapsed();
        let bucket = &self.buckets[&shape];
        let backend = &mut *self.backend;
        let t = &bucket.tensors;

        let start = Instant::now();
        prompts.write(backend, t, request, pass, &self.description)?;
        write_times(backend, t, request, table)?;
        write_controls(backend, &t.denoising.controls, request, config, pass)?;
        let key = prompts.key(request, &self.description, &shape);
        if !self.prompt_cache.recall(backend, &key, t)? {
            backend.replay(&bucket.prompts)?;
            self.prompt_cache.keep(backend, key, t)?;
        }
        backend.replay(&bucket.times)?;
        times.text += start.elapsed();

        let latents = match (latents, &request.init) {
            (Some(latents), _) => Start::Latents(latents),
            (None, Some(init)) => {
                let start = Instant::now();
                let encoded = Encoded::new(backend, &self.models, bucket, &shape, init, pass)?;
                times.picture = start.elapsed();
                Start::Picture(encoded)
            }
            (None, None) => Start::Noise,
        };

        let start = Instant::now();
        let d = &t.denoising;
        write_latents(backend, d, request, table, &latents)?;
        backend.write(d.guidance, &padded(&vec![request.guidance_scale; request.images], request.images))?;
        backend.write(d.index, bytemuck::cast_slice(&d.first_index()))?;
        backend.write(d.rescale, &padded(&vec![request.guidance_rescale; request.images], request.images))?;
        times.denoise += start.elapsed();
        Ok(shape)
    }

    /// The latents of a shape at the size of a pass.
    fn enlarged(&mut self, shape: &Shape, pass: &Pass) -> Result<Vec<f32>> {
        let latents = self.buckets[shape].tensors.denoising.latents;
        let floats = read_floats(&mut *self.backend, latents)?;
        let scale = self.description.config.vae.scale_factor();
        Ok(enlarge(&floats, latents.shape, [pass.height / scale, pass.width / scale]))
    }

    /// Records the graphs of a shape, unless they are there. Shapes of earlier requests keep their memory
    /// until a new one needs it.
    pub fn prepare(&mut self, shape: Shape) -> Result<()> {
        Self::prepare_bucket(&mut self.buckets, &mut *self.backend, &self.models, shape, None).map(drop)
    }

    /// Returns the shape that was prepared: with this `tile`, where memory does not suffice without.
    fn prepare_bucket(
        buckets: &mut HashMap<Shape, Bucket>,
        backend: &mut dyn Backend,
        models: &Models,
        shape: Shape,
        tile: Option<[usize; 2]>,
    ) -> Result<Shape> {
        let tiled = Shape { tile: shape.tile.or(tile), ..shape };
        if let Some(known) = [shape, tiled].into_iter().find(|shape| buckets.contains_key(shape)) {
            return Ok(known);
        }
        let mut shape = shape;
        let bucket = loop {
            match Bucket::new(backend, models, &shape) {
                Err(Error::OutOfMemory { .. }) if !buckets.is_empty() => buckets.clear(),
                Err(Error::OutOfMemory { needed, .. }) if shape != tiled => {
                    tracing::debug!(?shape, needed, "tiles: the whole does not fit");
                    shape = tiled;
                }
                bucket => break bucket?,
            }
        };
        tracing::debug!(?shape, bytes = bucket.region.bytes, "recorded graphs");
        buckets.insert(shape, bucket);
        Ok(shape)
    }

    /// The verbs of a shape over the memory that its graphs use: what a profile executes one by one.
    pub fn program(&mut self, shape: Shape) -> Result<Counted> {
        self.prepare(shape)?;
        let Region { base, bytes, .. } = self.buckets[&shape].region;
        let dtype = self.backend.dtype();
        Ok(Counted::new(&self.models, &shape, dtype, Arena::new(base, bytes)))
    }

    /// Runs a stage of a shape once, verb by verb under its scopes' names, on whatever its memory holds:
    /// for profilers that show named ranges. The latents take the first step of the sampler's table.
    pub fn run_eagerly(&mut self, shape: Shape, stage: Stage) -> Result<()> {
        self.prepare(shape)?;
        let bucket = &self.buckets[&shape];
        let (backend, models, t) = (&mut *self.backend, &self.models, &bucket.tensors);
        // A loop that has run leaves the index past the table.
        backend.write(t.denoising.index, bytemuck::cast_slice(&t.denoising.first_index()))?;
        bucket.unrecorded(backend, models, &shape, |backend| {
            backend.run(&mut |ops| match stage {
                Stage::Encode => models.encode(ops, t),
                Stage::Denoise => models.denoise(ops, &t.denoising),
                Stage::Decode => models.decode(ops, t),
            })
        })
    }
}
