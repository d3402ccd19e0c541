//! Opening the GPU for one test at a time, and comparing many calls on it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sdrt::gpu::device::device_count;
use sdrt::ops::cpu::Cpu;
use sdrt::ops::cuda::{Cuda, Kind};
use sdrt::ops::{Attention, Backend, Call, DType, Ops};

use crate::common::placed::{Placed, label};
use crate::common::verbs::random;
use crate::common::{check, decode, download, encode, reserve_arena, upload};

pub const HALVES: [DType; 2] = [DType::F16, DType::BF16];
pub const ALL: [DType; 3] = [DType::F16, DType::BF16, DType::F32];

/// One test at a time: all share the device's context, and waiting for it while another thread
/// captures is an error.
static GPU: Mutex<()> = Mutex::new(());

/// The GPU for one test; `None`, and a word about it, where there is none.
pub fn lock() -> Option<MutexGuard<'static, ()>> {
    let guard = GPU.lock().unwrap_or_else(PoisonError::into_inner);
    if device_count() == 0 {
        crate::skip("no CUDA device");
        return None;
    }
    Some(guard)
}

pub fn open(dtype: DType) -> Cuda {
    Cuda::open(0, dtype).expect("cuda:0")
}

/// Runs `body` on the GPU with activations of each dtype.
pub fn on_gpu(dtypes: &[DType], mut body: impl FnMut(&mut Cuda)) {
    let Some(_guard) = lock() else { return };
    for &dtype in dtypes {
        body(&mut open(dtype));
    }
}

/// Relative L2 error of one verb against the same in f32, from inputs that are rounded alike.
pub fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2e-3,
        DType::BF16 => 1.5e-2,
        _ => 1e-5,
    }
}

/// What random inputs start from.
fn seed() -> u64 {
    std::env::var("SDRT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0)
}

/// Runs `test` on every call, and fails with all that failed.
pub fn each(calls: &[Call], mut test: impl FnMut(&str, &Call, u64)) {
    let mut failures = Vec::new();
    for (number, call) in calls.iter().enumerate() {
        let seed = seed().wrapping_add(10_000 * number as u64);
        let name = format!("{} of {}, seed {seed}", label(call), call.out().dtype);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(&name, call, seed))) {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked");
            failures.push(format!("{name}: {message}"));
        }
    }
    let (failed, all) = (failures.len(), calls.len());
    assert!(failures.is_empty(), "{failed} of {all} failed:\n{}", failures.join("\n"));
}

/// A call's output on a backend, as bytes, and whether a second run gives the same.
fn run(backend: &mut dyn Backend, call: &Call, seed: u64) -> (Vec<u8>, bool) {
    let mark = backend.arena().mark();
    let placed = Placed::new(backend, call, seed);
    placed.run(backend);
    let first = placed.output(backend);
    placed.reset(backend);
    placed.run(backend);
    let repeats = placed.output(backend) == first;
    backend.arena().release(mark);
    (first, repeats)
}

/// Compares with [`Cpu`], which sees the same numbers.
pub fn against_cpu(cuda: &mut Cuda, kind: Kind, calls: &[Call], tolerance: f64) {
    cuda.set_kind(kind);
    let mut cpu = Cpu::new();
    let _regions = [reserve_arena(&mut cpu, 512 << 20), reserve_arena(cuda, 512 << 20)];
    each(calls, |name, call, seed| {
        let (got, repeats) = run(cuda, call, seed);
        assert!(repeats, "other bytes the second time");
        let mark = cpu.arena().mark();
        let placed = Placed::new(&mut cpu, call, seed);
        placed.run(&mut cpu);
        let want = placed.output(&mut cpu);
        cpu.arena().release(mark);
        let got = decode(&got, call.out().dtype);
        check(name, &got, &decode(&want, placed.call.out().dtype), tolerance);
    });
}

/// Compares the fast kernels with the naive ones.
pub fn against_naive(cuda: &mut Cuda, calls: &[Call], tolerance: f64) {
    let _region = reserve_arena(cuda, 2 << 30);
    each(calls, |name, call, seed| {
        cuda.set_kind(Kind::Naive);
        let (want, _) = run(cuda, call, seed);
        cuda.set_kind(Kind::Fast);
        let (got, repeats) = run(cuda, call, seed);
        assert!(repeats, "other bytes the second time");
        let [got, want] = [got, want].map(|bytes| decode(&bytes, call.out().dtype));
        check(name, &got, &want, tolerance);
    });
}

/// Attention whose scores rise from key to key by up to 200 in the exponents of two, in steps that fall into
/// tiles of keys anywhere; the last 200 keys, which kernels may begin with, score least. Rows of a warp rise
/// differently, some of them fall, and some warps' rows stay within what a half holds.
pub fn attention_of_rising_scores(cuda: &mut Cuda, heads: usize, [t, s]: [usize; 2], d: usize) {
    const RISES: [[f32; 4]; 3] =
        [[0.0, 5.0, 20.0, 200.0], [5.0, 11.0, -5.0, 15.0], [17.0, -200.0, 40.0, 100.0]];
    const STEP: usize = 50;
    // Channel 0 of a key.
    const HIGHEST: f32 = 32.0;
    let dtype = cuda.dtype();
    let c = heads * d;
    let numbers = |seed, rows| random(seed, rows * c);
    let (mut q, mut k, v) = (numbers(1, t), numbers(2, s), numbers(3, s));
    for (row, q) in q.chunks_mut(c).enumerate() {
        for (head, q) in q.chunks_mut(d).enumerate() {
            let rise = RISES[row / 16 % 3][(row + head) % 4];
            q[0] = rise * std::f32::consts::LN_2 * (d as f32).sqrt() / HIGHEST;
        }
    }
    let rising = s - 200;
    for (key, k) in k.chunks_mut(c).enumerate() {
        let level = if key < rising { (key / STEP + 1) as f32 / rising.div_ceil(STEP) as f32 } else { 0.0 };
        k.iter_mut().step_by(d).for_each(|k| *k = level * HIGHEST);
    }
    let [q, k, v] = [q, k, v].map(|numbers| decode(&encode(&numbers, dtype), dtype));

    let run = |backend: &mut dyn Backend| {
        let _region = reserve_arena(backend, 64 << 20);
        let dtype = backend.dtype();
        let q = upload(backend, &q, [1, 1, t, c], dtype);
        let [k, v] = [&k, &v].map(|numbers| upload(backend, numbers, [1, 1, s, c], dtype));
        let out = backend.arena().alloc(q.shape, dtype);
        backend
            .run(&mut |ops| ops.attention(Attention { out, q, k, v, heads, causal: false, keys: None }))
            .expect("attention");
        download(backend, out)
    };
    let name =
        format!("attention of {dtype}, {heads} heads of {d}, {t} queries, {s} keys with rising scores");
    check(&name, &run(cuda), &run(&mut Cpu::new()), tolerance(dtype));
}
