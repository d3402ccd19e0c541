//! The VAE of either kind.

use super::blocks::Carried;
use super::config::AutoencoderConfig;
use super::tiny_vae::TinyVae;
use super::vae::Vae;
use crate::ops::{Ops, Tensor};
use crate::weights::plan::Plan;

#[expect(clippy::large_enum_variant, reason = "a pipeline has one")]
pub enum Autoencoder {
    Kl(Vae),
    Tiny(TinyVae),
}

impl Autoencoder {
    /// `carried` is for feature maps beyond what a half can hold, which the tiny one does not have.
    pub fn new(config: &AutoencoderConfig, carried: Carried, plan: &mut Plan) -> Self {
        match config {
            AutoencoderConfig::Kl(config) => Autoencoder::Kl(Vae::new(config, carried, plan)),
            AutoencoderConfig::Tiny(config) => Autoencoder::Tiny(TinyVae::new(config, plan)),
        }
    }

    /// What encodes a picture to a distribution of latents.
    ///
    /// # Panics
    /// If it is a tiny one: [`Request::check`](crate::pipeline::Request::check) lets no picture come to it.
    pub fn encoder(&self) -> &Vae {
        match self {
            Autoencoder::Kl(vae) => vae,
            Autoencoder::Tiny(_) => panic!("a tiny VAE has no distribution of latents"),
        }
    }

    /// The picture `out` [b,8h,8w,3] in -1..1 of latents f32 [b,h,w,latent_channels].
    pub fn decode(&self, ops: &mut dyn Ops, out: Tensor, latents: Tensor) {
        match self {
            Autoencoder::Kl(vae) => vae.decode(ops, out, latents),
            Autoencoder::Tiny(vae) => vae.decode(ops, out, latents),
        }
    }
}
