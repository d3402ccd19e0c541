//! Normal noise from a seed, the same numbers as the systems that users come from.
//!
//! Every picture has a generator of its own, with its own seed: initial latents first, then the noise
//! of the steps from the same stream. So a picture does not depend on its neighbours in a batch.

mod philox;
mod source;
mod torch_cpu;

pub use philox::Philox;
pub use source::NoiseSource;
pub use torch_cpu::TorchCpu;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;

use crate::error::{Error, Invalid, Result};
use crate::parameter::Parameter;

/// torch's CPU generator looks at no more than these bits of a seed.
const SEED_BITS: u32 = 32;

/// A seed where nobody asks for one.
pub fn random_seed() -> u64 {
    RandomState::new().hash_one(std::process::id()) >> (u64::BITS - SEED_BITS)
}

/// Which generator makes the noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Rng {
    /// torch's CPU generator: [`TorchCpu`].
    #[default]
    Cpu,
    /// torch's CUDA generator, as A1111 and its relatives draw: [`Philox`].
    Cuda,
}

impl Rng {
    /// The generator of one picture.
    pub fn source(self, seed: u64) -> Box<dyn NoiseSource> {
        match self {
            Rng::Cpu => Box::new(TorchCpu::new(seed)),
            Rng::Cuda => Box::new(Philox::new(seed)),
        }
    }

    /// The `RNG` in the `parameters` text of a PNG: A1111 calls its own Philox `NV`.
    pub fn label(self) -> &'static str {
        match self {
            Rng::Cpu => "CPU",
            Rng::Cuda => "NV",
        }
    }
}

impl fmt::Display for Rng {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Rng::Cpu => "cpu",
            Rng::Cuda => "cuda",
        })
    }
}

impl FromStr for Rng {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "cpu" => Ok(Rng::Cpu),
            "cuda" => Ok(Rng::Cuda),
            _ => Err(Invalid::value(Parameter::Rng, name)
                .problem("no such generator; there are cpu and cuda")
                .error()),
        }
    }
}
