//! `Cpu` against `Cuda` at SD's widths.

use sdrt::ops::Ops;
use sdrt::ops::cuda::Kind;

use super::cases;
use super::gpu::{ALL, HALVES, against_cpu, against_naive, attention_of_rising_scores, on_gpu, tolerance};

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

/// More tiles than an H100 has multiprocessors, some of 8 images each. Maps, parts and channels do not fill
/// the last of them.
#[test]
fn conv2d_of_many_pixels() {
    on_gpu(&HALVES, |cuda| {
        let dtype = cuda.dtype();
        let channels = [[64, 320, 3], [72, 648, 3], [128, 320, 3], [64, 640, 1], [320, 328, 3]];
        let calls = cases::conv2d(dtype, &[[3, 67, 70], [601, 4, 4]], &channels);
        against_naive(cuda, &calls, tolerance(dtype));
        let calls = cases::conv2d_resizing(dtype, &[[3, 129, 133], [2, 160, 128]], &[[64, 320], [136, 648]]);
        against_naive(cuda, &calls, tolerance(dtype));
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

/// Enough rows for Hopper's own kernel, and tiles and boxes that n and k do not fill.
#[test]
fn linear_of_many_rows() {
    on_gpu(&HALVES, |cuda| {
        let dtype = cuda.dtype();
        let sizes = [[320, 72], [40, 200], [72, 328], [320, 968], [200, 640]];
        let calls = cases::linear(dtype, &[2050, 2049, 4099], &sizes);
        against_naive(cuda, &calls, tolerance(dtype));
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

/// Maps whose slabs an H100's clusters do not hold all at once, and larger ones; rows that blocks are not full of.
#[test]
fn group_norm_of_large_maps() {
    on_gpu(&ALL, |cuda| {
        let dtype = cuda.dtype();
        for calls in [cases::group_norm, cases::group_norm_in_place] {
            let mut check = |maps: &[[usize; 3]], channels: &[[usize; 2]]| {
                against_cpu(cuda, Kind::Fast, &calls(dtype, maps, channels), tolerance(dtype));
            };
            check(&[[9, 37, 29], [5, 64, 64]], &[[320, 32], [640, 32], [960, 32]]);
            check(&[[1, 401, 233]], &[[128, 32]]);
            check(&[[2, 96, 85]], &[[128, 32], [960, 32]]);
        }
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

/// Enough keys for Hopper's kernel: one tile, several, and a last one that is not full.
#[test]
fn attention_of_ranges() {
    on_gpu(&HALVES, |cuda| {
        let dtype = cuda.dtype();
        let calls =
            cases::attention_of_ranges(dtype, &[64, 300, 1024, 4100], &[77, 231, 300], &[40, 64, 80, 160]);
        against_naive(cuda, &calls, tolerance(dtype));
    });
}

#[test]
fn attention_over_many_keys() {
    on_gpu(&HALVES, |cuda| {
        let dtype = cuda.dtype();
        let calls =
            cases::attention(dtype, &[[256, 256], [130, 300], [64, 641], [700, 1500]], &[40, 64, 80, 160]);
        against_cpu(cuda, Kind::Fast, &calls, tolerance(dtype));
    });
}

/// Both of Hopper's tiles for each width; 160 has one, of few keys.
#[test]
fn attention_rising() {
    on_gpu(&HALVES, |cuda| {
        for d in [40, 64, 80] {
            attention_of_rising_scores(cuda, 3, [130, 1501], d);
            attention_of_rising_scores(cuda, 16, [1100, 641], d);
        }
        attention_of_rising_scores(cuda, 3, [130, 256], 160);
    });
}

/// Enough queries and images for the larger of two tiles.
#[test]
fn attention_of_many_queries() {
    on_gpu(&HALVES, |cuda| {
        let dtype = cuda.dtype();
        let calls = cases::attention(dtype, &[[4100, 70], [4096, 77], [8200, 200]], &[32, 40, 64, 80, 160]);
        against_cpu(cuda, Kind::Fast, &calls, tolerance(dtype));
    });
}
