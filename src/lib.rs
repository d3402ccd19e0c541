//! Stable Diffusion inference from scratch: hand-written CUDA kernels and a CPU oracle under one model.

pub mod bench;
pub mod columns;
pub mod device;
pub mod dtype;
pub mod error;
#[cfg(sdrt_cuda)]
pub mod gpu;
pub mod image;
pub mod info;
pub mod json;
pub mod model;
pub mod ops;
pub mod pipeline;
pub mod profile;
pub mod rng;
pub mod roofline;
pub mod sampler;
pub mod text;
pub mod weights;

pub use error::{Error, Result};
