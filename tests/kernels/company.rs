//! Images of a batch against the same images with fewer of the others: equal bits, whatever the kernels' plans
//! make of the batch. On Hopper, `SDRT_ARCH=80` tries the portable kernels, which are in builds for all chips.

use sdrt::ops::{Backend, Call, DType};
use sdrt::pipeline::KnownShapes;

use super::cases;
use super::gpu::on_gpu;
use crate::common::company::compare_all;
use crate::common::placed::{distinct, label};
use crate::common::{counted, reserve_arena};

/// Every different call of a model with several images, for pictures of 512x512 with guidance.
fn calls(model: KnownShapes, pictures: usize, stages: &[Stage]) -> Vec<Call> {
    let counted = counted(model, pictures, Some(512), DType::F16);
    let of_stage = |stage: &Stage| match stage {
        Stage::Encode => &counted.encode,
        Stage::Denoise => &counted.denoise,
        Stage::Decode => &counted.decode,
    };
    let mut calls: Vec<Call> = stages
        .iter()
        .flat_map(|stage| distinct(&of_stage(stage).calls))
        .map(|(call, _)| call)
        .filter(|call| call.out().b() > 1 && !matches!(call, Call::SamplerStep(_)))
        .collect();
    calls.sort_by_key(label);
    calls.dedup_by_key(|call| label(call));
    calls
}

enum Stage {
    Encode,
    Denoise,
    Decode,
}

/// Runs them all on the GPU, in f16.
fn compare(calls: &[Call]) {
    on_gpu(&[DType::F16], |cuda| {
        let _region = reserve_arena(cuda, 4 << 30);
        cuda.keep_alike();
        compare_all(cuda, calls);
    });
}

/// 8 rows with guidance, 4 before the first cross-attention.
#[test]
fn company_in_sd15() {
    compare(&calls(KnownShapes::Sd15, 4, &[Stage::Denoise]));
}

#[test]
fn company_in_sd15_of_one_more() {
    compare(&calls(KnownShapes::Sd15, 2, &[Stage::Encode, Stage::Decode]));
}

#[test]
fn company_in_xl() {
    compare(&calls(KnownShapes::Sdxl, 3, &[Stage::Encode, Stage::Denoise]));
}

/// 16 rows of the smaller maps, where a batch changes plans most.
#[test]
fn company_of_sixteen() {
    let mut calls = calls(KnownShapes::Sd15, 8, &[Stage::Denoise]);
    calls.retain(|call| call.out().b() == 16 && call.out().tokens() <= 256);
    compare(&calls);
}

/// Maps and channels that fill no tile, and tokens that fill no block.
#[test]
fn company_of_odd_shapes() {
    let dtype = DType::F16;
    let maps = [[5, 9, 7], [11, 13, 6], [3, 65, 67]];
    let channels = [[64, 320, 3], [72, 88, 3], [640, 648, 3], [1280, 200, 3], [320, 4, 3], [4, 320, 3]];
    let mut calls = cases::conv2d(dtype, &maps, &channels);
    calls.extend(cases::conv2d_resizing(dtype, &maps, &[[64, 320], [1280, 72], [640, 640]]));
    calls.extend(cases::group_norm(dtype, &maps, &[[320, 32], [640, 32], [960, 32], [40, 4]]));
    calls.extend(cases::group_norm_in_place(dtype, &maps, &[[320, 32], [2560, 32]]));
    calls.extend(cases::linear(dtype, &[1, 2, 7, 64, 77, 1024, 1100], &[[320, 320], [72, 968], [1280, 640]]));
    calls.extend(cases::layer_norm(dtype, &[7, 130], &[320, 1280]));
    calls.extend(cases::attention(
        dtype,
        &[[1, 9], [70, 77], [1024, 300], [640, 1100]],
        &[40, 64, 72, 80, 160],
    ));
    calls.extend(cases::attention_of_ranges(dtype, &[9, 300], &[77, 231], &[40, 64, 80, 160]));
    calls.extend(cases::elementwise(dtype, &[1, 9, 70]));
    calls.retain(|call| call.out().b() > 1);
    compare(&calls);
}
