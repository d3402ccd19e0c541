//! What a picture's file says of it.

use super::controlnet::{self, UsedControlNet};
use super::lora::{self, UsedLora};
use super::parameters::Parameters;
use crate::ops::DType;
use crate::pipeline::{Request, RequestPatch};

/// What a picture came from besides its request.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The model's name.
    pub model: String,
    /// The refiner's name.
    pub refiner: Option<String>,
    /// The machine's name, as [`Backend::name`](crate::ops::Backend::name) gives it.
    pub device: String,
    pub dtype: DType,
    /// Names and hashes of all LoRAs that act.
    pub lora_hashes: Vec<(String, String)>,
    /// Those of them that the prompt does not name.
    pub loras: Vec<UsedLora>,
    /// In the order of the request's.
    pub controlnets: Vec<UsedControlNet>,
}

/// A1111's keys of a refiner: its name, and where it takes over.
pub(super) const REFINER: &str = "Refiner";
pub(super) const REFINER_START: &str = "Refiner switch at";

/// The upscaler of hires fix.
pub(super) const LATENT: &str = "Latent";

/// How [`Parameters`] name this program.
pub(super) const VERSION: &str = concat!("sdrt ", env!("CARGO_PKG_VERSION"));

impl Origin {
    /// The parameters of picture `index` of a request: A1111's keys in A1111's order, and some of our own that
    /// other readers pass over: on `Device` and `Precision` the last bits of a picture depend.
    ///
    /// There is no `Model hash`: readers look a model up by the SHA-256 of its one file, which takes longer than
    /// a picture, and what a folder has instead, nobody could find.
    pub fn parameters(&self, request: &Request, index: usize) -> Parameters {
        let batch = request.images > 1;
        let eta = request.eta.filter(|_| request.eta != request.sampler.default_eta());
        let hires = request.hires;
        let strength = request.init.as_ref().map(|init| init.strength).or(hires.map(|hires| hires.strength));
        let settings = [
            ("Steps", Some(request.steps.to_string())),
            ("Sampler", Some(request.sampler.label().to_string())),
            ("Schedule type", Some(request.schedule.label().to_string())),
            ("CFG scale", Some(format!("{:?}", request.guidance_scale))),
            ("Seed", Some(request.seed.wrapping_add(index as u64).to_string())),
            ("Size", Some(format!("{}x{}", request.width, request.height))),
            ("Model", Some(self.model.clone())),
            ("Denoising strength", strength.map(|strength| strength.to_string())),
            ("Clip skip", request.clip_skip.map(|skip| skip.to_string())),
            (request.sampler.eta_label(), eta.map(|eta| eta.to_string())),
        ];
        let hires_fix = [
            ("Hires upscale", hires.map(|hires| hires.scale.to_string())),
            ("Hires steps", hires.and_then(|hires| hires.steps).map(|steps| steps.to_string())),
            ("Hires upscaler", hires.map(|_| LATENT.to_string())),
            ("Batch size", batch.then(|| request.images.to_string())),
            ("Batch pos", batch.then(|| index.to_string())),
        ];
        let start = request.refiner_start.filter(|_| self.refiner.is_some());
        let refiner =
            [(REFINER, self.refiner.clone()), (REFINER_START, start.map(|start| start.to_string()))];
        let painter = [
            ("RNG", Some(request.rng.label().to_string())),
            ("Device", Some(self.device.clone())),
            ("Precision", Some(self.dtype.to_string())),
            ("Version", Some(VERSION.to_string())),
        ];
        let given = |(key, value): (&str, Option<String>)| Some((key.to_string(), value?));
        let plain = RequestPatch::of(request);
        let plain = plain.recorded().map(|(key, value)| (key.to_string(), value));
        let settings = settings.into_iter().filter_map(given).chain(plain);
        let settings = settings.chain(hires_fix.into_iter().filter_map(given));
        let settings = settings.chain(refiner.into_iter().filter_map(given));
        let settings = settings.chain(lora::settings(&self.lora_hashes, &self.loras));
        let settings = settings.chain(controlnet::settings(&self.controlnets));
        let settings = settings.chain(painter.into_iter().filter_map(given));
        Parameters {
            prompt: request.prompt.clone(),
            negative_prompt: request.negative_prompt.clone(),
            settings: settings.filter(|(_, value)| !value.is_empty()).collect(),
        }
    }
}
