//! The families of Stable Diffusion, and what is suggested for each where its files do not say.

use std::fmt;

use crate::model::config::ModelConfig;
use crate::sampler::SchedulerConfig;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Sd1,
    Sd2,
    Xl,
}

/// How few steps a model was distilled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distillation {
    /// Not at all.
    None,
    /// Turbo and Lightning: Euler over trailing timesteps without guidance, in so many steps.
    Adversarial { steps: usize },
    /// A latent consistency model.
    Consistency,
}

/// Width of the context of OpenCLIP's ViT-H.
const SD2_CONTEXT: usize = 1024;
/// What the adversarially distilled are used with where the name does not say.
const FEW_STEPS: usize = 4;

impl Family {
    pub fn of(config: &ModelConfig) -> Self {
        match config.unet.cross_attention_dim {
            _ if config.is_xl() => Family::Xl,
            SD2_CONTEXT => Family::Sd2,
            _ => Family::Sd1,
        }
    }

    /// The scheduler that the family was published with. `prediction_type` decides what of Stable Diffusion
    /// 2 it is: the models for 768x768 predict velocities.
    pub fn scheduler(self, distillation: Distillation, prediction_type: &str) -> SchedulerConfig {
        let mut scheduler = match (self, distillation) {
            (Family::Xl, Distillation::None) => SchedulerConfig::sdxl(),
            (_, Distillation::None) => SchedulerConfig::sd15(),
            (_, Distillation::Adversarial { .. }) => SchedulerConfig::turbo(),
            (_, Distillation::Consistency) => SchedulerConfig::lcm(),
        };
        scheduler.prediction_type = Some(prediction_type.to_string());
        scheduler
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
            Distillation::Adversarial { steps: FEW_STEPS }
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
        if has("turbo") || has("lightning") {
            return Distillation::Adversarial { steps: steps.unwrap_or(FEW_STEPS) };
        }
        Distillation::None
    }

    /// Steps and guidance scale of a family's model, where it states none of its own.
    pub fn defaults(self, config: &ModelConfig) -> (usize, f32) {
        match self {
            Distillation::None if config.is_xl() => (30, 5.0),
            Distillation::None => (20, 7.5),
            Distillation::Adversarial { steps } => (steps, 1.0),
            // diffusers' LatentConsistencyModelPipeline: the guidance is an input of these.
            Distillation::Consistency if config.unet.time_cond_proj_dim.is_some() => (4, 8.5),
            Distillation::Consistency => (4, 1.0),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Family::Sd1 => "Stable Diffusion 1.x",
            Family::Sd2 => "Stable Diffusion 2.x",
            Family::Xl => "Stable Diffusion XL",
        })
    }
}

impl fmt::Display for Distillation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Distillation::None => Ok(()),
            Distillation::Adversarial { steps } => write!(f, ", distilled to {steps} steps without guidance"),
            Distillation::Consistency => f.write_str(", a latent consistency model"),
        }
    }
}
