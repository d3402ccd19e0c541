//! What a picture is painted from instead of noise alone.

use super::model::Description;
use crate::error::{Invalid, Result};
use crate::model::config::UNetInput;
use crate::parameter::Parameter;
use crate::raster::Raster;

/// A picture to start from.
#[derive(Clone, Debug)]
pub struct Init {
    /// Of any size: it is brought to that of the request.
    pub picture: Raster,
    /// What is light is painted, what is dark is kept; of any size. `None` paints all.
    pub mask: Option<Raster>,
    /// How much of the way from noise is gone, above 0 to 1: 1 keeps next to nothing of the picture.
    pub strength: f64,
}

impl Init {
    /// A grey picture, all of which is painted.
    pub fn blank() -> Self {
        Init { picture: plain(128), mask: None, strength: 1.0 }
    }

    /// A grey picture where a model wants one, for counting and measuring.
    pub fn wanted(model: &Description) -> Option<Self> {
        match model.config.unet_input() {
            UNetInput::Latents => None,
            UNetInput::MaskedImage => Some(Init { mask: Some(plain(255)), ..Self::blank() }),
            UNetInput::Image => Some(Self::blank()),
        }
    }

    /// What the pipelines of diffusers take where nothing is said.
    pub fn default_strength(model: &Description, masked: bool) -> f64 {
        match model.config.unet_input() {
            UNetInput::Image => 1.0,
            _ if masked => model.family.masked_strength,
            _ => model.family.strength,
        }
    }
}

/// One pixel of a grey.
fn plain(level: u8) -> Raster {
    Raster { width: 1, height: 1, rgb: vec![level; 3] }
}

/// A picture is first painted small, then enlarged as latents, then painted anew from there: A1111's hires fix with
/// its upscaler `Latent`.
#[derive(Clone, Copy, Debug)]
pub struct Hires {
    /// Of width and height, above 1.
    pub scale: f64,
    /// As [`Init::strength`].
    pub strength: f64,
    /// As many as for the small picture if nothing is said.
    pub steps: Option<usize>,
}

impl Hires {
    /// A1111's and stable-diffusion.cpp's.
    pub const DEFAULT_STRENGTH: f64 = 0.7;

    /// A side of the large picture: a multiple of `multiple`, rounded down.
    pub fn side(&self, side: usize, multiple: usize) -> usize {
        (side as f64 * self.scale) as usize / multiple * multiple
    }
}

/// How many steps an image leaves out at the start: `get_timesteps` of diffusers' pipelines. `parameter` is that of
/// the strength.
pub(super) fn skipped_steps(parameter: Parameter, strength: f64, steps: usize) -> Result<usize> {
    parameter.check(strength)?;
    match (steps as f64 * strength) as usize {
        0 if steps > 0 => Err(Invalid::value(parameter, strength)
            .problem(format!("of {steps} steps it leaves none to denoise"))
            .advice(format!(
                "raise it to {} or more, or take more steps",
                (100.0 / steps as f64).ceil() / 100.0
            ))
            .error()),
        left => Ok(steps - left.min(steps)),
    }
}
