//! The other hops of trust, on a GPU: torch's fixtures and `Cpu` against `Cuda`, the naive kernels
//! against the fast ones, images alone against the same in company, graphs and loops against verbs one by one,
//! a small model on both backends.
//!
//! Without a GPU every test says so and passes; `SDRT_REQUIRE_GPU=1` turns that into a failure.
//! `SDRT_SEED` gives other random inputs. The tests in `small` are meant for compute-sanitizer.

#[path = "../common/mod.rs"]
mod common;

#[cfg(sdrt_cuda)]
mod cases;
#[cfg(sdrt_cuda)]
mod company;
#[cfg(sdrt_cuda)]
mod engine;
#[cfg(sdrt_cuda)]
mod full;
#[cfg(sdrt_cuda)]
mod gpu;
#[cfg(sdrt_cuda)]
mod machine;
#[cfg(sdrt_cuda)]
mod model;
#[cfg(sdrt_cuda)]
mod small;
#[cfg(sdrt_cuda)]
mod wide;

/// Says that a test cannot run, unless `SDRT_REQUIRE_GPU=1` says that it must.
fn skip(reason: &str) {
    let required = std::env::var("SDRT_REQUIRE_GPU").is_ok_and(|value| value == "1");
    assert!(!required, "SDRT_REQUIRE_GPU=1, but {reason}");
    println!("skipped: {reason}");
}

#[cfg(not(sdrt_cuda))]
#[test]
fn kernels() {
    skip("built without CUDA kernels: no GPU here, or no nvcc");
}
