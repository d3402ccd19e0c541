//! Where a pipeline comes from.

use std::fmt;

use super::family::{Distillation, Family};
use crate::error::{Error, Result};
use crate::location::Location;
use crate::model::config::{AutoencoderConfig, ControlNetConfig, ModelConfig, UNetInput};
use crate::parameter::{Parameter, sentence};
use crate::sampler::{NoiseModel, SchedulerConfig};
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
    /// A model that does the last steps.
    pub refiner: Option<Location>,
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
    pub family: &'static Family,
    pub distillation: Distillation,
    pub config: ModelConfig,
    pub scheduler: SchedulerConfig,
    /// What the model states; where it does not, there is [`Family::defaults`].
    pub defaults: Defaults,
    /// Whether zeros take the place of an empty negative prompt.
    pub zeroes_empty_prompt: bool,
    /// The vocabulary of each text encoder; CLIP's own where there is none.
    pub tokenizers: Vec<Option<Location>>,
    /// What does the last steps.
    pub refiner: Option<Box<Description>>,
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
            refiner: None,
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
        let config = ModelConfig::read(&folder.location, &folder.text_encoders)?;
        let scheduler = SchedulerConfig::load(&folder.scheduler_config())?;
        let family = Family::of(&config, scheduler.noise_model()?);
        let scheduler = if family.corrects_scheduler { scheduler.corrected() } else { scheduler };
        let distillation = Distillation::of(&config, &scheduler);
        let roles = config.text_encoders.iter().map(|encoder| encoder.role);
        let description = Description {
            zeroes_empty_prompt: folder.force_zeros_for_empty_prompt.unwrap_or(family.zeroes_empty_prompt),
            tokenizers: roles.map(|role| folder.tokenizer(role.tokenizer)).collect(),
            defaults: folder.defaults,
            ..Description::new(family, config, scheduler, distillation)
        };
        self.changed(description)
    }

    fn describe_file(&self, file: &SingleFile) -> Result<Description> {
        let component =
            |name: &str| file.checkpoint.component(name).map(Component::shapes).unwrap_or_default();
        let mut config = ModelConfig::infer(&self.location, &component)?;
        let edm = file.edm.map(|edm| match edm {
            EdmTensors::Playground { latents } => {
                config.vae = config.vae.clone().playground(latents);
                SchedulerConfig::playground()
            }
            EdmTensors::CosXl { sigma_min, sigma_max } => SchedulerConfig::cosxl(sigma_min, sigma_max),
        });
        let noise = edm.as_ref().map_or(Ok(NoiseModel::VariancePreserving), SchedulerConfig::noise_model)?;
        let family = Family::of(&config, noise);
        let name = format!("{} {}", self.location.name(), file.title.as_deref().unwrap_or_default());
        let distillation = Distillation::by_name(&config, &name);
        let stated = file.prediction_type.filter(|_| self.prediction_type.is_none());
        let of_family = match distillation {
            Distillation::None => family.prediction_type,
            _ => "epsilon",
        };
        let prediction_type = self.prediction_type.or(stated).unwrap_or(of_family);
        let sample_size = match distillation {
            Distillation::Adversarial { .. } => {
                let is_turbo = name.to_ascii_lowercase().contains("turbo");
                is_turbo.then_some(ModelConfig::sd15().unet.sample_size)
            }
            _ => family.noise_sample_size.filter(|_| prediction_type == "epsilon"),
        };
        config.unet.sample_size = sample_size.unwrap_or(config.unet.sample_size);
        let scheduler = edm.unwrap_or_else(|| family.scheduler(distillation, prediction_type));
        let zero_snr = file.zero_snr.then_some(true);
        let scheduler = SchedulerConfig { rescale_betas_zero_snr: zero_snr, ..scheduler };
        self.changed(Description::new(family, config, scheduler, distillation))
    }

    /// The description with what is to be taken instead.
    fn changed(&self, own: Description) -> Result<Description> {
        let mut description = own.clone();
        if let Some(prediction_type) = self.prediction_type {
            description.scheduler.prediction_type = Some(prediction_type.to_string());
        }
        if let Some(vae) = &self.vae {
            let config = &mut description.config;
            config.vae = read_vae(vae, config, description.family)?;
            config.check(vae)?;
        }
        if let Some(vae) = &self.preview_vae {
            let config = &mut description.config;
            let AutoencoderConfig::Tiny(tiny) = read_vae(vae, config, description.family)? else {
                let message = "a whole VAE; previews want a tiny one, such as TAESD or, for XL, TAESDXL";
                return Err(Error::file(vae, message));
            };
            config.preview_vae = Some(tiny.for_previews(vae, &config.vae)?);
        }
        if let AutoencoderConfig::Kl(vae) = &mut description.config.vae {
            vae.force_upcast &= description.family.heeds_force_upcast;
        }
        read_controlnets(&mut description.config, &self.controlnets)?;
        if let Some(files) = self.refiner() {
            // By what they bring themselves: another VAE says nothing of the latents that they were trained on.
            check_refiner(&files.location, &ModelFiles::from(files.location.clone()).describe()?, &own)?;
            description.refiner = Some(Box::new(files.describe()?));
        }
        Ok(description)
    }

    /// The files of the refiner, which has the VAEs that take the place of the model's.
    pub(super) fn refiner(&self) -> Option<ModelFiles> {
        let (vae, preview_vae) = (self.vae.clone(), self.preview_vae.clone());
        Some(ModelFiles { vae, preview_vae, ..self.refiner.clone()?.into() })
    }
}

/// Reads the configuration of another VAE; what its shapes leave open is as in the model's, or its family's.
fn read_vae(vae: &Location, model: &ModelConfig, family: &Family) -> Result<AutoencoderConfig> {
    if vae.is_folder() {
        return AutoencoderConfig::read(&single_file::vae_folder(vae).join("config.json"));
    }
    let file = single_file::open_vae(vae, "vae")?;
    let like = match &model.vae {
        AutoencoderConfig::Kl(vae) => vae.clone(),
        AutoencoderConfig::Tiny(_) => (family.vae)(),
    };
    AutoencoderConfig::infer(vae, &file.shapes(), &like)
}

/// Checks that a refiner, which `location` has, can go on with the latents of a model.
fn check_refiner(location: &Location, refiner: &Description, model: &Description) -> Result<()> {
    let refuse = |message: String| Err(Error::file(location, message));
    if refiner.config.unet_input() != UNetInput::Latents {
        return refuse("sees an image beside its latents; a refiner sees the latents alone".into());
    }
    if !refiner.config.vae.encodes() {
        return refuse("its VAE has no encoder; a refiner encodes what a mask keeps".into());
    }
    for description in [refiner, model] {
        if description.scheduler.noise_model()? != NoiseModel::VariancePreserving {
            return refuse(format!(
                "{} has noise of its own, so that neither can go on with the latents of the other",
                description.family
            ));
        }
    }
    if !refiner.scheduler.has_betas_of(&model.scheduler) {
        return refuse(
            "was trained with other timesteps or betas than the model whose latents it would go on with"
                .into(),
        );
    }
    let [ours, theirs] = [refiner, model].map(|description| &description.config.vae);
    for (what, ours, theirs) in [
        ("latent_channels", ours.latent_channels() as f32, theirs.latent_channels() as f32),
        ("pixels along a latent's side", ours.scale_factor() as f32, theirs.scale_factor() as f32),
        ("scaling_factor", ours.scaling_factor(), theirs.scaling_factor()),
    ] {
        if ours != theirs {
            return refuse(format!(
                "{what}: {ours}, and {theirs} in the model; a refiner goes on with latents of the same kind"
            ));
        }
    }
    Ok(())
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
    /// Whether the model is told an aesthetic score.
    pub(super) fn reads_score(&self) -> bool {
        self.config.unet.text_time.is_some_and(|text_time| text_time.has_score())
    }

    /// A model that states no defaults and brings no vocabulary.
    fn new(
        family: &'static Family,
        config: ModelConfig,
        scheduler: SchedulerConfig,
        distillation: Distillation,
    ) -> Self {
        Description {
            family,
            distillation,
            defaults: Defaults::default(),
            zeroes_empty_prompt: family.zeroes_empty_prompt,
            tokenizers: vec![None; config.text_encoders.len()],
            refiner: None,
            config,
            scheduler,
        }
    }
}

impl KnownShapes {
    pub fn describe(self) -> Description {
        let config = match self {
            KnownShapes::Sd15 => ModelConfig::sd15(),
            KnownShapes::Sd21 => ModelConfig::sd21(),
            KnownShapes::Sdxl => ModelConfig::sdxl(),
        };
        let family = Family::of(&config, NoiseModel::VariancePreserving);
        let scheduler = family.scheduler(Distillation::None, family.prediction_type);
        Description::new(family, config, scheduler, Distillation::None)
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
