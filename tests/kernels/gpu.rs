//! Opening the GPU for one test at a time, and comparing many calls on it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sdrt::gpu::device::device_count;
use sdrt::ops::cpu::Cpu;
use sdrt::ops::cuda::{Cuda, Kind};
use sdrt::ops::{Backend, Call, DType, Ops};

use crate::common::placed::{Placed, label};
use crate::common::{check, decode, reserve_arena};

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
