//! Each verb as launches: checks what its kernel needs, picks the variant, fills the arguments.

use cudarc::driver::CudaFunction;

use super::{Cuda, Kind, SCRATCH_BYTES};
use crate::error::Result;
use crate::gpu::attention::AttentionPlan;
use crate::gpu::conv::{self, Conv2dPlan};
use crate::gpu::cublaslt::{Operands, Product};
use crate::gpu::kernels::*;
use crate::ops::*;

/// Bytes of the widest access of the elementwise and norm kernels.
const VECTOR_BYTES: usize = 16;
/// Most channels of the group norm kernels, which have a thread for each vector of a row.
const GROUP_NORM_CHANNELS: usize = 4096;
/// Widest row of the layer norm kernel.
const LAYER_NORM_CHANNELS: usize = 2048;

/// Side of the output tile of a naive product's block, and queries of a naive attention's (cuda/naive.cu).
const NAIVE_TILE: usize = 16;
const NAIVE_QUERIES: usize = 8;

fn int(n: usize) -> i32 {
    i32::try_from(n).expect("sizes fit 31 bits")
}

fn address(tensor: Option<Tensor>) -> u64 {
    tensor.map_or(0, |t| t.address)
}

fn pitch(tensor: Option<Tensor>) -> i32 {
    tensor.map_or(0, |t| int(t.pitch))
}

/// Asserts that rows can be accessed `VECTOR_BYTES` at a time.
fn assert_vectors(tensors: &[Tensor]) {
    for t in tensors {
        let vector = VECTOR_BYTES / t.dtype.size();
        let fits = t.c().is_multiple_of(vector) && t.pitch.is_multiple_of(vector);
        assert!(fits && t.address.is_multiple_of(VECTOR_BYTES as u64), "{t} is not made of 16-byte vectors");
    }
}

/// Blocks that one image takes in `group_norm_fused`, each with the fewest groups that are whole vectors;
/// `None` where a block cannot hold its channels of all rows.
fn group_norm_slabs(v: &GroupNorm, threads: usize) -> Option<usize> {
    let (vector, channels) = (vector(v.x), v.x.c() / v.groups);
    let groups = (1..=vector).find(|groups| (groups * channels).is_multiple_of(vector))?;
    let lanes = threads / (groups * channels / vector);
    // FUSED_VECTORS in cuda/norm.cu.
    let held = if v.x.dtype == DType::F32 { 4 } else { 11 };
    let fits = v.groups.is_multiple_of(groups) && v.x.tokens() <= lanes * held;
    fits.then(|| v.groups / groups)
}

/// One thread for each output of an [m,n] product.
fn naive_tiles(m: usize, n: usize) -> Launch {
    let grid = (m.div_ceil(NAIVE_TILE) as u32, n.div_ceil(NAIVE_TILE) as u32, 1);
    Launch { grid, block: (NAIVE_TILE as u32, NAIVE_TILE as u32, 1), shared_bytes: 0 }
}

impl Cuda {
    pub(super) fn launch(&mut self, call: &Call) -> Result<()> {
        match call {
            Call::Conv2d(v) => self.conv2d(v),
            Call::Linear(v) => self.linear(v),
            Call::GroupNorm(v) => self.group_norm(v),
            Call::LayerNorm(v) => self.layer_norm(v),
            Call::Attention(v) => self.attention(v),
            Call::Geglu(v) => self.geglu(v),
            Call::Activate(v) => self.activate(v),
            Call::Accumulate(v) => self.accumulate(v),
            Call::Embed(v) => self.embed(v),
            Call::Emphasize(v) => self.emphasize(v),
            Call::TimestepEmbedding(v) => self.timestep_embedding(v),
            Call::Scale(v) => self.scale(v),
            Call::ModelInput(v) => self.model_input(v),
            Call::SamplerStep(v) => self.sampler_step(v),
            Call::ToRgb8(v) => self.to_rgb8(v),
        }
    }

    fn start<A: KernelArgs>(&self, kernel: &CudaFunction, launch: Launch, args: &A) -> Result<()> {
        // SAFETY: every caller below pairs a kernel with its own struct, filled from tensors that the
        // verb's check has found to fit one another and that lie in memory this backend reserved.
        unsafe { self.gpu.launch(kernel, launch, args) }
    }

    /// The fast convolution and attention are made of tensor-core products, which f32 does not have.
    fn is_naive(&self) -> bool {
        self.kind == Kind::Naive || self.dtype == DType::F32
    }

    fn conv2d(&self, v: &Conv2d) -> Result<()> {
        let [b, h, w, i] = v.x.shape;
        let [_, ho, wo, o] = v.out.shape;
        let k = v.weight.h();
        let (virtual_h, virtual_w) = v.virtual_size();
        let m = b * ho * wo;
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
            virtual_h: int(virtual_h),
            virtual_w: int(virtual_w),
            x_pitch: int(v.x.pitch),
            out_pitch: int(v.out.pitch),
            residual_pitch: pitch(v.residual),
            table_pitch: pitch(v.row.map(|row| row.table)),
            splits: 1,
            k_tiles_per_split: 0,
        };
        if self.is_naive() {
            return self.start(&self.kernels.conv2d_naive, naive_tiles(m, o), &args);
        }
        let offset = v.x.address as usize / v.x.dtype.size();
        let vector = if [i, v.x.pitch, offset].iter().all(|n| n.is_multiple_of(8)) { 8 } else { 4 };
        let product = conv::Product { m, n: o, k: k * k * i, vector };
        let device = conv::Device { sms: self.gpu.multiprocessors, shared_bytes: self.gpu.shared_bytes };
        let plan = Conv2dPlan::choose(product, device);
        assert!(plan.partial_bytes <= SCRATCH_BYTES, "{plan:?}");
        tracing::trace!(?product, ?plan, "chose a convolution");
        args.splits = int(plan.splits);
        args.k_tiles_per_split = int(plan.k_tiles_per_split);
        let launch = Launch { grid: plan.grid, block: (plan.threads, 1, 1), shared_bytes: plan.shared_bytes };
        self.start(&self.kernels.conv2d[plan.tile], launch, &args)?;
        if plan.splits == 1 {
            return Ok(());
        }
        let grid = (plan.reduce_blocks, 1, 1);
        let launch = Launch { grid, block: (Conv2dPlan::REDUCE_THREADS, 1, 1), shared_bytes: 0 };
        self.start(self.kernels.conv2d_reduce.as_ref().expect("loaded with the fast kernels"), launch, &args)
    }

    fn linear(&mut self, v: &Linear) -> Result<()> {
        let (m, n, k) = (v.x.rows(), v.out.c(), v.x.c());
        if self.kind == Kind::Naive {
            let args = LinearArgs {
                out: v.out.address,
                x: v.x.address,
                weight: v.weight.address,
                bias: address(v.bias),
                residual: address(v.residual),
                m: int(m),
                n: int(n),
                k: int(k),
                out_pitch: int(v.out.pitch),
                x_pitch: int(v.x.pitch),
                residual_pitch: pitch(v.residual),
            };
            self.start(&self.kernels.linear_naive, naive_tiles(m, n), &args)?;
        } else {
            self.product(v)?;
        }
        match v.activation {
            Some(activation) => self.activate(&Activate { out: v.out, x: v.out, activation }),
            None => Ok(()),
        }
    }

    fn product(&mut self, v: &Linear) -> Result<()> {
        let addresses =
            v.out.address | v.x.address | v.weight.address | address(v.bias) | address(v.residual);
        let product = Product {
            m: v.x.rows(),
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

    fn group_norm(&self, v: &GroupNorm) -> Result<()> {
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
        if let Some(slabs) = group_norm_slabs(v, threads) {
            let launch = Launch { grid: (slabs as u32, b as u32, 1), block, shared_bytes: 0 };
            return self.start(&self.kernels.group_norm_fused, launch, &args);
        }
        assert!(b * splits * v.groups * 8 <= SCRATCH_BYTES, "group_norm statistics of {}", v.x);
        let stats = Launch { grid: (splits as u32, b as u32, 1), block, shared_bytes: 0 };
        self.start(&self.kernels.group_norm_stats, stats, &args)?;
        let chunks = hw.div_ceil(2 * lanes).min(wanted) as u32;
        let apply = Launch { grid: (chunks, b as u32, 1), block, shared_bytes: 8 * v.groups };
        self.start(&self.kernels.group_norm_apply, apply, &args)
    }

    fn layer_norm(&self, v: &LayerNorm) -> Result<()> {
        assert_vectors(&[v.out, v.x]);
        let (m, c) = (v.x.rows(), v.x.c());
        assert!(c <= LAYER_NORM_CHANNELS, "layer_norm of {c} channels");
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
        let launch = Launch { grid: (m.div_ceil(8) as u32, 1, 1), block: (256, 1, 1), shared_bytes: 0 };
        self.start(&self.kernels.layer_norm, launch, &args)
    }

    fn attention(&self, v: &Attention) -> Result<()> {
        let [b, _, _, c] = v.q.shape;
        let (t, s, d) = (v.q.tokens(), v.k.tokens(), c / v.heads);
        let args = AttentionArgs {
            out: v.out.address,
            q: v.q.address,
            k: v.k.address,
            v: v.v.address,
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
            unused: 0,
        };
        if self.is_naive() {
            let grid = (t.div_ceil(NAIVE_QUERIES) as u32, v.heads as u32, b as u32);
            let block = (32 * NAIVE_QUERIES as u32, 1, 1);
            let launch = Launch { grid, block, shared_bytes: NAIVE_QUERIES * d * 8 };
            return self.start(&self.kernels.attention_naive, launch, &args);
        }
        assert_vectors(&[v.out, v.q, v.k, v.v]);
        let plan = AttentionPlan::choose(b, v.heads, t, s, d, self.gpu.multiprocessors);
        let launch = Launch { grid: plan.grid, block: (plan.threads, 1, 1), shared_bytes: plan.shared_bytes };
        self.start(&self.kernels.attention[plan.tile], launch, &args)
    }

    fn geglu(&self, v: &Geglu) -> Result<()> {
        assert_vectors(&[v.out, v.x]);
        let (m, n) = (v.out.rows(), v.out.c());
        let args = GegluArgs {
            out: v.out.address,
            x: v.x.address,
            m: int(m),
            n: int(n),
            out_pitch: int(v.out.pitch),
            x_pitch: int(v.x.pitch),
        };
        self.start(&self.kernels.geglu, Launch::each(m * n / vector(v.out)), &args)
    }

    fn activate(&self, v: &Activate) -> Result<()> {
        let vector = vector(v.x);
        // What is dense is one row, whose end alone may be less than a vector.
        let (m, n) = if v.out.is_dense() && v.x.is_dense() { (1, v.x.len()) } else { (v.x.rows(), v.x.c()) };
        for t in [v.out, v.x] {
            let aligned = t.address.is_multiple_of(VECTOR_BYTES as u64);
            assert!(aligned && (m == 1 || t.pitch.is_multiple_of(vector)), "the rows of {t} are not aligned");
        }
        let args = ActivateArgs {
            out: v.out.address,
            x: v.x.address,
            m: int(m),
            n: int(n),
            out_pitch: int(v.out.pitch),
            x_pitch: int(v.x.pitch),
            kind: match v.activation {
                Activation::Silu => 0,
                Activation::Gelu => 1,
                Activation::QuickGelu => 2,
                Activation::Relu => 3,
                Activation::Tanh3 => 4,
                Activation::FromUnit => 5,
                Activation::ToUnit => 6,
            },
            unused: 0,
        };
        self.start(&self.kernels.activate, Launch::each(m * n.div_ceil(vector)), &args)
    }

    fn accumulate(&self, v: &Accumulate) -> Result<()> {
        assert_vectors(&[v.x, v.y]);
        assert!(v.gain.table.is_dense(), "{v:?}");
        let args = AccumulateArgs {
            x: v.x.address,
            y: v.y.address,
            gains: v.gain.table.address,
            index: v.gain.index.address,
            m: int(v.x.rows()),
            n: int(v.x.c()),
            t: int(v.x.tokens()),
            x_pitch: int(v.x.pitch),
            y_pitch: int(v.y.pitch),
            unused: 0,
        };
        self.start(&self.kernels.accumulate, Launch::each(v.x.len() / vector(v.x)), &args)
    }

    fn embed(&self, v: &Embed) -> Result<()> {
        let dense = |positions: Tensor| positions.is_dense();
        assert!(v.out.is_dense() && v.positions.is_none_or(dense), "{v:?}");
        let args = EmbedArgs {
            out: v.out.address,
            ids: v.ids.address,
            tokens: v.tokens.address,
            positions: address(v.positions),
            m: int(v.out.rows()),
            t: int(v.out.tokens()),
            c: int(v.out.c()),
            vocabulary: int(v.tokens.rows()),
            tokens_pitch: int(v.tokens.pitch),
            unused: 0,
        };
        self.start(&self.kernels.embed, Launch::each(v.out.len()), &args)
    }

    fn emphasize(&self, v: &Emphasize) -> Result<()> {
        let [b, _, t, c] = v.x.shape;
        let args = EmphasizeArgs {
            x: v.x.address,
            weight: v.weight.address,
            t: int(t),
            c: int(c),
            pitch: int(v.x.pitch),
            restore_mean: i32::from(v.restore_mean),
        };
        let launch = Launch { grid: (b as u32, 1, 1), block: (1024, 1, 1), shared_bytes: 0 };
        self.start(&self.kernels.emphasize, launch, &args)
    }

    fn timestep_embedding(&self, v: &TimestepEmbedding) -> Result<()> {
        assert!(v.out.is_dense());
        let args = TimestepEmbeddingArgs {
            out: v.out.address,
            timesteps: v.timesteps.address,
            n: int(v.out.rows()),
            c: int(v.out.c()),
            flip_sin_to_cos: i32::from(v.flip_sin_to_cos),
            freq_shift: v.freq_shift,
        };
        self.start(&self.kernels.timestep_embedding, Launch::each(v.out.len()), &args)
    }

    fn scale(&self, v: &Scale) -> Result<()> {
        assert!(v.out.is_dense() && v.x.is_dense());
        let n = v.x.len();
        let args = ScaleArgs { out: v.out.address, x: v.x.address, n: int(n), scale: v.scale };
        self.start(&self.kernels.scale, Launch::each(n), &args)
    }

    fn model_input(&self, v: &ModelInput) -> Result<()> {
        assert!(v.x.is_dense());
        let args = ModelInputArgs {
            out: v.out.address,
            x: v.x.address,
            table: v.table.address,
            index: v.index.address,
            rows: int(v.out.b()),
            b: int(v.x.b()),
            n: int(v.x.len() / v.x.b()),
            c: int(v.x.c()),
            out_pitch: int(v.out.pitch),
            unused: 0,
        };
        self.start(&self.kernels.model_input, Launch::each(v.out.len()), &args)
    }

    fn sampler_step(&self, v: &SamplerStep) -> Result<()> {
        let dense = [v.x, v.saved, v.history, v.output, v.noise, v.table];
        let known = v.known.map(|known| [known.mask, known.latents, known.noise]);
        assert!(dense.iter().chain(known.iter().flatten()).all(Tensor::is_dense), "{v:?}");
        let [mask, known, known_noise] = known.map_or([0; 3], |known| known.map(|t| t.address));
        let args = SamplerStepArgs {
            x: v.x.address,
            saved: v.saved.address,
            history: v.history.address,
            output: v.output.address,
            noise: v.noise.address,
            table: v.table.address,
            index: v.index.address,
            guidance: v.guidance.address,
            guidance_rescale: v.guidance_rescale.address,
            b: int(v.x.b()),
            mask,
            known,
            known_noise,
            n: int(v.x.len() / v.x.b()),
            c: int(v.x.c()),
            guided: i32::from(v.output.b() > v.x.b()),
        };
        // A block belongs to one image.
        let mut launch = Launch::each(v.x.len() / v.x.b());
        launch.grid.1 = v.x.b() as u32;
        self.start(&self.kernels.sampler_step, launch, &args)
    }

    fn to_rgb8(&self, v: &ToRgb8) -> Result<()> {
        assert!(v.out.is_dense() && v.out.c() == 3, "{v:?}");
        let args =
            ToRgb8Args { out: v.out.address, x: v.x.address, m: int(v.x.rows()), x_pitch: int(v.x.pitch) };
        self.start(&self.kernels.to_rgb8, Launch::each(v.out.len()), &args)
    }
}

/// Elements of a 16-byte vector.
fn vector(t: Tensor) -> usize {
    VECTOR_BYTES / t.dtype.size()
}
