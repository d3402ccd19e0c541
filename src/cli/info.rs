//! `sdrt info`

use std::io::Write;

use anyhow::Result;
use clap::Args;
use sdrt::columns::{bytes, columns};
use sdrt::info;
use sdrt::model::config::{AutoencoderConfig, ClipConfig, ModelConfig, UNetInput};
use sdrt::ops::DType;
use sdrt::pipeline::{Description, Init, Model, Request};
use sdrt::sampler::Sampler;
use serde_json::json;

use super::model::{KnownShapes, ModelChanges};
use super::source::{self, ModelSource};
use super::tiling::TilingArgs;
use super::{SizeArgs, emoji};
use crate::progress::Progress;

/// Shows what a model is made of, the memory it needs and the work it does; needs no GPU.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct Info {
    /// A .safetensors file, a folder in the diffusers layout, or owner/name of a model on the hub, which is
    /// downloaded once; `emoji` is the model in sdrt itself, and a folder of that name is ./emoji
    #[arg(value_name = "MODEL", default_value = emoji::NAME, value_parser = source::parser())]
    model: ModelSource,
    #[command(flatten)]
    changes: ModelChanges,
    /// Known shapes instead of a model
    #[arg(long, value_name = "SHAPES", conflicts_with_all = ["model", "vae", "prediction"])]
    random_weights: Option<KnownShapes>,
    /// Lists every tensor
    #[arg(long)]
    tensors: bool,
    #[command(flatten)]
    size: SizeArgs,
    #[command(flatten)]
    tiling: TilingArgs,
    /// Pictures at once
    #[arg(short = 'b', long, value_name = "N", default_value_t = 1)]
    num_images: usize,
    /// What weights and activations are kept in: f16, bf16 or f32
    #[arg(long, default_value = "f16")]
    dtype: DType,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

impl Info {
    pub fn run(&self) -> Result<()> {
        let model = match self.random_weights {
            Some(shapes) => shapes.model(0),
            None => Model::Files(self.changes.of(&self.model, Progress { quiet: self.json })?),
        };
        let description = model.describe()?;
        let sampler = description.scheduler.default_sampler().unwrap_or(Sampler::Ddim);
        let defaults = Request::defaults(&description, sampler);
        let request = Request {
            width: self.size.width.unwrap_or(defaults.width),
            height: self.size.height.unwrap_or(defaults.height),
            init: Init::wanted(&description),
            images: self.num_images,
            tiling: self.tiling.tiling(),
            ..defaults
        };
        let info = info::Info::new(&model, &request, self.dtype)?;
        let text =
            if self.json { self.object(&model, &info, &request) } else { self.text(&model, &info, &request) };
        Ok(writeln!(std::io::stdout(), "{text}")?)
    }

    fn text(&self, model: &Model, info: &info::Info, request: &Request) -> String {
        let row = |cells: &[&str]| cells.iter().map(ToString::to_string).collect::<Vec<String>>();
        let configuration: Vec<_> =
            configuration(info, request).iter().map(|(part, text)| row(&[part, text])).collect();

        let mut tensors = vec![row(&["tensors", "dtype", "count", "size"])];
        for (component, (count, size, dtypes)) in info.components() {
            tensors.push(row(&[component, &dtypes.join(" "), &count.to_string(), &bytes(size)]));
        }

        let mut work = vec![row(&["work", "verbs", "GFLOP", "moves", "arena"])];
        for stage in &info.stages {
            let gflop = format!("{:.1}", stage.flops as f64 / 1e9);
            let (moved, arena) = (bytes(stage.bytes as usize), bytes(stage.arena_bytes));
            work.push(row(&[stage.stage, &stage.verbs.to_string(), &gflop, &moved, &arena]));
        }
        let all = format!("{:.1}", info.image_flops() as f64 / 1e9);
        work.push(row(&[&format!("all, {} steps", request.steps), "", &all]));

        let info::Info { dtype, weight_bytes, arena_bytes, .. } = *info;
        let memory = [
            row(&["memory", ""]),
            row(&[&format!("weights, {dtype}"), &bytes(weight_bytes)]),
            row(&["arena of latents and activations", &bytes(arena_bytes)]),
            row(&["weights and arena", &bytes(weight_bytes + arena_bytes)]),
        ];
        let Request { images, width, height, .. } = request;
        let pictures = if *images == 1 { "picture" } else { "pictures" };
        let batch = info.unet_batch;
        let about = emoji::about(model).map(|about| about + "\n").unwrap_or_default();
        let mut text = format!(
            "{model}\n{about}{}\n{}\n{images} {pictures} of {width}x{height}, U-Net batch {batch}\n\n{}\n{}",
            columns(&configuration, 2),
            columns(&tensors, 2),
            columns(&work, 1),
            columns(&memory, 1),
        );
        if self.tensors {
            let line = |tensor: &info::Weight| {
                let shape: Vec<String> = tensor.shape.iter().map(ToString::to_string).collect();
                row(&[tensor.component, &tensor.key, &tensor.dtype, &shape.join("x")])
            };
            text += "\n";
            text += &columns(&info.tensors.iter().map(line).collect::<Vec<_>>(), 4);
        }
        text.trim_end().to_string()
    }

    fn object(&self, model: &Model, info: &info::Info, request: &Request) -> String {
        let components: Vec<_> = info
            .components()
            .into_iter()
            .map(|(component, (count, bytes, dtypes))| {
                json!({"component": component, "tensors": count, "bytes": bytes, "dtypes": dtypes})
            })
            .collect();
        let configuration: serde_json::Map<_, _> = configuration(info, request)
            .into_iter()
            .map(|(part, text)| (part.to_string(), text.into()))
            .collect();
        let mut object = json!({
            "model": model.to_string(),
            "about": emoji::about(model),
            "configuration": configuration,
            "components": components,
            "width": request.width,
            "height": request.height,
            "images": request.images,
            "unet_batch": info.unet_batch,
            "steps": request.steps,
            "guidance_scale": request.guidance_scale,
            "evaluations": info.evaluations,
            "dtype": info.dtype.to_string(),
            "weight_bytes": info.weight_bytes,
            "arena_bytes": info.arena_bytes,
            "stages": info.stages,
            "image_flops": info.image_flops(),
        });
        if self.tensors {
            object["tensors"] = json!(info.tensors);
        }
        object.to_string()
    }
}

/// A line for each part of the model.
fn configuration(info: &info::Info, request: &Request) -> Vec<(&'static str, String)> {
    let list = |numbers: &[usize]| {
        let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
        numbers.join(" ")
    };
    let Description { family, distillation, config, scheduler, .. } = &info.description;
    let ModelConfig { unet, vae, .. } = config;
    let text_encoder = |clip: &ClipConfig| {
        format!(
            "{} layers of width {}, {} heads, vocabulary of {}, {} tokens",
            clip.num_hidden_layers,
            clip.hidden_size,
            clip.num_attention_heads,
            clip.vocab_size,
            clip.max_position_embeddings,
        )
    };
    let unet = format!(
        "channels {}, resnets {}, heads {}, context width {}, latents {}x{}x{}",
        list(&unet.block_out_channels),
        list(&unet.layers_per_block),
        list(&unet.heads),
        unet.cross_attention_dim,
        unet.sample_size,
        unet.sample_size,
        unet.in_channels,
    );
    let layers = match vae {
        AutoencoderConfig::Kl(vae) => {
            format!("channels {}, resnets {}", list(&vae.block_out_channels), vae.layers_per_block)
        }
        AutoencoderConfig::Tiny(vae) => {
            format!("tiny, channels {}, blocks {}", vae.decoder.channels, list(&vae.decoder.blocks))
        }
    };
    let (pixels, factor) = (vae.scale_factor(), vae.scaling_factor());
    let vae = format!("{layers}, {pixels} pixels to a latent's side, scaling factor {factor}");
    let noise = format!(
        "{}, {}, predicts {}",
        scheduler.class_name.as_deref().unwrap_or("no class"),
        scheduler.describe_noise(),
        scheduler.prediction_type.as_deref().unwrap_or("epsilon"),
    );
    let suggests = match scheduler.default_sampler() {
        Ok(sampler) => {
            format!(
                "--sampler {sampler} --steps {} --guidance-scale {}",
                request.steps, request.guidance_scale
            )
        }
        Err(error) => error.to_string(),
    };
    let input = match config.unet_input() {
        UNetInput::Latents => "",
        UNetInput::MaskedImage => ", for inpainting",
        UNetInput::Image => ", for edits of an image (InstructPix2Pix)",
    };
    let distilled = distillation.words(request.steps, request.guidance_scale);
    let mut parts = vec![("family", format!("{family}{input}{distilled}"))];
    let encoders = config.text_encoders.iter().map(|encoder| text_encoder(&encoder.clip));
    parts.extend(["text encoder", "text encoder 2"].into_iter().zip(encoders));
    parts.extend([("U-Net", unet), ("VAE", vae), ("scheduler", noise), ("suggests", suggests)]);
    parts
}
