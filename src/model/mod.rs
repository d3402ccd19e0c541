//! The models, written once over [`crate::ops::Ops`].

pub mod autoencoder;
pub mod backbone;
pub mod blocks;
pub mod clip;
pub mod conditioned;
pub mod config;
pub mod controlnet;
pub mod encoder;
pub mod time;
pub mod tiny_vae;
pub mod unet;
pub mod vae;
