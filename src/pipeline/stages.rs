//! The three stages of painting as programs over `Ops`, and what each needs.

use crate::model::clip::ClipText;
use crate::model::config::ModelConfig;
use crate::model::unet::UNet;
use crate::model::vae::Vae;
use crate::ops::count::Count;
use crate::ops::*;
use crate::sampler::ROW_WIDTH;
use crate::weights::Plan;

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

    pub(super) fn encode(&self, ops: &mut dyn Ops, t: &Tensors) {
        ops.scope("encode", |ops| {
            let [rows, _, _, tokens] = t.ids.shape;
            let hidden_states = ops.alloc([rows, 1, tokens, self.config.clip.hidden_size]);
            self.text_encoder.forward(ops, hidden_states, t.ids);
            self.unet.context(ops, t.context, hidden_states);
            self.unet.time_table(ops, t.time_table, t.timesteps);
        });
    }

    /// One model evaluation and the sampler row that follows from it.
    pub(super) fn denoise(&self, ops: &mut dyn Ops, t: &Tensors) {
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

    pub(super) fn decode(&self, ops: &mut dyn Ops, t: &Tensors) {
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
pub(super) struct Tensors {
    pub ids: Tensor,        // i32 [rows,1,1,tokens]
    pub timesteps: Tensor,  // f32 [evaluations]
    pub time_table: Tensor, // [evaluations,time columns]
    pub context: Tensor,    // [rows,1,tokens,context columns]
    pub latents: Tensor,    // f32 [images,h,w,c]
    pub saved: Tensor,      // f32 [images,h,w,c]
    pub history: Tensor,    // f32 [4·images,h,w,c]
    pub noise: Tensor,      // f32 [evaluations·images,h,w,c]
    pub table: Tensor,      // f32 [evaluations,ROW_WIDTH]
    pub index: Tensor,      // i32 [rows]
    pub guidance: Tensor,   // f32 [images]
    pub rgb: Tensor,        // u8 [images,height,width,3]
}

impl Tensors {
    pub(super) fn new(ops: &mut dyn Ops, models: &Models, shape: &Shape) -> Self {
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

/// A part of painting that is one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Encode,
    /// One step.
    Denoise,
    Decode,
}

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Stage::Encode => "encode",
            Stage::Denoise => "denoise",
            Stage::Decode => "decode",
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
    pub(super) fn new(models: &Models, shape: &Shape, dtype: DType, arena: Arena) -> Self {
        let count = |stage: fn(&Models, &mut dyn Ops, &Tensors)| {
            let mut count = Count::over(arena.clone(), dtype);
            let tensors = Tensors::new(&mut count, models, shape);
            stage(models, &mut count, &tensors);
            count
        };
        Counted {
            encode: count(Models::encode),
            denoise: count(Models::denoise),
            decode: count(Models::decode),
        }
    }
}

/// Counts what a shape of a model needs, without a checkpoint and without memory.
pub fn count(config: &ModelConfig, shape: &Shape, dtype: DType) -> Counted {
    let models = Models::new(config, &mut Plan::measure(dtype));
    Counted::new(&models, shape, dtype, Arena::unbounded())
}
