//! The naive kernels against the fast ones, at every shape of Stable Diffusion 1.5, 2.1 and XL.

use sdrt::ops::{Call, DType, Ops};
use sdrt::pipeline::KnownShapes;

use super::gpu::{HALVES, against_naive, on_gpu, tolerance};
use crate::common::counted;
use crate::common::placed::distinct;

/// The calls of a verb for one picture of the model's own size with guidance.
fn calls(model: KnownShapes, verb: &str, dtype: DType) -> Vec<Call> {
    let counted = counted(model, 1, None, dtype);
    let stages = [counted.encode, counted.denoise, counted.decode];
    let calls = stages.iter().flat_map(|stage| distinct(&stage.calls)).map(|(call, _)| call);
    calls.filter(|call| call.name() == verb).collect()
}

/// What every model has of a verb, at least.
fn fewest(verb: &str) -> usize {
    match verb {
        "conv2d" => 40,
        "linear" => 25,
        "attention" => 7,
        "geglu" => 2,
        other => panic!("{other}"),
    }
}

fn compare(model: KnownShapes, verb: &str) {
    on_gpu(&HALVES, |cuda| {
        let dtype = cuda.dtype();
        let calls = calls(model, verb, dtype);
        assert!(calls.len() >= fewest(verb), "{} of {verb}", calls.len());
        against_naive(cuda, &calls, tolerance(dtype));
    });
}

#[test]
fn naive_conv2d() {
    compare(KnownShapes::Sd15, "conv2d");
}

#[test]
fn naive_linear() {
    compare(KnownShapes::Sd15, "linear");
}

#[test]
fn naive_attention() {
    compare(KnownShapes::Sd15, "attention");
}

#[test]
fn naive_geglu() {
    compare(KnownShapes::Sd15, "geglu");
}

#[test]
fn naive_conv2d_sd21() {
    compare(KnownShapes::Sd21, "conv2d");
}

#[test]
fn naive_linear_sd21() {
    compare(KnownShapes::Sd21, "linear");
}

#[test]
fn naive_attention_sd21() {
    compare(KnownShapes::Sd21, "attention");
}

#[test]
fn naive_geglu_sd21() {
    compare(KnownShapes::Sd21, "geglu");
}

#[test]
fn naive_conv2d_xl() {
    compare(KnownShapes::Sdxl, "conv2d");
}

#[test]
fn naive_linear_xl() {
    compare(KnownShapes::Sdxl, "linear");
}

#[test]
fn naive_attention_xl() {
    compare(KnownShapes::Sdxl, "attention");
}

#[test]
fn naive_geglu_xl() {
    compare(KnownShapes::Sdxl, "geglu");
}
