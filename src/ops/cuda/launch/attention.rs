//! Attention: the portable kernel, Hopper's two, or the naive one.

use cudarc::driver::CudaFunction;

use super::{assert_vectors, int};
use crate::error::Result;
use crate::gpu::attention::AttentionPlan;
use crate::gpu::kernels::{AttentionArgs, AttentionSm90Args};
use crate::gpu::launch::Launch;
use crate::gpu::tensor_map::{BOX_CHANNELS, Dim, TensorMap};
use crate::gpu::{attention_short_sm90, attention_sm90};
use crate::ops::cuda::Cuda;
use crate::ops::{Attention, Tensor};

/// Queries of a naive attention's block (cuda/naive.cu).
const NAIVE_QUERIES: usize = 8;

/// How one of Hopper's kernels runs, and the rows of its boxes of Q, and of K and V.
struct Sm90<'a> {
    kernel: &'a CudaFunction,
    launch: Launch,
    queries: usize,
    keys: usize,
}

impl Cuda {
    pub(super) fn attention(&self, v: &Attention) -> Result<()> {
        let [b, _, _, c] = v.q.shape;
        let (t, s, d) = (v.q.tokens(), v.longest(), c / v.heads);
        let (first_key, key_count) =
            v.keys.map(|keys| (keys.first.address, keys.length.address)).unwrap_or_default();
        let mut args = AttentionArgs {
            out: v.out.address,
            q: v.q.address,
            k: v.k.address,
            v: v.v.address,
            first_key,
            key_count,
            b: int(b),
            heads: int(v.heads),
            t: int(t),
            s: int(s),
            d: int(d),
            out_pitch: int(v.out.pitch),
            q_pitch: int(v.q.pitch),
            k_pitch: int(v.k.pitch),
            v_pitch: int(v.v.pitch),
            causal: i32::from(v.causal),
            scale: 1.0 / (d as f32).sqrt(),
            fewest_keys: 0,
        };
        if self.is_naive() {
            let grid = (t.div_ceil(NAIVE_QUERIES) as u32, v.heads as u32, b as u32);
            let block = (32 * NAIVE_QUERIES as u32, 1, 1);
            let launch = Launch { grid, block, shared_bytes: NAIVE_QUERIES * d * 8, cluster: 1 };
            return self.start(&self.kernels.attention_naive, launch, &args);
        }
        assert_vectors(&[v.out, v.q, v.k, v.v]);
        // An image's kernel depends on its own keys, never on how many others have.
        if let Some(keys) = v.keys {
            if let Some(short) = self.attention_short_sm90(v, keys.longest.min(attention_short_sm90::KEYS)) {
                self.start_sm90(v, args, short)?;
                if keys.longest <= attention_short_sm90::KEYS {
                    return Ok(());
                }
                args.fewest_keys = int(attention_short_sm90::KEYS + 1);
            }
        } else if let Some(sm90) = self.attention_short_sm90(v, s).or_else(|| self.attention_sm90(v)) {
            return self.start_sm90(v, args, sm90);
        }
        let plan =
            AttentionPlan::choose(b, self.company.reference(b), v.heads, t, s, d, self.gpu.multiprocessors);
        let launch = Launch {
            grid: plan.grid,
            block: (plan.threads, 1, 1),
            shared_bytes: plan.shared_bytes,
            cluster: 1,
        };
        self.start(&self.kernels.attention[plan.tile], launch, &args)
    }

    /// Whether Hopper's kernels are there and can read the operands.
    fn has_sm90(&self, v: &Attention) -> bool {
        let d = v.q.c() / v.heads;
        let readable = |x: Tensor| TensorMap::can_read(x.address, &[d, x.pitch], self.dtype);
        !self.kernels.attention_sm90.is_empty() && [v.q, v.k, v.v].into_iter().all(readable)
    }

    /// A launch of Hopper's kernel over `s` keys that are one tile; `None` where it cannot run.
    fn attention_short_sm90(&self, v: &Attention, s: usize) -> Option<Sm90<'_>> {
        use attention_short_sm90::{KEYS, QUERIES, TILES, WARPGROUP};
        let heads = v.q.b() * v.heads;
        let choose = || attention_short_sm90::choose(v.q.c() / v.heads, s, v.causal);
        let index = self.has_sm90(v).then(choose)??;
        let plan = TILES[index].plan(v.q.tokens(), heads, self.gpu.multiprocessors);
        let launch = Launch {
            grid: (plan.blocks as u32, heads as u32, 1),
            block: ((plan.warpgroups * WARPGROUP) as u32, 1, 1),
            shared_bytes: TILES[index].shared_bytes(plan.warpgroups),
            cluster: 1,
        };
        Some(Sm90 { kernel: &self.kernels.attention_short_sm90[index], launch, queries: QUERIES, keys: KEYS })
    }

    /// A launch of Hopper's kernel over many keys; `None` where it cannot run or does not pay.
    fn attention_sm90(&self, v: &Attention) -> Option<Sm90<'_>> {
        use attention_sm90::{QUERIES, THREADS, TILES};
        let (t, s, d) = (v.q.tokens(), v.k.tokens(), v.q.c() / v.heads);
        let heads = v.q.b() * v.heads;
        if !self.has_sm90(v) {
            return None;
        }
        let index = attention_sm90::choose(
            d,
            self.company.reference(v.q.b()) * v.heads,
            t,
            s,
            v.causal,
            self.gpu.multiprocessors,
        )?;
        let tile = &TILES[index];
        let grid = (tile.blocks(t) as u32, heads as u32, 1);
        let launch = Launch { grid, block: (THREADS, 1, 1), shared_bytes: tile.shared_bytes(), cluster: 1 };
        Some(Sm90 { kernel: &self.kernels.attention_sm90[index], launch, queries: QUERIES, keys: tile.keys })
    }

    fn start_sm90(&self, v: &Attention, attention: AttentionArgs, sm90: Sm90) -> Result<()> {
        let d = v.q.c() / v.heads;
        let map = |x: Tensor, rows: usize| {
            let dims = [
                Dim::new(d, 1, BOX_CHANNELS),
                Dim::new(v.heads, d, 1),
                Dim::new(x.tokens(), x.pitch, rows),
                Dim::new(x.b(), x.pitch * x.tokens(), 1),
            ];
            TensorMap::new(x.address, self.dtype, dims)
        };
        let args = AttentionSm90Args {
            q: map(v.q, sm90.queries)?,
            k: map(v.k, sm90.keys)?,
            v: map(v.v, sm90.keys)?,
            attention,
            unused: [0; 8],
        };
        self.start(sm90.kernel, sm90.launch, &args)
    }
}
