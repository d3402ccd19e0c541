//! Launches of kernels on a GPU's stream.

use std::ffi::c_void;

use cudarc::driver::{CudaFunction, sys};

use super::During;
use super::device::Gpu;
use crate::error::Result;

/// A struct that a kernel takes by value as its only argument.
pub trait KernelArgs: Copy {}

/// Blocks, threads of a block and dynamic shared memory of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    pub grid: (u32, u32, u32),
    pub block: (u32, u32, u32),
    pub shared_bytes: usize,
    /// Blocks along z that run at the same time and reach one another's shared memory; 1: none do.
    pub cluster: u32,
}

impl Launch {
    /// One thread for each of `n` items, in blocks of 256.
    pub fn each(n: usize) -> Self {
        Launch { grid: (n.div_ceil(256) as u32, 1, 1), block: (256, 1, 1), shared_bytes: 0, cluster: 1 }
    }
}

impl Gpu {
    /// Launches a kernel on the stream.
    ///
    /// # Safety
    /// `A` is the struct that the kernel takes, and its addresses are valid for the sizes it gives.
    pub unsafe fn launch<A: KernelArgs>(
        &self,
        kernel: &CudaFunction,
        launch: Launch,
        args: &A,
    ) -> Result<()> {
        let mut params = [(&raw const *args).cast_mut().cast::<c_void>()];
        let mut attributes = Vec::new();
        if launch.cluster > 1 {
            let cluster = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: 1, y: 1, z: launch.cluster };
            attributes.push(sys::CUlaunchAttribute {
                id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                pad: [0; 4],
                value: sys::CUlaunchAttributeValue { clusterDim: cluster },
            });
        }
        // Every kernel calls after_previous_kernel (cuda/launch.cuh).
        if self.is_hopper() {
            attributes.push(sys::CUlaunchAttribute {
                id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                pad: [0; 4],
                value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
            });
        }
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid.0,
            gridDimY: launch.grid.1,
            gridDimZ: launch.grid.2,
            blockDimX: launch.block.0,
            blockDimY: launch.block.1,
            blockDimZ: launch.block.2,
            sharedMemBytes: launch.shared_bytes as u32,
            hStream: self.stream.cu_stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        // SAFETY: one argument, as the caller vouches; the driver copies it before returning.
        unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                kernel.cu_function(),
                params.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
        .during("launching a kernel")
    }
}
