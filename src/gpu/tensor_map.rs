//! What Hopper's copy engine must know of a tensor to bring boxes of it to shared memory.

use std::ffi::c_void;

use cudarc::driver::sys;

use super::During;
use crate::dtype::DType;
use crate::error::Result;

/// Channels in a row of a box: 128 bytes, the width of the swizzle that tensor cores read.
pub const BOX_CHANNELS: usize = 64;

/// The driver's `CUtensorMap`, an argument of kernels. Drivers ask for an alignment of 64 bytes.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct TensorMap([u64; 16]);

/// One dimension of a tensor, the innermost first.
#[derive(Clone, Copy, Debug)]
pub struct Dim {
    pub size: usize,
    /// Elements from one index to the next; 1 for the innermost.
    pub pitch: usize,
    /// Indices in a box.
    pub taken: usize,
    /// From one index of a box to the next.
    pub step: usize,
}

impl Dim {
    /// All of a box's indices follow each other.
    pub fn new(size: usize, pitch: usize, taken: usize) -> Self {
        Dim { size, pitch, taken, step: 1 }
    }
}

impl std::fmt::Debug for TensorMap {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("TensorMap")
    }
}

impl TensorMap {
    /// Whether the copy engine can read a tensor: its address and the pitches of its outer dimensions.
    pub fn can_read(address: u64, pitches: &[usize], dtype: DType) -> bool {
        address.is_multiple_of(16) && pitches.iter().all(|pitch| (pitch * dtype.size()).is_multiple_of(16))
    }

    /// A tensor of halves, at least two-dimensional. Indices outside it are zeros.
    pub fn new<const N: usize>(address: u64, dtype: DType, dims: [Dim; N]) -> Result<Self> {
        assert!(dims[0].pitch == 1 && dims[0].taken == BOX_CHANNELS, "{dims:?}");
        let data_type = match dtype {
            DType::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            DType::BF16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            other => panic!("tensor cores multiply halves, not {other}"),
        };
        let sizes = dims.map(|dim| dim.size as u64);
        // The driver takes the strides from the second dimension on.
        let strides = dims.map(|dim| (dim.pitch * dtype.size()) as u64);
        let boxes = dims.map(|dim| (dim.taken * dim.step) as u32);
        let steps = dims.map(|dim| dim.step as u32);
        let mut map = TensorMap([0; 16]);
        // SAFETY: writes the map; reads N sizes, boxes and steps, and N - 1 strides. Dereferences no address.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                (&raw mut map.0).cast(),
                data_type,
                N as u32,
                address as *mut c_void,
                sizes.as_ptr(),
                strides[1..].as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .during(&format!("describing a tensor to the copy engine: {dims:?}"))?;
        Ok(map)
    }
}
