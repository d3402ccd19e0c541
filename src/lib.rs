//! Stable Diffusion inference from scratch: hand-written CUDA kernels and a CPU oracle under one model.
//!
//! Read [`pipeline`] first: a [`pipeline::Request`] goes in, a [`pipeline::Painting`] comes out. Data flows
//! one way, and imports follow it (tests/library/imports.rs):
//!
//! ```text
//! serve    -> engine -> pipeline        HTTP; many pictures at once
//! hub      -> location                  the id of a model to its files, downloaded where they are missing
//! pipeline -> text, sampler, rng        what is written in front of a run: token ids, tables, noise
//!          -> model                     CLIP, U-Net, ControlNets, VAE: plain functions over `Ops`
//!          -> weights                   at load only: a plan of tensors, filled from a checkpoint
//! model    -> ops                       tensors, verbs; the backends cpu, cuda and count
//! ops      -> gpu -> cuda/*.cu          driver, memory, graphs, kernels, cuBLASLt
//! ```
//!
//! [`parameter`] is the table from which flags, both HTTP interfaces and the text in images take names, ranges and
//! help; [`error`] refers to it.
//!
//! Before it, [`hub`] turns the id of a model into a location. Beside the pipeline stand [`location`] (where
//! a model's files are), [`device`] (which machine), [`raster`] (pictures to start from), [`image`] (files that
//! say how they were painted), [`workload`], [`bench`], [`profile`], [`info`], [`ceiling`] and [`roofline`] (what is
//! measured and counted).

pub mod bench;
pub mod ceiling;
pub mod columns;
pub mod device;
pub mod dtype;
pub mod engine;
pub mod error;
#[cfg(sdrt_cuda)]
pub mod gpu;
pub mod hub;
pub mod image;
pub mod info;
pub mod json;
pub mod location;
pub mod model;
pub mod ops;
pub mod parameter;
mod pickle;
pub mod pipeline;
pub mod profile;
pub mod raster;
pub mod rng;
pub mod roofline;
pub mod sampler;
pub mod serve;
mod sha256;
pub mod text;
pub mod weights;
pub mod workload;

pub use error::{Error, Result};
