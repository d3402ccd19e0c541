//! What a user asks for, and what comes of it.

use std::time::Duration;

use super::control::Control;
use super::family::Distillation;
use super::init::{Hires, Init};
use super::model::Description;
use super::tiling::Tiling;
use crate::model::config::ModelConfig;
use crate::rng::Rng;
use crate::sampler::{NoiseLevels, Sampler, Schedule};
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
    /// `denoising_start` of diffusers. With 1 it never does.
    pub refiner_start: Option<f64>,
    /// Not together with `init`.
    pub hires: Option<Hires>,
    /// One for each of the model's ControlNets, in their order; those without one do not act.
    pub controls: Vec<Control>,
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

    /// The share after which a refiner takes over, if one does.
    pub(super) fn refined_from(&self) -> Option<f64> {
        self.refiner_start.filter(|&start| start != 1.0)
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

    /// Whether guidance acts at model evaluation `i` of `n`, as `control_guidance_start` and `control_guidance_end` of
    /// diffusers count; where it does not, the conditional prediction is used alone.
    pub(super) fn is_guided_at(&self, config: &ModelConfig, i: usize, n: usize) -> bool {
        let share = |i: usize| i as f64 / n as f64;
        self.is_guided(config) && share(i) >= self.guidance_start && share(i + 1) <= self.guidance_end
    }
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

impl Times {
    pub fn add(&mut self, other: &Times) {
        self.record += other.record;
        self.text += other.text;
        self.picture += other.picture;
        self.denoise += other.denoise;
        self.decode += other.decode;
        self.evaluations += other.evaluations;
    }
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
}
