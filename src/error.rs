//! What can go wrong, in sentences that say what to try.

use std::path::PathBuf;

use crate::columns::bytes;

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

    /// A model of the hub that cannot be fetched.
    #[error("{id}: {message}")]
    Hub { id: String, message: String },

    /// Memory that is not there, of the GPU or of the host (which cannot say how much it has).
    #[error(
        "out of memory: {purpose} need {}{}; try a smaller picture or fewer pictures at once", 
        bytes(*needed), free.map(|free| format!(", the GPU has {} free", bytes(free))).unwrap_or_default()
    )]
    OutOfMemory { purpose: String, needed: usize, free: Option<usize> },

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
    pub fn hub(id: impl ToString, message: impl ToString) -> Self {
        Error::Hub { id: id.to_string(), message: message.to_string() }
    }
    pub fn invalid(message: impl ToString) -> Self {
        Error::Invalid(message.to_string())
    }
}
