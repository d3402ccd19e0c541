//! The backend for machines without a GPU, and the oracle of the GPU's tests: every verb in f32.
//!
//! Addresses are host addresses. A graph is the list of recorded verbs. Work is split by shape and
//! summed in a fixed order, so a machine gives the same bytes every time, alone and in a batch.

mod attention;
mod conv;
mod elementwise;
mod math;
mod memory;
mod norm;
mod product;
mod sampler;

use std::ops::ControlFlow;

use rayon::prelude::*;

use super::{Arena, Backend, Call, DType, FillRows, Graph, Opener, Ops, Region, Tensor};
use crate::error::Result;
use memory::Memory;

pub struct Cpu {
    arena: Arena,
    memory: Memory,
    /// A weight's transpose, for the length of one verb.
    transposed: Vec<f32>,
    recording: Option<Vec<Call>>,
    recorded: usize,
}

/// What [`Graph`] holds here.
struct Recorded {
    calls: Vec<Call>,
    /// What grows by one after each step, if this is a step.
    index: Option<Tensor>,
}

impl Cpu {
    /// Uses rayon's global threads: as many as cores, or `RAYON_NUM_THREADS`.
    pub fn new() -> Self {
        Cpu {
            arena: Arena::new(0, 0),
            memory: Memory::default(),
            transposed: Vec::new(),
            recording: None,
            recorded: 0,
        }
    }

    fn execute(&mut self, call: &Call) {
        let memory = &self.memory;
        match call {
            Call::Conv2d(v) => conv::conv2d(memory, &mut self.transposed, v),
            Call::Linear(v) => product::linear(memory, &mut self.transposed, v),
            Call::GroupNorm(v) => norm::group_norm(memory, v),
            Call::LayerNorm(v) => norm::layer_norm(memory, v),
            Call::Attention(v) => attention::attention(memory, v),
            Call::Activate(v) => elementwise::activate(memory, v),
            Call::Accumulate(v) => elementwise::accumulate(memory, v),
            Call::Geglu(v) => {
                product::linear(memory, &mut self.transposed, &v.projection());
                elementwise::geglu(memory, v);
            }
            Call::Embed(v) => elementwise::embed(memory, v),
            Call::Emphasize(v) => elementwise::emphasize(memory, v),
            Call::TimestepEmbedding(v) => elementwise::timestep_embedding(memory, v),
            Call::Scale(v) => elementwise::scale(memory, v),
            Call::ModelInput(v) => sampler::model_input(memory, v),
            Call::SamplerStep(v) => sampler::sampler_step(memory, v),
            Call::ToRgb8(v) => elementwise::to_rgb8(memory, v),
        }
    }

    fn record_calls(&mut self, index: Option<Tensor>, body: &mut dyn FnMut(&mut dyn Ops)) -> Graph {
        assert!(self.recording.is_none(), "recording inside a recording");
        self.recording = Some(Vec::new());
        body(self);
        self.recorded += 1;
        Graph(Box::new(Recorded { calls: self.recording.take().unwrap_or_default(), index }))
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Cpu::new()
    }
}

fn recorded(graph: &Graph) -> &Recorded {
    graph.0.downcast_ref().expect("this graph was recorded by another backend")
}

impl Ops for Cpu {
    fn dtype(&self) -> DType {
        DType::F32
    }

    fn arena(&mut self) -> &mut Arena {
        &mut self.arena
    }

    fn issue(&mut self, call: Call) {
        match &mut self.recording {
            Some(calls) => calls.push(call),
            None => self.execute(&call),
        }
    }
}

impl Backend for Cpu {
    fn name(&self) -> String {
        "CPU".to_string()
    }

    fn describe(&self) -> String {
        match rayon::current_num_threads() {
            1 => "CPU, 1 thread".to_string(),
            n => format!("CPU, {n} threads"),
        }
    }

    fn beside(&self) -> Opener {
        let memory = self.memory.clone();
        Box::new(|| Ok(Box::new(Cpu { memory, ..Cpu::new() })))
    }

    fn reserve(&mut self, bytes: usize, purpose: &str) -> Result<Region> {
        self.memory.reserve(bytes, purpose)
    }

    fn use_arena(&mut self, arena: Arena) -> Arena {
        std::mem::replace(&mut self.arena, arena)
    }

    fn fill(&mut self, fills: &[(Tensor, FillRows)]) -> Result<()> {
        // Large enough to be worth a task, small enough to spread one weight over all threads.
        const BYTES: usize = 1 << 18;
        for (to, fill) in fills {
            let row_bytes = to.c() * to.dtype.size();
            let rows = (BYTES / row_bytes.max(1)).max(1);
            self.memory.bytes_mut(*to).par_chunks_mut((rows * row_bytes).max(1)).enumerate().for_each(
                |(chunk, bytes)| {
                    let first = chunk * rows;
                    fill(first..first + bytes.len() / row_bytes, bytes);
                },
            );
        }
        Ok(())
    }

    fn write(&mut self, to: Tensor, bytes: &[u8]) -> Result<()> {
        assert_eq!(bytes.len(), to.bytes(), "bytes for {to}");
        self.memory.bytes_mut(to).copy_from_slice(bytes);
        Ok(())
    }

    fn read(&mut self, from: Tensor, bytes: &mut [u8]) -> Result<()> {
        assert_eq!(bytes.len(), from.bytes(), "room for {from}");
        bytes.copy_from_slice(self.memory.bytes(from));
        Ok(())
    }

    fn copy(&mut self, to: Tensor, from: Tensor) -> Result<()> {
        assert_eq!((to.shape, to.dtype), (from.shape, from.dtype), "copying {from} to {to}");
        self.memory.copy(to, from);
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        Ok(())
    }

    fn run(&mut self, body: &mut dyn FnMut(&mut dyn Ops)) -> Result<()> {
        assert!(self.recording.is_none(), "run inside a recording");
        body(self);
        Ok(())
    }

    fn record(&mut self, body: &mut dyn FnMut(&mut dyn Ops)) -> Result<Graph> {
        Ok(self.record_calls(None, body))
    }

    fn replay(&mut self, graph: &Graph) -> Result<()> {
        let Recorded { calls, index } = recorded(graph);
        assert!(index.is_none(), "a graph of steps is replayed with replay_steps");
        calls.iter().for_each(|call| self.execute(call));
        Ok(())
    }

    fn record_steps(&mut self, index: Tensor, body: &mut dyn FnMut(&mut dyn Ops)) -> Result<Graph> {
        assert_eq!(index.dtype, DType::I32, "step index {index}");
        Ok(self.record_calls(Some(index), body))
    }

    fn replay_steps(
        &mut self,
        graph: &Graph,
        steps: usize,
        on_step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<usize> {
        let Recorded { calls, index } = recorded(graph);
        let index = index.expect("a graph recorded with record_steps");
        for done in 1..=steps {
            calls.iter().for_each(|call| self.execute(call));
            bytemuck::cast_slice_mut::<u8, i32>(self.memory.bytes_mut(index))
                .iter_mut()
                .for_each(|i| *i += 1);
            if on_step(done).is_break() {
                return Ok(done);
            }
        }
        Ok(steps)
    }

    fn recorded(&self) -> usize {
        self.recorded
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::ops::row::ROW_WIDTH;
    use crate::ops::{Linear, ModelInput, Scale};

    fn cpu() -> (Cpu, Region) {
        let mut cpu = Cpu::new();
        let region = cpu.reserve(1 << 16, "tests").unwrap();
        cpu.use_arena(Arena::new(region.base, region.bytes));
        (cpu, region)
    }

    fn tensor(cpu: &mut Cpu, shape: [usize; 4], values: &[f32]) -> Tensor {
        let tensor = cpu.arena().alloc(shape, DType::F32);
        cpu.write(tensor, bytemuck::cast_slice(values)).unwrap();
        tensor
    }

    fn f32s<const N: usize>(cpu: &mut Cpu, tensor: Tensor) -> [f32; N] {
        let mut values = [0.0; N];
        cpu.read(tensor, bytemuck::cast_slice_mut(&mut values)).unwrap();
        values
    }

    #[test]
    fn steps_advance_the_index_and_can_be_broken_off() {
        let (mut cpu, _region) = cpu();
        let mut rows = [0.0; 4 * ROW_WIDTH];
        (0..4).for_each(|i| rows[i * ROW_WIDTH] = (i + 1) as f32);
        let table = tensor(&mut cpu, [1, 1, 4, ROW_WIDTH], &rows);
        let x = tensor(&mut cpu, [1, 1, 1, 1], &[10.0]);
        let identity = tensor(&mut cpu, [1, 1, 1, 1], &[1.0]);
        let sum = tensor(&mut cpu, [1, 1, 1, 1], &[0.0]);
        let index = cpu.arena().alloc([1, 1, 1, 2], DType::I32);
        let slot = cpu.arena().alloc([1, 1, 1, 1], DType::I32);
        let graph = cpu
            .record_steps(index, &mut |ops| {
                let out = ops.alloc([1, 1, 1, 1]);
                ops.model_input(ModelInput { out, x, beside: None, table, index, slot });
                ops.linear(Linear { residual: Some(sum), ..Linear::new(sum, out, identity, None) });
            })
            .unwrap();
        assert_eq!((cpu.recorded(), f32s(&mut cpu, sum)), (1, [0.0]), "recording computes nothing");

        let mut heard = Vec::new();
        let done = cpu.replay_steps(&graph, 3, &mut |done| {
            heard.push(done);
            ControlFlow::Continue(())
        });
        assert_eq!((done.unwrap(), heard), (3, vec![1, 2, 3]));
        assert_eq!(f32s(&mut cpu, sum), [10.0 * (1.0 + 2.0 + 3.0)]);
        assert_eq!(cpu.memory.slice::<i32>(index), [3, 3]);

        cpu.write(index, bytemuck::cast_slice(&[0, 0])).unwrap();
        let done = cpu.replay_steps(&graph, 3, &mut |_| ControlFlow::Break(()));
        assert_eq!((done.unwrap(), f32s(&mut cpu, sum)), (1, [70.0]));
    }

    #[test]
    fn a_graph_reads_its_inputs_anew() {
        let (mut cpu, _region) = cpu();
        let [x, out] = [1.0, 0.0].map(|value| tensor(&mut cpu, [1, 1, 1, 1], &[value]));
        let graph = cpu.record(&mut |ops| ops.scale(Scale { out, x, scale: 2.0, statistics: None })).unwrap();
        for value in [3.0, 4.0] {
            cpu.write(x, bytemuck::cast_slice(&[value])).unwrap();
            cpu.replay(&graph).unwrap();
            assert_eq!(f32s(&mut cpu, out), [2.0 * value]);
        }
    }

    #[test]
    fn fill_asks_for_every_row_once() {
        let mut cpu = Cpu::new();
        let region = cpu.reserve(4 << 20, "tests").unwrap();
        for shape in [[1, 1, 5, 3], [1, 1, 1, 100_000], [7, 3, 3, 4], [1, 1, 1000, 300]] {
            let to = Arena::new(region.base, region.bytes).alloc(shape, DType::F32);
            let rows = AtomicUsize::new(0);
            let fill = |range: Range<usize>, bytes: &mut [u8]| {
                rows.fetch_add(range.len(), Ordering::Relaxed);
                for (row, values) in range.zip(bytes.chunks_exact_mut(4 * shape[3])) {
                    bytemuck::cast_slice_mut::<u8, f32>(values).fill(row as f32);
                }
            };
            cpu.fill(&[(to, &fill)]).unwrap();
            assert_eq!(rows.into_inner(), to.rows());
            let filled = cpu.memory.rows::<f32>(to);
            assert!((0..to.rows()).all(|row| filled.row(row).iter().all(|&x| x == row as f32)));
        }
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        for bytes in [1 << 60, usize::MAX] {
            let error = Cpu::new().reserve(bytes, "weights").err().expect("too much").to_string();
            assert!(error.contains("weights") && error.contains("smaller picture"), "{error}");
        }
    }

    #[test]
    #[should_panic(expected = "is not in this backend's memory")]
    fn a_tensor_of_freed_memory_is_a_bug() {
        let (mut cpu, region) = cpu();
        let [x, out] = [1.0, 0.0].map(|value| tensor(&mut cpu, [1, 1, 1, 1], &[value]));
        drop(region);
        cpu.run(&mut |ops| ops.scale(Scale { out, x, scale: 2.0, statistics: None })).unwrap();
    }
}
