//! Where a pipeline comes from.

use std::fmt;

use super::family::{Distillation, Family};
use crate::error::{Error, Result};
use crate::location::Location;
use crate::model::config::{AutoencoderConfig, ControlNetConfig, ModelConfig, UNetInput};
use crate::parameter::{Parameter, sentence};
use crate::sampler::SchedulerConfig;
use crate::text::Embedding;
use crate::weights::names::PREVIEW_VAE;
use crate::weights::single_file::EdmTensors;
use crate::weights::{Checkpoint, Component, Defaults, ModelFolder, SingleFile, controlnet, single_file};

/// What a ControlNet is.
const CONTROLNET_LAYOUT: &str = "a .safetensors file, or a folder in the diffusers layout: config.json, \
                                 diffusion_pytorch_model.safetensors; one of the hub is named owner/name";

/// A checkpoint, or shapes with random weights.
#[derive(Clone, Debug)]
pub enum Model {
    Files(ModelFiles),
    Random {
        shapes: KnownShapes,
        /// How many ControlNets of the same family.
        controlnets: usize,
    },
}

/// A model folder or file, and what is to be taken instead of what it has.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    pub location: Location,
    /// Another VAE: a file, its folder, or the folder of a model that has it.
    pub vae: Option<Location>,
    /// A tiny VAE that decodes previews instead: likewise.
    pub preview_vae: Option<Location>,
    /// `prediction_type` of a scheduler configuration.
    pub prediction_type: Option<&'static str>,
    /// Textual inversions that prompts may name.
    pub embeddings: Vec<Embedding>,
    /// ControlNets: files or folders.
    pub controlnets: Vec<Location>,
}

/// Shapes that are known without a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownShapes {
    Sd15,
    Sd21,
    Sdxl,
}

/// What is known of a model without its weights.
#[derive(Clone, Debug)]
pub struct Description {
    pub family: Family,
    pub distillation: Distillation,
    pub config: ModelConfig,
    pub scheduler: SchedulerConfig,
    /// What the model states; where it does not, there is [`Distillation::defaults`].
    pub defaults: Defaults,
    /// Whether XL's unconditional embedding is zeros where no negative prompt is given.
    pub force_zeros_for_empty_prompt: bool,
    /// The vocabulary of each text encoder; CLIP's own where there is none.
    pub tokenizers: Vec<Option<Location>>,
}

impl Model {
    pub fn describe(&self) -> Result<Description> {
        match self {
            Model::Files(files) => files.describe(),
            Model::Random { shapes, controlnets } => {
                let mut description = shapes.describe();
                add_random_controlnets(&mut description.config, *controlnets)?;
                Ok(description)
            }
        }
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Model::Files(files) => files.location.fmt(f),
            Model::Random { shapes, .. } => write!(f, "{shapes}, random weights"),
        }
    }
}

impl From<Location> for ModelFiles {
    fn from(location: Location) -> Self {
        ModelFiles {
            location,
            vae: None,
            preview_vae: None,
            prediction_type: None,
            embeddings: Vec::new(),
            controlnets: Vec::new(),
        }
    }
}

impl ModelFiles {
    pub fn describe(&self) -> Result<Description> {
        if ModelFolder::is_at(&self.location)? {
            self.describe_folder(&ModelFolder::open(&self.location)?)
        } else {
            self.describe_file(&SingleFile::open(&self.location)?)
        }
    }

    /// The description, and the weights with it.
    pub fn open(&self) -> Result<(Description, Checkpoint)> {
        let (description, checkpoint) = if ModelFolder::is_at(&self.location)? {
            let folder = ModelFolder::open(&self.location)?;
            (self.describe_folder(&folder)?, Checkpoint::open(&folder)?)
        } else {
            let file = SingleFile::open(&self.location)?;
            (self.describe_file(&file)?, file.checkpoint)
        };
        let vae = self.vae.iter().map(|vae| single_file::open_vae(vae, "vae"));
        let preview_vae = self.preview_vae.iter().map(|vae| single_file::open_vae(vae, PREVIEW_VAE));
        let controlnets = self.controlnets.iter().zip(controlnet::NAMES);
        let controlnets = controlnets.map(|(file, name)| controlnet::open(file, name));
        let mut components = vae.chain(preview_vae).chain(controlnets);
        let checkpoint = components
            .try_fold(checkpoint, |checkpoint, component| Ok::<_, Error>(checkpoint.with(component?)))?;
        Ok((description, checkpoint))
    }

    fn describe_folder(&self, folder: &ModelFolder) -> Result<Description> {
        let config = ModelConfig::read(&folder.location)?;
        let scheduler = SchedulerConfig::load(&folder.scheduler_config(), !config.is_xl())?;
        let distillation = Distillation::of(&config, &scheduler);
        let description = Description {
            force_zeros_for_empty_prompt: folder.force_zeros_for_empty_prompt,
            tokenizers: folder.tokenizers(),
            defaults: folder.defaults,
            ..Description::new(config, scheduler, distillation)
        };
        self.changed(description)
    }

    fn describe_file(&self, file: &SingleFile) -> Result<Description> {
        let shapes = |name: &str| file.checkpoint.component(name).map(Component::shapes).unwrap_or_default();
        let second = file.checkpoint.component("text_encoder_2").map(Component::shapes);
        let [text_encoder, unet, vae] = ["text_encoder", "unet", "vae"].map(shapes);
        let mut config = ModelConfig::infer(&self.location, &text_encoder, second.as_ref(), &unet, &vae)?;
        let family = Family::of(&config);
        let name = format!("{} {}", self.location.name(), file.title.as_deref().unwrap_or_default());
        let distillation = Distillation::by_name(&config, &name);
        let stated = file.prediction_type.filter(|_| self.prediction_type.is_none());
        let prediction_type = match (self.prediction_type.or(stated), family, distillation) {
            (Some(prediction_type), ..) => prediction_type,
            (None, Family::Sd2, Distillation::None) => "v_prediction",
            _ => "epsilon",
        };
        let small = match distillation {
            Distillation::Adversarial { .. } => name.to_ascii_lowercase().contains("turbo"),
            _ => family == Family::Sd2 && prediction_type == "epsilon",
        };
        if small {
            config.unet.sample_size = ModelConfig::sd15().unet.sample_size;
        }
        let mut scheduler = family.scheduler(distillation, prediction_type);
        match file.edm {
            Some(EdmTensors::Playground { latents }) => {
                scheduler = SchedulerConfig::playground();
                config.vae = config.vae.playground(latents);
            }
            Some(EdmTensors::CosXl { sigma_min, sigma_max }) => {
                scheduler = SchedulerConfig::cosxl(sigma_min, sigma_max);
            }
            None => {}
        }
        scheduler.rescale_betas_zero_snr = file.zero_snr.then_some(true);
        self.changed(Description::new(config, scheduler, distillation))
    }

    /// The description with what is to be taken instead.
    fn changed(&self, mut description: Description) -> Result<Description> {
        let unsupported = match (&description.config.clip, description.config.unet_input()) {
            (None, _) => {
                Some("the refiner of Stable Diffusion XL, which is not supported; try the base model")
            }
            (_, UNetInput::Image) => {
                Some("an InstructPix2Pix model, which is not supported; try a text-to-image one")
            }
            _ => None,
        };
        if let Some(message) = unsupported {
            return Err(Error::file(&self.location, message));
        }
        if let Some(prediction_type) = self.prediction_type {
            description.scheduler.prediction_type = Some(prediction_type.to_string());
        }
        if let Some(vae) = &self.vae {
            let config = &mut description.config;
            config.vae = read_vae(vae, config)?;
            config.check(vae)?;
        }
        if let Some(vae) = &self.preview_vae {
            let config = &mut description.config;
            let AutoencoderConfig::Tiny(tiny) = read_vae(vae, config)? else {
                let message = "a whole VAE; previews want a tiny one, such as TAESD or, for XL, TAESDXL";
                return Err(Error::file(vae, message));
            };
            config.preview_vae = Some(tiny.for_previews(vae, &config.vae)?);
        }
        read_controlnets(&mut description.config, &self.controlnets)?;
        Ok(description)
    }
}

/// Reads the configuration of another VAE; what its shapes leave open is as in the model's.
fn read_vae(vae: &Location, model: &ModelConfig) -> Result<AutoencoderConfig> {
    if vae.is_folder() {
        return AutoencoderConfig::read(&single_file::vae_folder(vae).join("config.json"));
    }
    let file = single_file::open_vae(vae, "vae")?;
    AutoencoderConfig::infer(vae, &file.shapes(), &model.vae_to_infer())
}

/// Adds ControlNets of the shapes that were published for the model's family.
fn add_random_controlnets(config: &mut ModelConfig, count: usize) -> Result<()> {
    check_count(count, Parameter::RandomControlnets)?;
    config.controlnets = vec![ControlNetConfig::of_family(&config.unet); count];
    Ok(())
}

fn check_count(count: usize, parameter: Parameter) -> Result<()> {
    let most = controlnet::NAMES.len();
    if count > most {
        let message = sentence![format!("{count} ControlNets: expected at most {most} "), parameter];
        return Err(Error::invalid(message));
    }
    Ok(())
}

/// Reads the configurations of ControlNets, and checks that they fit the model.
fn read_controlnets(config: &mut ModelConfig, files: &[Location]) -> Result<()> {
    check_count(files.len(), Parameter::Controlnet)?;
    for (file, name) in files.iter().zip(controlnet::NAMES) {
        let description = file.join("config.json");
        let controlnet = if description.is_file() {
            ControlNetConfig::read(&description)?
        } else if !file.is_file() {
            let what = if file.is_folder() { "has no config.json" } else { "no such ControlNet" };
            return Err(Error::file(file, format!("{what}; a ControlNet is {CONTROLNET_LAYOUT}")));
        } else {
            let component = controlnet::open(file, name)?;
            ControlNetConfig::infer(file, &component.shapes(), &config.unet)?
        };
        controlnet.check(file, &config.unet, &config.vae)?;
        config.controlnets.push(controlnet);
    }
    Ok(())
}

impl Description {
    /// The layer of the text encoders that is read where nothing is said, from the end, 1 being the last.
    pub(super) fn own_clip_skip(&self) -> usize {
        if self.config.is_xl() { 2 } else { 1 }
    }

    /// Whether zeros take the place of an empty negative prompt.
    pub(super) fn zeroes_empty_prompt(&self) -> bool {
        self.config.is_xl() && self.force_zeros_for_empty_prompt
    }

    /// A model that states no defaults and brings no vocabulary.
    fn new(config: ModelConfig, scheduler: SchedulerConfig, distillation: Distillation) -> Self {
        Description {
            family: Family::of(&config),
            distillation,
            defaults: Defaults::default(),
            force_zeros_for_empty_prompt: true,
            tokenizers: vec![None; config.text_encoders().count()],
            config,
            scheduler,
        }
    }
}

impl KnownShapes {
    pub fn describe(self) -> Description {
        let (config, prediction_type) = match self {
            KnownShapes::Sd15 => (ModelConfig::sd15(), "epsilon"),
            KnownShapes::Sd21 => (ModelConfig::sd21(), "v_prediction"),
            KnownShapes::Sdxl => (ModelConfig::sdxl(), "epsilon"),
        };
        let scheduler = Family::of(&config).scheduler(Distillation::None, prediction_type);
        Description::new(config, scheduler, Distillation::None)
    }
}

impl fmt::Display for KnownShapes {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            KnownShapes::Sd15 => "Stable Diffusion 1.5",
            KnownShapes::Sd21 => "Stable Diffusion 2.1",
            KnownShapes::Sdxl => "Stable Diffusion XL",
        })
    }
}
