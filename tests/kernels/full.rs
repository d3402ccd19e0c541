//! The naive kernels against the fast ones, at every shape of Stable Diffusion 1.5.

use sdrt::model::config::ModelConfig;
use sdrt::ops::{Call, DType, Ops};
use sdrt::pipeline::{Shape, count};

use super::gpu::{HALVES, against_naive, on_gpu, tolerance};
use crate::common::placed::distinct;

/// The calls of a verb for one picture of 512x512 with guidance.
fn calls(verb: &str, dtype: DType) -> Vec<Call> {
    let counted = count(&ModelConfig::sd15(), &Shape::new(1, true, 512, 512, 20), dtype);
    let stages = [counted.encode, counted.denoise, counted.decode];
    let calls = stages.iter().flat_map(|stage| distinct(&stage.calls)).map(|(call, _)| call);
    calls.filter(|call| call.name() == verb).collect()
}

fn compare(verb: &str) {
    on_gpu(&HALVES, |cuda| {
        let dtype = cuda.dtype();
        let calls = calls(verb, dtype);
        assert!(calls.len() >= 5, "{} of {verb}", calls.len());
        against_naive(cuda, &calls, tolerance(dtype));
    });
}

#[test]
fn naive_conv2d() {
    compare("conv2d");
}

#[test]
fn naive_linear() {
    compare("linear");
}

#[test]
fn naive_attention() {
    compare("attention");
}
