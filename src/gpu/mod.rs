//! The CUDA driver, kernels and cuBLASLt behind safe types. Knows nothing of models, tensors or verbs.

pub mod attention;
pub mod attention_short_sm90;
pub mod attention_sm90;
pub mod clusters;
pub mod conv;
pub mod conv_sm90;
pub mod cublaslt;
pub mod device;
pub mod graph;
pub mod group_norm;
pub mod kernels;
pub mod linear_sm90;
pub mod memory;
pub mod nvtx;
pub mod staging;
pub mod tensor_map;
pub mod timer;
pub mod warpgroups;

use crate::error::Error;
use cudarc::driver::DriverError;

/// Names the operation that a driver call failed in.
pub(crate) trait During<T> {
    fn during(self, operation: &str) -> Result<T, Error>;
}

impl<T> During<T> for Result<T, DriverError> {
    fn during(self, operation: &str) -> Result<T, Error> {
        self.map_err(|e| {
            let message = match e.error_string() {
                Ok(text) => text.to_string_lossy().into_owned(),
                Err(_) => format!("error {:?}", e.0),
            };
            Error::Cuda { operation: operation.to_string(), message }
        })
    }
}
