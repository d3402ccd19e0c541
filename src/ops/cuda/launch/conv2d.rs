//! Convolutions: the portable kernel, Hopper's two, or the naive one.

use super::{address, has_aligned_rows, int, naive_tiles, pitch};
use crate::error::Result;
use crate::gpu::conv::{self, Conv2dPlan};
use crate::gpu::conv_sm90;
use crate::gpu::kernels::{Conv2dArgs, Conv2dSm90Args};
use crate::gpu::launch::Launch;
use crate::gpu::tensor_map::{BOX_CHANNELS, Dim, TensorMap};
use crate::gpu::warpgroups::{Consumers, THREADS};
use crate::ops::Conv2d;
use crate::ops::cuda::{Cuda, SCRATCH_BYTES};

/// The parts of a convolution's output (cuda/conv.cuh).
struct Parts {
    count: usize,
    /// How many are of about the size of the largest; the others are edges.
    large: usize,
    /// No part has more rows and columns.
    rows: usize,
    columns: usize,
}

impl Parts {
    fn of(v: &Conv2d) -> Parts {
        let (large, map) = if v.upsample { (4, v.x) } else { (1, v.out) };
        Parts { count: v.kinds().iter().product(), large, rows: map.h(), columns: map.w() }
    }

    /// Rows and columns of each.
    fn sizes(v: &Conv2d) -> impl Iterator<Item = [usize; 2]> {
        let sides = |side, kinds| match kinds {
            1 => vec![side],
            _ => [side / 2, side / 2, 1][..kinds].to_vec(),
        };
        let [rows, columns] = v.kinds();
        let columns = sides(v.out.w(), columns);
        let rows = sides(v.out.h(), rows);
        rows.into_iter().flat_map(move |h| columns.clone().into_iter().map(move |w| [h, w]))
    }
}

impl Cuda {
    pub(super) fn conv2d(&mut self, v: &Conv2d) -> Result<()> {
        if !self.is_naive()
            && let Some(linear) = v.as_linear()
        {
            return self.linear(&linear);
        }
        let [b, h, w, i] = v.x.shape;
        let [_, ho, wo, o] = v.out.shape;
        let k = v.kernel();
        let parts = Parts::of(v);
        let mut args = Conv2dArgs {
            out: v.out.address,
            x: v.x.address,
            weight: v.weight.address,
            bias: address(v.bias),
            table: address(v.row.map(|row| row.table)),
            index: address(v.row.map(|row| row.index)),
            residual: address(v.residual),
            partial: self.scratch.address,
            b: int(b),
            h: int(h),
            w: int(w),
            i: int(i),
            ho: int(ho),
            wo: int(wo),
            o: int(o),
            k: int(k),
            stride: int(v.stride),
            pad: int(v.pad),
            upsample: i32::from(v.upsample),
            x_pitch: int(v.x.pitch),
            out_pitch: int(v.out.pitch),
            residual_pitch: pitch(v.residual),
            table_pitch: pitch(v.row.map(|row| row.table)),
            splits: 1,
            k_tiles_per_split: 0,
        };
        if self.is_naive() {
            let tiles = naive_tiles(b * parts.rows * parts.columns, o);
            let launch = Launch { grid: (tiles.grid.0, tiles.grid.1, parts.count as u32), ..tiles };
            return self.start(&self.kernels.conv2d_naive, launch, &args);
        }
        if let Some(plan) = self.conv2d_sm90_plan(v) {
            return self.conv2d_sm90(v, args, plan);
        }
        let offset = v.x.address as usize / v.x.dtype.size();
        let vector = if [i, v.x.pitch, offset].iter().all(|n| n.is_multiple_of(8)) { 8 } else { 4 };
        let pixels = parts.rows * parts.columns;
        let product = conv::Product {
            b,
            reference: self.company.reference(b),
            pixels,
            n: o,
            k: k * k * i,
            parts: parts.large,
            vector,
        };
        let device = conv::Device { sms: self.gpu.multiprocessors, shared_bytes: self.gpu.shared_bytes };
        let most = Conv2dPlan::most_images(product, device);
        if b > most {
            return (0..b)
                .step_by(most)
                .try_for_each(|first| self.conv2d(&v.images(first, most.min(b - first))));
        }
        let plan = Conv2dPlan::choose(product, device);
        assert!(plan.partial_bytes <= SCRATCH_BYTES, "{plan:?}");
        tracing::trace!(?product, ?plan, "chose a convolution");
        args.splits = int(plan.splits);
        args.k_tiles_per_split = int(plan.k_tiles_per_split);
        let launch = Launch {
            grid: (plan.grid.0, parts.count as u32, plan.grid.2),
            block: (plan.threads, 1, 1),
            shared_bytes: plan.shared_bytes,
            cluster: 1,
        };
        self.start(&self.kernels.conv2d[plan.tile], launch, &args)?;
        if plan.splits == 1 {
            return Ok(());
        }
        let grid = (plan.reduce_blocks, 1, 1);
        let launch = Launch { grid, block: (Conv2dPlan::REDUCE_THREADS, 1, 1), shared_bytes: 0, cluster: 1 };
        self.start(self.kernels.conv2d_reduce.as_ref().expect("loaded with the fast kernels"), launch, &args)
    }

    /// `None` where Hopper's kernels cannot run.
    fn conv2d_sm90_plan(&self, v: &Conv2d) -> Option<conv_sm90::Plan> {
        let [b, h, w, i] = v.x.shape;
        let pitches = [v.x.pitch, v.x.pitch * w, v.x.pitch * w * h];
        let readable = TensorMap::can_read(v.x.address, &pitches, self.dtype)
            && TensorMap::can_read(v.weight.address, &[i, i * v.weight.tokens()], self.dtype);
        let parts = Parts::of(v);
        let epilogue = [Some(v.out), v.bias, v.residual, v.row.map(|row| row.table)];
        let shape = conv_sm90::Shape {
            b,
            reference: self.company.reference(b),
            ho: parts.rows,
            wo: parts.columns,
            i,
            o: v.out.c(),
            taps: v.kernel().pow(2),
            stride: v.stride,
            parts: parts.large,
            vectors: v.out.c().is_multiple_of(8) && epilogue.into_iter().flatten().all(has_aligned_rows),
        };
        let runs = readable && !self.kernels.conv2d_sm90.is_empty();
        runs.then(|| conv_sm90::Plan::choose(shape, self.kernels.clusters))
    }

    fn conv2d_sm90(&self, v: &Conv2d, conv: Conv2dArgs, plan: conv_sm90::Plan) -> Result<()> {
        let [b, h, w, i] = v.x.shape;
        let (o, taps) = (v.out.c(), v.weight.tokens());
        let parts = Parts::of(v);
        let tile = &conv_sm90::TILES[plan.tile];
        let pixels = plan.pixels;
        tracing::trace!(?plan, "chose a convolution of sm_90");
        let pitch = v.x.pitch;
        let side = |size, pitch, taken| Dim { size, pitch, taken, step: v.stride };
        let x = [
            Dim::new(i, 1, BOX_CHANNELS),
            side(w, pitch, pixels.w),
            side(h, pitch * w, pixels.h),
            Dim::new(b, pitch * w * h, pixels.b),
        ];
        let weight = [
            Dim::new(i, 1, BOX_CHANNELS),
            Dim::new(taps, i, 1),
            Dim::new(o, i * taps, tile.n / tile.sharing),
        ];
        let boxes = Parts::sizes(v).map(|[h, w]| pixels.cover([b, h, w]));
        let groups = boxes.map(|boxes| boxes.div_ceil(tile.sharing)).sum::<usize>() * o.div_ceil(tile.n);
        let args = Conv2dSm90Args {
            x: TensorMap::new(v.x.address, self.dtype, x)?,
            weight: TensorMap::new(v.weight.address, self.dtype, weight)?,
            conv: Conv2dArgs {
                splits: int(plan.splits),
                k_tiles_per_split: int(plan.k_tiles_per_split),
                ..conv
            },
            tile_w: int(pixels.w),
            tile_h: int(pixels.h),
            tile_b: int(pixels.b),
            groups: int(groups),
            unused: [0; 10],
        };
        let (grid, cluster) = match tile.consumers {
            Consumers::Together => ((plan.tiles, parts.count, plan.splits), plan.splits),
            Consumers::InTurns => {
                let clusters = groups.min(self.kernels.clusters.resident(tile.sharing));
                ((clusters, 1, tile.sharing), tile.sharing)
            }
        };
        let launch = Launch {
            grid: (grid.0 as u32, grid.1 as u32, grid.2 as u32),
            block: (THREADS, 1, 1),
            shared_bytes: tile.shared_bytes(),
            cluster: cluster as u32,
        };
        self.start(&self.kernels.conv2d_sm90[plan.tile], launch, &args)
    }
}
