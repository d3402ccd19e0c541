//! Work captured from the stream and replayed: plain graphs, and graphs with a conditional WHILE node.

use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{self, CUgraphConditionalNodeType, CUgraphNodeType, CUstreamCaptureMode};
use cudarc::driver::{CudaStream, result};

use super::During;
use super::device::Gpu;
use crate::error::Result;

const CAPTURE_MODE: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
/// `CU_GRAPH_COND_ASSIGN_DEFAULT`: every launch starts with the handle's default value.
const ASSIGN_DEFAULT: u32 = 1;

/// Threads that share a context: to wait for all of it is an error while one of them captures.
static CAPTURE: Mutex<()> = Mutex::new(());

/// Keeps other threads from capturing.
pub(super) fn no_capture() -> MutexGuard<'static, ()> {
    CAPTURE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An executable graph.
pub struct CapturedGraph {
    stream: Arc<CudaStream>,
    graph: sys::CUgraph,
    exec: sys::CUgraphExec,
}

impl CapturedGraph {
    /// Captures what `body` launches.
    pub fn capture(gpu: &Gpu, body: impl FnOnce() -> Result<()>) -> Result<Self> {
        gpu.context.bind_to_thread().during("binding the context")?;
        let capturing = no_capture();
        gpu.stream.begin_capture(CAPTURE_MODE).during("beginning a capture")?;
        let launched = body();
        // The capture ends whatever came of the body: a stream left capturing is of no use.
        let graph = Self::end_capture(gpu).map(Unfinished);
        drop(capturing);
        launched?;
        Self::instantiate(gpu, graph?)
    }

    /// Captures what `body` launches as the body of a WHILE node, which runs at least once and again as
    /// long as the handle given to `body` is set to nonzero on the device.
    pub fn capture_while(gpu: &Gpu, body: impl FnOnce(u64) -> Result<()>) -> Result<Self> {
        gpu.context.bind_to_thread().during("binding the context")?;
        let mut graph = ptr::null_mut();
        // SAFETY: plain out-parameters; the graph is destroyed below or by `CapturedGraph::drop`.
        unsafe { sys::cuGraphCreate(&mut graph, 0) }.result().during("creating a graph")?;
        let owned = Unfinished(graph);

        let mut handle = 0;
        let context = gpu.context.cu_ctx();
        // SAFETY: `graph` is alive; the handle belongs to it.
        unsafe { sys::cuGraphConditionalHandleCreate(&mut handle, graph, context, 1, ASSIGN_DEFAULT) }
            .result()
            .during("creating a conditional handle")?;

        // SAFETY: a C struct for which all zeros is valid; unused fields must be zero.
        let mut params: sys::CUgraphNodeParams = unsafe { std::mem::zeroed() };
        params.type_ = CUgraphNodeType::CU_GRAPH_NODE_TYPE_CONDITIONAL;
        params.__bindgen_anon_1.conditional = sys::CUDA_CONDITIONAL_NODE_PARAMS {
            handle,
            type_: CUgraphConditionalNodeType::CU_GRAPH_COND_TYPE_WHILE,
            size: 1,
            phGraph_out: ptr::null_mut(),
            ctx: context,
        };
        let mut node = ptr::null_mut();
        // SAFETY: no dependencies; the driver fills `phGraph_out` with an array of `size` graphs that
        // the conditional node owns.
        let body_graph = unsafe {
            sys::cuGraphAddNode_v2(&mut node, graph, ptr::null(), ptr::null(), 0, &mut params)
                .result()
                .during("adding a WHILE node")?;
            *params.__bindgen_anon_1.conditional.phGraph_out
        };

        let capturing = no_capture();
        let stream = gpu.stream.cu_stream();
        // SAFETY: `body_graph` lives as long as `graph`.
        unsafe {
            sys::cuStreamBeginCaptureToGraph(stream, body_graph, ptr::null(), ptr::null(), 0, CAPTURE_MODE)
        }
        .result()
        .during("beginning a capture")?;
        let launched = body(handle);
        // As in `capture`; what this returns is `body_graph` again.
        let ended = Self::end_capture(gpu);
        drop(capturing);
        launched?;
        ended?;
        Self::instantiate(gpu, owned)
    }

    fn end_capture(gpu: &Gpu) -> Result<sys::CUgraph> {
        // SAFETY: the stream is capturing.
        unsafe { result::stream::end_capture(gpu.stream.cu_stream()) }.during("ending a capture")
    }

    fn instantiate(gpu: &Gpu, owned: Unfinished) -> Result<Self> {
        let graph = owned.0;
        // SAFETY: `graph` is alive.
        let exec = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) }
            .during("instantiating a graph")?;
        std::mem::forget(owned);
        let captured = CapturedGraph { stream: gpu.stream.clone(), graph, exec };
        // SAFETY: both are alive. Moves the launch's set-up cost here.
        unsafe { result::graph::upload(exec, captured.stream.cu_stream()) }.during("uploading a graph")?;
        Ok(captured)
    }

    pub fn launch(&self) -> Result<()> {
        // SAFETY: the graph's kernels refer to memory that its recorder keeps alive.
        unsafe { result::graph::launch(self.exec, self.stream.cu_stream()) }.during("launching a graph")
    }
}

impl Drop for CapturedGraph {
    fn drop(&mut self) {
        // Errors here have nobody to go to.
        let _ = self.stream.synchronize();
        // SAFETY: created in `instantiate`, destroyed once.
        let _ = unsafe { result::graph::exec_destroy(self.exec) };
        // SAFETY: as above.
        let _ = unsafe { result::graph::destroy(self.graph) };
    }
}

/// A graph that is destroyed unless it becomes a [`CapturedGraph`].
struct Unfinished(sys::CUgraph);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // SAFETY: owned, destroyed once.
        let _ = unsafe { result::graph::destroy(self.0) };
    }
}
