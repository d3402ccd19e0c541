//! Which model: the flags that all commands share.

use anyhow::Result;
use clap::{Args, ValueEnum};
use sdrt::location::Location;
use sdrt::pipeline::{self, Model, ModelFiles};
use sdrt::sampler::prediction_type;

use super::emoji;
use super::source::{self, ModelSource};
use crate::progress::Progress;

#[derive(Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    #[arg(short, long, value_name = "MODEL", default_value = emoji::NAME, value_parser = source::parser())]
    pub model: ModelSource,
    #[command(flatten)]
    changes: ModelChanges,
}

/// What is taken instead of what the model has.
#[derive(Args)]
#[command(next_help_heading = "Model")]
pub struct ModelChanges {
    #[arg(long, value_name = "MODEL", value_parser = source::parser())]
    vae: Option<ModelSource>,
    #[arg(long, value_name = "NAME", value_parser = prediction_type)]
    prediction: Option<&'static str>,
}

/// The model that does the last steps.
#[derive(Args)]
#[command(next_help_heading = "Model")]
pub struct RefinerArgs {
    #[arg(long, value_name = "MODEL", value_parser = source::parser())]
    refiner: Option<ModelSource>,
}

impl RefinerArgs {
    pub fn name(&self) -> Option<String> {
        self.refiner.as_ref().map(ModelSource::name)
    }

    pub fn locate(&self, progress: Progress) -> Result<Option<Location>> {
        self.refiner.as_ref().map(|refiner| refiner.locate(progress)).transpose()
    }
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
#[command(next_help_heading = "Model")]
pub struct ModelOrShapes {
    #[command(flatten)]
    model: ModelArgs,
    /// A ControlNet that acts: a .safetensors file, a folder in the diffusers layout, or owner/name of one on the
    /// hub; may be given several times
    #[arg(long, value_name = "MODEL", value_parser = source::parser())]
    controlnet: Vec<ModelSource>,
    #[arg(long, value_name = "SHAPES", conflicts_with_all = ["model", "vae", "prediction", "controlnet"])]
    random_weights: Option<KnownShapes>,
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        requires = "random_weights",
        conflicts_with_all = ["model", "controlnet"]
    )]
    random_controlnets: usize,
}

impl ModelArgs {
    /// The model's files, downloaded if they have to be.
    pub fn files(&self, progress: Progress) -> Result<ModelFiles> {
        self.changes.of(&self.model, progress)
    }
}

impl ModelChanges {
    pub fn of(&self, model: &ModelSource, progress: Progress) -> Result<ModelFiles> {
        Ok(ModelFiles {
            vae: self.vae.as_ref().map(|vae| vae.locate(progress)).transpose()?,
            prediction_type: self.prediction,
            ..model.locate(progress)?.into()
        })
    }
}

impl ModelOrShapes {
    pub fn model(&self) -> Result<Model> {
        match self.random_weights {
            Some(shapes) => Ok(shapes.model(self.random_controlnets)),
            None => {
                let progress = Progress { quiet: false };
                let controlnets = self.controlnet.iter().map(|net| net.locate(progress));
                let controlnets = controlnets.collect::<Result<_>>()?;
                Ok(Model::Files(ModelFiles { controlnets, ..self.model.files(progress)? }))
            }
        }
    }
}

impl KnownShapes {
    pub fn model(self, controlnets: usize) -> Model {
        let shapes = match self {
            KnownShapes::Sd15 => pipeline::KnownShapes::Sd15,
            KnownShapes::Sd21 => pipeline::KnownShapes::Sd21,
            KnownShapes::Sdxl => pipeline::KnownShapes::Sdxl,
        };
        Model::Random { shapes, controlnets }
    }
}
