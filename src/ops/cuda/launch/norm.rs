//! Group norm, in one launch where the map is small, and layer norm.

use super::{assert_vectors, int, vector};
use crate::error::Result;
use crate::gpu::clusters::{Clusters, MAX_CLUSTER};
use crate::gpu::kernels::{GroupNormArgs, Launch, LayerNormArgs};
use crate::ops::cuda::{Cuda, SCRATCH_BYTES};
use crate::ops::{DType, GroupNorm, LayerNorm};

/// Most channels of the group norm kernels, which have a thread for each vector of a row.
const GROUP_NORM_CHANNELS: usize = 4096;

/// Slabs of an image in `group_norm_fused`, each with the fewest groups that are whole vectors, and the parts
/// that its rows are in, the blocks of a cluster. `None` where blocks cannot hold that much.
fn group_norm_slabs(v: &GroupNorm, threads: usize, clusters: Clusters) -> Option<(usize, usize)> {
    let (vector, channels) = (vector(v.x), v.x.c() / v.groups);
    let groups = (1..=vector).find(|groups| (groups * channels).is_multiple_of(vector))?;
    let lanes = threads / (groups * channels / vector);
    // FUSED_VECTORS in cuda/norm.cu.
    let held = if v.x.dtype == DType::F32 { 4 } else { 14 };
    if !v.groups.is_multiple_of(groups) {
        return None;
    }
    let slabs = v.groups / groups;
    let possible =
        (1..=MAX_CLUSTER).filter(|&n| clusters.resident(n) > 0 && v.x.tokens().div_ceil(n) <= lanes * held);
    // As many as all run at once, with work for all of their threads.
    let busy = |&n: &usize| slabs * v.x.b() <= clusters.resident(n) && v.x.tokens() / n >= lanes;
    possible.clone().rfind(busy).or(possible.min()).map(|n| (slabs, n))
}

impl Cuda {
    pub(super) fn group_norm(&self, v: &GroupNorm) -> Result<()> {
        assert_vectors(&[v.out, v.x]);
        let [b, h, w, c] = v.x.shape;
        let hw = h * w;
        let threads = GROUP_NORM_CHANNELS / vector(v.x);
        assert!(c <= GROUP_NORM_CHANNELS, "group_norm of {c} channels");
        // Rows that one block walks at once; enough blocks for two on each multiprocessor.
        let lanes = threads / (c / vector(v.x));
        let wanted = (2 * self.gpu.multiprocessors).div_ceil(b);
        let rows_per_split = hw.div_ceil(wanted).max(4 * lanes).min(hw);
        let splits = hw.div_ceil(rows_per_split);
        let args = GroupNormArgs {
            out: v.out.address,
            x: v.x.address,
            weight: v.weight.address,
            bias: v.bias.address,
            partial: self.scratch.address,
            b: int(b),
            hw: int(hw),
            c: int(c),
            groups: int(v.groups),
            out_pitch: int(v.out.pitch),
            x_pitch: int(v.x.pitch),
            splits: int(splits),
            rows_per_split: int(rows_per_split),
            silu: i32::from(v.silu),
            eps: v.eps,
        };
        let block = (threads as u32, 1, 1);
        if let Some((slabs, parts)) = group_norm_slabs(v, threads, self.kernels.clusters) {
            let grid = (slabs as u32, b as u32, parts as u32);
            let launch = Launch { grid, block, shared_bytes: 0, cluster: parts as u32 };
            return self.start(&self.kernels.group_norm_fused, launch, &args);
        }
        assert!(b * splits * v.groups * 8 <= SCRATCH_BYTES, "group_norm statistics of {}", v.x);
        let stats = Launch { grid: (splits as u32, b as u32, 1), block, shared_bytes: 0, cluster: 1 };
        self.start(&self.kernels.group_norm_stats, stats, &args)?;
        let chunks = hw.div_ceil(2 * lanes).min(wanted) as u32;
        let apply = Launch { grid: (chunks, b as u32, 1), block, shared_bytes: 8 * v.groups, cluster: 1 };
        self.start(&self.kernels.group_norm_apply, apply, &args)
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
