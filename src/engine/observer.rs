//! Who is told what the engine does.

use std::time::Duration;

/// What is measured; called on the engine's threads, so it must not block.
pub trait Observer: Send + Sync {
    /// A picture has left the queue after this time.
    fn queued(&self, _time: Duration) {}
    /// Its prompt has been encoded, and its picture to start from.
    fn encoded(&self, _time: Duration) {}
    /// It has been denoised; in company, so the times of two pictures may be the same time.
    fn denoised(&self, _time: Duration) {}
    fn decoded(&self, _time: Duration) {}
    /// One step of a batch of so many rows of the U-Net.
    fn stepped(&self, _rows: usize) {}
    fn painted(&self) {}
    fn cancelled(&self) {}
    fn refused(&self) {}
    fn failed(&self) {}
}

/// Nobody.
impl Observer for () {}
