//! Matrix products through cuBLASLt: descriptors and algorithm chosen once per shape, then remembered.
//!
//! The algorithm is the first that the library's heuristic names for the shape, the alignment and the
//! chip: the same on every run, never the winner of a race at start-up. One workspace serves all
//! products, since they run one after another on one stream.

use std::collections::HashMap;
use std::ffi::c_void;

use cudarc::cublaslt::{result, sys};

use super::device::Gpu;
use super::memory::DeviceMemory;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// What NVIDIA recommends for Hopper; older chips need less.
const WORKSPACE_BYTES: usize = 32 << 20;

/// `CUBLAS_OP_T`, whose enumeration is not part of the bindings.
const TRANSPOSED: i32 = 1;

/// `y[m,n] = x[m,k] · w[n,k]ᵀ + bias[n] + residual[m,n]`, row-major with pitches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub y_pitch: usize,
    pub x_pitch: usize,
    pub residual_pitch: Option<usize>,
    pub bias: bool,
    pub dtype: DType,
    /// Largest power of two (up to 256) that divides every address.
    pub alignment: u32,
}

/// Addresses of one product; `bias` and `residual` as the [`Product`] says.
#[derive(Clone, Copy)]
pub struct Operands {
    pub y: u64,
    pub x: u64,
    pub w: u64,
    pub bias: u64,
    pub residual: u64,
}

struct Plan {
    operation: Operation,
    w: Layout,
    x: Layout,
    residual: Layout,
    y: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

pub struct CublasLt {
    handle: sys::cublasLtHandle_t,
    workspace: DeviceMemory,
    plans: HashMap<Product, Plan>,
}

/// Names the step that a cuBLASLt call failed in.
fn during<T>(result: Result<T, result::CublasError>, operation: impl FnOnce() -> String) -> Result<T> {
    result.map_err(|e| Error::Cuda { operation: operation(), message: format!("{:?}", e.0) })
}

impl CublasLt {
    pub fn new(gpu: &Gpu) -> Result<Self> {
        let workspace = DeviceMemory::new(&gpu.context, WORKSPACE_BYTES, "cuBLASLt's workspace")?;
        let handle = during(result::create_handle(), || "creating a cuBLASLt handle".to_string())?;
        Ok(CublasLt { handle, workspace, plans: HashMap::new() })
    }

    /// Launches the product on the stream.
    ///
    /// # Safety
    /// The addresses are valid for the sizes and pitches of `product`.
    pub unsafe fn multiply(&mut self, gpu: &Gpu, product: Product, at: Operands) -> Result<()> {
        let describe = || {
            let Product { m, n, k, dtype, .. } = product;
            format!("{dtype} product m={m} n={n} k={k}")
        };
        if !self.plans.contains_key(&product) {
            let plan = during(Plan::new(self.handle, &product), describe)?;
            tracing::trace!(?product, "chose a cuBLASLt algorithm");
            self.plans.insert(product, plan);
        }
        let plan = &self.plans[&product];
        let pointer = |address: u64| address as usize as *const c_void;
        let (alpha, beta) = (1f32, if product.residual_pitch.is_some() { 1f32 } else { 0f32 });
        let residual = if product.residual_pitch.is_some() { at.residual } else { at.y };
        let launch = || {
            if product.bias {
                let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
                plan.operation.set(attribute, &at.bias)?;
            }
            // SAFETY: the plan's descriptors are alive and describe the operands; the caller vouches for
            // the addresses. Column-major, the roles are y(n,m) = w(k,n)ᵀ · x(k,m).
            unsafe {
                result::matmul(
                    self.handle,
                    plan.operation.0,
                    (&raw const alpha).cast(),
                    (&raw const beta).cast(),
                    pointer(at.w),
                    plan.w.0,
                    pointer(at.x),
                    plan.x.0,
                    pointer(residual),
                    plan.residual.0,
                    pointer(at.y).cast_mut(),
                    plan.y.0,
                    &plan.algorithm,
                    pointer(self.workspace.address).cast_mut(),
                    self.workspace.bytes,
                    gpu.stream.cu_stream().cast(),
                )
            }
        };
        during(launch(), describe)
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: created in `new`, destroyed once; errors have nobody to go to.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, p: &Product) -> Result<Self, result::CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let dtype = match p.dtype {
            DType::F16 => sys::cudaDataType::CUDA_R_16F,
            DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
            DType::F32 => sys::cudaDataType::CUDA_R_32F,
            other => panic!("no product of {other}"),
        };
        let layout = |rows: usize, columns: usize, pitch: usize| {
            result::create_matrix_layout(dtype, rows as u64, columns as u64, pitch as i64).map(Layout)
        };
        let operation = Operation::new()?;
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if p.bias {
            let bias = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &bias)?;
        }
        let w = layout(p.k, p.n, p.k)?;
        let x = layout(p.k, p.m, p.x_pitch)?;
        let residual = layout(p.n, p.m, p.residual_pitch.unwrap_or(p.y_pitch))?;
        let y = layout(p.n, p.m, p.y_pitch)?;
        let preference = Preference::new(p.alignment)?;
        // SAFETY: all descriptors are alive.
        let heuristic = unsafe {
            result::get_matmul_algo_heuristic(handle, operation.0, w.0, x.0, residual.0, y.0, preference.0)?
        };
        Ok(Plan { operation, w, x, residual, y, algorithm: heuristic.algo })
    }
}

/// What is multiplied and how, without sizes.
struct Operation(sys::cublasLtMatmulDesc_t);

impl Operation {
    /// Products are summed in f32, whatever the operands are.
    fn new() -> Result<Self, result::CublasError> {
        let (compute, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        result::create_matmul_desc(compute, scale).map(Operation)
    }

    fn set<T>(
        &self,
        attribute: sys::cublasLtMatmulDescAttributes_t,
        value: &T,
    ) -> Result<(), result::CublasError> {
        // SAFETY: the operation is alive; the library checks the value's size against the attribute.
        unsafe {
            result::set_matmul_desc_attribute(self.0, attribute, (&raw const *value).cast(), size_of::<T>())
        }
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once; an error has nobody to go to.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// Rows, columns and pitch of one operand, column-major.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created by `create_matrix_layout`, destroyed once; an error has nobody to go to.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What the choice of an algorithm may count on.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new(alignment: u32) -> Result<Self, result::CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = Preference(result::create_matmul_pref()?);
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE_BYTES)?;
        for attribute in [
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            preference.set(attribute, &alignment)?;
        }
        Ok(preference)
    }

    fn set<T>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: &T,
    ) -> Result<(), result::CublasError> {
        // SAFETY: as in `Operation::set`.
        unsafe {
            result::set_matmul_pref_attribute(self.0, attribute, (&raw const *value).cast(), size_of::<T>())
        }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once; an error has nobody to go to.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
