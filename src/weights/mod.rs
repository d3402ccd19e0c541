//! Where a model's numbers come from: a checkpoint, or random values of the same shapes.
//!
//! A model plans its tensors ([`plan::Plan`]); a [`Source`] checks the plan's requests all at once and
//! then fills them, a few rows at a time, already converted and arranged for the kernels. [`lora`] changes
//! some of them afterwards.

pub mod checkpoint;
pub mod component;
pub mod controlnet;
pub mod folder;
mod header;
pub mod lora;
pub mod names;
pub mod pack;
pub mod plan;
pub mod random;
pub mod single_file;

use std::ops::Range;

pub use checkpoint::Checkpoint;
pub use component::Component;
pub use folder::{Defaults, ModelFolder};
pub use lora::Lora;
pub use plan::{Packing, Plan, Request};
pub use random::RandomWeights;
pub use single_file::SingleFile;

use crate::error::Result;
use crate::ops::{Backend, FillRows, Tensor};

/// Numbers for the tensors of a model.
pub trait Source: Sync {
    /// Checks that every request can be filled, and that no tensor is left over: a leftover means that
    /// the configuration describes another model.
    fn check(&self, requests: &[Request]) -> Result<()>;

    /// Writes `rows` of `request.tensor`, whose shape, dtype and packing say how. A row is the last axis;
    /// there are [`Tensor::rows`] of them. Called from many threads.
    ///
    /// # Panics
    /// When `out` is not exactly those rows, or not aligned to its elements; when `request` would not
    /// have passed [`Source::check`].
    fn fill(&self, request: &Request, rows: Range<usize>, out: &mut [u8]);
}

/// Fills the tensors of `requests` from a source that has them.
pub fn fill_requests<'a>(
    backend: &mut dyn Backend,
    source: &dyn Source,
    requests: impl IntoIterator<Item = &'a Request>,
) -> Result<()> {
    let requests: Vec<&Request> = requests.into_iter().collect();
    let fills: Vec<_> = requests
        .iter()
        .map(|&request| move |rows: Range<usize>, out: &mut [u8]| source.fill(request, rows, out))
        .collect();
    let fills: Vec<(Tensor, FillRows)> =
        requests.iter().zip(&fills).map(|(request, fill)| (request.tensor, fill as FillRows)).collect();
    backend.fill(&fills)
}
