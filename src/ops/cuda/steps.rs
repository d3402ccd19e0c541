//! The denoising loop on the device: one graph that runs until its steps are done or somebody cancels.
//!
//! The kernel that ends a step moves the step counter and decides whether another step follows
//! (cuda/steps.cuh). It writes the count of steps into page-locked host memory, where the host reads it
//! for the progress bar, and reads the cancel flag from there.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use cudarc::driver::result;
use cudarc::driver::sys::CUevent_flags;

use super::Cuda;
use crate::error::Result;
use crate::gpu::During;
use crate::gpu::device::Gpu;
use crate::gpu::graph::CapturedGraph;
use crate::gpu::kernels::StepArgs;
use crate::gpu::launch::Launch;
use crate::gpu::memory::{DeviceMemory, HostMemory};
use crate::ops::{DType, Ops, Tensor};

/// How often the host looks at the count of steps.
const POLL: Duration = Duration::from_micros(100);

/// How a loop of steps is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoopKind {
    /// One graph with a conditional WHILE node: the device decides whether another step follows.
    While,
    /// One graph of one step, launched by the host: for drivers before CUDA 12.4.
    Stepwise,
}

/// Counters of a running loop.
pub struct StepControl {
    /// i32 [2]: steps left, steps done.
    counters: DeviceMemory,
    /// i32 [2]: steps done, cancel.
    shared: HostMemory,
    shared_address: u64,
}

impl StepControl {
    pub fn new(gpu: &Gpu) -> Result<Self> {
        let shared = HostMemory::new(&gpu.context, 8)?;
        Ok(StepControl {
            counters: DeviceMemory::new(&gpu.context, 8, "step counters")?,
            shared_address: shared.device_address()?,
            shared,
        })
    }

    fn args(&self, index: Tensor, condition: u64) -> StepArgs {
        assert_eq!(index.dtype, DType::I32);
        StepArgs {
            index: index.address,
            counters: self.counters.address,
            done: self.shared_address,
            cancel: self.shared_address + 4,
            condition,
            rows: index.len() as i32,
            unused: 0,
        }
    }

    fn done(&self) -> &AtomicI32 {
        // SAFETY: aligned, alive as long as `self`, and only ever accessed as an atomic here.
        unsafe { AtomicI32::from_ptr(self.shared.pointer().cast()) }
    }
    fn cancel(&self) -> &AtomicI32 {
        // SAFETY: as in `done`; four bytes further.
        unsafe { AtomicI32::from_ptr(self.shared.pointer().add(4).cast()) }
    }
}

const STEP_END: Launch = Launch { grid: (1, 1, 1), block: (32, 1, 1), shared_bytes: 0, cluster: 1 };

impl Cuda {
    /// Launches the end of a step that the host repeats.
    pub(super) fn advance(&mut self, index: Tensor) -> Result<()> {
        let args = self.control.args(index, 0);
        // SAFETY: the kernel takes `StepArgs`; the addresses are those of live memory.
        unsafe { self.gpu.launch(&self.kernels.step_advance, STEP_END, &args) }
    }

    pub(super) fn capture_while(
        &mut self,
        index: Tensor,
        body: &mut dyn FnMut(&mut dyn Ops),
    ) -> Result<CapturedGraph> {
        let gpu = self.gpu.clone();
        CapturedGraph::capture_while(&gpu, |condition| {
            self.captured(|cuda| {
                body(cuda);
                let args = cuda.control.args(index, condition);
                let step_while =
                    cuda.kernels.step_while.as_ref().expect("loaded when the driver knows WHILE");
                // SAFETY: as in `advance`.
                unsafe { cuda.gpu.launch(step_while, STEP_END, &args) }
            })
        })
    }

    pub(super) fn run_steps(
        &mut self,
        graph: &CapturedGraph,
        kind: LoopKind,
        steps: usize,
        on_step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<usize> {
        if steps == 0 {
            return Ok(0);
        }
        self.synchronize("waiting for the device")?;
        self.control.done().store(0, Ordering::Relaxed);
        self.control.cancel().store(0, Ordering::Relaxed);
        let counters = [steps as i32, 0];
        // On the stream, which does not wait for copies on the default stream.
        // SAFETY: two integers into memory of two integers; `counters` outlives the loop.
        unsafe {
            result::memcpy_htod_async(self.control.counters.address, &counters, self.gpu.stream.cu_stream())
        }
        .during("setting the step counters")?;
        match kind {
            LoopKind::While => {
                graph.launch()?;
                self.follow(on_step)?;
            }
            LoopKind::Stepwise => {
                for step in 1..=steps {
                    graph.launch()?;
                    self.synchronize("denoising")?;
                    if on_step(step).is_break() {
                        break;
                    }
                }
            }
        }
        self.synchronize("denoising")?;
        Ok(self.control.done().load(Ordering::Acquire).max(0) as usize)
    }

    /// Waits for the stream, telling `on_step` how many steps are done, and cancels when it breaks off.
    fn follow(&mut self, on_step: &mut dyn FnMut(usize) -> ControlFlow<()>) -> Result<()> {
        let finished = self
            .gpu
            .stream
            .record_event(Some(CUevent_flags::CU_EVENT_DISABLE_TIMING))
            .during("recording an event")?;
        let mut told = 0;
        loop {
            let is_finished = finished.try_is_complete().during("denoising")?;
            let done = self.control.done().load(Ordering::Acquire);
            if done > told {
                told = done;
                if on_step(done as usize).is_break() {
                    self.control.cancel().store(1, Ordering::Release);
                }
            }
            if is_finished {
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
    }
}
