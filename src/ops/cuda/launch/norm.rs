//! Group norm and layer norm.

use super::{assert_vectors, int, vector};
use crate::error::Result;
use crate::gpu::group_norm::{self, Parts, Plan};
use crate::gpu::kernels::{GroupNormArgs, LayerNormArgs};
use crate::gpu::launch::Launch;
use crate::ops::cuda::{Cuda, SCRATCH_BYTES};
use crate::ops::{GroupNorm, LayerNorm};

impl Cuda {
    pub(super) fn group_norm(&self, v: &GroupNorm) -> Result<()> {
        assert_vectors(&[v.out, v.x]);
        let (b, pixels, c) = (v.x.b(), v.x.tokens(), v.x.c());
        assert!(c <= group_norm::CHANNELS, "group_norm of {c} channels");
        let shape = group_norm::Shape {
            b,
            reference: self.company.reference(b),
            pixels,
            c,
            groups: v.groups,
            vector: vector(v.x),
        };
        let plan = shape.plan(self.gpu.multiprocessors, self.kernels.clusters);
        let mut args = GroupNormArgs {
            out: v.out.address,
            x: v.x.address,
            weight: v.weight.address,
            bias: v.bias.address,
            partial: self.scratch.address,
            b: int(b),
            hw: int(pixels),
            c: int(c),
            groups: int(v.groups),
            out_pitch: int(v.out.pitch),
            x_pitch: int(v.x.pitch),
            splits: 0,
            rows_per_split: 0,
            silu: i32::from(v.silu),
            eps: v.eps,
        };
        let launch = |grid: [usize; 3], shared_bytes, cluster| Launch {
            grid: (grid[0] as u32, grid[1] as u32, grid[2] as u32),
            block: (shape.threads() as u32, 1, 1),
            shared_bytes,
            cluster: cluster as u32,
        };
        let (splits, rows_per_split, rows_per_block) = match plan {
            Plan::Fused { parts: Parts { slabs, parts }, few } => {
                let kernels = &self.kernels;
                let kernel = if few { &kernels.group_norm_fused_few } else { &kernels.group_norm_fused };
                return self.start(kernel, launch([slabs, b, parts], 0, parts), &args);
            }
            Plan::Twice { splits, rows_per_split, rows_per_block } => {
                (splits, rows_per_split, rows_per_block)
            }
        };
        assert!(b * (2 * splits + 1) * v.groups * 4 <= SCRATCH_BYTES, "group_norm statistics of {}", v.x);
        args.splits = int(splits);
        args.rows_per_split = int(rows_per_split);
        self.start(&self.kernels.group_norm_stats, launch([splits, b, 1], 0, 1), &args)?;
        args.rows_per_split = int(rows_per_block);
        let blocks = pixels.div_ceil(rows_per_block);
        self.start(&self.kernels.group_norm_apply, launch([blocks, b, 1], 8 * v.groups, 1), &args)
    }

    pub(super) fn layer_norm(&self, v: &LayerNorm) -> Result<()> {
        assert_vectors(&[v.out, v.x]);
        let (m, c) = (v.x.rows(), v.x.c());
        let kernel = match c {
            0..=512 => &self.kernels.layer_norm_512,
            513..=2048 => &self.kernels.layer_norm_2048,
            _ => panic!("layer_norm of {c} channels"),
        };
        let args = LayerNormArgs {
            out: v.out.address,
            x: v.x.address,
            weight: v.weight.address,
            bias: v.bias.address,
            m: int(m),
            c: int(c),
            out_pitch: int(v.out.pitch),
            x_pitch: int(v.x.pitch),
            eps: v.eps,
            unused: 0,
        };
        let launch =
            Launch { grid: (m.div_ceil(8) as u32, 1, 1), block: (256, 1, 1), shared_bytes: 0, cluster: 1 };
        self.start(kernel, launch, &args)
    }
}
