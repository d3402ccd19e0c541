//! Linear layers and GEGLU: cuBLASLt's products, Hopper's kernels, or the naive one.

use cudarc::driver::CudaFunction;

use super::{address, assert_vectors, has_aligned_rows, int, naive_tiles, pitch, vector};
use crate::error::Result;
use crate::gpu::cublaslt::{Operands, Product};
use crate::gpu::kernels::{GegluArgs, LinearArgs, LinearSm90Args};
use crate::gpu::launch::Launch;
use crate::gpu::linear_sm90::{self, Plan, Tile};
use crate::gpu::tensor_map::{BOX_CHANNELS, Dim, TensorMap};
use crate::gpu::warpgroups::THREADS;
use crate::ops::cuda::{Cuda, Kind};
use crate::ops::{Activate, Geglu, Linear, Tensor};

impl Cuda {
    pub(super) fn linear(&mut self, v: &Linear) -> Result<()> {
        if v.activation.is_none()
            && linear_sm90::is_faster(self.company.reference(v.x.b()) * v.x.tokens(), v.out.c(), v.x.c())
            && self.linear_sm90_runs(v, v.out)
        {
            return self.linear_sm90(v, v.out, &linear_sm90::LINEAR, &self.kernels.linear_sm90);
        }
        if self.kind == Kind::Naive {
            let tiles = naive_tiles(v.x.rows(), v.out.c());
            self.start(&self.kernels.linear_naive, tiles, &arguments(v, v.out))?;
        } else {
            self.product(v)?;
        }
        match v.activation {
            Some(activation) => self.activate(&Activate { out: v.out, x: v.out, activation }),
            None => Ok(()),
        }
    }

    fn product(&mut self, v: &Linear) -> Result<()> {
        // Image by image: a slice of a batch is aligned as the batch.
        let places = [Some(v.out), Some(v.x), v.residual].into_iter().flatten();
        let places = places.map(|t| t.address | (t.tokens() * t.pitch * t.dtype.size()) as u64);
        let addresses = places.fold(v.weight.address | address(v.bias), |all, place| all | place);
        let product = Product {
            images: v.x.b(),
            reference: self.company.reference(v.x.b()),
            rows: v.x.tokens(),
            n: v.out.c(),
            k: v.x.c(),
            y_pitch: v.out.pitch,
            x_pitch: v.x.pitch,
            residual_pitch: v.residual.map(|r| r.pitch),
            bias: v.bias.is_some(),
            dtype: v.out.dtype,
            alignment: 1 << addresses.trailing_zeros().min(8),
        };
        let operands = Operands {
            y: v.out.address,
            x: v.x.address,
            w: v.weight.address,
            bias: address(v.bias),
            residual: address(v.residual),
        };
        // SAFETY: as in `start`.
        unsafe { self.cublaslt.multiply(&self.gpu, product, operands) }
    }

    pub(super) fn geglu(&mut self, v: &Geglu) -> Result<()> {
        if self.linear_sm90_runs(&v.projection(), v.out) {
            let kernels = &self.kernels.geglu_sm90;
            return self.linear_sm90(&v.projection(), v.out, &linear_sm90::GEGLU, kernels);
        }
        self.linear(&v.projection())?;
        assert_vectors(&[v.out, v.hidden]);
        let (m, n) = (v.out.rows(), v.out.c());
        let args = GegluArgs {
            out: v.out.address,
            x: v.hidden.address,
            m: int(m),
            n: int(n),
            out_pitch: int(v.out.pitch),
            x_pitch: int(v.hidden.pitch),
        };
        self.start(&self.kernels.geglu, Launch::each(m * n / vector(v.out)), &args)
    }

    /// Whether Hopper's kernel can compute a layer whose result, perhaps of fewer columns, goes to `out`.
    fn linear_sm90_runs(&self, v: &Linear, out: Tensor) -> bool {
        let epilogue = [Some(out), v.bias, v.residual].into_iter().flatten().all(has_aligned_rows);
        let operands =
            [v.x, v.weight].into_iter().all(|t| TensorMap::can_read(t.address, &[t.pitch], self.dtype));
        !self.kernels.linear_sm90.is_empty()
            && self.kind == Kind::Fast
            && epilogue
            && operands
            && out.c().is_multiple_of(8)
    }

    /// `kernels` are those of `tiles`; the result goes to `out`, not to that of `v`.
    fn linear_sm90(&self, v: &Linear, out: Tensor, tiles: &[Tile], kernels: &[CudaFunction]) -> Result<()> {
        let (m, n, k) = (v.x.rows(), v.weight.w(), v.x.c());
        let plan = Plan::choose(tiles, m, out.c(), k, self.gpu.multiprocessors);
        let tile = &tiles[plan.tile];
        let map = |t: Tensor, rows: usize, taken: usize| {
            let dims = [Dim::new(k, 1, BOX_CHANNELS), Dim::new(rows, t.pitch, taken)];
            TensorMap::new(t.address, self.dtype, dims)
        };
        let args = LinearSm90Args {
            x: map(v.x, m, tile.m)?,
            weight: map(v.weight, n, tile.columns)?,
            linear: arguments(v, out),
            tiles: int(plan.tiles),
            tiles_n: int(plan.tiles_n),
            unused: [0; 14],
        };
        let launch = Launch {
            grid: (plan.blocks as u32, 1, 1),
            block: (THREADS, 1, 1),
            shared_bytes: tile.shared_bytes(),
            cluster: 1,
        };
        self.start(&kernels[plan.tile], launch, &args)
    }
}

/// Of a layer whose result goes to `out`, which may have fewer columns than the weight has rows.
fn arguments(v: &Linear, out: Tensor) -> LinearArgs {
    LinearArgs {
        out: out.address,
        x: v.x.address,
        weight: v.weight.address,
        bias: address(v.bias),
        residual: address(v.residual),
        m: int(v.x.rows()),
        n: int(v.weight.w()),
        k: int(v.x.c()),
        out_pitch: int(out.pitch),
        x_pitch: int(v.x.pitch),
        residual_pitch: pitch(v.residual),
    }
}
