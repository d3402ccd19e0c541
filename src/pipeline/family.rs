//! The families of Stable Diffusion: one record each, of what the files of a model do not say.
//!
//! What they do say is in [`ModelConfig`] and [`SchedulerConfig`]. A new family of these networks is a new record.

use std::fmt;

use super::colours::{self, LatentColours};
use crate::model::config::{MidBlock, ModelConfig, UNetConfig, VaeConfig};
use crate::sampler::{ALIGNED_SD, ALIGNED_XL, AlignedLevels, NoiseModel, SchedulerConfig};

/// What the models of a family have in common.
pub struct Family {
    pub name: &'static str,
    /// Whether a model is of it, unless it is of one before it in [`Family::ALL`].
    has: fn(&ModelConfig, NoiseModel) -> bool,
    /// The scheduler that it was published with.
    scheduler: fn() -> SchedulerConfig,
    /// What a model predicts where its file does not say.
    pub prediction_type: &'static str,
    /// Latent pixels of a side that its models which predict noise were trained at, if other than the configuration's.
    pub noise_sample_size: Option<usize>,
    /// The shapes of its VAE, where those of another leave something open.
    pub vae: fn() -> VaeConfig,
    /// Whether its pipelines heed the VAE's `force_upcast`; others decode in halves whatever the file says.
    pub heeds_force_upcast: bool,
    /// Whether its pipelines correct outdated keys of the scheduler's configuration.
    pub corrects_scheduler: bool,
    /// Whether zeros take the place of an empty negative prompt, unless `model_index.json` says otherwise.
    pub zeroes_empty_prompt: bool,
    /// Whether an image that is edited has latents times the VAE's scaling factor.
    pub scales_edited_image: bool,
    /// Where a model states none of its own.
    pub steps: usize,
    pub guidance_scale: f32,
    /// Steps and guidance scale of those that were distilled adversarially, where the name does not say.
    pub few_steps: (usize, f32),
    /// Of an image to start from, where nothing is said: what the pipelines of diffusers take.
    pub strength: f64,
    /// The same with a mask.
    pub masked_strength: f64,
    /// The noise levels of the schedule `ays`.
    pub aligned: AlignedLevels,
    /// The colours of its latents.
    pub colours: &'static LatentColours,
}

/// How few steps a model was distilled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distillation {
    /// Not at all.
    None,
    /// Turbo and Lightning: Euler over trailing timesteps with little guidance or none.
    Adversarial {
        /// As many as the name says.
        steps: Option<usize>,
    },
    /// A latent consistency model.
    Consistency,
}

/// Width of the context of OpenCLIP's ViT-H.
const SD2_CONTEXT: usize = 1024;

const SD1: Family = Family {
    name: "Stable Diffusion 1.x",
    has: |_, _| true,
    scheduler: SchedulerConfig::sd15,
    prediction_type: "epsilon",
    noise_sample_size: None,
    vae: VaeConfig::sd15,
    heeds_force_upcast: false,
    corrects_scheduler: true,
    zeroes_empty_prompt: false,
    scales_edited_image: false,
    steps: 20,
    guidance_scale: 7.5,
    few_steps: (4, 1.0),
    strength: 0.8,
    masked_strength: 1.0,
    aligned: ALIGNED_SD,
    colours: &colours::SD,
};

/// Its models for 768x768 predict velocities.
const SD2: Family = Family {
    name: "Stable Diffusion 2.x",
    has: |config, _| config.unet.cross_attention_dim == SD2_CONTEXT,
    prediction_type: "v_prediction",
    noise_sample_size: Some(64),
    ..SD1
};

const XL: Family = Family {
    name: "Stable Diffusion XL",
    has: |config, _| config.unet.text_time.is_some(),
    scheduler: SchedulerConfig::sdxl,
    vae: VaeConfig::sdxl,
    heeds_force_upcast: true,
    corrects_scheduler: false,
    zeroes_empty_prompt: true,
    steps: 30,
    guidance_scale: 5.0,
    strength: 0.3,
    masked_strength: 0.9999,
    aligned: ALIGNED_XL,
    colours: &colours::XL,
    ..SD1
};

const XL_REFINER: Family = Family {
    name: "the refiner of Stable Diffusion XL",
    has: |config, _| config.unet.text_time.is_some_and(|text_time| text_time.has_score()),
    zeroes_empty_prompt: false,
    ..XL
};

const SEGMIND: Family = Family {
    name: "Stable Diffusion XL, as distilled by Segmind (SSD-1B, Vega)",
    has: |config, _| is_distilled_xl(config, 2) && config.unet.mid_block == MidBlock::Resnet,
    guidance_scale: 9.0,
    ..XL
};

const KOALA: Family = Family {
    name: "Stable Diffusion XL, as distilled to KOALA",
    has: |config, _| is_distilled_xl(config, 1),
    steps: 25,
    guidance_scale: 3.5,
    few_steps: (10, 3.5),
    ..XL
};

const PLAYGROUND: Family = Family {
    name: "Playground 2.5",
    has: |config, noise| XL.has(config, noise) && noise.sigma_data() == Some(0.5),
    scheduler: SchedulerConfig::playground,
    steps: 50,
    guidance_scale: 3.0,
    colours: &colours::PLAYGROUND,
    ..XL
};

const COSXL: Family = Family {
    name: "CosXL",
    has: |config, noise| XL.has(config, noise) && noise.sigma_data() == Some(1.0),
    scheduler: || SchedulerConfig::cosxl(0.002, 120.0),
    prediction_type: "v_prediction",
    scales_edited_image: true,
    ..XL
};

/// XL's levels with so many resnets in each.
fn is_distilled_xl(config: &ModelConfig, resnets: usize) -> bool {
    let UNetConfig { text_time, block_out_channels, layers_per_block, .. } = &config.unet;
    let levels = UNetConfig::sdxl().block_out_channels;
    text_time.is_some() && *block_out_channels == levels && layers_per_block.iter().all(|&n| n == resnets)
}

impl Family {
    pub const SD1: &Self = &SD1;
    pub const SD2: &Self = &SD2;
    pub const XL: &Self = &XL;

    /// All of them, the more special ones first.
    const ALL: [&Self; 8] = [&PLAYGROUND, &COSXL, &SEGMIND, &KOALA, &XL_REFINER, &XL, &SD2, &SD1];

    /// The family of a model that was trained with such noise.
    pub fn of(config: &ModelConfig, noise: NoiseModel) -> &'static Self {
        Self::ALL.into_iter().find(|family| family.has(config, noise)).expect("the last has every model")
    }

    fn has(&self, config: &ModelConfig, noise: NoiseModel) -> bool {
        (self.has)(config, noise)
    }

    /// The scheduler of a model that predicts this, where no file describes it.
    pub fn scheduler(&self, distillation: Distillation, prediction_type: &str) -> SchedulerConfig {
        let scheduler = match distillation {
            Distillation::None => (self.scheduler)(),
            Distillation::Adversarial { .. } => SchedulerConfig::turbo(),
            Distillation::Consistency => SchedulerConfig::lcm(),
        };
        SchedulerConfig { prediction_type: Some(prediction_type.to_string()), ..scheduler }
    }

    /// Steps and guidance scale of a model, where it states none of its own.
    pub fn defaults(&self, distillation: Distillation, config: &ModelConfig) -> (usize, f32) {
        let (few, guidance_scale) = self.few_steps;
        match distillation {
            Distillation::None => (self.steps, self.guidance_scale),
            Distillation::Adversarial { steps } => (steps.unwrap_or(few), guidance_scale),
            // diffusers' LatentConsistencyModelPipeline: the guidance is an input of these.
            Distillation::Consistency if config.unet.time_cond_proj_dim.is_some() => (4, 8.5),
            Distillation::Consistency => (4, 1.0),
        }
    }
}

impl Distillation {
    /// What the files of a model in the layout of diffusers say.
    pub fn of(config: &ModelConfig, scheduler: &SchedulerConfig) -> Self {
        let class = scheduler.class_name.as_deref().unwrap_or_default();
        let is_euler = ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"].contains(&class);
        let trailing = scheduler.timestep_spacing.as_deref() == Some("trailing");
        let epsilon = scheduler.prediction_type.as_deref().unwrap_or("epsilon") == "epsilon";
        if config.unet.time_cond_proj_dim.is_some() || class == "LCMScheduler" {
            Distillation::Consistency
        } else if is_euler && trailing && epsilon && scheduler.rescale_betas_zero_snr != Some(true) {
            Distillation::Adversarial { steps: None }
        } else {
            Distillation::None
        }
    }

    /// What the name or the title of a single file says: nothing else in it does.
    pub fn by_name(config: &ModelConfig, name: &str) -> Self {
        let name = name.to_ascii_lowercase();
        let words: Vec<&str> = name.split(|c: char| !c.is_ascii_alphanumeric()).collect();
        let has =
            |word: &str| words.iter().any(|other| *other == word || other.strip_prefix("xl") == Some(word));
        if config.unet.time_cond_proj_dim.is_some() || has("lcm") {
            return Distillation::Consistency;
        }
        let steps = words.iter().find_map(|word| word.strip_suffix("steps").or(word.strip_suffix("step")));
        let steps = steps.and_then(|steps| steps.parse().ok()).filter(|steps| (1..=16).contains(steps));
        match has("turbo") || has("lightning") {
            true => Distillation::Adversarial { steps },
            false => Distillation::None,
        }
    }
}

impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Distillation {
    /// In words behind the name of a family; the steps are those of [`Family::defaults`].
    pub fn words(self, steps: usize, guidance_scale: f32) -> String {
        match self {
            Distillation::None => String::new(),
            Distillation::Adversarial { .. } if guidance_scale > 1.0 => {
                format!(", distilled to {steps} steps")
            }
            Distillation::Adversarial { .. } => format!(", distilled to {steps} steps without guidance"),
            Distillation::Consistency => ", a latent consistency model".into(),
        }
    }
}
