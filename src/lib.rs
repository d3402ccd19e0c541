//! Stable Diffusion inference from scratch: hand-written CUDA kernels and a CPU oracle under one model.

pub mod error;
pub mod json;
pub mod model;
pub mod ops;
pub mod rng;
pub mod sampler;
pub mod text;
pub mod weights;

pub use error::{Error, Result};
