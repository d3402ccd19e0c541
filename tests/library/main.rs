//! The library on the CPU: parity with torch, diffusers and k-diffusion, files as they are, and the engine.
//!
//! One binary: each would link sdrt and its kernels again. `cargo test --release --test library lora` runs a part.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/faulty.rs"]
mod faulty;

mod company;
mod config;
mod controlnets;
mod emoji;
mod engine;
mod families;
mod from_picture;
mod fuzzed;
mod gpu_targets;
mod imports;
mod inversion;
mod lora;
mod models;
mod parameters;
mod pictures;
mod prompts;
mod raster;
mod record;
mod refiner;
mod rng;
mod samplers;
mod siblings;
mod single_file;
mod text;
mod tiles;
mod torch_parity;
mod weights;
