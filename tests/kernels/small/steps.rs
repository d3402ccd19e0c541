//! Recorded graphs and loops against the same verbs one by one: equal bits.

use std::ops::ControlFlow;

use sdrt::ops::cuda::{Cuda, LoopKind};
use sdrt::ops::row::ROW_WIDTH;
use sdrt::ops::*;

use crate::common::verbs::random;
use crate::common::{encode, reserve_arena, upload};
use crate::gpu::{HALVES, on_gpu};

/// A denoising loop with one linear layer for a model.
struct Loop {
    step: SamplerStep,
    input: Tensor,
    weight: Tensor,
    /// The state that it starts from: x, saved, history.
    start: [Vec<f32>; 3],
}

impl Loop {
    /// A loop over `b` maps of `h` x `w` with room for `rows` steps.
    fn new(cuda: &mut Cuda, [b, h, w]: [usize; 3], rows: usize) -> Loop {
        const C: usize = 8;
        let dtype = cuda.dtype();
        let shape = [b, h, w, C];
        let n = b * h * w * C;
        let mut f32 = |seed, count: usize, shape, size: f32| {
            let numbers: Vec<f32> = random(seed, count).into_iter().map(|x| x * size).collect();
            (upload(cuda, &numbers, shape, DType::F32), numbers)
        };
        let (x, x_start) = f32(1, n, shape, 1.0);
        let (saved, saved_start) = f32(2, n, shape, 1.0);
        let (history, history_start) = f32(3, 4 * n, [4 * b, h, w, C], 1.0);
        let (noise, _) = f32(4, rows * n / b, [rows, h, w, C], 1.0);
        // Small enough that the state does not grow; a row remembers, as any coefficient that is not zero says.
        let (table, _) = f32(5, rows * ROW_WIDTH, [1, 1, rows, ROW_WIDTH], 0.25);
        let (guidance, _) = f32(6, 3 * b, [1, 1, b, 3], 2.0);
        let output = cuda.arena().alloc([2 * b, h, w, C], dtype);
        let index = upload(cuda, &vec![0.0; 2 * b], [1, 1, 1, 2 * b], DType::I32);
        let slots: Vec<f32> = (0..b).rev().chain((0..b).rev()).map(|slot| slot as f32).collect();
        let slot = upload(cuda, &slots, [1, 1, 1, 2 * b], DType::I32);
        let rows_of: Vec<f32> = (0..b).flat_map(|i| [(b + i) as f32, i as f32, -1.0]).collect();
        let rows_of = upload(cuda, &rows_of, [1, 1, b, 3], DType::I32);
        let known = Some(Known {
            mask: upload(cuda, &random(9, b * h * w), [b, h, w, 1], DType::F32),
            latents: upload(cuda, &random(10, n), shape, DType::F32),
            noise: upload(cuda, &random(11, n), shape, DType::F32),
        });
        Loop {
            step: SamplerStep {
                x,
                saved,
                history,
                output,
                rows: rows_of,
                noise,
                table,
                index,
                slot,
                guidance,
                known,
            },
            input: cuda.arena().alloc(output.shape, dtype),
            weight: upload(cuda, &random(7, C * C), [1, 1, C, C], dtype),
            start: [x_start, saved_start, history_start],
        }
    }

    fn state(&self) -> [Tensor; 3] {
        [self.step.x, self.step.saved, self.step.history]
    }

    fn body(&self, ops: &mut dyn Ops) {
        let SamplerStep { x, table, index, slot, output, .. } = self.step;
        ops.model_input(ModelInput { out: self.input, x, beside: None, table, index, slot });
        ops.linear(Linear::new(output.as_tokens(), self.input.as_tokens(), self.weight, None));
        ops.sampler_step(self.step);
    }

    fn set_index(&self, cuda: &mut Cuda, step: usize) {
        let index = vec![step as f32; self.step.index.len()];
        cuda.write(self.step.index, &encode(&index, DType::I32)).expect("write");
    }

    /// Back to the first step.
    fn rewind(&self, cuda: &mut Cuda) {
        for (tensor, numbers) in self.state().into_iter().zip(&self.start) {
            cuda.write(tensor, &encode(numbers, DType::F32)).expect("write");
        }
        self.set_index(cuda, 0);
    }

    fn bytes(&self, cuda: &mut Cuda) -> Vec<u8> {
        let mut all = Vec::new();
        for tensor in self.state() {
            let mut bytes = vec![0; tensor.bytes()];
            cuda.read(tensor, &mut bytes).expect("read");
            all.extend(bytes);
        }
        all
    }

    /// The state after so many steps, run verb by verb.
    fn reference(&self, cuda: &mut Cuda, steps: usize) -> Vec<u8> {
        self.rewind(cuda);
        for step in 0..steps {
            self.set_index(cuda, step);
            cuda.run(&mut |ops| self.body(ops)).expect("run");
        }
        self.bytes(cuda)
    }

    /// Runs so many steps of the graph; returns the state and the counts that `on_step` heard.
    fn replay(&self, cuda: &mut Cuda, graph: &Graph, steps: usize) -> (Vec<u8>, Vec<usize>) {
        self.rewind(cuda);
        let mut heard = Vec::new();
        let mut on_step = |done| {
            heard.push(done);
            ControlFlow::Continue(())
        };
        assert_eq!(cuda.replay_steps(graph, steps, &mut on_step).expect("replay"), steps);
        (self.bytes(cuda), heard)
    }

    fn index(&self, cuda: &mut Cuda) -> Vec<f32> {
        crate::common::download(cuda, self.step.index)
    }
}

fn loops(kind: LoopKind) {
    on_gpu(&HALVES, |cuda| {
        if kind == LoopKind::While && !cuda.gpu().has_conditional_graphs() {
            println!("skipped: the driver has no conditional graphs");
            return;
        }
        cuda.set_loop_kind(kind);
        let _region = reserve_arena(cuda, 16 << 20);
        let rows = 12;
        let denoise = Loop::new(cuda, [3, 5, 7], rows);
        let graph = cuda.record_steps(denoise.step.index, &mut |ops| denoise.body(ops)).expect("record");
        let recorded = cuda.recorded();
        for steps in [rows, 1, 5, 0, rows] {
            let want = denoise.reference(cuda, steps);
            let (got, heard) = denoise.replay(cuda, &graph, steps);
            assert!(got == want, "{kind:?}: {steps} steps differ from verbs one by one");
            assert_eq!(denoise.index(cuda), [steps as f32; 6], "of images and of rows");
            assert!(
                heard.is_sorted_by(|a, b| a < b) && heard.last().is_none_or(|&last| last == steps),
                "{heard:?}"
            );
            assert_eq!(heard.is_empty(), steps == 0);
        }
        assert_eq!(cuda.recorded(), recorded);
    });
}

#[test]
fn loops_while() {
    loops(LoopKind::While);
}

#[test]
fn loops_stepwise() {
    loops(LoopKind::Stepwise);
}

#[test]
fn loops_stop_when_told_to() {
    on_gpu(&[DType::F16], |cuda| {
        let _region = reserve_arena(cuda, 16 << 20);
        // Long enough for the host to notice that the device has begun.
        let rows = 20_000;
        let denoise = Loop::new(cuda, [1, 1, 1], rows);
        let kinds = [LoopKind::Stepwise, LoopKind::While];
        for kind in &kinds[..if cuda.gpu().has_conditional_graphs() { 2 } else { 1 }] {
            cuda.set_loop_kind(*kind);
            let graph = cuda.record_steps(denoise.step.index, &mut |ops| denoise.body(ops)).expect("record");
            denoise.rewind(cuda);
            let done = cuda.replay_steps(&graph, rows, &mut |_| ControlFlow::Break(())).expect("replay");
            assert!((1..rows).contains(&done), "{kind:?}: {done} of {rows}");
            assert_eq!(denoise.index(cuda), [done as f32; 2], "of the image and of its row");
            // The next run is not cancelled.
            let want = denoise.reference(cuda, 3);
            assert!(denoise.replay(cuda, &graph, 3).0 == want, "{kind:?} after a cancelled run");
        }
    });
}

#[test]
fn a_recorded_graph_replays() {
    on_gpu(&HALVES, |cuda| {
        let _region = reserve_arena(cuda, 1 << 20);
        let dtype = cuda.dtype();
        let x = upload(cuda, &[0.0; 5 * 16], [1, 1, 5, 16], DType::F32);
        let weight = upload(cuda, &random(2, 16 * 16), [1, 1, 16, 16], dtype);
        let [scaled, out] = [(); 2].map(|()| cuda.arena().alloc([1, 1, 5, 16], dtype));
        let mut body = |ops: &mut dyn Ops| {
            ops.scale(Scale { out: scaled, x, scale: 0.5, statistics: None });
            ops.linear(Linear::new(out, scaled, weight, None));
        };
        let graph = cuda.record(&mut body).expect("record");
        let recorded = cuda.recorded();
        for seed in [3, 4] {
            cuda.write(x, &encode(&random(seed, 5 * 16), DType::F32)).expect("write");
            let mut results = Vec::new();
            for replayed in [true, false] {
                if replayed { cuda.replay(&graph) } else { cuda.run(&mut body) }.expect("run");
                let mut bytes = vec![0; out.bytes()];
                cuda.read(out, &mut bytes).expect("read");
                results.push(bytes);
                cuda.write(out, &vec![0xff; out.bytes()]).expect("write");
            }
            assert!(results[0] == results[1] && results[0].iter().any(|&byte| byte != 0));
        }
        assert_eq!(cuda.recorded(), recorded);
    });
}
