//! The card's ceilings, measured on the card: a large matrix product and a large copy.

use cudarc::driver::result;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::Cuda;
use crate::ceiling::Ceiling;
use crate::error::Result;
use crate::gpu::During;
use crate::gpu::cublaslt::{Operands, Product};
use crate::gpu::memory::DeviceMemory;
use crate::gpu::timer::Timer;
use crate::ops::DType;
use crate::rng::Rng;

/// Rows and columns of the matrices.
const SIDE: usize = 8192;
/// A copy is from one half of this memory to the other: many times as large as any L2.
const MEMORY_BYTES: usize = 1 << 30;
/// Long enough for a clock, short enough that the card's power limit has not slowed all of them down.
const SAMPLE_MS: f64 = 10.0;
const SAMPLES: usize = 15;
/// Different random numbers, repeated throughout the matrices; a prime, so that no two rows are equal.
const PERIOD: usize = 1_000_003;

impl Cuda {
    /// Times a matrix product of 8192 x 8192 normal random numbers by cuBLASLt and a copy of half a gigabyte.
    ///
    /// The numbers must be random: on zeros the same product draws less power and so takes less time.
    pub(super) fn time_ceiling(&mut self) -> Result<Ceiling> {
        let memory =
            DeviceMemory::new(&self.gpu.context, MEMORY_BYTES, "matrices to measure the card's ceilings")?;
        let matrix_bytes = SIDE * SIDE * self.dtype.size();
        let [x, w, y] = [0, 1, 2].map(|i| memory.address + (i * matrix_bytes) as u64);
        let numbers = random_bytes(self.dtype);
        for start in (0..2 * matrix_bytes).step_by(numbers.len()) {
            let part = &numbers[..numbers.len().min(2 * matrix_bytes - start)];
            // SAFETY: `part` ends where the second matrix does.
            unsafe { result::memcpy_htod_sync(x + start as u64, part) }.during("writing random matrices")?;
        }

        let product = Product {
            images: 1,
            reference: 1,
            rows: SIDE,
            n: SIDE,
            k: SIDE,
            y_pitch: SIDE,
            x_pitch: SIDE,
            residual_pitch: None,
            bias: false,
            dtype: self.dtype,
            alignment: 256,
        };
        let at = Operands { y, x, w, bias: 0, residual: 0 };
        let product_ms = self.least_ms(|cuda| {
            // SAFETY: three dense matrices of SIDE x SIDE, inside `memory`.
            unsafe { cuda.cublaslt.multiply(&cuda.gpu, product, at) }
        })?;
        let copy_ms = self.least_ms(|cuda| {
            let (half, stream) = (MEMORY_BYTES / 2, cuda.gpu.stream.cu_stream());
            // SAFETY: the two halves of `memory`.
            unsafe { result::memcpy_dtod_async(memory.address + half as u64, memory.address, half, stream) }
                .during("copying on the device")
        })?;
        Ok(Ceiling {
            flops: 2.0 * (SIDE as f64).powi(3) / product_ms * 1e3,
            bytes: MEMORY_BYTES as f64 / copy_ms * 1e3,
        })
    }

    /// Milliseconds of one execution in the fastest of a few samples, each of several in a row, after a warm-up.
    ///
    /// The fastest: a card at its power limit lowers its clock within tenths of a second, and short work would exceed
    /// what is measured there.
    fn least_ms(&mut self, mut execute: impl FnMut(&mut Self) -> Result<()>) -> Result<f64> {
        let timer = Timer::new(&self.gpu)?;
        let mut sample = |executions: usize| -> Result<f64> {
            timer.start(&self.gpu)?;
            (0..executions).try_for_each(|_| execute(self))?;
            Ok(timer.stop(&self.gpu)? / executions as f64)
        };
        sample(1)?;
        let executions = (SAMPLE_MS / sample(1)?).max(1.0) as usize;
        let mut least = f64::INFINITY;
        for _ in 0..SAMPLES {
            least = least.min(sample(executions)?);
        }
        Ok(least)
    }
}

/// [`PERIOD`] normal numbers.
fn random_bytes(dtype: DType) -> Vec<u8> {
    let mut numbers = vec![0f32; PERIOD];
    Rng::Cuda.source(0).fill_normal(&mut numbers);
    let mut bytes = vec![0u8; PERIOD * dtype.size()];
    match dtype {
        DType::F16 => bytemuck::cast_slice_mut::<u8, f16>(&mut bytes).convert_from_f32_slice(&numbers),
        DType::BF16 => bytemuck::cast_slice_mut::<u8, bf16>(&mut bytes).convert_from_f32_slice(&numbers),
        _ => bytes.copy_from_slice(bytemuck::cast_slice(&numbers)),
    }
    bytes
}
