//! A machine that fails on command.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use sdrt::ops::cpu::Cpu;
use sdrt::ops::*;
use sdrt::{Error, Result};

/// A CPU whose loops fail, and which has no memory in pieces above a limit, while told so.
struct Faulty {
    cpu: Box<dyn Backend>,
    faults: Arc<Faults>,
}

pub struct Faults {
    pub device_error: AtomicBool,
    pub most_bytes: AtomicUsize,
}

impl Ops for Faulty {
    fn dtype(&self) -> DType {
        self.cpu.dtype()
    }
    fn arena(&mut self) -> &mut Arena {
        self.cpu.arena()
    }
    fn issue(&mut self, call: Call) {
        self.cpu.issue(call);
    }
}

impl Backend for Faulty {
    fn name(&self) -> String {
        self.cpu.name()
    }
    fn describe(&self) -> String {
        self.cpu.describe()
    }
    fn beside(&self) -> Opener {
        let (open, faults) = (self.cpu.beside(), self.faults.clone());
        Box::new(|| Ok(Box::new(Faulty { cpu: open()?, faults })))
    }
    fn reserve(&mut self, bytes: usize, purpose: &str) -> Result<Region> {
        if bytes > self.faults.most_bytes.load(Ordering::Relaxed) {
            return Err(Error::OutOfMemory { purpose: purpose.into(), needed: bytes, free: None });
        }
        self.cpu.reserve(bytes, purpose)
    }
    fn use_arena(&mut self, arena: Arena) -> Arena {
        self.cpu.use_arena(arena)
    }
    fn fill(&mut self, fills: &[(Tensor, FillRows)]) -> Result<()> {
        self.cpu.fill(fills)
    }
    fn write(&mut self, to: Tensor, bytes: &[u8]) -> Result<()> {
        self.cpu.write(to, bytes)
    }
    fn read(&mut self, from: Tensor, bytes: &mut [u8]) -> Result<()> {
        self.cpu.read(from, bytes)
    }
    fn copy(&mut self, to: Tensor, from: Tensor) -> Result<()> {
        self.cpu.copy(to, from)
    }
    fn wait(&mut self) -> Result<()> {
        self.cpu.wait()
    }
    fn run(&mut self, body: &mut dyn FnMut(&mut dyn Ops)) -> Result<()> {
        self.cpu.run(body)
    }
    fn record(&mut self, body: &mut dyn FnMut(&mut dyn Ops)) -> Result<Graph> {
        self.cpu.record(body)
    }
    fn replay(&mut self, graph: &Graph) -> Result<()> {
        self.cpu.replay(graph)
    }
    fn record_steps(&mut self, index: Tensor, body: &mut dyn FnMut(&mut dyn Ops)) -> Result<Graph> {
        self.cpu.record_steps(index, body)
    }
    fn replay_steps(
        &mut self,
        graph: &Graph,
        steps: usize,
        on_step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<usize> {
        if self.faults.device_error.load(Ordering::Relaxed) {
            return Err(Error::Cuda { operation: "denoising".into(), message: "injected".into() });
        }
        self.cpu.replay_steps(graph, steps, on_step)
    }
    fn recorded(&self) -> usize {
        self.cpu.recorded()
    }
}

impl Faults {
    /// Opens a machine that these make fail.
    pub fn open(self: Arc<Self>) -> Result<(Box<dyn Backend>, Option<String>)> {
        Ok((Box::new(Faulty { cpu: Box::new(Cpu::new()), faults: self }), None))
    }
}

impl Default for Faults {
    /// None.
    fn default() -> Self {
        Faults { device_error: AtomicBool::new(false), most_bytes: AtomicUsize::new(usize::MAX) }
    }
}
