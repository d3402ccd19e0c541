//! Which model: the flags that all commands share.

use clap::{Args, ValueEnum};
use sdrt::location::Location;
use sdrt::pipeline::{self, Model, ModelFiles};
use sdrt::sampler::prediction_type;

use super::emoji;

#[derive(Args)]
pub struct ModelArgs {
    /// A .safetensors file, or a folder in the diffusers layout; `emoji` is the model in sdrt itself, and a
    /// folder of that name is ./emoji
    #[arg(short, long, value_name = "PATH", default_value = emoji::NAME, value_parser = emoji::parser())]
    pub model: Location,
    #[command(flatten)]
    changes: ModelChanges,
}

/// What is taken instead of what the model has.
#[derive(Args)]
pub struct ModelChanges {
    /// Another VAE: a .safetensors file, its folder, or that of a model
    #[arg(long, value_name = "PATH")]
    vae: Option<std::path::PathBuf>,
    /// What the U-Net predicts, where the files say it wrong or not at all: epsilon, v or sample
    #[arg(long, value_name = "NAME", value_parser = prediction_type)]
    prediction: Option<&'static str>,
}

/// Shapes that are known without a checkpoint.
#[derive(Clone, Copy, ValueEnum)]
pub enum KnownShapes {
    /// Stable Diffusion 1.5
    Sd15,
    /// Stable Diffusion 2.1 for 768x768
    Sd21,
    /// Stable Diffusion XL
    Sdxl,
}

/// A model, or shapes without one.
#[derive(Args)]
pub struct ModelOrShapes {
    #[command(flatten)]
    model: ModelArgs,
    /// Random weights of known shapes instead of a model
    #[arg(long, value_name = "SHAPES", conflicts_with = "model")]
    random_weights: Option<KnownShapes>,
}

impl ModelArgs {
    pub fn model(&self) -> Model {
        self.changes.of(&self.model)
    }
}

impl ModelChanges {
    pub fn of(&self, location: &Location) -> Model {
        Model::Files(ModelFiles {
            location: location.clone(),
            vae: self.vae.clone().map(Location::from),
            prediction_type: self.prediction,
        })
    }
}

impl ModelOrShapes {
    pub fn model(&self) -> Model {
        self.random_weights.map_or_else(|| self.model.model(), KnownShapes::model)
    }
}

impl KnownShapes {
    pub fn model(self) -> Model {
        Model::Random(match self {
            KnownShapes::Sd15 => pipeline::KnownShapes::Sd15,
            KnownShapes::Sd21 => pipeline::KnownShapes::Sd21,
            KnownShapes::Sdxl => pipeline::KnownShapes::Sdxl,
        })
    }
}
