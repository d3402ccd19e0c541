//! `scheduler/scheduler_config.json` of a diffusers folder.

use serde::Deserialize;

use super::name::Sampler;
use super::noise_model::{Edm, NoiseModel};
use super::ramp::Ramp;
use crate::error::{Error, Result};
use crate::location::Location;
use crate::parameter::{Parameter, sentence};

const DPM: &str = "DPMSolverMultistepScheduler";
const EDM_DPM: &str = "EDMDPMSolverMultistepScheduler";

/// What a model says about its noise and its sampler. `None` stands for the default of whichever
/// scheduler reads it, as with `from_config` of diffusers.
#[derive(Clone, Debug, Deserialize)]
pub struct SchedulerConfig {
    #[serde(rename = "_class_name")]
    pub class_name: Option<String>,
    #[serde(default = "train_timesteps")]
    pub num_train_timesteps: usize,
    pub beta_start: Option<f64>,
    pub beta_end: Option<f64>,
    /// `scaled_linear`, `linear` or `squaredcos_cap_v2`.
    pub beta_schedule: Option<String>,
    /// Overrides the three before it.
    pub trained_betas: Option<Vec<f32>>,
    /// `epsilon` (default), `v_prediction` or `sample`.
    pub prediction_type: Option<String>,
    /// `leading`, `linspace` or `trailing`.
    pub timestep_spacing: Option<String>,
    pub steps_offset: Option<usize>,
    pub rescale_betas_zero_snr: Option<bool>,
    /// `zero` (default) or `sigma_min`: the noise level after the last step.
    pub final_sigmas_type: Option<String>,
    pub use_karras_sigmas: Option<bool>,
    pub use_exponential_sigmas: Option<bool>,
    pub use_beta_sigmas: Option<bool>,

    // DDIM, PNDM, LCM, TCD, DDPM
    pub set_alpha_to_one: Option<bool>,
    pub skip_prk_steps: Option<bool>,
    pub clip_sample: Option<bool>,
    pub variance_type: Option<String>,
    pub original_inference_steps: Option<usize>,
    pub timestep_scaling: Option<f64>,

    // DPM-Solver, DEIS, UniPC
    pub algorithm_type: Option<String>,
    pub solver_order: Option<usize>,
    pub solver_type: Option<String>,
    pub lower_order_final: Option<bool>,
    pub euler_at_final: Option<bool>,
    pub predict_x0: Option<bool>,
    pub disable_corrector: Option<Vec<usize>>,
    pub lambda_min_clipped: Option<f64>,

    // EDM; `sigma_min` and `sigma_max` also of Euler with continuous timesteps
    pub sigma_data: Option<f64>,
    pub sigma_min: Option<f64>,
    pub sigma_max: Option<f64>,
    /// `karras` (default) or `exponential`.
    pub sigma_schedule: Option<String>,
    pub rho: Option<f64>,
    /// `discrete` (default) or `continuous`.
    pub timestep_type: Option<String>,

    // Flow matching
    pub shift: Option<f64>,

    // Known to diffusers, refused here.
    pub thresholding: Option<bool>,
    pub use_flow_sigmas: Option<bool>,
    pub use_lu_lambdas: Option<bool>,
    pub interpolation_type: Option<String>,
    pub use_dynamic_shifting: Option<bool>,
    pub invert_sigmas: Option<bool>,
    pub stochastic_sampling: Option<bool>,
    pub shift_terminal: Option<f64>,
}

/// `num_train_timesteps` where the configuration has none.
fn train_timesteps() -> usize {
    1000
}

impl SchedulerConfig {
    /// Reads `scheduler_config.json`.
    pub fn load(file: &Location) -> Result<Self> {
        let text = file.read_text()?;
        let config = Self::parse(&text).map_err(|error| Error::file(file, error))?;
        config.noise_model().map_err(|error| Error::file(file, error))?;
        Ok(config)
    }

    /// Outdated keys as `StableDiffusionPipeline` corrects them, which XL's does not.
    pub fn corrected(self) -> Self {
        SchedulerConfig { steps_offset: Some(1), clip_sample: Some(false), ..self }
    }

    /// Parses the text of a `scheduler_config.json`, and changes nothing.
    pub fn parse(text: &str) -> serde_json::Result<Self> {
        // diffusers writes Python's `-Infinity` for an unset lambda_min_clipped, which is not JSON.
        serde_json::from_str(&text.replace(": -Infinity", ": null"))
    }

    /// Whether the noise of both trainings is the same at every timestep, for models with
    /// [`NoiseModel::VariancePreserving`].
    pub fn has_betas_of(&self, other: &Self) -> bool {
        let of = |config: &Self| {
            let zero_snr = config.rescale_betas_zero_snr == Some(true);
            (config.num_train_timesteps, config.beta_start, config.beta_end, zero_snr)
        };
        of(self) == of(other)
            && (&self.beta_schedule, &self.trained_betas) == (&other.beta_schedule, &other.trained_betas)
    }

    /// The configuration of Stable Diffusion 1.5, and of 2.1 but for the prediction type.
    pub fn sd15() -> Self {
        Self::parse(
            r#"{"_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085,
                "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": false,
                "skip_prk_steps": true, "steps_offset": 1, "clip_sample": false}"#,
        )
        .expect("a valid configuration")
    }

    pub fn sdxl() -> Self {
        let spacing = Some("leading".to_string());
        SchedulerConfig { timestep_spacing: spacing, ..Self::sd15().of("EulerDiscreteScheduler") }
    }

    /// Of models that are distilled adversarially: Turbo, Lightning.
    pub fn turbo() -> Self {
        let spacing = Some("trailing".to_string());
        SchedulerConfig { timestep_spacing: spacing, ..Self::sd15().of("EulerDiscreteScheduler") }
    }

    pub fn lcm() -> Self {
        Self::sd15().of("LCMScheduler")
    }

    /// The configuration of Playground 2.5.
    pub fn playground() -> Self {
        Self::parse(
            r#"{"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_min": 0.002, "sigma_max": 80.0,
                "sigma_data": 0.5, "prediction_type": "epsilon"}"#,
        )
        .expect("a valid configuration")
    }

    /// The configuration of CosXL, and its edit model, which state their noise levels.
    pub fn cosxl(sigma_min: f64, sigma_max: f64) -> Self {
        let config = Self::parse(
            r#"{"_class_name": "EDMEulerScheduler", "sigma_data": 1.0, "prediction_type": "v_prediction",
                "sigma_schedule": "exponential"}"#,
        )
        .expect("a valid configuration");
        SchedulerConfig { sigma_min: Some(sigma_min), sigma_max: Some(sigma_max), ..config }
    }

    /// The noise of the model's training.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a key that it follows from is missing, or has no possible value.
    pub fn noise_model(&self) -> Result<NoiseModel> {
        NoiseModel::of(self)
    }

    /// The noise of the model's training, in a line.
    pub fn describe_noise(&self) -> String {
        match self.noise_model() {
            Ok(NoiseModel::VariancePreserving) => {
                let [start, end] = [self.beta_start, self.beta_end].map(Option::unwrap_or_default);
                let schedule = self.beta_schedule.as_deref().unwrap_or_default();
                format!("{} timesteps, betas {schedule} {start} to {end}", self.num_train_timesteps)
            }
            Ok(NoiseModel::Edm(Edm { sigma_data, sigma_min, sigma_max, .. })) => {
                format!("EDM, sigma {sigma_min} to {sigma_max}, data of deviation {sigma_data}")
            }
            Ok(NoiseModel::Flow { shift }) => format!("rectified flow, shift {shift}"),
            Err(error) => error.to_string(),
        }
    }

    fn of(self, class_name: &str) -> Self {
        SchedulerConfig { class_name: Some(class_name.to_string()), ..self }
    }

    /// The sampler that the configuration was written for.
    pub fn default_sampler(&self) -> Result<Sampler> {
        let class = self.class_name.as_deref().unwrap_or("none");
        let algorithm = self.algorithm_type.as_deref().unwrap_or("dpmsolver++");
        Ok(match (class, algorithm) {
            ("DDIMScheduler", _) => Sampler::Ddim,
            ("PNDMScheduler", _) => Sampler::Pndm,
            ("EulerDiscreteScheduler" | "EDMEulerScheduler", _) => Sampler::Euler,
            ("FlowMatchEulerDiscreteScheduler", _) => Sampler::Euler,
            ("EulerAncestralDiscreteScheduler", _) => Sampler::EulerAncestral,
            ("HeunDiscreteScheduler", _) => Sampler::Heun,
            ("KDPM2DiscreteScheduler", _) => Sampler::Dpm2,
            ("KDPM2AncestralDiscreteScheduler", _) => Sampler::Dpm2Ancestral,
            ("DEISMultistepScheduler", _) => Sampler::Deis,
            (DPM | EDM_DPM, "dpmsolver++") => Sampler::DpmPp2m,
            (DPM | EDM_DPM, "sde-dpmsolver++") => Sampler::DpmPp2mSde,
            (DPM | EDM_DPM, _) => {
                return Err(Error::invalid(sentence![
                    format!(
                        "scheduler_config.json: algorithm_type {algorithm} is not supported (dpmsolver++ and \
                         sde-dpmsolver++ are); choose a sampler with "
                    ),
                    Parameter::Sampler
                ]));
            }
            ("LMSDiscreteScheduler", _) => Sampler::Lms,
            ("UniPCMultistepScheduler", _) => Sampler::UniPc,
            ("LCMScheduler", _) => Sampler::Lcm,
            ("TCDScheduler", _) => Sampler::Tcd,
            ("DDPMScheduler", _) => Sampler::Ddpm,
            _ => {
                let names = Sampler::ALL.map(Sampler::name).join(", ");
                return Err(Error::invalid(sentence![
                    format!(
                        "scheduler_config.json: _class_name {class} has no sampler here; choose one with "
                    ),
                    Parameter::Sampler,
                    format!(": {names}")
                ]));
            }
        })
    }

    /// Refuses what no table here computes, rather than leaving it out.
    pub(super) fn check(&self, sampler: Sampler, noise: NoiseModel) -> Result<()> {
        let is_edm = matches!(noise, NoiseModel::Edm(_));
        let multistep = matches!(sampler, Sampler::DpmPp2m | Sampler::DpmPp2mSde | Sampler::UniPc);
        let unsupported = [
            ("clip_sample", self.clip_sample == Some(true)),
            ("thresholding", self.thresholding == Some(true)),
            ("use_flow_sigmas", self.use_flow_sigmas == Some(true)),
            ("use_lu_lambdas", self.use_lu_lambdas == Some(true)),
            ("sigma_min", self.sigma_min.is_some() && !is_edm),
            ("sigma_max", self.sigma_max.is_some() && !is_edm),
            ("lambda_min_clipped", self.lambda_min_clipped.is_some()),
            ("interpolation_type", self.interpolation_type.as_deref().is_some_and(|t| t != "linear")),
            ("timestep_type", self.timestep_type.as_deref().is_some_and(|t| t != "discrete") && !is_edm),
            ("use_dynamic_shifting", self.use_dynamic_shifting == Some(true)),
            ("invert_sigmas", self.invert_sigmas == Some(true)),
            ("stochastic_sampling", self.stochastic_sampling == Some(true)),
            ("shift_terminal", self.shift_terminal.is_some()),
            ("variance_type", self.variance_type.as_deref().is_some_and(|t| t != "fixed_small")),
            ("skip_prk_steps", sampler == Sampler::Pndm && self.skip_prk_steps == Some(false)),
            ("predict_x0", sampler == Sampler::UniPc && self.predict_x0 == Some(false)),
            (
                "disable_corrector",
                sampler == Sampler::UniPc && self.disable_corrector.as_ref().is_some_and(|d| !d.is_empty()),
            ),
            ("solver_order", multistep && !matches!(self.solver_order, None | Some(1 | 2))),
            ("solver_order", sampler == Sampler::Deis && !matches!(self.solver_order, None | Some(1..=3))),
            (
                "solver_type",
                match self.solver_type.as_deref() {
                    Some("heun") => multistep && sampler != Sampler::UniPc,
                    Some("bh1") => sampler == Sampler::UniPc,
                    None | Some("midpoint" | "logrho" | "bh2") => false,
                    Some(_) => multistep,
                },
            ),
        ];
        match unsupported.iter().find(|(_, unsupported)| *unsupported) {
            None => Ok(()),
            Some((key, _)) => Err(Error::invalid(sentence![
                format!(
                    "scheduler_config.json: this value of {key} is not supported with the sampler {sampler}; \
                     try another "
                ),
                Parameter::Sampler,
                ", or change the key if the model does not depend on it"
            ])),
        }
    }
}

/// Looks `value` up among the values that a key may have.
pub(super) fn choose<T: Copy>(key: &str, value: &str, choices: &[(&str, T)]) -> Result<T> {
    choices.iter().find(|(name, _)| *name == value).map(|&(_, choice)| choice).ok_or_else(|| {
        let names: Vec<&str> = choices.iter().map(|&(name, _)| name).collect();
        Error::invalid(format!("scheduler_config.json: {key} is {value}; supported are {}", names.join(", ")))
    })
}

impl NoiseModel {
    fn of(config: &SchedulerConfig) -> Result<Self> {
        let is_continuous = config.timestep_type.as_deref() == Some("continuous");
        let predicts_velocity = config.prediction_type.as_deref() == Some("v_prediction");
        match config.class_name.as_deref() {
            Some("EDMEulerScheduler" | "EDMDPMSolverMultistepScheduler") => {
                Ok(NoiseModel::Edm(Edm::of_edm_scheduler(config)?))
            }
            Some("EulerDiscreteScheduler") if is_continuous && predicts_velocity => {
                Ok(NoiseModel::Edm(Edm::of_continuous(config)?))
            }
            Some("FlowMatchEulerDiscreteScheduler") => {
                let shift = config.shift.unwrap_or(1.0);
                if !(shift.is_finite() && shift > 0.0) {
                    return Err(Error::invalid(format!(
                        "scheduler_config.json: shift is {shift}; expected a positive number"
                    )));
                }
                Ok(NoiseModel::Flow { shift })
            }
            _ => match [
                ("beta_start", config.beta_start.is_none()),
                ("beta_end", config.beta_end.is_none()),
                ("beta_schedule", config.beta_schedule.is_none()),
            ]
            .iter()
            .find(|(_, is_missing)| *is_missing)
            {
                None => Ok(NoiseModel::VariancePreserving),
                Some((key, _)) => {
                    Err(Error::invalid(format!("scheduler_config.json: {key} is missing; expected a value")))
                }
            },
        }
    }
}

impl Edm {
    /// As the schedulers EDMEulerScheduler and EDMDPMSolverMultistepScheduler of diffusers read it.
    fn of_edm_scheduler(config: &SchedulerConfig) -> Result<Self> {
        let rho = config.rho.unwrap_or(7.0);
        let ramps = [("karras", Ramp::Karras { rho }), ("exponential", Ramp::Exponential)];
        let edm = Edm {
            sigma_data: config.sigma_data.unwrap_or(0.5),
            sigma_min: config.sigma_min.unwrap_or(0.002),
            sigma_max: config.sigma_max.unwrap_or(80.0),
            ramp: choose("sigma_schedule", config.sigma_schedule.as_deref().unwrap_or("karras"), &ramps)?,
            starts_above: true,
        };
        for (key, value) in [("sigma_data", edm.sigma_data), ("rho", rho)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::invalid(format!(
                    "scheduler_config.json: {key} is {value}; expected a positive number"
                )));
            }
        }
        edm.checked()
    }

    /// As EulerDiscreteScheduler of diffusers reads it with continuous timesteps: its noise levels follow from no
    /// betas only where they are spaced between two given ones.
    fn of_continuous(config: &SchedulerConfig) -> Result<Self> {
        let ramp = match (config.use_karras_sigmas, config.use_exponential_sigmas) {
            (Some(true), _) => Ramp::Karras { rho: 7.0 },
            (_, Some(true)) => Ramp::Exponential,
            _ => {
                return Err(Error::invalid(
                    "scheduler_config.json: timestep_type continuous is supported with use_karras_sigmas or \
                     use_exponential_sigmas only",
                ));
            }
        };
        let (Some(sigma_min), Some(sigma_max)) = (config.sigma_min, config.sigma_max) else {
            return Err(Error::invalid(
                "scheduler_config.json: timestep_type continuous is supported with sigma_min and sigma_max only",
            ));
        };
        let starts_above = config.timestep_spacing.as_deref() == Some("leading");
        Edm { sigma_data: 1.0, sigma_min, sigma_max, ramp, starts_above }.checked()
    }
}
