//! What a user asks for, and what comes of it.

use std::time::Duration;

use super::control::{self, Control};
use super::family::Distillation;
use super::init::{Hires, Init, skipped_steps};
use super::model::Description;
use super::tiling::{Tiled, Tiling};
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::rng::Rng;
use crate::sampler::{NoiseLevels, Sampler, Sampling, Schedule, Table};
use crate::text::{LongPrompt, PromptStyle};

/// What to paint.
#[derive(Clone, Debug)]
pub struct Request {
    pub prompt: String,
    pub negative_prompt: String,
    pub prompt_style: PromptStyle,
    /// The style's own way if nothing is said.
    pub long_prompt: Option<LongPrompt>,
    /// The layer of the text encoders that is read, from the end: 1 is the last, as A1111 counts. The model's
    /// own if nothing is said. A plain negative prompt is always read from the model's own, as in diffusers.
    pub clip_skip: Option<usize>,
    pub steps: usize,
    /// Guidance is on above 1, as in diffusers.
    pub guidance_scale: f32,
    /// How far guidance is brought back to the spread of the conditional output, 0 to 1
    /// ([`SamplerStep`](crate::ops::SamplerStep)).
    pub guidance_rescale: f32,
    pub sampler: Sampler,
    pub schedule: Schedule,
    /// `None` for [`Sampler::default_eta`].
    pub eta: Option<f64>,
    /// Instead of a schedule; `steps` is one less than these.
    pub sigmas: Option<NoiseLevels>,
    /// Picture i is painted with seed + i.
    pub seed: u64,
    pub rng: Rng,
    pub height: usize,
    pub width: usize,
    pub images: usize,
    /// Of XL.
    pub size: SizeConditioning,
    pub tiling: Tiling,
    /// The picture to start from, instead of noise.
    pub init: Option<Init>,
    /// Not together with `init`.
    pub hires: Option<Hires>,
    /// One for each of the model's ControlNets, in their order; those without one do not act.
    pub controls: Vec<Control>,
}

/// One run of the denoising loop.
#[derive(Clone, Debug)]
pub struct Pass {
    pub width: usize,
    pub height: usize,
    pub table: Table,
}

/// What XL is told about the size of its picture, as if it were cut out of an original.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SizeConditioning {
    /// Width and height; the picture's own if not given.
    pub original: Option<[usize; 2]>,
    /// Left and top.
    pub crop: [usize; 2],
    /// Width and height; the picture's own if not given.
    pub target: Option<[usize; 2]>,
}

impl SizeConditioning {
    /// The numbers in the order of diffusers' `time_ids`, for a picture of this size.
    pub fn time_ids(&self, width: usize, height: usize) -> [f32; 6] {
        let own = [width, height];
        let (original, target) = (self.original.unwrap_or(own), self.target.unwrap_or(own));
        let [left, top] = self.crop;
        [original[1], original[0], top, left, target[1], target[0]].map(|number| number as f32)
    }
}

/// Pixels of a side. The convolution's coordinates have 16 bits, with a sign.
const LARGEST_SIDE: usize = 1 << 14;

impl Request {
    /// The request that a model suggests, for an empty prompt; what the model leaves open, the sampler does.
    pub fn defaults(model: &Description, sampler: Sampler) -> Self {
        let Description { config, defaults, distillation, .. } = model;
        let side = config.unet.sample_size * config.vae.scale_factor();
        // Whoever asks for a sampler of consistency models has a LoRA or a model of that kind.
        let distillation = match distillation {
            Distillation::None if matches!(sampler, Sampler::Lcm | Sampler::Tcd) => Distillation::Consistency,
            distillation => *distillation,
        };
        let (steps, guidance_scale) = distillation.defaults(config);
        Request {
            prompt: String::new(),
            negative_prompt: String::new(),
            prompt_style: PromptStyle::default(),
            long_prompt: None,
            clip_skip: None,
            steps: defaults.steps.unwrap_or(steps),
            guidance_scale: defaults.guidance_scale.unwrap_or(guidance_scale),
            guidance_rescale: 0.0,
            sampler,
            schedule: Schedule::default(),
            eta: None,
            sigmas: None,
            seed: 0,
            rng: Rng::default(),
            height: side,
            width: side,
            images: 1,
            size: SizeConditioning::default(),
            tiling: Tiling::default(),
            init: None,
            hires: None,
            controls: Vec::new(),
        }
    }

    /// Checks every value against a model; returns the passes: one, or with hires fix two.
    ///
    /// # Errors
    /// [`Error::Invalid`], with the flag's name.
    pub fn check(&self, model: &Description) -> Result<Vec<Pass>> {
        let config = &model.config;
        let scale = config.vae.scale_factor();
        let invalid = |message: String| Err(Error::invalid(message));
        for (flag, side) in [("width", self.width), ("height", self.height)] {
            if side == 0 || !side.is_multiple_of(scale) {
                let nearest = (side.saturating_add(scale / 2) / scale).max(1) * scale;
                return invalid(format!("--{flag} {side}: expected a multiple of {scale}; try {nearest}"));
            }
            if side > LARGEST_SIDE {
                return invalid(format!("--{flag} {side}: too many pixels; expected at most {LARGEST_SIDE}"));
            }
        }
        let layers = config.text_encoders().map(|clip| clip.num_hidden_layers).min().unwrap_or(0);
        if let Some(skip) = self.clip_skip.filter(|skip| !(1..=layers).contains(skip)) {
            return invalid(format!(
                "--clip-skip {skip}: expected 1, for the last layer of the text encoder, to {layers}"
            ));
        }
        if self.images == 0 {
            return invalid("--num-images 0: expected at least 1".to_string());
        }
        if !self.guidance_scale.is_finite() {
            return invalid(format!("--guidance-scale {}: expected a finite number", self.guidance_scale));
        }
        if !(0.0..=1.0).contains(&self.guidance_rescale) {
            let rescale = self.guidance_rescale;
            return invalid(format!("--guidance-rescale {rescale}: expected a number from 0 to 1"));
        }
        self.tiling.check()?;
        self.check_size(config, self.width, self.height)?;
        control::check(&self.controls, config.controlnets.len())?;
        if self.size != SizeConditioning::default() && !config.is_xl() {
            return invalid(format!(
                "--original-size, --crop and --target-size: only Stable Diffusion XL knows them, and this is {}",
                model.family
            ));
        }
        let skipped = match &self.init {
            Some(init) => self.check_init(init, config)?,
            None if config.paints_into_pictures() => {
                return invalid(format!(
                    "{} of {} channels paints into pictures only; give it one with --init-image and --mask",
                    model.family, config.unet.in_channels
                ));
            }
            None => 0,
        };
        let pass = |width, height, steps, skipped| {
            Ok(Pass { width, height, table: self.table(model, steps, skipped)? })
        };
        let mut passes = vec![pass(self.width, self.height, self.steps, skipped)?];
        if let Some(hires) = &self.hires {
            if self.init.is_some() {
                return invalid(
                    "--hires-scale: enlarges what is painted from noise; leave --init-image out".into(),
                );
            }
            if !(hires.scale > 1.0 && hires.scale <= LARGEST_SIDE as f64) {
                return invalid(format!(
                    "--hires-scale {}: expected a number above 1, such as 2",
                    hires.scale
                ));
            }
            let [width, height] = [self.width, self.height].map(|side| hires.side(side, scale));
            self.check_size(config, width, height)?;
            let steps = hires.steps.unwrap_or(self.steps);
            let skipped = skipped_steps("hires-strength", hires.strength, steps)?;
            passes.push(pass(width, height, steps, skipped)?);
        }
        Ok(passes)
    }

    /// Checks that a pass is not too large.
    fn check_size(&self, config: &ModelConfig, width: usize, height: usize) -> Result<()> {
        let images = self.images;
        let scale = config.vae.scale_factor();
        let is_short = width.max(height) <= LARGEST_SIDE;
        let rows = images.saturating_mul(if self.is_guided(config) { 2 } else { 1 });
        let others_fit = is_short
            && is_countable(rows, config.unet.largest_map(height / scale, width / scale))
            && config.controlnets.iter().all(|net| is_countable(1, net.largest_map(height, width)));
        let vae_fits = is_short
            && match self.tile(config, width, height) {
                Some([h, w]) => is_countable(1, largest_vae_map(config, scale * h, scale * w)),
                None => is_countable(images, largest_vae_map(config, height, width)),
            };
        if !(others_fit && vae_fits) {
            let pictures = if images == 1 { "picture" } else { "pictures at once" };
            let hires = if self.hires.is_some() { ", --hires-scale" } else { "" };
            let tiled = others_fit && self.tiling.when == Tiled::Off;
            let tiling = if tiled { ", or leave --vae-tiling off out" } else { "" };
            return Err(Error::invalid(format!(
                "{images} {pictures} of {width}x{height}: too many pixels; lower --num-images{hires}, --width or \
                 --height{tiling}"
            )));
        }
        Ok(())
    }

    /// Steps left out at the start.
    fn check_init(&self, init: &Init, config: &ModelConfig) -> Result<usize> {
        if !config.vae.encodes() {
            return Err(Error::invalid(
                "--init-image: the VAE is a decoder alone; try a --vae with both halves, as a folder in the layout \
                 of diffusers, or none",
            ));
        }
        if config.paints_into_pictures() && init.mask.is_none() {
            return Err(Error::invalid(
                "--mask: missing; this model paints into pictures, where a mask is light: give it one",
            ));
        }
        skipped_steps("strength", init.strength, self.steps)
    }

    fn table(&self, model: &Description, steps: usize, start: usize) -> Result<Table> {
        let sampling = Sampling {
            sampler: self.sampler,
            schedule: self.schedule,
            steps,
            start,
            eta: self.eta,
            sigmas: self.sigmas.clone(),
            xl: model.config.is_xl(),
        };
        Table::new(&model.scheduler, &sampling)
    }

    /// The largest tile, where a pass's picture is encoded and decoded in tiles from the outset: because the user
    /// says so, or because the kernels cannot count the whole.
    pub(super) fn tile(&self, config: &ModelConfig, width: usize, height: usize) -> Option<[usize; 2]> {
        let whole = is_countable(self.images, largest_vae_map(config, height, width));
        self.possible_tile(config, width, height).filter(|_| self.tiling.when == Tiled::On || !whole)
    }

    /// The largest tile of a picture of this size where it may be encoded and decoded in tiles.
    pub(super) fn possible_tile(
        &self,
        config: &ModelConfig,
        width: usize,
        height: usize,
    ) -> Option<[usize; 2]> {
        let scale = config.vae.scale_factor();
        self.tiling.tile(&config.vae, [height / scale, width / scale])
    }

    /// The images of this size with these colours.
    pub(super) fn pictures(&self, width: usize, height: usize, rgb: Vec<Vec<u8>>) -> Vec<Picture> {
        let picture = |(i, rgb)| Picture { width, height, rgb, seed: self.seed.wrapping_add(i as u64) };
        rgb.into_iter().enumerate().map(picture).collect()
    }

    /// Whether the U-Net sees each picture twice. A model that takes the guidance scale as an input needs no
    /// second evaluation for it.
    pub fn is_guided(&self, config: &ModelConfig) -> bool {
        self.guidance_scale > 1.0 && config.unet.time_cond_proj_dim.is_none()
    }
}

/// Elements of the largest map of the VAEs that a picture of h x w passes through.
fn largest_vae_map(config: &ModelConfig, h: usize, w: usize) -> usize {
    let preview = config.preview_vae.as_ref().map_or(0, |vae| vae.largest_map(h, w));
    config.vae.largest_map(h, w).max(preview)
}

/// Kernels count the elements of a tensor with 31 bits.
fn is_countable(images: usize, elements: usize) -> bool {
    images.checked_mul(elements).is_some_and(|n| n <= i32::MAX as usize)
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
    /// Encoding a picture to start from.
    pub picture: Duration,
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
