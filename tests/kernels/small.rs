//! Small enough for compute-sanitizer: `kernels small`.

mod fixtures;
mod steps;

use sdrt::ops::cuda::{Cuda, Kind};
use sdrt::ops::{DType, Ops};

use super::cases;
use super::gpu::{ALL, HALVES, against_cpu, attention_of_rising_scores, on_gpu, tolerance};
use crate::common::verbs::{model_input_scales, sampler_step_follows_its_formula};

/// Batch, height, width.
const MAPS: [[usize; 3]; 3] = [[1, 1, 1], [2, 9, 7], [3, 8, 16]];
const TOKENS: [usize; 5] = [1, 63, 64, 65, 77];

fn conv2d_of(cuda: &mut Cuda, kind: Kind) {
    let dtype = cuda.dtype();
    let channels =
        [[4, 32, 3], [4, 3, 1], [8, 3, 3], [32, 4, 3], [12, 20, 3], [40, 32, 1], [32, 40, 3], [64, 64, 3]];
    against_cpu(cuda, kind, &cases::conv2d(dtype, &MAPS, &channels), tolerance(dtype));
    let maps = [[1, 9, 7], [2, 8, 16], [3, 2, 3]];
    let channels = [[4, 8], [8, 40], [40, 32]];
    against_cpu(cuda, kind, &cases::conv2d_resizing(dtype, &maps, &channels), tolerance(dtype));
}

fn linear_of(cuda: &mut Cuda, kind: Kind) {
    let dtype = cuda.dtype();
    let sizes = [[8, 8], [40, 64], [64, 40], [32, 320]];
    against_cpu(cuda, kind, &cases::linear(dtype, &TOKENS, &sizes), tolerance(dtype));
}

fn attention_of(cuda: &mut Cuda, kind: Kind) {
    let dtype = cuda.dtype();
    let sizes = [[1, 1], [1, 77], [63, 65], [64, 64], [77, 77]];
    let head_dims = [8, 32, 40, 64, 72, 80, 128, 160, 512];
    against_cpu(cuda, kind, &cases::attention(dtype, &sizes, &head_dims), tolerance(dtype));
}

#[test]
fn conv2d() {
    on_gpu(&ALL, |cuda| conv2d_of(cuda, Kind::Fast));
}

/// Few pixels and long sums: the sums are split between blocks.
#[test]
fn conv2d_split() {
    on_gpu(&HALVES, |cuda| {
        let dtype = cuda.dtype();
        let calls =
            cases::conv2d(dtype, &[[1, 8, 8], [2, 3, 5]], &[[64, 1280, 3], [320, 64, 3], [1280, 40, 1]]);
        against_cpu(cuda, Kind::Fast, &calls, tolerance(dtype));
        let calls = cases::conv2d_resizing(dtype, &[[1, 16, 16], [2, 9, 5]], &[[640, 64], [320, 40]]);
        against_cpu(cuda, Kind::Fast, &calls, tolerance(dtype));
    });
}

#[test]
fn linear() {
    on_gpu(&ALL, |cuda| linear_of(cuda, Kind::Fast));
}

#[test]
fn attention() {
    on_gpu(&ALL, |cuda| attention_of(cuda, Kind::Fast));
}

/// Ranges of one table, shorter and longer than what Hopper's kernel for prompts takes.
#[test]
fn attention_of_ranges() {
    on_gpu(&ALL, |cuda| {
        let calls =
            cases::attention_of_ranges(cuda.dtype(), &[1, 70], &[1, 77, 80, 81, 154], &[40, 64, 72, 160]);
        for kind in [Kind::Fast, Kind::Naive] {
            against_cpu(cuda, kind, &calls, tolerance(cuda.dtype()));
        }
    });
}

#[test]
fn attention_rising() {
    on_gpu(&HALVES, |cuda| attention_of_rising_scores(cuda, 2, [70, 641], 40));
}

/// The naive kernels, which the fast ones are compared with at full size. Convolution and attention in f32
/// have no others, so these were tested above.
#[test]
fn naive() {
    on_gpu(&ALL, |cuda| {
        linear_of(cuda, Kind::Naive);
        if cuda.dtype() != DType::F32 {
            conv2d_of(cuda, Kind::Naive);
            attention_of(cuda, Kind::Naive);
        }
    });
}

#[test]
fn norm() {
    on_gpu(&ALL, |cuda| {
        let dtype = cuda.dtype();
        let channels = [[8, 4], [32, 8], [32, 1], [40, 4], [320, 32]];
        for calls in [cases::group_norm, cases::group_norm_in_place] {
            against_cpu(cuda, Kind::Fast, &calls(dtype, &MAPS, &channels), tolerance(dtype));
        }
        let calls = cases::layer_norm(dtype, &TOKENS, &[8, 32, 40, 320]);
        against_cpu(cuda, Kind::Fast, &calls, tolerance(dtype));
    });
}

/// Single blocks in several waves, and one group that no cluster holds.
#[test]
fn group_norm_of_more_than_a_chip_holds() {
    on_gpu(&ALL, |cuda| {
        let dtype = cuda.dtype();
        for (maps, channels) in
            [([[40, 3, 5], [9, 9, 7]], [[1280, 32]]), ([[1, 29, 18], [2, 9, 58]], [[2048, 1]])]
        {
            for calls in [cases::group_norm, cases::group_norm_in_place] {
                against_cpu(cuda, Kind::Fast, &calls(dtype, &maps, &channels), tolerance(dtype));
            }
        }
    });
}

#[test]
fn elementwise() {
    on_gpu(&ALL, |cuda| {
        let dtype = cuda.dtype();
        against_cpu(cuda, Kind::Fast, &cases::elementwise(dtype, &TOKENS), tolerance(dtype));
        // In f32 one last bit of a frequency moves an angle of 999 by 6e-5.
        against_cpu(cuda, Kind::Fast, &cases::timestep_embedding(dtype), tolerance(dtype).max(1e-4));
        against_cpu(cuda, Kind::Fast, &cases::to_rgb8(dtype), 0.0);
    });
}

#[test]
fn sampler() {
    on_gpu(&ALL, |cuda| {
        let dtype = cuda.dtype();
        model_input_scales(cuda, tolerance(dtype));
        // f32 whatever the activations are.
        sampler_step_follows_its_formula(cuda, 2e-6);
    });
}
