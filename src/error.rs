//! What can go wrong, in sentences that say what to try.

use std::path::PathBuf;

/// An error that a user can act on. Bugs (a wrong shape, a misaligned pointer) are panics instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder that cannot be read or is not what it should be.
    #[error("{}: {message}", path.display())]
    File { path: PathBuf, message: String },

    /// A tensor of a checkpoint that is missing, unexpected or misshapen.
    #[error("{}: {key}: {message}", path.display())]
    Tensor { path: PathBuf, key: String, message: String },

    /// A value that the user gave and that cannot be used.
    #[error("{0}")]
    Invalid(String),

    /// Device memory that is not there.
    #[error(
        "out of GPU memory: {purpose} need {needed} bytes, {free} are free; \
         try a smaller picture, fewer pictures at once, or --device cpu"
    )]
    OutOfMemory { purpose: String, needed: usize, free: usize },

    /// A CUDA call that failed.
    #[error("CUDA: {operation}: {message}")]
    Cuda { operation: String, message: String },

    /// The user asked to stop.
    #[error("cancelled after {done} of {steps} steps")]
    Cancelled { done: usize, steps: usize },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn file(path: impl Into<PathBuf>, message: impl ToString) -> Self {
        Error::File { path: path.into(), message: message.to_string() }
    }
    pub fn tensor(path: impl Into<PathBuf>, key: impl ToString, message: impl ToString) -> Self {
        Error::Tensor { path: path.into(), key: key.to_string(), message: message.to_string() }
    }
    pub fn invalid(message: impl ToString) -> Self {
        Error::Invalid(message.to_string())
    }
}
