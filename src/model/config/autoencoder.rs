//! Which kind of VAE there is between latents and pictures.

use super::shapes::Shapes;
use super::tiny_vae::TinyVaeConfig;
use super::vae::VaeConfig;
use crate::error::{Error, Result};
use crate::json::Object;
use crate::location::Location;
use crate::ops::Statistics;

/// Colours of a picture.
pub const RGB: usize = 3;
/// Latent pixels of a tile's side where the configuration says nothing of the size that it was trained at.
const TILE: usize = 64;
/// Latent pixels of the smallest tile's side: a quarter of it is blended.
pub const MIN_TILE: usize = 8;

/// The VAE of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum AutoencoderConfig {
    Kl(VaeConfig),
    Tiny(TinyVaeConfig),
}

impl AutoencoderConfig {
    /// Reads the `config.json` of either.
    pub fn read(file: &Location) -> Result<Self> {
        if Object::read(file)?.text("_class_name")? == Some(TinyVaeConfig::CLASS_NAME) {
            Ok(AutoencoderConfig::Tiny(TinyVaeConfig::read(file)?))
        } else {
            Ok(AutoencoderConfig::Kl(VaeConfig::read(file)?))
        }
    }

    /// The configuration of a VAE by its shapes; the rest as that of `family`.
    pub fn infer(file: &Location, shapes: &Shapes, family: &VaeConfig) -> Result<Self> {
        Self::of_shapes(shapes, family).ok_or_else(|| {
            let message = "not the shapes of a VAE of Stable Diffusion; try one in the layout of diffusers";
            Error::file(file, message)
        })
    }

    pub(super) fn of_shapes(shapes: &Shapes, family: &VaeConfig) -> Option<Self> {
        match TinyVaeConfig::of_shapes(shapes) {
            Some(tiny) => Some(AutoencoderConfig::Tiny(tiny)),
            None => VaeConfig::of_shapes(shapes, family).map(AutoencoderConfig::Kl),
        }
    }

    pub fn latent_channels(&self) -> usize {
        match self {
            AutoencoderConfig::Kl(vae) => vae.latent_channels,
            AutoencoderConfig::Tiny(vae) => vae.latent_channels,
        }
    }

    /// Whether pictures can be encoded: files for decoding alone are tiny.
    pub fn encodes(&self) -> bool {
        match self {
            AutoencoderConfig::Kl(_) => true,
            AutoencoderConfig::Tiny(vae) => vae.encoder.is_some(),
        }
    }

    /// Whether a picture is encoded to a normal distribution of latents; a tiny VAE gives the latents.
    pub fn is_variational(&self) -> bool {
        matches!(self, AutoencoderConfig::Kl(_))
    }

    /// Channels of an encoded picture: its latents, or their mean and log variance side by side.
    pub fn encoded_channels(&self) -> usize {
        self.latent_channels() * if self.is_variational() { 2 } else { 1 }
    }

    /// Latents are what the encoder gives, times this.
    pub fn scaling_factor(&self) -> f32 {
        match self {
            AutoencoderConfig::Kl(vae) => vae.scaling_factor,
            AutoencoderConfig::Tiny(vae) => vae.scaling_factor,
        }
    }

    /// Factor and summand of the latents of a channel: what the encoder gives, times the one, plus the other.
    pub fn normalization(&self, channel: usize) -> (f32, f32) {
        match self {
            AutoencoderConfig::Kl(vae) => vae.normalization(channel),
            AutoencoderConfig::Tiny(vae) => (vae.scaling_factor, 0.0),
        }
    }

    /// The same with latents of Playground 2.5, whose file has their statistics and not their factor.
    pub fn playground(self, latents: Statistics) -> Self {
        match self {
            AutoencoderConfig::Kl(vae) => {
                VaeConfig { statistics: Some(latents), scaling_factor: 0.5, ..vae }.into()
            }
            tiny @ AutoencoderConfig::Tiny(_) => tiny,
        }
    }

    /// Picture pixels along one latent pixel: 8 for Stable Diffusion.
    pub fn scale_factor(&self) -> usize {
        match self {
            AutoencoderConfig::Kl(vae) => vae.scale_factor(),
            AutoencoderConfig::Tiny(vae) => vae.scale_factor(),
        }
    }

    /// Elements of the largest map between layers, for one picture of h x w.
    pub fn largest_map(&self, h: usize, w: usize) -> usize {
        match self {
            AutoencoderConfig::Kl(vae) => vae.largest_map(h, w),
            AutoencoderConfig::Tiny(vae) => vae.largest_map(h, w),
        }
    }

    /// Latent pixels of a tile's side: diffusers' `tile_latent_min_size`, the size that it was trained at.
    pub fn tile_size(&self) -> usize {
        match self {
            AutoencoderConfig::Kl(vae) => (vae.sample_size / vae.scale_factor()).max(MIN_TILE),
            AutoencoderConfig::Tiny(_) => TILE,
        }
    }
}

impl TinyVaeConfig {
    /// The decoder of previews for the latents of `vae`, as `file` describes this.
    ///
    /// # Errors
    /// Latents of another shape.
    pub fn for_previews(self, file: &Location, vae: &AutoencoderConfig) -> Result<Self> {
        for (what, ours, theirs) in [
            ("latent_channels", self.latent_channels, vae.latent_channels()),
            ("picture pixels along one latent pixel", self.scale_factor(), vae.scale_factor()),
        ] {
            if ours != theirs {
                let message = format!(
                    "{what}: {ours}, and {theirs} in the model's VAE; give a tiny VAE that was made for this model"
                );
                return Err(Error::file(file, message));
            }
        }
        Ok(TinyVaeConfig { encoder: None, ..self })
    }
}

impl From<VaeConfig> for AutoencoderConfig {
    fn from(vae: VaeConfig) -> Self {
        AutoencoderConfig::Kl(vae)
    }
}
