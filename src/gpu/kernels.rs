//! Every kernel of cuda/*.cu, loaded once; a missing symbol fails at start-up, by name.
//!
//! The `*Args` structs mirror cuda/args.cuh field by field; sizes are asserted on both sides.

use std::mem::offset_of;
use std::sync::Arc;

use cudarc::driver::sys::CUfunction_attribute_enum;
use cudarc::driver::{CudaFunction, CudaModule, DriverError, sys};
use cudarc::nvrtc::Ptx;

use super::During;
use super::clusters::Clusters;
use super::device::Gpu;
use super::images::{IMAGES, TARGETS};
use super::launch::KernelArgs;
use super::tensor_map::TensorMap;
use super::{attention, attention_short_sm90, attention_sm90, conv, conv_sm90, linear_sm90};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::parameter::{Parameter, sentence};

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

args!(Conv2dArgs, 136 {
    out: u64, x: u64, weight: u64, bias: u64, table: u64, index: u64, residual: u64, partial: u64,
    b: i32, h: i32, w: i32, i: i32, ho: i32, wo: i32, o: i32,
    k: i32, stride: i32, pad: i32, upsample: i32,
    x_pitch: i32, out_pitch: i32, residual_pitch: i32, table_pitch: i32,
    splits: i32, k_tiles_per_split: i32,
});
args!(Conv2dSm90Args, 448 {
    x: TensorMap, weight: TensorMap, conv: Conv2dArgs,
    tile_w: i32, tile_h: i32, tile_b: i32, groups: i32, unused: [i32; 10],
});
args!(LinearArgs, 64 {
    out: u64, x: u64, weight: u64, bias: u64, residual: u64,
    m: i32, n: i32, k: i32, out_pitch: i32, x_pitch: i32, residual_pitch: i32,
});
args!(LinearSm90Args, 384 {
    x: TensorMap, weight: TensorMap, linear: LinearArgs,
    tiles: i32, tiles_n: i32, unused: [i32; 14],
});
args!(ActivateArgs, 40 {
    out: u64, x: u64, m: i32, n: i32, out_pitch: i32, x_pitch: i32, kind: i32, unused: i32,
});
args!(AccumulateArgs, 56 {
    x: u64, y: u64, gains: u64, index: u64, m: i32, n: i32, t: i32, x_pitch: i32, y_pitch: i32, unused: i32,
});
args!(AttentionArgs, 96 {
    out: u64, q: u64, k: u64, v: u64, first_key: u64, key_count: u64,
    b: i32, heads: i32, t: i32, s: i32, d: i32,
    out_pitch: i32, q_pitch: i32, k_pitch: i32, v_pitch: i32, causal: i32, scale: f32, fewest_keys: i32,
});
const _: () = assert!(offset_of!(AttentionArgs, first_key) == 32 && offset_of!(AttentionArgs, b) == 48);
const _: () = assert!(offset_of!(AttentionArgs, scale) == 88);
args!(AttentionSm90Args, 512 {
    q: TensorMap, k: TensorMap, v: TensorMap, attention: AttentionArgs, unused: [i32; 8],
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
    m: i32, t: i32, c: i32, vocabulary: i32, tokens_pitch: i32, out_pitch: i32,
});
args!(EmphasizeArgs, 32 { x: u64, weight: u64, t: i32, c: i32, pitch: i32, restore_mean: i32 });
args!(TimestepEmbeddingArgs, 32 {
    out: u64, timesteps: u64, n: i32, c: i32, flip_sin_to_cos: i32, freq_shift: f32,
});
args!(ScaleArgs, 152 { out: u64, x: u64, n: i32, c: i32, factor: [f32; 16], summand: [f32; 16] });
args!(ModelInputArgs, 80 {
    out: u64, x: u64, beside: u64, table: u64, index: u64, slot: u64, shown: u64,
    rows: i32, pixels: i32, c: i32, e: i32, out_c: i32, out_pitch: i32,
});
const _: () = assert!(offset_of!(ModelInputArgs, shown) == 48 && offset_of!(ModelInputArgs, out_c) == 72);
args!(SamplerStepArgs, 120 {
    x: u64, saved: u64, history: u64, output: u64, rows: u64, noise: u64, table: u64, index: u64, slot: u64,
    guidance: u64, mask: u64, known: u64, known_noise: u64,
    b: i32, n: i32, c: i32, unused: i32,
});
const _: () = assert!(offset_of!(SamplerStepArgs, guidance) == 72 && offset_of!(SamplerStepArgs, b) == 104);
args!(ToRgb8Args, 24 { out: u64, x: u64, m: i32, x_pitch: i32 });
args!(StepArgs, 48 {
    index: u64, counters: u64, done: u64, cancel: u64, condition: u64, rows: i32, unused: i32,
});

macro_rules! kernels {
    ($($file:ident: [$($kernel:ident),*]),* $(,)?) => {
        /// The kernels of one dtype, and the ends of a step, which have none.
        pub struct Kernels {
            $($(pub $kernel: CudaFunction,)*)*
            /// One for each of [`conv::TILES`]; empty in f32, where `conv2d_naive` does the work.
            pub conv2d: Vec<CudaFunction>,
            pub conv2d_reduce: Option<CudaFunction>,
            /// One for each of [`conv_sm90::TILES`]; empty in f32 and on other chips than Hopper.
            pub conv2d_sm90: Vec<CudaFunction>,
            pub clusters: Clusters,
            /// One for each of [`attention::TILES`]; empty in f32.
            pub attention: Vec<CudaFunction>,
            /// One for each of [`attention_sm90::TILES`]; empty in f32 and on other chips than Hopper.
            pub attention_sm90: Vec<CudaFunction>,
            /// One for each of [`attention_short_sm90::TILES`]; empty in f32 and on other chips than Hopper.
            pub attention_short_sm90: Vec<CudaFunction>,
            /// One for each of [`linear_sm90::LINEAR`]; empty in f32 and on other chips than Hopper.
            pub linear_sm90: Vec<CudaFunction>,
            /// One for each of [`linear_sm90::GEGLU`], likewise.
            pub geglu_sm90: Vec<CudaFunction>,
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
                // One kernel for each tile of a file for Hopper; none where they cannot run.
                let hopper = |file: &str, tiles: &[(String, usize)]| -> Result<Vec<CudaFunction>> {
                    if dtype == DType::F32 || !gpu.is_hopper() {
                        return Ok(Vec::new());
                    }
                    let module = Module::load(gpu, file)?;
                    tiles.iter().map(|(symbol, shared_bytes)| module.function(symbol, *shared_bytes)).collect()
                };
                let mut conv2d_sm90 = Vec::new();
                for tiles in conv_sm90::TILES.chunk_by(|a, b| a.file() == b.file()) {
                    let kernels: Vec<_> =
                        tiles.iter().map(|tile| (tile.symbol(&suffix), tile.shared_bytes())).collect();
                    conv2d_sm90.extend(hopper(tiles[0].file(), &kernels)?);
                }
                let clusters = match conv2d_sm90.is_empty() {
                    true => Clusters::of_single_blocks(gpu.multiprocessors),
                    false => Clusters::of_hopper(gpu.multiprocessors),
                };
                let attention_sm90 = hopper(
                    "attention_sm90",
                    &attention_sm90::TILES.each_ref().map(|tile| {
                        (format!("attention_sm90_{suffix}_{}", tile.name), tile.shared_bytes())
                    }),
                )?;
                let attention_short_sm90 = hopper(
                    "attention_short_sm90",
                    &attention_short_sm90::TILES.each_ref().map(|tile| {
                        (format!("attention_short_sm90_{suffix}_d{}", tile.d), tile.most_shared_bytes())
                    }),
                )?;
                let linear_sm90 = hopper(
                    "linear_sm90",
                    &linear_sm90::LINEAR.each_ref().map(|tile| (tile.symbol(&suffix), tile.shared_bytes())),
                )?;
                let geglu_sm90 = hopper(
                    "linear_sm90",
                    &linear_sm90::GEGLU.each_ref().map(|tile| (tile.symbol(&suffix), tile.shared_bytes())),
                )?;
                let step_while = match gpu.has_conditional_graphs() {
                    true => Some(Module::load(gpu, "loop")?.function("step_while", 0)?),
                    false => None,
                };
                let step_advance = Module::load(gpu, "steps")?.function("step_advance", 0)?;
                Ok(Kernels {
                    $($($kernel,)*)*
                    conv2d, conv2d_reduce, conv2d_sm90, clusters, attention, attention_sm90,
                    attention_short_sm90, linear_sm90, geglu_sm90, step_advance, step_while,
                })
            }
        }
    };
}

kernels! {
    elementwise: [activate, accumulate, geglu, scale, embed, emphasize, timestep_embedding, to_rgb8],
    naive: [conv2d_naive, linear_naive, attention_naive],
    group_norm: [group_norm_fused, group_norm_fused_few, group_norm_stats, group_norm_apply],
    layer_norm: [layer_norm_512, layer_norm_2048],
    sampler: [model_input, sampler_step],
}

/// Dynamic shared memory that a kernel gets without asking.
const DEFAULT_SHARED_BYTES: usize = 48 << 10;

struct Module(Arc<CudaModule>);

impl Module {
    /// Machine code if there is some for this chip, else PTX for the driver to translate.
    ///
    /// # Errors
    /// A build for other chips, which has neither.
    fn load(gpu: &Gpu, file: &str) -> Result<Self> {
        let (_, machine_code, ptx) =
            IMAGES.iter().find(|(name, ..)| *name == file).expect("build.rs embeds every file of cuda/");
        let no_binary = Err(DriverError(sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU));
        let load = |image: &[u8]| match image {
            [] => no_binary.clone(),
            image => gpu.context.load_module(Ptx::from_binary(image.to_vec())),
        };
        let is_not_for_it = |loaded: &Result<_, DriverError>| {
            loaded.as_ref().is_err_and(|e| e.0 == sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU)
        };
        let mut module = if gpu.portable { no_binary.clone() } else { load(machine_code) };
        if is_not_for_it(&module) {
            module = load(ptx);
        }
        if is_not_for_it(&module) {
            let lacks = match gpu.portable {
                true => format!("PTX, which SDRT_ARCH={} needs", gpu.arch),
                false => format!("kernels for {}, sm_{}", gpu.name, gpu.arch),
            };
            return Err(Error::invalid(sentence![
                format!(
                    "this sdrt has no {lacks}: it was built for {TARGETS} alone; run `make release`, which builds \
                     for every chip, or use "
                ),
                Parameter::Device,
                " cpu"
            ]));
        }
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
