//! Each verb as launches: checks what its kernel needs, picks the variant, fills the arguments.

mod attention;
mod conv2d;
mod elementwise;
mod linear;
mod norm;
mod sampler;

use cudarc::driver::CudaFunction;

use super::{Cuda, Kind};
use crate::error::Result;
use crate::gpu::launch::{KernelArgs, Launch};
use crate::ops::*;

/// Bytes of the widest access of the elementwise and norm kernels.
const VECTOR_BYTES: usize = 16;

/// Side of the output tile of a naive product's block (cuda/naive.cu).
const NAIVE_TILE: usize = 16;

fn int(n: usize) -> i32 {
    i32::try_from(n).expect("sizes fit 31 bits")
}

fn address(tensor: Option<Tensor>) -> u64 {
    tensor.map_or(0, |t| t.address)
}

fn pitch(tensor: Option<Tensor>) -> i32 {
    tensor.map_or(0, |t| int(t.pitch))
}

/// Elements of a 16-byte vector.
fn vector(t: Tensor) -> usize {
    VECTOR_BYTES / t.dtype.size()
}

/// Whether rows of halves begin where vectors may.
fn has_aligned_rows(t: Tensor) -> bool {
    t.address.is_multiple_of(VECTOR_BYTES as u64) && t.pitch.is_multiple_of(8)
}

/// Asserts that rows can be accessed `VECTOR_BYTES` at a time.
fn assert_vectors(tensors: &[Tensor]) {
    for t in tensors {
        let fits = t.c().is_multiple_of(vector(*t)) && t.pitch.is_multiple_of(vector(*t));
        assert!(fits && t.address.is_multiple_of(VECTOR_BYTES as u64), "{t} is not made of 16-byte vectors");
    }
}

/// One thread for each output of an [m,n] product.
fn naive_tiles(m: usize, n: usize) -> Launch {
    let grid = (m.div_ceil(NAIVE_TILE) as u32, n.div_ceil(NAIVE_TILE) as u32, 1);
    Launch { grid, block: (NAIVE_TILE as u32, NAIVE_TILE as u32, 1), shared_bytes: 0, cluster: 1 }
}

impl Cuda {
    pub(super) fn launch(&mut self, call: &Call) -> Result<()> {
        match call {
            Call::Conv2d(v) => self.conv2d(v),
            Call::Linear(v) => self.linear(v),
            Call::GroupNorm(v) => self.group_norm(v),
            Call::LayerNorm(v) => self.layer_norm(v),
            Call::Attention(v) => self.attention(v),
            Call::Geglu(v) => self.geglu(v),
            Call::Activate(v) => self.activate(v),
            Call::Accumulate(v) => self.accumulate(v),
            Call::Embed(v) => self.embed(v),
            Call::Emphasize(v) => self.emphasize(v),
            Call::TimestepEmbedding(v) => self.timestep_embedding(v),
            Call::Scale(v) => self.scale(v),
            Call::ModelInput(v) => self.model_input(v),
            Call::SamplerStep(v) => self.sampler_step(v),
            Call::ToRgb8(v) => self.to_rgb8(v),
        }
    }

    fn start<A: KernelArgs>(&self, kernel: &CudaFunction, launch: Launch, args: &A) -> Result<()> {
        // SAFETY: every caller below pairs a kernel with its own struct, filled from tensors that the
        // verb's check has found to fit one another and that lie in memory this backend reserved.
        unsafe { self.gpu.launch(kernel, launch, args) }
    }

    /// The fast convolution and attention are made of tensor-core products, which f32 does not have.
    fn is_naive(&self) -> bool {
        self.kind == Kind::Naive || self.dtype == DType::F32
    }
}
