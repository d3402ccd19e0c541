//! The CUDA driver, cuBLASLt and the kernels of cuda/ behind safe types.
//!
//! Kernels take the addresses, sizes and pitches of their arguments; plans choose tiles and grids for each family of
//! kernels from sizes and the chip. The tensors and verbs of [`ops`](crate::ops) stand above: nothing here imports them.

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
mod images;
pub mod kernels;
pub mod launch;
pub mod linear_sm90;
pub mod memory;
pub mod nvml;
pub mod nvtx;
pub mod staging;
pub mod tensor_map;
pub mod timer;
pub mod warpgroups;

use crate::error::Error;
use cudarc::driver::DriverError;

/// What the plans for many images at once are made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Company {
    /// The least time.
    #[default]
    Fastest,
    /// A picture's bytes are the same alone and in any company. So whatever decides in which order numbers are
    /// added up (how k is split, how an image's rows are cut, which of two kernels that add otherwise) is chosen
    /// for a call of [`REFERENCE_IMAGES`], however many it has. Only what decides where and when (tiles, grids,
    /// clusters) is chosen for those that it has.
    Alike,
}

/// A picture with guidance, what is painted most. Its plans are the best there are; in any company, other numbers of
/// images pay for being added up as two are. One is always added up as two are.
pub const REFERENCE_IMAGES: usize = 2;

impl Company {
    /// The images for which it is decided in which order numbers are added up.
    pub fn reference(self, images: usize) -> usize {
        match self {
            Company::Fastest => images.max(REFERENCE_IMAGES),
            Company::Alike => REFERENCE_IMAGES,
        }
    }
}

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
