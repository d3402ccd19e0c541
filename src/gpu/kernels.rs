//! Every kernel of cuda/*.cu, loaded once; a missing symbol fails at start-up, by name.
//!
//! The `*Args` structs mirror cuda/args.cuh field by field; sizes are asserted on both sides.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::CUfunction_attribute_enum;
use cudarc::driver::{CudaFunction, CudaModule, result, sys};
use cudarc::nvrtc::Ptx;

use super::During;
use super::device::Gpu;
use super::{attention, conv};
use crate::dtype::DType;
use crate::error::Result;

/// Name, machine code, portable PTX of each file in cuda/.
mod images {
    include!(concat!(env!("OUT_DIR"), "/kernel_images.rs"));
}
use images::IMAGES;

macro_rules! args {
    ($(#[$doc:meta])* $name:ident, $size:literal { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub struct $name { $(pub $field: $type),* }
        const _: () = assert!(size_of::<$name>() == $size);
        impl KernelArgs for $name {}
    };
}

/// A struct that a kernel takes by value as its only argument.
pub trait KernelArgs: Copy {}

args!(Conv2dArgs, 144 {
    out: u64, x: u64, weight: u64, bias: u64, table: u64, index: u64, residual: u64, partial: u64,
    b: i32, h: i32, w: i32, i: i32, ho: i32, wo: i32, o: i32,
    k: i32, stride: i32, pad: i32, upsample: i32, virtual_h: i32, virtual_w: i32,
    x_pitch: i32, out_pitch: i32, residual_pitch: i32, table_pitch: i32,
    splits: i32, k_tiles_per_split: i32,
});
args!(LinearArgs, 64 {
    out: u64, x: u64, weight: u64, bias: u64, residual: u64,
    m: i32, n: i32, k: i32, out_pitch: i32, x_pitch: i32, residual_pitch: i32,
});
args!(ActivateArgs, 40 {
    out: u64, x: u64, m: i32, n: i32, out_pitch: i32, x_pitch: i32, kind: i32, unused: i32,
});
args!(AccumulateArgs, 56 {
    x: u64, y: u64, gains: u64, index: u64, m: i32, n: i32, t: i32, x_pitch: i32, y_pitch: i32, unused: i32,
});
args!(AttentionArgs, 80 {
    out: u64, q: u64, k: u64, v: u64,
    b: i32, heads: i32, t: i32, s: i32, d: i32,
    out_pitch: i32, q_pitch: i32, k_pitch: i32, v_pitch: i32, causal: i32, scale: f32, unused: i32,
});
args!(GroupNormArgs, 80 {
    out: u64, x: u64, weight: u64, bias: u64, partial: u64,
    b: i32, hw: i32, c: i32, groups: i32, out_pitch: i32, x_pitch: i32,
    splits: i32, rows_per_split: i32, silu: i32, eps: f32,
});
args!(LayerNormArgs, 56 {
    out: u64, x: u64, weight: u64, bias: u64,
    m: i32, c: i32, out_pitch: i32, x_pitch: i32, eps: f32, unused: i32,
});
args!(GegluArgs, 32 { out: u64, x: u64, m: i32, n: i32, out_pitch: i32, x_pitch: i32 });
args!(EmbedArgs, 56 {
    out: u64, ids: u64, tokens: u64, positions: u64,
    m: i32, t: i32, c: i32, vocabulary: i32, tokens_pitch: i32, unused: i32,
});
args!(EmphasizeArgs, 32 { x: u64, weight: u64, t: i32, c: i32, pitch: i32, restore_mean: i32 });
args!(TimestepEmbeddingArgs, 32 {
    out: u64, timesteps: u64, n: i32, c: i32, flip_sin_to_cos: i32, freq_shift: f32,
});
args!(ScaleArgs, 24 { out: u64, x: u64, n: i32, scale: f32 });
args!(ModelInputArgs, 56 {
    out: u64, x: u64, table: u64, index: u64,
    rows: i32, b: i32, n: i32, c: i32, out_pitch: i32, unused: i32,
});
args!(SamplerStepArgs, 112 {
    x: u64, saved: u64, history: u64, output: u64, noise: u64, table: u64, index: u64, guidance: u64,
    guidance_rescale: u64, mask: u64, known: u64, known_noise: u64,
    b: i32, n: i32, c: i32, guided: i32,
});
args!(ToRgb8Args, 24 { out: u64, x: u64, m: i32, x_pitch: i32 });
args!(StepArgs, 48 {
    index: u64, counters: u64, done: u64, cancel: u64, condition: u64, rows: i32, unused: i32,
});

/// Blocks, threads of a block and dynamic shared memory of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    pub grid: (u32, u32, u32),
    pub block: (u32, u32, u32),
    pub shared_bytes: usize,
}

impl Launch {
    /// One thread for each of `n` items, in blocks of 256.
    pub fn each(n: usize) -> Self {
        Launch { grid: (n.div_ceil(256) as u32, 1, 1), block: (256, 1, 1), shared_bytes: 0 }
    }
}

macro_rules! kernels {
    ($($file:ident: [$($kernel:ident),*]),* $(,)?) => {
        /// The kernels of one dtype, and the ends of a step, which have none.
        pub struct Kernels {
            $($(pub $kernel: CudaFunction,)*)*
            /// One for each of [`conv::TILES`]; empty in f32, where `conv2d_naive` does the work.
            pub conv2d: Vec<CudaFunction>,
            pub conv2d_reduce: Option<CudaFunction>,
            /// One for each of [`attention::TILES`]; empty in f32.
            pub attention: Vec<CudaFunction>,
            pub step_advance: CudaFunction,
            /// `None` when the driver has no conditional graphs.
            pub step_while: Option<CudaFunction>,
        }

        impl Kernels {
            pub fn load(gpu: &Gpu, dtype: DType) -> Result<Self> {
                let suffix = dtype.to_string();
                $(
                    let $file = Module::load(gpu, stringify!($file))?;
                    $(let $kernel = $file.function(&format!("{}_{suffix}", stringify!($kernel)), 0)?;)*
                )*
                let (mut conv2d, mut attention, mut conv2d_reduce) = (Vec::new(), Vec::new(), None);
                if dtype != DType::F32 {
                    let conv = Module::load(gpu, "conv")?;
                    for tile in &conv::TILES {
                        // A chip with less shared memory never gets this tile: Conv2dPlan::choose.
                        let shared_bytes = tile.shared_bytes().min(gpu.shared_bytes);
                        conv2d.push(conv.function(&format!("conv2d_{suffix}_{}", tile.name), shared_bytes)?);
                    }
                    conv2d_reduce = Some(conv.function(&format!("conv2d_reduce_{suffix}"), 0)?);
                    let module = Module::load(gpu, "attention")?;
                    for tile in &attention::TILES {
                        let symbol = format!("{}_{suffix}", tile.name);
                        attention.push(module.function(&symbol, tile.shared_bytes())?);
                    }
                }
                let step_while = match gpu.has_conditional_graphs() {
                    true => Some(Module::load(gpu, "loop")?.function("step_while", 0)?),
                    false => None,
                };
                let step_advance = Module::load(gpu, "steps")?.function("step_advance", 0)?;
                Ok(Kernels {
                    $($($kernel,)*)*
                    conv2d, conv2d_reduce, attention, step_advance, step_while,
                })
            }
        }
    };
}

kernels! {
    elementwise: [activate, accumulate, geglu, scale, embed, emphasize, timestep_embedding, to_rgb8],
    naive: [conv2d_naive, linear_naive, attention_naive],
    norm: [group_norm_fused, group_norm_stats, group_norm_apply, layer_norm],
    sampler: [model_input, sampler_step],
}

/// Dynamic shared memory that a kernel gets without asking.
const DEFAULT_SHARED_BYTES: usize = 48 << 10;

struct Module(Arc<CudaModule>);

impl Module {
    /// Machine code if there is some for this chip, else PTX for the driver to translate.
    fn load(gpu: &Gpu, file: &str) -> Result<Self> {
        let (_, machine_code, ptx) =
            IMAGES.iter().find(|(name, ..)| *name == file).expect("build.rs embeds every file of cuda/");
        let load = |image: &[u8]| gpu.context.load_module(Ptx::from_binary(image.to_vec()));
        let module = match gpu.portable {
            true => load(ptx),
            false => match load(machine_code) {
                Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => load(ptx),
                loaded => loaded,
            },
        };
        let (major, minor) = (gpu.driver / 1000, gpu.driver % 1000 / 10);
        let operation = format!(
            "loading the kernels of {file}.cu (the driver is of CUDA {major}.{minor}; kernels built by an nvcc of \
             a later major version need a newer driver)"
        );
        Ok(Module(module.during(&operation)?))
    }

    fn function(&self, symbol: &str, shared_bytes: usize) -> Result<CudaFunction> {
        let function = self.0.load_function(symbol).during(&format!("loading the kernel {symbol}"))?;
        if shared_bytes > DEFAULT_SHARED_BYTES {
            let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function
                .set_attribute(attribute, shared_bytes as i32)
                .during(&format!("asking for {shared_bytes} bytes of shared memory for {symbol}"))?;
        }
        Ok(function)
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
        // SAFETY: one argument, as the caller vouches; the driver copies it before returning.
        unsafe {
            result::launch_kernel(
                kernel.cu_function(),
                launch.grid,
                launch.block,
                launch.shared_bytes as u32,
                self.stream.cu_stream(),
                &mut params,
            )
        }
        .during("launching a kernel")
    }
}
