//! What a user asks for, and what comes of it.

use std::time::Duration;

use super::control::{self, Control};
use super::family::Distillation;
use super::init::{Hires, Init, skipped_steps};
use super::model::Description;
use super::tiling::{Tiled, Tiling};
use crate::error::{Error, Invalid, Result};
use crate::model::config::{ModelConfig, UNetInput};
use crate::parameter::{Parameter, Part, sentence};
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
    /// The share of the schedule, from 0 to below `guidance_end`, in which guidance does not act yet.
    pub guidance_start: f64,
    /// The share of the schedule, up to 1, after which guidance does not act any more.
    pub guidance_end: f64,
    /// How close an edited image stays to the one that it is made of, from 1 on; 1.5 if nothing is said. Of
    /// InstructPix2Pix models.
    pub image_guidance_scale: Option<f32>,
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
    /// Of XL's refiner; 6 if nothing is said.
    pub aesthetic_score: Option<f32>,
    /// The same of what guidance leads away from; 2.5 if nothing is said.
    pub negative_aesthetic_score: Option<f32>,
    pub tiling: Tiling,
    /// The picture to start from, instead of noise.
    pub init: Option<Init>,
    /// The share of the noise schedule after which the model's refiner takes over: `denoising_end` and
    /// `denoising_start` of diffusers.
    pub refiner_start: Option<f64>,
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
    /// Whether the refiner runs it, on the latents of the pass before.
    pub is_refined: bool,
    /// Model evaluations of the schedule that the pass before does, and of the whole schedule.
    schedule: [usize; 2],
}

impl Pass {
    /// Which model evaluation of how many each one is, of the whole schedule.
    pub(super) fn shares(&self) -> impl Iterator<Item = [usize; 2]> + use<> {
        let [first, all] = self.schedule;
        (first..first + self.table.evaluations()).map(move |i| [i, all])
    }
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
    /// The numbers in the order of diffusers' `time_ids`, for a picture of this size. A model that reads an aesthetic
    /// score does so instead of the target.
    pub fn time_ids(&self, width: usize, height: usize, score: Option<f32>) -> Vec<f32> {
        let own = [width, height];
        let (original, target) = (self.original.unwrap_or(own), self.target.unwrap_or(own));
        let [left, top] = self.crop;
        let sizes = [original[1], original[0], top, left].map(|number| number as f32);
        let target = [target[1], target[0]].map(|number| number as f32);
        sizes.into_iter().chain(score.map_or(target.to_vec(), |score| vec![score])).collect()
    }
}

/// Pixels of a side. The convolution's coordinates have 16 bits, with a sign.
const LARGEST_SIDE: usize = 1 << 14;

impl Request {
    /// The image guidance scale where nothing is said, as in diffusers.
    pub const IMAGE_GUIDANCE_SCALE: f32 = 1.5;
    /// The share of the noise schedule after which a refiner takes over where nothing is said.
    pub const REFINER_START: f64 = 0.8;
    /// The aesthetic scores of the prompt and the negative prompt where nothing is said, as in diffusers.
    pub const AESTHETIC_SCORES: [f32; 2] = [6.0, 2.5];

    /// The request that a model suggests, for an empty prompt; what the model leaves open, the sampler does.
    pub fn defaults(model: &Description, sampler: Sampler) -> Self {
        let Description { config, defaults, distillation, .. } = model;
        let side = config.unet.sample_size * config.vae.scale_factor();
        // Whoever asks for a sampler of consistency models has a LoRA or a model of that kind.
        let distillation = match distillation {
            Distillation::None if matches!(sampler, Sampler::Lcm | Sampler::Tcd) => Distillation::Consistency,
            distillation => *distillation,
        };
        let (steps, guidance_scale) = model.family.defaults(distillation, config);
        Request {
            prompt: String::new(),
            negative_prompt: String::new(),
            prompt_style: PromptStyle::default(),
            long_prompt: None,
            clip_skip: None,
            steps: defaults.steps.unwrap_or(steps),
            guidance_scale: defaults.guidance_scale.unwrap_or(guidance_scale),
            guidance_rescale: 0.0,
            guidance_start: 0.0,
            guidance_end: 1.0,
            image_guidance_scale: None,
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
            aesthetic_score: None,
            negative_aesthetic_score: None,
            tiling: Tiling::default(),
            init: None,
            refiner_start: model.refiner.is_some().then_some(Self::REFINER_START),
            hires: None,
            controls: Vec::new(),
        }
    }

    /// Checks every value against a model; returns the passes: one, with hires fix two, and the refiner's.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid), with the parameter.
    pub fn check(&self, model: &Description) -> Result<Vec<Pass>> {
        let config = &model.config;
        let scale = config.vae.scale_factor();
        for (parameter, side) in [(Parameter::Width, self.width), (Parameter::Height, self.height)] {
            if side == 0 || !side.is_multiple_of(scale) {
                let nearest = (side.saturating_add(scale / 2) / scale).max(1) * scale;
                return Err(Invalid::value(parameter, side)
                    .expected(format!("a multiple of {scale}"))
                    .advice(format!("try {nearest}"))
                    .error());
            }
            if side > LARGEST_SIDE {
                return Err(Invalid::value(parameter, side)
                    .problem("too many pixels")
                    .expected(format!("at most {LARGEST_SIDE}"))
                    .error());
            }
        }
        let configs = || std::iter::once(config).chain(model.refiner.iter().map(|refiner| &refiner.config));
        let encoders = configs().flat_map(|config| &config.text_encoders);
        let layers = encoders.map(|encoder| encoder.clip.num_hidden_layers);
        let layers = layers.min().unwrap_or(0);
        if let Some(skip) = self.clip_skip.filter(|skip| !(1..=layers).contains(skip)) {
            let expected = format!("1, for the last layer of the text encoder, to {layers}");
            return Err(Invalid::value(Parameter::ClipSkip, skip).expected(expected).error());
        }
        Parameter::NumImages.check(self.images)?;
        Parameter::GuidanceScale.check(self.guidance_scale)?;
        Parameter::GuidanceRescale.check(self.guidance_rescale)?;
        self.check_guidance_interval()?;
        self.check_image_guidance(model)?;
        self.tiling.check()?;
        self.check_size(config, self.width, self.height)?;
        control::check(&self.controls, config.controlnets.len())?;
        if self.size != SizeConditioning::default() && config.unet.text_time.is_none() {
            let parameters = [Parameter::OriginalSize, Parameter::Crop, Parameter::TargetSize];
            return Err(Invalid::of(parameters)
                .problem(format!("supported by Stable Diffusion XL only; this model is {}", model.family))
                .error());
        }
        self.check_scores(model)?;
        let skipped = match &self.init {
            Some(init) => self.check_init(init, config)?,
            None => match config.unet_input() {
                UNetInput::Latents => 0,
                UNetInput::MaskedImage => {
                    return Err(Error::invalid(sentence![
                        format!("{} is an inpainting model; give it an image with ", model.family),
                        Parameter::InitImage,
                        " and ",
                        Parameter::Mask
                    ]));
                }
                UNetInput::Image => {
                    return Err(Error::invalid(sentence![
                        format!(
                            "{} is an InstructPix2Pix model; give it an image to edit with ",
                            model.family
                        ),
                        Parameter::InitImage
                    ]));
                }
            },
        };
        let pass = |width, height, steps, skipped| {
            let table = self.table(model, steps, skipped)?;
            Ok(Pass { width, height, schedule: [0, table.evaluations()], table, is_refined: false })
        };
        let mut passes = vec![pass(self.width, self.height, self.steps, skipped)?];
        if let Some(hires) = &self.hires {
            if self.init.is_some() {
                return Err(Invalid::of([Parameter::HiresScale])
                    .problem("enlarges what is generated from noise")
                    .advice(sentence!["leave ", Parameter::InitImage, " out"])
                    .error());
            }
            Parameter::HiresScale.check(hires.scale)?;
            let [width, height] = [self.width, self.height].map(|side| hires.side(side, scale));
            self.check_size(config, width, height)?;
            hires.steps.map_or(Ok(()), |steps| Parameter::HiresSteps.check(steps))?;
            let steps = hires.steps.unwrap_or(self.steps);
            let skipped = skipped_steps(Parameter::HiresStrength, hires.strength, steps)?;
            passes.push(pass(width, height, steps, skipped)?);
        }
        if let Some(start) = self.refiner_start {
            let last = passes.pop().expect("the model's own pass");
            passes.extend(self.refined(model, last, start)?);
        }
        Ok(passes)
    }

    /// Checks the shares of the schedule between which guidance acts.
    fn check_guidance_interval(&self) -> Result<()> {
        let (start, end) = (self.guidance_start, self.guidance_end);
        Parameter::GuidanceStart.check(start)?;
        Parameter::GuidanceEnd.check(end)?;
        let interval = Invalid::value(Parameter::GuidanceStart, start).and(Parameter::GuidanceEnd, end);
        if start >= end {
            return Err(interval.expected("the start below the end").error());
        }
        Ok(())
    }

    fn check_scores(&self, model: &Description) -> Result<()> {
        let scores = [
            (Parameter::AestheticScore, self.aesthetic_score),
            (Parameter::NegativeAestheticScore, self.negative_aesthetic_score),
        ];
        for (parameter, score) in scores {
            let Some(score) = score else { continue };
            if !model.reads_score() && !model.refiner.as_ref().is_some_and(|refiner| refiner.reads_score()) {
                return Err(Invalid::value(parameter, score)
                    .problem(format!(
                        "read by the refiner of Stable Diffusion XL only; this model is {}",
                        model.family
                    ))
                    .error());
            }
            parameter.check(score)?;
        }
        Ok(())
    }

    fn check_image_guidance(&self, model: &Description) -> Result<()> {
        let Some(scale) = self.image_guidance_scale else { return Ok(()) };
        if model.config.unet_input() != UNetInput::Image {
            return Err(Invalid::value(Parameter::ImageGuidanceScale, scale)
                .problem(format!("supported by InstructPix2Pix models only; this model is {}", model.family))
                .error());
        }
        Parameter::ImageGuidanceScale.check(scale)
    }

    /// Divides the last pass between the model and its refiner, by timestep as diffusers does.
    fn refined(&self, model: &Description, pass: Pass, start: f64) -> Result<[Pass; 2]> {
        let invalid = || Invalid::value(Parameter::RefinerStart, start);
        let Some(refiner) = &model.refiner else {
            let advice = sentence!["give one with ", Parameter::Refiner, ", or leave it out"];
            return Err(invalid().problem("there is no refiner").advice(advice).error());
        };
        Parameter::RefinerStart.check(start)?;
        self.check_size(&refiner.config, pass.width, pass.height)?;
        let steps = match self.hires.and_then(|hires| hires.steps) {
            Some(steps) => steps,
            None => self.steps,
        };
        let rows_of_step = self.sampler.evaluations_of_step();
        let before = |description: &Description, table: &Table| {
            let train = description.scheduler.num_train_timesteps as f64;
            table.steps_from((train - start * train).round_ties_even(), rows_of_step)
        };
        let own = rows_of_step * before(model, &pass.table);
        let skipped = before(refiner, &self.table(refiner, steps, 0)?);
        let left = pass.table.evaluations().saturating_sub(own);
        if own == 0 || left == 0 || skipped >= steps {
            let who = if own == 0 { "the model" } else { "the refiner" };
            let direction = if own == 0 { "raise it" } else { "lower it" };
            return Err(invalid()
                .problem(format!("of {steps} steps it leaves none to {who}"))
                .advice(sentence![format!("{direction}, or take more "), Parameter::Steps])
                .error());
        }
        let table = self.table(refiner, steps, skipped)?;
        let Pass { width, height, .. } = pass;
        let all = own + table.evaluations();
        let refined = Pass { table, is_refined: true, schedule: [own, all], width, height };
        Ok([Pass { table: pass.table.first_rows(own), schedule: [0, all], ..pass }, refined])
    }

    /// Checks that a pass is not too large.
    fn check_size(&self, config: &ModelConfig, width: usize, height: usize) -> Result<()> {
        let images = self.images;
        let scale = config.vae.scale_factor();
        let is_short = width.max(height) <= LARGEST_SIDE;
        let rows = images.saturating_mul(self.rows(config));
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
            let mut advice = sentence!["lower ", Parameter::NumImages];
            if self.hires.is_some() {
                advice.0.extend([Part::from(", "), Parameter::HiresScale.into()]);
            }
            let sides = [Part::from(", "), Parameter::Width.into(), " or ".into(), Parameter::Height.into()];
            advice.0.extend(sides);
            if others_fit && self.tiling.when == Tiled::Off {
                advice.0.extend([", or leave ".into(), Parameter::VaeTiling.into(), " off out".into()]);
            }
            let problem = format!("{images} {pictures} of {width}x{height}: too many pixels");
            return Err(Invalid::default().problem(problem).advice(advice).error());
        }
        Ok(())
    }

    /// Steps left out at the start.
    fn check_init(&self, init: &Init, config: &ModelConfig) -> Result<usize> {
        if !config.vae.encodes() {
            return Err(Invalid::of([Parameter::InitImage])
                .problem("this VAE has no encoder")
                .advice(sentence![
                    "try a ",
                    Parameter::Vae,
                    " with both halves, as a folder in the layout of diffusers, or none"
                ])
                .error());
        }
        match (config.unet_input(), &init.mask) {
            (UNetInput::MaskedImage, None) => {
                return Err(Invalid::of([Parameter::Mask])
                    .problem("missing")
                    .advice("this is an inpainting model, which generates where a mask is light: give it one")
                    .error());
            }
            (UNetInput::Image, Some(_)) => {
                return Err(Invalid::of([Parameter::Mask])
                    .problem("an InstructPix2Pix model edits the whole image")
                    .advice(sentence!["leave ", Parameter::Mask, " out"])
                    .error());
            }
            _ => {}
        }
        skipped_steps(Parameter::Strength, init.strength, self.steps)
    }

    fn table(&self, model: &Description, steps: usize, start: usize) -> Result<Table> {
        let sampling = Sampling {
            sampler: self.sampler,
            schedule: self.schedule,
            steps,
            start,
            eta: self.eta,
            sigmas: self.sigmas.clone(),
            aligned: model.family.aligned,
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

    /// What XL's time embedding takes in of a picture of this size: for the prompt, then for the negative prompt.
    pub(super) fn time_ids(&self, config: &ModelConfig, width: usize, height: usize) -> [Vec<f32>; 2] {
        let [score, negative] = Self::AESTHETIC_SCORES;
        let scores =
            [self.aesthetic_score.unwrap_or(score), self.negative_aesthetic_score.unwrap_or(negative)];
        let reads_score = config.unet.text_time.is_some_and(|text_time| text_time.has_score());
        scores.map(|score| self.size.time_ids(width, height, reads_score.then_some(score)))
    }

    /// Rows of an image in the U-Net's batch where guidance acts.
    pub fn rows(&self, config: &ModelConfig) -> usize {
        if self.is_guided(config) { config.most_rows() } else { 1 }
    }

    /// Whether the U-Net sees each picture twice. A model that takes the guidance scale as an input needs no
    /// second evaluation for it.
    pub fn is_guided(&self, config: &ModelConfig) -> bool {
        self.guidance_scale > 1.0 && config.unet.time_cond_proj_dim.is_none()
    }

    /// Whether guidance acts at each model evaluation of a pass, as `control_guidance_start` and `control_guidance_end`
    /// of diffusers count; where it does not, the conditional prediction is used alone.
    pub fn guided(&self, config: &ModelConfig, pass: &Pass) -> Vec<bool> {
        pass.shares().map(|[i, n]| self.is_guided_at(config, i, n)).collect()
    }

    fn is_guided_at(&self, config: &ModelConfig, i: usize, n: usize) -> bool {
        let share = |i: usize| i as f64 / n as f64;
        self.is_guided(config) && share(i) >= self.guidance_start && share(i + 1) <= self.guidance_end
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::KnownShapes;

    fn interval(guidance_start: f64, guidance_end: f64) -> (Request, Description) {
        let model = KnownShapes::Sd15.describe();
        let defaults = Request::defaults(&model, Sampler::Ddim);
        (Request { guidance_start, guidance_end, ..defaults }, model)
    }

    #[test]
    fn guidance_acts_between_its_start_and_its_end() {
        for (start, end, expected) in [
            (0.0, 1.0, [true; 4]),
            (0.25, 1.0, [false, true, true, true]),
            (0.3, 1.0, [false, false, true, true]),
            (0.0, 0.5, [true, true, false, false]),
            (0.0, 0.7, [true, true, false, false]),
            (0.25, 0.75, [false, true, true, false]),
            (0.3, 0.4, [false; 4]),
        ] {
            let (request, model) = interval(start, end);
            let guided = [0, 1, 2, 3].map(|i| request.is_guided_at(&model.config, i, 4));
            assert_eq!(guided, expected, "{start} to {end}");
            let unguided = Request { guidance_scale: 1.0, ..request };
            assert!(!unguided.is_guided_at(&model.config, 1, 4));
        }
    }

    #[test]
    fn an_interval_is_two_shares_the_first_below_the_second() {
        for (start, end, sentence) in [
            (-0.1, 1.0, "--guidance-start -0.1: expected a number from 0 to 1"),
            (0.0, 1.5, "--guidance-end 1.5: expected a number from 0 to 1"),
            (0.0, f64::NAN, "--guidance-end NaN: expected a number from 0 to 1"),
            (0.5, 0.5, "--guidance-start 0.5 and --guidance-end 0.5: expected the start below the end"),
        ] {
            let (request, model) = interval(start, end);
            let error = request.check(&model).unwrap_err().to_string();
            assert!(error.starts_with(sentence), "{error}");
        }
        for (start, end) in [(0.0, 1.0), (0.2, 1.0), (0.1, 0.3)] {
            let (request, model) = interval(start, end);
            assert!(request.check(&model).is_ok(), "{start} to {end}");
        }
    }
}
