//! Matrix products through cuBLASLt: descriptors and algorithm chosen once per shape, then remembered.
//!
//! The algorithm is the first that the library's heuristic names for the shape, the alignment and the
//! chip: the same on every run, never the winner of a race at start-up. It is named for [`REFERENCE_IMAGES`]
//! and taken for any number of images, as another may add up otherwise. One workspace serves all
//! products, since they run one after another on one stream.

use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;

use cudarc::cublaslt::{result, sys};

use super::REFERENCE_IMAGES;
use super::device::Gpu;
use super::memory::DeviceMemory;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// What NVIDIA recommends for Hopper; older chips need less.
const WORKSPACE_BYTES: usize = 32 << 20;

/// The heuristic is asked about at least so many rows: some of its algorithms for a few take no more than those.
const MIN_ROWS: usize = 64;

/// How many algorithms are asked for.
const CANDIDATES: usize = 8;

/// `CUBLAS_OP_T`, whose enumeration is not part of the bindings.
const TRANSPOSED: i32 = 1;

/// `y[m,n] = x[m,k] · w[n,k]ᵀ + bias[n] + residual[m,n]`, row-major with pitches; m = images·rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    pub images: usize,
    /// Images for which the algorithm is chosen ([`super::Company::reference`]).
    pub reference: usize,
    /// Of an image.
    pub rows: usize,
    pub n: usize,
    pub k: usize,
    pub y_pitch: usize,
    pub x_pitch: usize,
    pub residual_pitch: Option<usize>,
    pub bias: bool,
    pub dtype: DType,
    /// Largest power of two (up to 256) that divides every address, of the images behind the first too.
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

/// An algorithm, and the descriptors for some number of rows.
struct Plan {
    operation: Operation,
    operands: Layouts,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

pub struct CublasLt {
    handle: sys::cublasLtHandle_t,
    workspace: DeviceMemory,
    /// `None`: the algorithm does not take so many images at once.
    plans: HashMap<Product, Option<Plan>>,
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
            let Product { images, rows, n, k, dtype, .. } = product;
            format!("{dtype} product m={images}x{rows} n={n} k={k}")
        };
        if !self.plans.contains_key(&product) {
            let plan = during(Plan::new(self.handle, &product), describe)?;
            let algorithm = plan.as_ref().map(|plan| plan.algorithm.data);
            tracing::trace!(?product, ?algorithm, "chose a cuBLASLt algorithm");
            self.plans.insert(product, plan);
        }
        let Some(plan) = &self.plans[&product] else {
            let first = Product { images: product.images / 2, ..product };
            let rest = Product { images: product.images - first.images, ..product };
            // SAFETY: parts of what the caller vouches for.
            return unsafe {
                self.multiply(gpu, first, at)?;
                self.multiply(gpu, rest, at.skip_rows(&product, first.images * product.rows))
            };
        };
        let Layouts { w, x, residual: residual_layout, y } = &plan.operands;
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
                    w.0,
                    pointer(at.x),
                    x.0,
                    pointer(residual),
                    residual_layout.0,
                    pointer(at.y).cast_mut(),
                    y.0,
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

impl Operands {
    /// Of the rows behind the first ones.
    fn skip_rows(self, product: &Product, rows: usize) -> Operands {
        let bytes = |pitch: usize| (rows * pitch * product.dtype.size()) as u64;
        Operands {
            y: self.y + bytes(product.y_pitch),
            x: self.x + bytes(product.x_pitch),
            residual: self.residual + bytes(product.residual_pitch.unwrap_or(0)),
            ..self
        }
    }
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, p: &Product) -> Result<Option<Self>, result::CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let operation = Operation::new()?;
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if p.bias {
            let bias = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &bias)?;
        }
        let candidates = {
            let reference = Layouts::new(p, MIN_ROWS.max(p.reference * p.rows))?;
            heuristic(handle, &operation, &reference, &Preference::new(p.alignment)?)?
        };
        // The one that an image alone can have, where it is for any number of them.
        let fewest = if p.reference == REFERENCE_IMAGES { 1 } else { p.images };
        let alone = Layouts::new(p, fewest * p.rows)?;
        let mut candidates = candidates.into_iter();
        let algorithm = candidates.find(|algorithm| alone.are_taken(handle, &operation, algorithm));
        let not_supported = result::CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED);
        let mut algorithm = algorithm.ok_or(not_supported)?;
        let operands = Layouts::new(p, p.images * p.rows)?;
        if p.images > p.reference && adds_in_one_go(&algorithm)? {
            // Another of the same kind adds in the same order, whatever its tiles: the best for so many rows.
            let others = heuristic(handle, &operation, &operands, &Preference::new(p.alignment)?)?;
            for other in others {
                if adds_in_one_go(&other)? && id(&other)? == id(&algorithm)? {
                    algorithm = other;
                    break;
                }
            }
        }
        let is_taken = operands.are_taken(handle, &operation, &algorithm);
        Ok(is_taken.then_some(Plan { operation, operands, algorithm }))
    }
}

/// Whether each sum is one thread's, from the first term to the last.
fn adds_in_one_go(algorithm: &sys::cublasLtMatmulAlgo_t) -> Result<bool, result::CublasError> {
    use sys::cublasLtMatmulAlgoConfigAttributes_t as Attribute;
    let splits = attribute(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_SPLITK_NUM)?;
    let reduction = attribute(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME)?;
    Ok(splits <= 1 && reduction == 0)
}

/// Which family of kernels it is of.
fn id(algorithm: &sys::cublasLtMatmulAlgo_t) -> Result<u32, result::CublasError> {
    attribute(algorithm, sys::cublasLtMatmulAlgoConfigAttributes_t::CUBLASLT_ALGO_CONFIG_ID)
}

fn attribute(
    algorithm: &sys::cublasLtMatmulAlgo_t,
    attribute: sys::cublasLtMatmulAlgoConfigAttributes_t,
) -> Result<u32, result::CublasError> {
    let (mut value, mut written) = (0u32, 0);
    // SAFETY: these attributes have four bytes; the algorithm is plain numbers.
    unsafe {
        sys::cublasLtMatmulAlgoConfigGetAttribute(
            algorithm,
            attribute,
            (&raw mut value).cast(),
            size_of_val(&value),
            &raw mut written,
        )
    }
    .result()?;
    Ok(value)
}

/// What the library recommends, the best first.
fn heuristic(
    handle: sys::cublasLtHandle_t,
    operation: &Operation,
    operands: &Layouts,
    preference: &Preference,
) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, result::CublasError> {
    let Layouts { w, x, residual, y } = operands;
    let mut found = Vec::with_capacity(CANDIDATES);
    let mut count = 0;
    // SAFETY: all descriptors are alive; the library writes `count` results, of which there may be CANDIDATES.
    unsafe {
        sys::cublasLtMatmulAlgoGetHeuristic(
            handle,
            operation.0,
            w.0,
            x.0,
            residual.0,
            y.0,
            preference.0,
            CANDIDATES as i32,
            found.as_mut_ptr(),
            &raw mut count,
        )
        .result()?;
        found.set_len(count as usize);
    }
    let found: Vec<sys::cublasLtMatmulHeuristicResult_t> = found;
    let works = |found: &sys::cublasLtMatmulHeuristicResult_t| found.state.result().is_ok();
    Ok(found.into_iter().filter(works).map(|found| found.algo).collect())
}

/// The operands of a product.
struct Layouts {
    w: Layout,
    x: Layout,
    residual: Layout,
    y: Layout,
}

impl Layouts {
    fn new(p: &Product, m: usize) -> Result<Self, result::CublasError> {
        let dtype = match p.dtype {
            DType::F16 => sys::cudaDataType::CUDA_R_16F,
            DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
            DType::F32 => sys::cudaDataType::CUDA_R_32F,
            other => panic!("no product of {other}"),
        };
        let layout = |rows: usize, columns: usize, pitch: usize| {
            result::create_matrix_layout(dtype, rows as u64, columns as u64, pitch as i64).map(Layout)
        };
        Ok(Layouts {
            w: layout(p.k, p.n, p.k)?,
            x: layout(p.k, m, p.x_pitch)?,
            residual: layout(p.n, m, p.residual_pitch.unwrap_or(p.y_pitch))?,
            y: layout(p.n, m, p.y_pitch)?,
        })
    }

    /// Whether an algorithm that was recommended for other numbers of rows can be had for these.
    fn are_taken(
        &self,
        handle: sys::cublasLtHandle_t,
        operation: &Operation,
        algorithm: &sys::cublasLtMatmulAlgo_t,
    ) -> bool {
        let mut needs = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
        // SAFETY: all descriptors are alive; the result is plain numbers, for which zeros will do.
        unsafe {
            let status = sys::cublasLtMatmulAlgoCheck(
                handle,
                operation.0,
                self.w.0,
                self.x.0,
                self.residual.0,
                self.y.0,
                algorithm,
                needs.as_mut_ptr(),
            );
            status.result().is_ok() && needs.assume_init().workspaceSize <= WORKSPACE_BYTES
        }
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
