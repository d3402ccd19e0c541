//! How an engine runs.

use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Settings {
    /// Pictures of one size that are denoised at once. Throughput grows little beyond a few, and each picture takes
    /// longer.
    pub max_batch: usize,
    pub batching: Batching,
    /// Images that may wait; jobs are rejected while so many do.
    pub max_queue: usize,
    /// Model evaluations of one picture.
    pub max_evaluations: usize,
    /// Encoded prompts that are kept.
    pub cached_prompts: usize,
}

/// When pictures join a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batching {
    /// Between any two steps.
    Step,
    /// As servers of whole requests do it: pictures of equally many evaluations wait for one another up to `wait`,
    /// and those that come later wait until all of the batch are done. For comparison.
    Request { wait: Duration },
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            max_batch: 8,
            batching: Batching::Step,
            max_queue: 256,
            max_evaluations: 128,
            cached_prompts: 64,
        }
    }
}
