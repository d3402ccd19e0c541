//! The speeds of a machine that no program exceeds.

use serde::{Deserialize, Serialize};

/// Speeds that were measured on a machine and that nothing exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ceiling {
    /// A large matrix product, FLOP/s.
    pub flops: f64,
    /// A large copy in device memory, bytes/s read and written.
    pub bytes: f64,
}

impl Ceiling {
    /// Milliseconds that so many operations on so many bytes take at least.
    pub fn floor_ms(&self, flops: f64, bytes: f64) -> f64 {
        1e3 * (flops / self.flops).max(bytes / self.bytes)
    }
}
