//! `Cpu` against `Cuda` at SD's widths.

use sdrt::ops::Ops;
use sdrt::ops::cuda::Kind;

use super::cases;
use super::gpu::{ALL, HALVES, against_cpu, on_gpu, tolerance};

const MAPS: [[usize; 3]; 4] = [[3, 1, 1], [2, 9, 7], [1, 8, 64], [1, 16, 16]];

#[test]
fn conv2d() {
    on_gpu(&ALL, |cuda| {
        let dtype = cuda.dtype();
        let channels = [[4, 320, 3], [320, 4, 3], [320, 320, 3], [640, 320, 1], [960, 320, 3], [128, 3, 3]];
        against_cpu(cuda, Kind::Fast, &cases::conv2d(dtype, &MAPS, &channels), tolerance(dtype));
        let calls = cases::conv2d_resizing(dtype, &[[1, 9, 7], [2, 16, 16]], &[[320, 320], [640, 640]]);
        against_cpu(cuda, Kind::Fast, &calls, tolerance(dtype));
    });
}

#[test]
fn linear() {
    on_gpu(&ALL, |cuda| {
        let dtype = cuda.dtype();
        let sizes = [[320, 320], [768, 640], [320, 2560], [1280, 320], [2048, 1280]];
        let calls = cases::linear(dtype, &[1, 64, 77, 200], &sizes);
        against_cpu(cuda, Kind::Fast, &calls, tolerance(dtype));
    });
}

#[test]
fn norm() {
    on_gpu(&ALL, |cuda| {
        let dtype = cuda.dtype();
        let maps = [[3, 1, 1], [2, 9, 7], [1, 8, 64], [2, 64, 64]];
        let channels = [[128, 32], [320, 32], [640, 32], [960, 32], [2560, 32], [4096, 32]];
        against_cpu(cuda, Kind::Fast, &cases::group_norm(dtype, &maps, &channels), tolerance(dtype));
        let calls = cases::layer_norm(dtype, &[1, 63, 200, 1024], &[640, 768, 1280, 2048]);
        against_cpu(cuda, Kind::Fast, &calls, tolerance(dtype));
    });
}

#[test]
fn attention() {
    on_gpu(&ALL, |cuda| {
        let dtype = cuda.dtype();
        let sizes = [[200, 200], [200, 77], [65, 200], [129, 31]];
        let calls = cases::attention(dtype, &sizes, &[8, 24, 40, 64, 72, 80, 160, 168, 512]);
        against_cpu(cuda, Kind::Fast, &calls, tolerance(dtype));
    });
}

/// Enough queries and images for the larger of two tiles.
#[test]
fn attention_of_many_queries() {
    on_gpu(&HALVES, |cuda| {
        let dtype = cuda.dtype();
        let calls = cases::attention(dtype, &[[4100, 70], [4096, 77]], &[32, 40, 64, 80, 160]);
        against_cpu(cuda, Kind::Fast, &calls, tolerance(dtype));
    });
}
