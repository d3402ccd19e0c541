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

    /// Channels of a picture that is encoded: red, green, blue and what fills up.
    ///
    /// # Panics
    /// As [`Autoencoder::encode`].
    pub fn picture_channels(&self) -> usize {
        match self {
            Autoencoder::Kl(vae) => vae.picture_channels(),
            Autoencoder::Tiny(vae) => vae.picture_channels(),
        }
    }

    /// The latents of a picture, before the scaling factor: `out` [b,h/8,w/8,encoded_channels] of `picture`
    /// [b,h,w,4] in -1..1, whose fourth channel is zero.
    ///
    /// # Panics
    /// If it decodes only: [`Request::check`](crate::pipeline::Request::check) lets no picture come to it.
    pub fn encode(&self, ops: &mut dyn Ops, out: Tensor, picture: Tensor) {
        match self {
            Autoencoder::Kl(vae) => vae.encode(ops, out, picture),
            Autoencoder::Tiny(vae) => vae.encode(ops, out, picture),
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
