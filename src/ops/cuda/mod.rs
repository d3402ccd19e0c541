//! The CUDA backend: verbs become kernel launches on one stream, models become graphs.

mod ceiling;
mod launch;
mod steps;

use std::any::Any;
use std::ops::ControlFlow;
use std::rc::Rc;

use cudarc::driver::result;

pub use self::steps::LoopKind;
use self::steps::StepControl;
use super::{Arena, Backend, Call, DType, FillRows, Graph, Opener, Ops, Region, Tensor};
use crate::ceiling::Ceiling;
use crate::error::{Error, Result};
use crate::gpu::cublaslt::CublasLt;
use crate::gpu::device::Gpu;
use crate::gpu::graph::CapturedGraph;
use crate::gpu::kernels::Kernels;
use crate::gpu::memory::DeviceMemory;
use crate::gpu::nvml;
use crate::gpu::nvtx::Nvtx;
use crate::gpu::staging::{Staging, Upload};
use crate::gpu::{Company, During};

/// Which kernels answer for conv2d, linear and attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The ones to use. Convolution and attention in f32 are the naive ones all the same.
    Fast,
    /// One thread per output: what the fast ones are tested against at full size.
    Naive,
}

/// Scratch that split convolutions and norm statistics share; nothing in it outlives a verb.
const SCRATCH_BYTES: usize = 64 << 20;

pub struct Cuda {
    gpu: Rc<Gpu>,
    kernels: Kernels,
    cublaslt: CublasLt,
    scratch: DeviceMemory,
    control: StepControl,
    nvtx: Option<Nvtx>,
    /// Made at the first upload, kept while a model loads.
    staging: Option<Staging>,
    arena: Arena,
    dtype: DType,
    kind: Kind,
    company: Company,
    loop_kind: LoopKind,
    /// Synchronise after each verb, so that a failure names the verb that caused it (`SDRT_SYNC=1`).
    sync: bool,
    /// Graphs recorded so far.
    recorded: usize,
    /// A stream that is being captured cannot be waited for.
    capturing: bool,
    /// The first failure since the last time anybody asked.
    failure: Option<Error>,
}

/// A graph and whether it is the body of a loop.
enum Recorded {
    Once(CapturedGraph),
    Steps(CapturedGraph, LoopKind),
}

impl Cuda {
    /// Opens a GPU for activations of `dtype`: F16, BF16, or F32 (a reference, slow).
    pub fn open(ordinal: usize, dtype: DType) -> Result<Self> {
        let gpu = Rc::new(Gpu::open(ordinal)?);
        let kernels = Kernels::load(&gpu, dtype)?;
        let nvtx = Nvtx::load();
        tracing::debug!(
            name = gpu.name,
            arch = gpu.arch,
            multiprocessors = gpu.multiprocessors,
            driver = gpu.driver,
            portable = gpu.portable,
            nvtx = nvtx.is_some(),
            clusters = ?kernels.clusters,
            "opened the GPU"
        );
        let loop_kind = if gpu.has_conditional_graphs() { LoopKind::While } else { LoopKind::Stepwise };
        Ok(Cuda {
            kernels,
            cublaslt: CublasLt::new(&gpu)?,
            scratch: DeviceMemory::new(&gpu.context, SCRATCH_BYTES, "kernel scratch")?,
            control: StepControl::new(&gpu)?,
            nvtx,
            staging: None,
            arena: Arena::new(0, 0),
            dtype,
            kind: Kind::Fast,
            company: Company::default(),
            loop_kind,
            sync: std::env::var("SDRT_SYNC").is_ok_and(|value| value == "1"),
            recorded: 0,
            capturing: false,
            failure: None,
            gpu,
        })
    }

    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Which kernels to use from now on.
    pub fn set_kind(&mut self, kind: Kind) {
        self.kind = kind;
    }

    /// How loops recorded from now on are run.
    pub fn set_loop_kind(&mut self, kind: LoopKind) {
        assert!(kind == LoopKind::Stepwise || self.gpu.has_conditional_graphs(), "the driver is too old");
        self.loop_kind = kind;
    }

    /// The failure of any verb so far, else what `result` says.
    fn settle<T>(&mut self, result: Result<T>) -> Result<T> {
        match self.failure.take() {
            Some(failure) => Err(failure),
            None => result,
        }
    }

    fn synchronize(&mut self, operation: &str) -> Result<()> {
        let result = self.gpu.synchronize(operation);
        self.settle(result)
    }

    fn capture(&mut self, body: impl FnOnce(&mut Self) -> Result<()>) -> Result<CapturedGraph> {
        let gpu = self.gpu.clone();
        CapturedGraph::capture(&gpu, || self.captured(body))
    }

    /// Issues what is being captured.
    fn captured(&mut self, body: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.recorded += 1;
        self.capturing = true;
        let result = body(self);
        self.capturing = false;
        self.settle(result)
    }
}

impl Ops for Cuda {
    fn dtype(&self) -> DType {
        self.dtype
    }
    fn arena(&mut self) -> &mut Arena {
        &mut self.arena
    }

    fn issue(&mut self, call: Call) {
        if self.failure.is_some() {
            return;
        }
        let mut result = self.launch(&call);
        if result.is_ok() && self.sync && !self.capturing {
            result = self.gpu.synchronize("running a kernel");
        }
        if let Err(error) = result {
            self.failure = Some(match error {
                Error::Cuda { operation, message } => {
                    let operation = format!("{} {}: {operation}", call.name(), call.shape());
                    Error::Cuda { operation, message }
                }
                other => other,
            });
        }
    }

    fn enter(&mut self, name: &str) {
        if let Some(nvtx) = &self.nvtx {
            nvtx.push(name);
        }
    }
    fn leave(&mut self) {
        if let Some(nvtx) = &self.nvtx {
            nvtx.pop();
        }
    }
}

impl Backend for Cuda {
    fn name(&self) -> String {
        let portable = if self.gpu.portable { ", portable kernels" } else { "" };
        format!("{} (sm_{}{portable})", self.gpu.name, self.gpu.arch)
    }

    fn describe(&self) -> String {
        format!("{}, {}", self.name(), self.dtype)
    }

    fn card(&self) -> Option<String> {
        let driver = nvml::driver_version().unwrap_or_else(|| format!("of CUDA {}", self.gpu.driver));
        Some(format!("{}, driver {driver}, {}", self.gpu.name, self.dtype))
    }

    fn measure_ceiling(&mut self) -> Result<Option<Ceiling>> {
        let ceiling = self.time_ceiling();
        self.settle(ceiling).map(Some)
    }

    fn beside(&self) -> Opener {
        let (ordinal, dtype, company) = (self.gpu.context.ordinal(), self.dtype, self.company);
        Box::new(move || Ok(Box::new(Cuda { company, ..Cuda::open(ordinal, dtype)? })))
    }

    fn keep_alike(&mut self) {
        self.company = Company::Alike;
    }

    fn reserve(&mut self, bytes: usize, purpose: &str) -> Result<Region> {
        let memory = DeviceMemory::new(&self.gpu.context, bytes, purpose)?;
        Ok(Region { base: memory.address, bytes, _owner: Box::new(memory) })
    }

    fn use_arena(&mut self, arena: Arena) -> Arena {
        std::mem::replace(&mut self.arena, arena)
    }

    fn fill(&mut self, fills: &[(Tensor, FillRows)]) -> Result<()> {
        let staging = match &mut self.staging {
            Some(staging) => staging,
            None => self.staging.insert(Staging::new(&self.gpu)?),
        };
        let uploads = fills.iter().map(|&(to, fill)| {
            let row_bytes = to.c() * to.dtype.size();
            // A conv weight's rows belong together by output channel.
            let unit = if to.b() > 1 { to.h() * to.w() } else { 1 };
            Upload { to: to.address, rows: dense_bytes(&to) / row_bytes.max(1), row_bytes, unit, fill }
        });
        staging.send(&self.gpu, uploads)
    }

    fn finish_fill(&mut self) -> Result<()> {
        self.synchronize("uploading")?;
        self.staging = None;
        Ok(())
    }

    fn write(&mut self, to: Tensor, bytes: &[u8]) -> Result<()> {
        assert_eq!(bytes.len(), dense_bytes(&to), "writing {to}");
        // SAFETY: the tensor lies in memory that this backend reserved; the stream is waited for below.
        let copied = unsafe { result::memcpy_htod_async(to.address, bytes, self.gpu.stream.cu_stream()) };
        copied.during("writing to the device")?;
        self.synchronize("writing to the device")
    }

    fn read(&mut self, from: Tensor, bytes: &mut [u8]) -> Result<()> {
        assert_eq!(bytes.len(), dense_bytes(&from), "reading {from}");
        self.synchronize("waiting for the device")?;
        // SAFETY: as in `write`.
        let copied = unsafe { result::memcpy_dtoh_async(bytes, from.address, self.gpu.stream.cu_stream()) };
        copied.during("reading from the device")?;
        self.synchronize("reading from the device")
    }

    fn copy(&mut self, to: Tensor, from: Tensor) -> Result<()> {
        assert_eq!((to.shape, to.dtype), (from.shape, from.dtype), "copying {from} to {to}");
        let (bytes, stream) = (dense_bytes(&from), self.gpu.stream.cu_stream());
        dense_bytes(&to);
        // SAFETY: both lie in memory that was reserved on this device.
        unsafe { result::memcpy_dtod_async(to.address, from.address, bytes, stream) }
            .during("copying on the device")
    }

    fn wait(&mut self) -> Result<()> {
        self.synchronize("waiting for the device")
    }

    fn run(&mut self, body: &mut dyn FnMut(&mut dyn Ops)) -> Result<()> {
        body(self);
        self.synchronize("running")
    }

    fn record(&mut self, body: &mut dyn FnMut(&mut dyn Ops)) -> Result<Graph> {
        // The first run loads code and fills cuBLASLt's plans, neither of which a capture allows.
        self.run(body)?;
        let graph = self.capture(|cuda| {
            body(cuda);
            Ok(())
        })?;
        Ok(Graph(Box::new(Recorded::Once(graph))))
    }

    fn replay(&mut self, graph: &Graph) -> Result<()> {
        match recorded(graph) {
            Recorded::Once(graph) => graph.launch()?,
            Recorded::Steps(..) => panic!("a loop is replayed with its number of steps"),
        }
        self.synchronize("running a graph")
    }

    fn record_steps(&mut self, index: Tensor, body: &mut dyn FnMut(&mut dyn Ops)) -> Result<Graph> {
        self.run(body)?;
        let kind = self.loop_kind;
        let graph = match kind {
            LoopKind::Stepwise => self.capture(|cuda| {
                body(cuda);
                cuda.advance(index)
            })?,
            LoopKind::While => self.capture_while(index, body)?,
        };
        Ok(Graph(Box::new(Recorded::Steps(graph, kind))))
    }

    fn replay_steps(
        &mut self,
        graph: &Graph,
        steps: usize,
        on_step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<usize> {
        match recorded(graph) {
            Recorded::Steps(graph, kind) => self.run_steps(graph, *kind, steps, on_step),
            Recorded::Once(_) => panic!("not a loop"),
        }
    }

    fn recorded(&self) -> usize {
        self.recorded
    }
}

fn dense_bytes(tensor: &Tensor) -> usize {
    assert!(tensor.is_dense(), "{tensor} is not dense");
    tensor.bytes()
}

fn recorded(graph: &Graph) -> &Recorded {
    let graph: &dyn Any = &*graph.0;
    graph.downcast_ref().expect("recorded by another backend")
}
