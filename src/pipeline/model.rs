//! Where a pipeline comes from.

use std::path::PathBuf;

use super::{OnLoad, Pipeline};
use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::ops::Backend;
use crate::sampler::SchedulerConfig;
use crate::weights::ModelFolder;

/// A checkpoint, or shapes with random weights.
#[derive(Clone, Debug)]
pub enum Model {
    Folder(PathBuf),
    RandomSd15,
}

impl Model {
    /// What is known of it without its weights.
    pub fn describe(&self) -> Result<(ModelConfig, SchedulerConfig)> {
        match self {
            Model::Folder(path) => {
                let folder = ModelFolder::open(path)?;
                Ok((ModelConfig::read(path)?, SchedulerConfig::load(&folder.scheduler_config())?))
            }
            Model::RandomSd15 => Ok((ModelConfig::sd15(), SchedulerConfig::sd15())),
        }
    }

    pub fn load(&self, backend: Box<dyn Backend>, on_load: OnLoad) -> Result<Pipeline> {
        match self {
            Model::Folder(path) => Pipeline::load(path, backend, on_load),
            Model::RandomSd15 => Pipeline::random(&ModelConfig::sd15(), backend, on_load),
        }
    }
}
