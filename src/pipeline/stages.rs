//! The stages of painting as programs over `Ops`.

use std::ops::Range;

use super::control::ControlTensors;
use super::denoising::Denoising;
use super::tensors::{Canvas, PictureTensors, Shape, Tensors};
use crate::model::autoencoder::Autoencoder;
use crate::model::blocks::Carried;
use crate::model::clip::{ClipText, Pooled};
use crate::model::conditioned::Conditioned;
use crate::model::config::{AutoencoderConfig, ClipConfig, ModelConfig};
use crate::model::controlnet::{ControlInputs, ControlNet};
use crate::model::time::{AddedInputs, TimeInputs};
use crate::model::tiny_vae::TinyVae;
use crate::model::unet::UNet;
use crate::ops::count::Count;
use crate::ops::*;
use crate::weights::names::PREVIEW_VAE;
use crate::weights::{Plan, controlnet};

/// The models on a backend: weights are there, nothing has run.
pub struct Models {
    pub config: ModelConfig,
    /// Tokens of a chunk of a prompt, at most as many as the text encoders have positions for.
    pub tokens: usize,
    pub text_encoder: ClipText,
    /// Of XL.
    pub text_encoder_2: Option<ClipText>,
    pub unet: UNet,
    pub vae: Autoencoder,
    pub controlnets: Vec<ControlNet>,
    /// A tiny one, where previews are not left to `vae`.
    pub preview_vae: Option<Autoencoder>,
}

impl Models {
    /// Plans the weights of all, with room for `new_tokens` in the text encoders. Prompts are as long as
    /// those allow.
    pub fn new(config: &ModelConfig, new_tokens: usize, plan: &mut Plan) -> Self {
        let mut clip = |name, config: &ClipConfig, projected| {
            plan.component(name, |plan| ClipText::new(config, projected, new_tokens, plan))
        };
        let text_encoder = clip("text_encoder", &config.clip, false);
        let text_encoder_2 = config.clip_2.as_ref().map(|config| clip("text_encoder_2", config, true));
        // The pipelines of Stable Diffusion 1.x and 2.x decode in halves whatever the file says.
        let upcast = matches!(&config.vae, AutoencoderConfig::Kl(vae) if vae.force_upcast);
        let overflows = config.is_xl() && upcast && plan.dtype() == DType::F16;
        let carried = if overflows { Carried::IN_A_HALF } else { Carried::WHOLE };
        let mut controlnet = |(config, name)| plan.component(name, |plan| ControlNet::new(config, plan));
        let controlnets = config.controlnets.iter().zip(controlnet::NAMES).map(&mut controlnet).collect();
        Models {
            text_encoder,
            text_encoder_2,
            controlnets,
            unet: plan.component("unet", |plan| UNet::new(&config.unet, plan)),
            vae: plan.component("vae", |plan| Autoencoder::new(&config.vae, carried, plan)),
            preview_vae: config
                .preview_vae
                .as_ref()
                .map(|vae| plan.component(PREVIEW_VAE, |plan| Autoencoder::Tiny(TinyVae::new(vae, plan)))),
            tokens: config.max_tokens(),
            config: config.clone(),
        }
    }

    pub fn text_encoders(&self) -> impl Iterator<Item = &ClipText> {
        std::iter::once(&self.text_encoder).chain(&self.text_encoder_2)
    }

    /// What the U-Net and the ControlNets are told: of the prompts, of the times, of the control pictures.
    pub(super) fn encode(&self, ops: &mut dyn Ops, t: &Tensors) {
        self.encode_prompts(ops, t);
        self.encode_times(ops, t);
    }

    pub(super) fn encode_prompts(&self, ops: &mut dyn Ops, t: &Tensors) {
        let d = &t.denoising;
        ops.scope("encode", |ops| {
            let [rows, _, tokens, _] = d.context.shape;
            let states = ops.alloc([rows, 1, tokens, self.config.unet.cross_attention_dim]);
            let texts = if t.encoded_apart { 2 } else { 1 };
            for text in 0..texts {
                let rows = rows / texts;
                self.encode_rows(ops, t, text * rows..(text + 1) * rows, states);
            }
            // Each chunk for itself, as A1111 does. Its mean is not restored for XL.
            let [texts, _, _, length] = t.token_weights.shape;
            let x = Tensor { shape: [texts, 1, length, states.c()], ..states };
            let restore_mean = !self.config.is_xl();
            ops.emphasize(Emphasize { x, weight: t.token_weights, restore_mean });
            if let (Some(xl), Some(text_time)) = (&t.xl, self.config.unet.text_time) {
                let pooled = xl.embeds.columns(0, text_time.pooled_dim);
                let x = Tensor { shape: [rows, 1, 1, pooled.c()], ..pooled };
                ops.emphasize(Emphasize { x, weight: xl.pooled_weights, restore_mean: false });
            }
            self.unet.context(ops, d.context, states);
            for (net, control) in self.controlnets.iter().zip(&d.controls) {
                ops.scope("controlnet", |ops| net.context(ops, control.context, states));
            }
        });
    }

    /// After the prompts, which XL's times take in.
    pub(super) fn encode_times(&self, ops: &mut dyn Ops, t: &Tensors) {
        let d = &t.denoising;
        ops.scope("encode", |ops| {
            let added = t.xl.map(|xl| AddedInputs { embeds: xl.embeds, time_ids: xl.time_ids });
            let time = TimeInputs { added, ..t.time };
            self.unet.time_table(ops, d.time_table, time);
            for (net, control) in self.controlnets.iter().zip(&d.controls) {
                ops.scope("controlnet", |ops| {
                    net.time_table(ops, control.time_table, time);
                    net.embed(ops, control.embedding, control.hint);
                });
            }
        });
    }

    /// Hidden states, of XL those of both encoders side by side, and pooled prompts of some rows of the batch.
    fn encode_rows(&self, ops: &mut dyn Ops, t: &Tensors, rows: Range<usize>, states: Tensor) {
        let [_, _, _, length] = t.ids.shape;
        let all = t.denoising.context.b();
        let chunks = t.ids.b() / all;
        let skip = t.clip_skip[usize::from(rows.end == all)];
        let of_rows = |x: Tensor| x.images(rows.start * x.b() / all, rows.len() * x.b() / all);
        let is_xl = self.config.is_xl();
        let states = of_rows(states);
        let states = Tensor { shape: [rows.len() * chunks, 1, length, states.c()], ..states };
        let width = self.config.clip.hidden_size;
        let hidden = self.text_encoder.from_end(states.columns(0, width), skip, !is_xl);
        self.text_encoder.forward(ops, of_rows(t.ids), hidden, None);
        if let (Some(second), Some(xl)) = (&self.text_encoder_2, &t.xl) {
            let hidden = second.from_end(states.columns(width, states.c() - width), skip, false);
            let pooled_dim = self.config.unet.text_time.map_or(0, |text_time| text_time.pooled_dim);
            let first = xl.embeds.row(rows.start);
            let out = Tensor { shape: [1, 1, rows.len(), xl.embeds.c()], ..first }.columns(0, pooled_dim);
            let ends = xl.ends.columns(rows.start, rows.len());
            second.forward(ops, of_rows(xl.ids_2), hidden, Some(Pooled { out, ends }));
        }
    }

    /// Encodes the picture to start from.
    pub(super) fn encode_picture(&self, ops: &mut dyn Ops, t: &PictureTensors) {
        ops.scope("encode_picture", |ops| self.vae.encode(ops, t.encoded, t.picture));
    }

    /// One model evaluation and the sampler row that follows from it.
    pub(super) fn denoise(&self, ops: &mut dyn Ops, d: &Denoising) {
        ops.scope("denoise", |ops| {
            let [_, h, w, c] = d.latents.shape;
            let input = d.input.unwrap_or_else(|| ops.alloc([d.inputs, h, w, c]));
            let output = ops.alloc([d.context.b(), h, w, c]);
            let index = d.sampler_index();
            ops.model_input(ModelInput { out: input.columns(0, c), x: d.latents, table: d.table, index });
            let inputs = |control: &ControlTensors| ControlInputs {
                embedding: control.embedding,
                time: d.time_row(control.time_table),
                context: control.context,
                gain: d.time_row(control.gains),
            };
            let controls: Vec<_> = self.controlnets.iter().zip(d.controls.iter().map(inputs)).collect();
            self.unet.forward(ops, output, input, d.time_row(d.time_table), d.context, &controls);
            ops.sampler_step(SamplerStep {
                x: d.latents,
                saved: d.saved,
                history: d.history,
                output,
                noise: d.noise,
                table: d.table,
                index,
                guidance: d.guidance,
                guidance_rescale: d.rescale,
                known: d.known,
            });
        });
    }

    pub(super) fn decode(&self, ops: &mut dyn Ops, t: &Tensors) {
        ops.scope("decode", |ops| decode(&self.vae, ops, t));
    }

    /// Decodes with the VAE for previews, if there is one.
    pub(super) fn decode_preview(&self, ops: &mut dyn Ops, t: &Tensors) {
        ops.scope("decode_preview", |ops| self.preview_vae.iter().for_each(|vae| decode(vae, ops, t)));
    }
}

/// Decodes everything, or one of the largest tiles.
fn decode(vae: &Autoencoder, ops: &mut dyn Ops, t: &Tensors) {
    match t.canvas {
        Canvas::Whole { rgb } => {
            let picture = ops.alloc(rgb.shape);
            vae.decode(ops, picture, t.denoising.latents);
            ops.to_rgb8(ToRgb8 { out: rgb, x: picture });
        }
        Canvas::Tile { latents, picture } => vae.decode(ops, picture, latents),
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

/// The stages of one shape, counted without running them.
pub struct Counted {
    /// Where there is a picture to start from.
    pub encode_picture: Option<Count>,
    pub encode: Count,
    pub denoise: Count,
    pub decode: Count,
    /// Where there is a VAE for previews.
    pub decode_preview: Option<Count>,
}

impl Counted {
    /// Bytes that the tensors and scratch of the shape need together.
    pub fn arena_bytes(&self) -> usize {
        let stages = [&self.encode, &self.denoise, &self.decode].into_iter();
        let stages = stages.chain(&self.encode_picture).chain(&self.decode_preview);
        stages.map(Count::peak_bytes).max().unwrap_or(0)
    }

    /// Walks the models over `Count`. With an arena over real memory the counted calls can be executed.
    pub(super) fn new(models: &Models, shape: &Shape, dtype: DType, arena: Arena) -> Self {
        let count = |stage: &dyn Fn(&Models, &mut dyn Ops, &Tensors)| {
            let mut count = Count::over(arena.clone(), dtype);
            let tensors = Tensors::new(&mut count, models, shape);
            stage(models, &mut count, &tensors);
            count
        };
        Counted {
            encode_picture: shape.from_picture.then(|| {
                count(&|models, ops, t| {
                    t.picture.iter().for_each(|picture| models.encode_picture(ops, picture));
                })
            }),
            encode: count(&Models::encode),
            denoise: count(&|models, ops, t| models.denoise(ops, &t.denoising)),
            decode: count(&Models::decode),
            decode_preview: models.preview_vae.is_some().then(|| count(&Models::decode_preview)),
        }
    }
}

/// Counts what a shape of a model needs, without a checkpoint and without memory.
pub fn count(config: &ModelConfig, shape: &Shape, dtype: DType) -> Counted {
    let models = Models::new(config, 0, &mut Plan::measure(dtype));
    Counted::new(&models, shape, dtype, Arena::unbounded())
}
