//! From a prompt to a picture.
//!
//! ```text
//! prompt -> token ids -> [encode] -> context, time table
//! noise  -> latents   -> [denoise: one loop of U-Net + sampler row] -> latents
//! latents             -> [decode] -> RGB8
//! ```
//! The three brackets are recorded once for each [`Shape`] and replayed for every request: steps,
//! sampler, guidance, seed and prompt are data that is written in front of them.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::model::clip::ClipText;
use crate::model::config::ModelConfig;
use crate::model::unet::UNet;
use crate::model::vae::Vae;
use crate::ops::count::Count;
use crate::ops::*;
use crate::rng::Rng;
use crate::sampler::{ROW_WIDTH, Sampler, Schedule, SchedulerConfig, Table};
use crate::text::Tokenizer;
use crate::weights::{Checkpoint, ModelFolder, Plan, RandomWeights, Source};

/// The three models on a backend: weights are there, nothing has run.
pub struct Models {
    pub config: ModelConfig,
    pub text_encoder: ClipText,
    pub unet: UNet,
    pub vae: Vae,
}

impl Models {
    /// Plans the weights of all three. Tells the slab's size in `plan`.
    pub fn new(config: &ModelConfig, plan: &mut Plan) -> Self {
        Models {
            text_encoder: plan.component("text_encoder", |plan| ClipText::new(&config.clip, plan)),
            unet: plan.component("unet", |plan| UNet::new(&config.unet, plan)),
            vae: plan.component("vae", |plan| Vae::new(&config.vae, plan)),
            config: config.clone(),
        }
    }

    fn encode(&self, ops: &mut dyn Ops, t: &Tensors) {
        ops.scope("encode", |ops| {
            let [rows, _, _, tokens] = t.ids.shape;
            let hidden_states = ops.alloc([rows, 1, tokens, self.config.clip.hidden_size]);
            self.text_encoder.forward(ops, hidden_states, t.ids);
            self.unet.context(ops, t.context, hidden_states);
            self.unet.time_table(ops, t.time_table, t.timesteps);
        });
    }

    /// One model evaluation and the sampler row that follows from it.
    fn denoise(&self, ops: &mut dyn Ops, t: &Tensors) {
        ops.scope("denoise", |ops| {
            let [_, h, w, c] = t.latents.shape;
            let rows = t.context.b();
            let input = ops.alloc([rows, h, w, c]);
            let output = ops.alloc([rows, h, w, c]);
            ops.model_input(ModelInput { out: input, x: t.latents, table: t.table, index: t.index });
            let time = TableRow { table: t.time_table, index: t.index };
            self.unet.forward(ops, output, input, time, t.context);
            ops.sampler_step(SamplerStep {
                x: t.latents,
                saved: t.saved,
                history: t.history,
                output,
                noise: t.noise,
                table: t.table,
                index: t.index,
                guidance: t.guidance,
            });
        });
    }

    fn decode(&self, ops: &mut dyn Ops, t: &Tensors) {
        ops.scope("decode", |ops| {
            let picture = ops.alloc(t.rgb.shape);
            self.vae.decode(ops, picture, t.latents);
            ops.to_rgb8(ToRgb8 { out: t.rgb, x: picture });
        });
    }
}

/// What a recorded set of graphs is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    pub images: usize,
    /// With guidance the U-Net sees each picture twice.
    pub guided: bool,
    pub height: usize,
    pub width: usize,
    /// Rows that the sampler, time and noise tables have room for.
    pub evaluations: usize,
}

/// Room for this many model evaluations at least, so that few requests need a second recording.
const EVALUATIONS: usize = 128;

impl Shape {
    /// The shape for requests of up to `evaluations`, rounded up so that similar requests share one.
    pub fn new(images: usize, guided: bool, height: usize, width: usize, evaluations: usize) -> Self {
        let evaluations = evaluations.next_power_of_two().max(EVALUATIONS);
        Shape { images, guided, height, width, evaluations }
    }

    /// Images in one U-Net call.
    pub fn unet_batch(&self) -> usize {
        self.images * if self.guided { 2 } else { 1 }
    }
}

/// What lives from one replay to the next.
#[derive(Clone, Copy)]
struct Tensors {
    ids: Tensor,        // i32 [rows,1,1,tokens]
    timesteps: Tensor,  // f32 [evaluations]
    time_table: Tensor, // [evaluations,time columns]
    context: Tensor,    // [rows,1,tokens,context columns]
    latents: Tensor,    // f32 [images,h,w,c]
    saved: Tensor,      // f32 [images,h,w,c]
    history: Tensor,    // f32 [4·images,h,w,c]
    noise: Tensor,      // f32 [evaluations·images,h,w,c]
    table: Tensor,      // f32 [evaluations,ROW_WIDTH]
    index: Tensor,      // i32 [rows]
    guidance: Tensor,   // f32 [images]
    rgb: Tensor,        // u8 [images,height,width,3]
}

impl Tensors {
    fn new(ops: &mut dyn Ops, models: &Models, shape: &Shape) -> Self {
        let scale = models.config.vae.scale_factor();
        let latent = [shape.height / scale, shape.width / scale, models.config.vae.latent_channels];
        let [h, w, c] = latent;
        let (rows, images, n) = (shape.unet_batch(), shape.images, shape.evaluations);
        let tokens = models.config.clip.max_position_embeddings;
        let time_table = ops.alloc([1, 1, n, models.unet.time_columns()]);
        let context = ops.alloc([rows, 1, tokens, models.unet.context_columns()]);
        let arena = ops.arena();
        let mut f32 = |shape| arena.alloc(shape, DType::F32);
        Tensors {
            time_table,
            context,
            timesteps: f32([1, 1, 1, n]),
            latents: f32([images, h, w, c]),
            saved: f32([images, h, w, c]),
            history: f32([4 * images, h, w, c]),
            noise: f32([n * images, h, w, c]),
            table: f32([1, 1, n, ROW_WIDTH]),
            guidance: f32([1, 1, 1, images]),
            ids: arena.alloc([rows, 1, 1, tokens], DType::I32),
            index: arena.alloc([1, 1, 1, rows], DType::I32),
            rgb: arena.alloc([images, shape.height, shape.width, models.config.vae.out_channels], DType::U8),
        }
    }
}

/// The three stages of one shape, counted without running them.
pub struct Counted {
    pub encode: Count,
    pub denoise: Count,
    pub decode: Count,
}

impl Counted {
    /// Bytes that the tensors and scratch of the shape need together.
    pub fn arena_bytes(&self) -> usize {
        [&self.encode, &self.denoise, &self.decode].map(Count::peak_bytes).into_iter().max().unwrap_or(0)
    }

    /// Walks the models over `Count`. With an arena over real memory the counted calls can be executed.
    fn new(models: &Models, shape: &Shape, dtype: DType, arena: Arena) -> (Self, Tensors) {
        let mut counts = Vec::new();
        let mut tensors = None;
        let stages: [fn(&Models, &mut dyn Ops, &Tensors); 3] =
            [Models::encode, Models::denoise, Models::decode];
        for stage in stages {
            let mut count = Count::over(arena.clone(), dtype);
            let t = Tensors::new(&mut count, models, shape);
            stage(models, &mut count, &t);
            counts.push(count);
            tensors = Some(t);
        }
        let [encode, denoise, decode] = counts.try_into().ok().expect("three stages");
        (Counted { encode, denoise, decode }, tensors.expect("three stages"))
    }
}

/// Counts what a shape of a model needs, without a checkpoint and without memory.
pub fn count(config: &ModelConfig, shape: &Shape, dtype: DType) -> Counted {
    let models = Models::new(config, &mut Plan::measure(dtype));
    Counted::new(&models, shape, dtype, Arena::unbounded()).0
}

/// The graphs of one shape and their memory.
struct Bucket {
    tensors: Tensors,
    encode: Graph,
    denoise: Graph,
    decode: Graph,
    region: Region,
}

impl Bucket {
    fn new(backend: &mut dyn Backend, models: &Models, shape: &Shape) -> Result<Self> {
        let dtype = backend.dtype();
        let bytes = Counted::new(models, shape, dtype, Arena::unbounded()).0.arena_bytes();
        let region = backend.reserve(bytes, "the latents and activations")?;
        let before = backend.use_arena(Arena::new(region.base, region.bytes));
        let tensors = Tensors::new(backend, models, shape);
        let recorded = Self::record(backend, models, tensors, region);
        backend.use_arena(before);
        recorded
    }

    fn record(backend: &mut dyn Backend, models: &Models, tensors: Tensors, region: Region) -> Result<Self> {
        Ok(Bucket {
            encode: backend.record(&mut |ops| models.encode(ops, &tensors))?,
            denoise: backend.record_steps(tensors.index, &mut |ops| models.denoise(ops, &tensors))?,
            decode: backend.record(&mut |ops| models.decode(ops, &tensors))?,
            tensors,
            region,
        })
    }
}

/// What to paint.
#[derive(Clone, Debug)]
pub struct Request {
    pub prompt: String,
    pub negative_prompt: String,
    pub steps: usize,
    /// Guidance is on above 1, as in diffusers.
    pub guidance_scale: f32,
    pub sampler: Sampler,
    pub schedule: Schedule,
    /// Picture i is painted with seed + i.
    pub seed: u64,
    pub rng: Rng,
    pub height: usize,
    pub width: usize,
    pub images: usize,
}

/// One picture, row after row of RGB.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    pub width: usize,
    pub height: usize,
    pub rgb: Vec<u8>,
    pub seed: u64,
}

/// How long the stages of one request took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Recording graphs, when the shape was new.
    pub record: Duration,
    pub text: Duration,
    pub denoise: Duration,
    pub decode: Duration,
    /// Model evaluations in `denoise`.
    pub evaluations: usize,
}

/// What came of a request.
#[derive(Clone, Debug)]
pub struct Painting {
    pub pictures: Vec<Picture>,
    pub times: Times,
    /// What the user should know, such as words that did not fit the text encoder.
    pub warnings: Vec<String>,
}

/// Called while weights load, with bytes done and bytes in all.
pub type OnLoad<'a> = &'a mut dyn FnMut(usize, usize);
/// Called between steps, with model evaluations done and in all; may break off.
pub type OnStep<'a> = &'a mut dyn FnMut(usize, usize) -> ControlFlow<()>;

pub struct Pipeline {
    buckets: HashMap<Shape, Bucket>,
    models: Models,
    tokenizer: Tokenizer,
    scheduler: SchedulerConfig,
    weights: Region,
    backend: Box<dyn Backend>,
}

impl Pipeline {
    /// Loads a model folder in the layout of diffusers.
    pub fn load(folder: &Path, backend: Box<dyn Backend>, on_load: OnLoad) -> Result<Self> {
        let folder = ModelFolder::open(folder)?;
        let config = ModelConfig::read(&folder.path)?;
        let scheduler = SchedulerConfig::load(&folder.scheduler_config())?;
        let tokenizer = Tokenizer::for_encoder(folder.tokenizer().as_deref(), &config.clip)?;
        let checkpoint = Checkpoint::open(&folder)?;
        Self::fill(&config, tokenizer, scheduler, &checkpoint, backend, on_load)
    }

    /// A model with random weights of the given shapes: for measuring without a checkpoint.
    pub fn random(config: &ModelConfig, backend: Box<dyn Backend>, on_load: OnLoad) -> Result<Self> {
        let tokenizer = Tokenizer::for_encoder(None, &config.clip)?;
        Self::fill(config, tokenizer, SchedulerConfig::sd15(), &RandomWeights, backend, on_load)
    }

    fn fill(
        config: &ModelConfig,
        tokenizer: Tokenizer,
        scheduler: SchedulerConfig,
        source: &dyn Source,
        mut backend: Box<dyn Backend>,
        on_load: OnLoad,
    ) -> Result<Self> {
        let dtype = backend.dtype();
        let mut plan = Plan::measure(dtype);
        Models::new(config, &mut plan);
        source.check(&plan.requests)?;
        let bytes = plan.bytes();
        let weights = backend.reserve(bytes, "the weights")?;
        let mut plan = Plan::new(weights.base, weights.bytes, dtype);
        let models = Models::new(config, &mut plan);
        let mut done = 0;
        for request in &plan.requests {
            backend.fill(request.tensor, &|rows, out| source.fill(request, rows, out))?;
            done += request.tensor.bytes().next_multiple_of(tensor::ALIGNMENT);
            on_load(done, bytes);
        }
        backend.finish_fill()?;
        Ok(Pipeline { buckets: HashMap::new(), models, tokenizer, scheduler, weights, backend })
    }

    pub fn config(&self) -> &ModelConfig {
        &self.models.config
    }
    pub fn scheduler(&self) -> &SchedulerConfig {
        &self.scheduler
    }
    pub fn backend(&mut self) -> &mut dyn Backend {
        &mut *self.backend
    }
    /// Bytes of all weights.
    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes
    }

    /// The request that the model suggests, for an empty prompt.
    pub fn defaults(&self) -> Result<Request> {
        Ok(Request::defaults(&self.models.config, self.scheduler.default_sampler()?))
    }

    /// Paints a request.
    ///
    /// # Errors
    /// A value that cannot be used, memory that is not there, or [`Error::Cancelled`].
    pub fn paint(&mut self, request: &Request, on_step: OnStep) -> Result<Painting> {
        let table = request.check(&self.models.config, &self.scheduler)?;
        let evaluations = table.evaluations();
        let shape = request.shape(evaluations);
        let mut times = Times { evaluations, ..Times::default() };

        let start = Instant::now();
        self.prepare(shape)?;
        times.record = start.elapsed();
        let bucket = &self.buckets[&shape];
        let backend = &mut *self.backend;
        let t = &bucket.tensors;

        let start = Instant::now();
        let (ids, warnings) = token_ids(&self.tokenizer, request, shape.unet_batch())?;
        backend.write(t.ids, bytemuck::cast_slice(&ids))?;
        backend.write(t.timesteps, &padded(&table.timesteps(), t.timesteps.len()))?;
        backend.write(t.table, &padded(&table.pack(), t.table.len()))?;
        backend.replay(&bucket.encode)?;
        times.text = start.elapsed();

        let start = Instant::now();
        write_noise(backend, t, request, &table)?;
        backend.write(t.guidance, &padded(&vec![request.guidance_scale; request.images], request.images))?;
        backend.write(t.index, bytemuck::cast_slice(&vec![0i32; t.index.len()]))?;
        let done =
            backend.replay_steps(&bucket.denoise, evaluations, &mut |done| on_step(done, evaluations))?;
        if done < evaluations {
            return Err(Error::Cancelled { done, steps: evaluations });
        }
        times.denoise = start.elapsed();

        let start = Instant::now();
        backend.replay(&bucket.decode)?;
        let mut rgb = vec![0; t.rgb.bytes()];
        backend.read(t.rgb, &mut rgb)?;
        times.decode = start.elapsed();

        let (width, height) = (request.width, request.height);
        let picture = |(i, rgb): (usize, &[u8])| Picture {
            width,
            height,
            rgb: rgb.to_vec(),
            seed: request.seed.wrapping_add(i as u64),
        };
        let pictures = rgb.chunks_exact(3 * width * height).enumerate().map(picture).collect();
        Ok(Painting { pictures, times, warnings })
    }

    /// Records the graphs of a shape, unless they are there.
    pub fn prepare(&mut self, shape: Shape) -> Result<()> {
        if !self.buckets.contains_key(&shape) {
            let bucket = Bucket::new(&mut *self.backend, &self.models, &shape)?;
            tracing::debug!(?shape, bytes = bucket.region.bytes, "recorded graphs");
            self.buckets.insert(shape, bucket);
        }
        Ok(())
    }

    /// The verbs of a shape over the memory that its graphs use: what a profile executes one by one.
    pub fn program(&mut self, shape: Shape) -> Result<Counted> {
        self.prepare(shape)?;
        let Region { base, bytes, .. } = self.buckets[&shape].region;
        let dtype = self.backend.dtype();
        Ok(Counted::new(&self.models, &shape, dtype, Arena::new(base, bytes)).0)
    }

    /// Runs the stages of a shape once, and `steps` steps, verb by verb under their scopes' names, on
    /// whatever its memory holds: for profilers that show named ranges.
    pub fn trace(&mut self, shape: Shape, steps: usize) -> Result<()> {
        self.prepare(shape)?;
        let Region { base, bytes, .. } = self.buckets[&shape].region;
        let (backend, models) = (&mut *self.backend, &self.models);
        let before = backend.use_arena(Arena::new(base, bytes));
        let t = Tensors::new(backend, models, &shape);
        let traced = backend.run(&mut |ops| {
            models.encode(ops, &t);
            (0..steps).for_each(|_| models.denoise(ops, &t));
            models.decode(ops, &t);
        });
        backend.use_arena(before);
        traced
    }
}

impl Request {
    /// The request that a model and a sampler suggest, for an empty prompt.
    pub fn defaults(config: &ModelConfig, sampler: Sampler) -> Self {
        let side = config.unet.sample_size * config.vae.scale_factor();
        // A latent consistency model has its guidance distilled into few steps.
        let (steps, guidance_scale) = if sampler == Sampler::Lcm { (4, 1.0) } else { (20, 7.5) };
        Request {
            prompt: String::new(),
            negative_prompt: String::new(),
            steps,
            guidance_scale,
            sampler,
            schedule: Schedule::default(),
            seed: 0,
            rng: Rng::default(),
            height: side,
            width: side,
            images: 1,
        }
    }

    /// Checks every value against a model; returns the table of its steps.
    ///
    /// # Errors
    /// [`Error::Invalid`], with the flag's name.
    pub fn check(&self, config: &ModelConfig, scheduler: &SchedulerConfig) -> Result<Table> {
        let scale = config.vae.scale_factor();
        let invalid = |message: String| Err(Error::invalid(message));
        for (flag, side) in [("width", self.width), ("height", self.height)] {
            if side == 0 || !side.is_multiple_of(scale) {
                let nearest = (side.saturating_add(scale / 2) / scale).max(1) * scale;
                return invalid(format!("--{flag} {side}: expected a multiple of {scale}; try {nearest}"));
            }
        }
        if self.images == 0 {
            return invalid("--num-images 0: expected at least 1".to_string());
        }
        if !self.guidance_scale.is_finite() {
            return invalid(format!("--guidance-scale {}: expected a finite number", self.guidance_scale));
        }
        // Kernels index within a tensor with 31 bits; the VAE's are the largest.
        let channels = config.vae.block_out_channels.iter().max().copied().unwrap_or(1);
        let elements = [self.images, self.height, self.width, channels]
            .iter()
            .try_fold(1usize, |product, &n| product.checked_mul(n));
        if elements.is_none_or(|n| n > i32::MAX as usize) {
            let Request { images, width, height, .. } = self;
            return invalid(format!(
                "{images} pictures of {width}x{height} at once are too many pixels: lower --num-images, --width \
                 or --height"
            ));
        }
        Table::new(self.sampler, scheduler, self.schedule, self.steps)
    }

    /// The shape that the request is painted in.
    pub fn shape(&self, evaluations: usize) -> Shape {
        Shape::new(self.images, self.guidance_scale > 1.0, self.height, self.width, evaluations)
    }
}

/// Token ids of the U-Net's rows, unconditional ones first, and a warning about words that were dropped.
fn token_ids(tokenizer: &Tokenizer, request: &Request, rows: usize) -> Result<(Vec<i32>, Vec<String>)> {
    let mut ids = Vec::new();
    let mut warnings = Vec::new();
    let prompts: &[(&str, &str)] = if rows > request.images {
        &[("negative prompt", &request.negative_prompt), ("prompt", &request.prompt)]
    } else {
        &[("prompt", &request.prompt)]
    };
    for (name, text) in prompts {
        let encoding = tokenizer.encode(text)?;
        if !encoding.dropped.is_empty() {
            let room = tokenizer.max_length() - 2;
            warnings.push(format!("the {name} has more than {room} tokens; left out: {}", encoding.dropped));
        }
        for _ in 0..request.images {
            ids.extend(encoding.ids.iter().map(|&id| id as i32));
        }
    }
    Ok((ids, warnings))
}

/// Draws the initial latents and the noise of every row that wants some, each picture from its own
/// generator, in the order in which diffusers draws them.
fn write_noise(backend: &mut dyn Backend, t: &Tensors, request: &Request, table: &Table) -> Result<()> {
    let [images, h, w, c] = t.latents.shape;
    let n = h * w * c;
    let noise_rows: Vec<usize> = table.noise_rows().collect();
    let last_row = noise_rows.last().map_or(0, |row| row + 1);
    let mut latents = vec![0f32; images * n];
    let mut noise = vec![0f32; last_row * images * n];
    let mut drawn = vec![0f32; n];
    for image in 0..images {
        let mut generator = request.rng.source(request.seed.wrapping_add(image as u64));
        generator.fill_normal(&mut drawn);
        let sigma = table.init_noise_sigma as f32;
        drawn.iter_mut().for_each(|x| *x *= sigma);
        to_nhwc(&drawn, c, &mut latents[image * n..][..n]);
        for row in &noise_rows {
            generator.fill_normal(&mut drawn);
            to_nhwc(&drawn, c, &mut noise[(row * images + image) * n..][..n]);
        }
    }
    backend.write(t.latents, bytemuck::cast_slice(&latents))?;
    if last_row > 0 {
        backend.write(t.noise.images(0, last_row * images), bytemuck::cast_slice(&noise))?;
    }
    Ok(())
}

/// Torch draws [c,h,w]; latents lie as [h,w,c].
fn to_nhwc(chw: &[f32], c: usize, hwc: &mut [f32]) {
    let hw = chw.len() / c;
    for (pixel, channels) in hwc.chunks_exact_mut(c).enumerate() {
        for (channel, x) in channels.iter_mut().enumerate() {
            *x = chw[channel * hw + pixel];
        }
    }
}

/// The bytes of `values`, followed by zeros up to `len` elements.
fn padded(values: &[f32], len: usize) -> Vec<u8> {
    let mut padded = values.to_vec();
    padded.resize(len, 0.0);
    bytemuck::cast_slice(&padded).to_vec()
}
