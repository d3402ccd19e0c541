//! What `sdrt bench` and `sdrt profile` paint in order to measure it.

use crate::error::Result;
use crate::ops::Backend;
use crate::pipeline::{Control, Description, Init, Model, Pipeline, Request};
use crate::sampler::Sampler;

/// Its words do not matter to the time.
const PROMPT: &str = "a lighthouse at dawn";

/// A model and a picture. What is left open is as the model suggests.
#[derive(Clone, Debug)]
pub struct Workload {
    pub model: Model,
    pub steps: usize,
    pub guidance_scale: Option<f32>,
    pub width: Option<usize>,
    pub height: Option<usize>,
    /// Whether an image's bytes are the same alone and in any batch ([`Backend::keep_alike`]), as in the engine.
    pub batch_invariant: bool,
}

impl Workload {
    /// Loads the model onto a backend that was just opened.
    pub fn load(&self, mut backend: Box<dyn Backend>) -> Result<Pipeline> {
        if self.batch_invariant {
            backend.keep_alike();
        }
        self.model.load(backend, &mut |_, _| ())
    }

    /// The request for so many pictures at once: DDIM, whose steps are one evaluation each, in all of which
    /// every ControlNet of the model acts.
    ///
    /// # Errors
    /// A model that cannot be read, or a value that it cannot paint with.
    pub fn request(&self, images: usize) -> Result<Request> {
        let description = self.model.describe()?;
        let defaults = Request::defaults(&description, Sampler::Ddim);
        let (width, height) = (self.width.unwrap_or(defaults.width), self.height.unwrap_or(defaults.height));
        let controls = description.config.controlnets.len();
        let request = Request {
            prompt: PROMPT.to_string(),
            images,
            steps: self.steps,
            guidance_scale: self.guidance_scale.unwrap_or(defaults.guidance_scale),
            width,
            height,
            init: Init::wanted(&description),
            controls: vec![Control::blank(); controls],
            ..defaults
        };
        request.check(&description)?;
        Ok(request)
    }
}

/// A request in words: size, guidance and ControlNets.
pub fn summary(request: &Request, model: &Description) -> String {
    let Request { width, height, guidance_scale, controls, .. } = request;
    let guidance = if request.is_guided(&model.config) {
        format!("guidance scale {guidance_scale}")
    } else if model.config.unet.time_cond_proj_dim.is_some() {
        format!("guidance scale {guidance_scale} as an input")
    } else {
        "no guidance".to_string()
    };
    let controls = match controls.len() {
        0 => String::new(),
        1 => ", 1 ControlNet".to_string(),
        n => format!(", {n} ControlNets"),
    };
    format!("{width}x{height}, {guidance}{controls}")
}
