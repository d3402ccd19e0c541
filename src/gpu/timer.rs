//! Time on the device, between events of the stream.

use cudarc::driver::CudaEvent;
use cudarc::driver::sys::CUevent_flags;

use super::During;
use super::device::Gpu;
use crate::error::Result;

pub struct Timer {
    start: CudaEvent,
    end: CudaEvent,
}

impl Timer {
    pub fn new(gpu: &Gpu) -> Result<Self> {
        let event =
            || gpu.context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).during("creating an event");
        Ok(Timer { start: event()?, end: event()? })
    }

    pub fn start(&self, gpu: &Gpu) -> Result<()> {
        self.start.record(&gpu.stream).during("recording an event")
    }

    /// Waits, and returns the milliseconds since `start`.
    pub fn stop(&self, gpu: &Gpu) -> Result<f64> {
        self.end.record(&gpu.stream).during("recording an event")?;
        self.end.synchronize().during("waiting for an event")?;
        Ok(f64::from(self.start.elapsed_ms(&self.end).during("reading a timer")?))
    }
}
