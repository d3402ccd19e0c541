//! The seam between models and machines.
//!
//! A model is a plain function that takes `&mut dyn Ops`, allocates tensors from the arena and issues
//! verbs ([`verbs`]). It never names a backend. Three things implement [`Ops`]: [`cuda::Cuda`] launches
//! kernels, [`cpu::Cpu`] computes in f32, [`count::Count`] only writes down what was asked.
//! [`Backend`] adds what a pipeline needs around a model: memory, transfers, recorded graphs.

pub mod call;
pub mod count;
pub mod cpu;
#[cfg(sdrt_cuda)]
pub mod cuda;
pub mod row;
pub mod tensor;
pub mod verbs;

use std::any::Any;
use std::ops::{ControlFlow, Range};

pub use call::Call;
pub use tensor::{Arena, Tensor};
pub use verbs::*;

use crate::ceiling::Ceiling;
pub use crate::dtype::DType;
use crate::error::Result;

/// What a model is written over: an arena and verbs.
///
/// Verbs return nothing. The first failure of a backend is kept, with the verb's name; later verbs
/// do nothing, and the failure comes out where the work is waited for ([`Backend`]). So a model's
/// code reads like the formula it computes.
pub trait Ops {
    /// Dtype of activations and weights.
    fn dtype(&self) -> DType;
    /// The arena that tensors are taken from.
    fn arena(&mut self) -> &mut Arena;
    /// Executes, records or counts one verb, which has been checked.
    fn issue(&mut self, call: Call);
    /// Opens a named range, named after the checkpoint's path (`down_blocks.0.resnets.1`).
    fn enter(&mut self, _name: &str) {}
    fn leave(&mut self) {}
}

impl dyn Ops + '_ {
    /// Takes a tensor of activations.
    pub fn alloc(&mut self, shape: [usize; 4]) -> Tensor {
        let dtype = self.dtype();
        self.arena().alloc(shape, dtype)
    }

    /// Runs `body` in a named range and gives back all that it allocated. What must outlive the
    /// scope is allocated before it.
    pub fn scope<R>(&mut self, name: &str, body: impl FnOnce(&mut dyn Ops) -> R) -> R {
        let mark = self.arena().mark();
        self.enter(name);
        let result = body(self);
        self.leave();
        self.arena().release(mark);
        result
    }

    fn call(&mut self, call: Call) {
        call.check();
        self.issue(call);
    }

    pub fn conv2d(&mut self, v: Conv2d) {
        self.call(Call::Conv2d(v));
    }
    pub fn linear(&mut self, v: Linear) {
        self.call(Call::Linear(v));
    }
    pub fn group_norm(&mut self, v: GroupNorm) {
        self.call(Call::GroupNorm(v));
    }
    pub fn layer_norm(&mut self, v: LayerNorm) {
        self.call(Call::LayerNorm(v));
    }
    pub fn attention(&mut self, v: Attention) {
        self.call(Call::Attention(v));
    }
    pub fn activate(&mut self, v: Activate) {
        self.call(Call::Activate(v));
    }
    pub fn geglu(&mut self, v: Geglu) {
        self.call(Call::Geglu(v));
    }
    pub fn accumulate(&mut self, v: Accumulate) {
        self.call(Call::Accumulate(v));
    }
    pub fn embed(&mut self, v: Embed) {
        self.call(Call::Embed(v));
    }
    pub fn emphasize(&mut self, v: Emphasize) {
        self.call(Call::Emphasize(v));
    }
    pub fn timestep_embedding(&mut self, v: TimestepEmbedding) {
        self.call(Call::TimestepEmbedding(v));
    }
    pub fn scale(&mut self, v: Scale) {
        self.call(Call::Scale(v));
    }
    pub fn model_input(&mut self, v: ModelInput) {
        self.call(Call::ModelInput(v));
    }
    pub fn sampler_step(&mut self, v: SamplerStep) {
        self.call(Call::SamplerStep(v));
    }
    pub fn to_rgb8(&mut self, v: ToRgb8) {
        self.call(Call::ToRgb8(v));
    }
}

/// Memory taken from a backend; given back when dropped.
pub struct Region {
    pub base: u64,
    pub bytes: usize,
    pub(crate) _owner: Box<dyn Any + Send + Sync>,
}

/// Opens a backend, on the thread that is to use it.
pub type Opener = Box<dyn FnOnce() -> Result<Box<dyn Backend>> + Send>;

/// A recorded sequence of verbs; only the backend that recorded it can replay it.
pub struct Graph(pub(crate) Box<dyn Any>);

/// Fills rows of a weight, given in the tensor's own layout and dtype; called from many threads.
pub type FillRows<'a> = &'a (dyn Fn(Range<usize>, &mut [u8]) + Sync);

/// A machine that can hold a model and run it.
///
/// Work is issued in order. `write`, `read`, `replay` and `replay_steps` return when it is done,
/// and with the first error that happened up to there.
pub trait Backend: Ops {
    /// The machine's name: `CPU`, or the GPU's with what its kernels are made for.
    fn name(&self) -> String;

    /// The machine in words.
    fn describe(&self) -> String;

    /// The card, its driver and the dtype, under which [`Backend::measure_ceiling`] is remembered. `None` where
    /// nothing is measured.
    fn card(&self) -> Option<String> {
        None
    }

    /// Measures what the machine can do at most in the backend's dtype, in about a second. `None` on the CPU.
    fn measure_ceiling(&mut self) -> Result<Option<Ceiling>> {
        Ok(None)
    }

    /// How to open another backend on the same machine, for another thread: its work is in no order with this one's,
    /// and either sees the tensors of both.
    ///
    /// What one of them writes, the other neither reads nor writes at that time. The caller divides the memory between
    /// them (tensors, or ranges of images or rows of one), and hands a part over after the work on it has been waited
    /// for, through a lock or a channel. Both may read at once.
    fn beside(&self) -> Opener;

    /// From now on, an image's bytes do not depend on how many others are in a call, which then takes longer where
    /// they are more than two. Call it before anything is recorded.
    fn keep_alike(&mut self) {}

    /// Takes zeroed memory. `purpose` ("weights", "activations") is for the out-of-memory message.
    fn reserve(&mut self, bytes: usize, purpose: &str) -> Result<Region>;

    /// Makes `arena` the one that verbs allocate from; returns the one before.
    fn use_arena(&mut self, arena: Arena) -> Arena;

    /// Fills dense tensors, a few rows at a time; many at once keep all cores at work. May return before the
    /// copies to the device have happened: [`Backend::finish_fill`] waits for all of them.
    fn fill(&mut self, fills: &[(Tensor, FillRows)]) -> Result<()>;

    /// Waits until all fills have arrived, and gives staging memory back.
    fn finish_fill(&mut self) -> Result<()> {
        Ok(())
    }

    /// Copies the bytes of a dense tensor from the host.
    fn write(&mut self, to: Tensor, bytes: &[u8]) -> Result<()>;

    /// Copies the bytes of a dense tensor to the host.
    fn read(&mut self, from: Tensor, bytes: &mut [u8]) -> Result<()>;

    /// Copies a dense tensor to another of the same shape and dtype, in order with other work, but does not wait.
    fn copy(&mut self, to: Tensor, from: Tensor) -> Result<()>;

    /// Waits for all work issued so far.
    fn wait(&mut self) -> Result<()>;

    /// Executes `body` once, verb by verb, and waits. Nothing is kept.
    fn run(&mut self, body: &mut dyn FnMut(&mut dyn Ops)) -> Result<()>;

    /// Records the verbs of `body`. The body may be executed in the course of it, on whatever the
    /// memory holds: record first, then write the inputs.
    fn record(&mut self, body: &mut dyn FnMut(&mut dyn Ops)) -> Result<Graph>;

    fn replay(&mut self, graph: &Graph) -> Result<()>;

    /// Records `body` as one step of a loop. After each step, every entry of `index` (i32) grows by one.
    fn record_steps(&mut self, index: Tensor, body: &mut dyn FnMut(&mut dyn Ops)) -> Result<Graph>;

    /// Runs `steps` steps. `on_step` hears how many are done, not necessarily of each one, and may
    /// break off. Returns the number of steps done.
    fn replay_steps(
        &mut self,
        graph: &Graph,
        steps: usize,
        on_step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<usize>;

    /// How many graphs were recorded so far.
    fn recorded(&self) -> usize;
}
