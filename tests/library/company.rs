//! On the CPU: an image's bytes are the same alone and among others, verb by verb and as a whole picture.
//! `tests/kernels/company.rs` says so of a GPU.

use crate::common::company::compare_all;
use crate::common::pictures::paint;
use crate::common::placed::templates;
use crate::common::reserve_arena;
use sdrt::ops::cpu::Cpu;
use sdrt::ops::*;
use sdrt::pipeline::Request;

fn compare(body: impl FnOnce(&mut dyn Ops)) {
    let mut cpu = Cpu::new();
    let _region = reserve_arena(&mut cpu, 256 << 20);
    compare_all(&mut cpu, &templates(DType::F32, body));
}

/// Few rows and many, with either form of the weight, and columns that fill no tile.
#[test]
fn linear() {
    compare(|ops| {
        for rows in [1, 2, 3, 5, 16, 77, 200] {
            for [k, n] in [[8, 4], [32, 32], [64, 1], [320, 68], [1280, 330], [40, 1280]] {
                let [x, out] = [k, n].map(|c| ops.alloc([8, 1, rows, c]));
                let [weight, bias] = [[1, 1, n, k], [1, 1, 1, n]].map(|shape| ops.alloc(shape));
                ops.linear(Linear::new(out, x, weight, Some(bias)));
            }
        }
    });
}

/// Enlarged maps of an odd side have parts of one pixel, others too few pixels for a tile.
#[test]
fn conv2d() {
    compare(|ops| {
        for [h, w] in [[1, 1], [2, 2], [3, 5], [9, 7], [32, 33]] {
            for [i, o] in [[4, 32], [32, 4], [64, 68], [320, 64]] {
                let x = ops.alloc([7, h, w, i]);
                let bias = ops.alloc([1, 1, 1, o]);
                let [weight, sums] = [3, TAP_SUMS.len()].map(|k| ops.alloc([o, k, k, i]));
                let [out, residual] = [0; 2].map(|_| ops.alloc([7, h, w, o]));
                ops.conv2d(Conv2d { residual: Some(residual), ..Conv2d::new(out, x, weight, bias) });
                for [ho, wo] in [[2 * h, 2 * w], [2 * h - 1, 2 * w - 1]] {
                    let out = ops.alloc([7, ho, wo, o]);
                    ops.conv2d(Conv2d::upsampling(out, x, sums, bias));
                }
            }
        }
    });
}

#[test]
fn norms_and_attention() {
    compare(|ops| {
        for [h, w, c] in [[1, 1, 32], [5, 7, 64], [40, 33, 320]] {
            let [x, out] = [0; 2].map(|_| ops.alloc([5, h, w, c]));
            let [weight, bias] = [0; 2].map(|_| ops.alloc([1, 1, 1, c]));
            ops.group_norm(GroupNorm { out, x, weight, bias, groups: 8, eps: 1e-5, silu: true });
            let [x, out] = [x, out].map(Tensor::as_tokens);
            ops.layer_norm(LayerNorm { out, x, weight, bias, eps: 1e-5 });
            for causal in [false, true] {
                ops.attention(Attention { out, q: x, k: x, v: x, heads: 8, causal, keys: None });
            }
        }
    });
}

#[test]
fn pictures_keep_their_bytes_in_company() {
    for folder in ["models/tiny", "tests/fixtures/families/sdxl"] {
        let mut pipeline = crate::common::load_pipeline(folder, Cpu::new());
        let defaults = pipeline.defaults().expect("defaults");
        let prompt = "a lighthouse at dawn".to_string();
        let request = Request { prompt, steps: 3, seed: 7, height: 72, width: 104, ..defaults };
        for guidance_scale in [1.0, 5.0] {
            let request = Request { guidance_scale, ..request.clone() };
            let company = paint(&mut pipeline, &Request { images: 4, ..request.clone() }).pictures;
            for (seed, picture) in (request.seed..).zip(company) {
                let alone = &paint(&mut pipeline, &Request { seed, ..request.clone() }).pictures[0];
                assert!(&picture == alone, "{folder}, guidance {guidance_scale}: seed {seed}");
            }
        }
    }
}
