//! Where a pipeline comes from.

use std::fmt;

use super::{OnLoad, Pipeline};
use crate::error::Result;
use crate::location::Location;
use crate::model::config::ModelConfig;
use crate::ops::Backend;
use crate::sampler::SchedulerConfig;
use crate::weights::{Defaults, ModelFolder};

/// A checkpoint, or shapes with random weights.
#[derive(Clone, Debug)]
pub enum Model {
    Folder(Location),
    RandomSd15,
}

/// What is known of a model without its weights.
#[derive(Clone, Debug)]
pub struct Description {
    pub config: ModelConfig,
    pub scheduler: SchedulerConfig,
    pub defaults: Defaults,
}

impl Model {
    pub fn describe(&self) -> Result<Description> {
        match self {
            Model::Folder(location) => Description::read(&ModelFolder::open(location)?),
            Model::RandomSd15 => Ok(Description::sd15()),
        }
    }

    pub fn load(&self, backend: Box<dyn Backend>, on_load: OnLoad) -> Result<Pipeline> {
        match self {
            Model::Folder(location) => Pipeline::load(location, backend, on_load),
            Model::RandomSd15 => Pipeline::random(Description::sd15(), backend, on_load),
        }
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Model::Folder(location) => location.fmt(f),
            Model::RandomSd15 => f.write_str("Stable Diffusion 1.5, random weights"),
        }
    }
}

impl Description {
    pub fn read(folder: &ModelFolder) -> Result<Self> {
        Ok(Description {
            config: ModelConfig::read(&folder.location)?,
            scheduler: SchedulerConfig::load(&folder.scheduler_config())?,
            defaults: folder.defaults,
        })
    }

    /// Stable Diffusion 1.5.
    pub fn sd15() -> Self {
        Description {
            config: ModelConfig::sd15(),
            scheduler: SchedulerConfig::sd15(),
            defaults: Defaults::default(),
        }
    }
}
