//! What touches every element once or twice: activations, tables, features, scales, colours.

use super::{VECTOR_BYTES, address, assert_vectors, int, vector};
use crate::error::Result;
use crate::gpu::kernels::{
    AccumulateArgs, ActivateArgs, EmbedArgs, EmphasizeArgs, ScaleArgs, TimestepEmbeddingArgs, ToRgb8Args,
};
use crate::gpu::launch::Launch;
use crate::ops::cuda::Cuda;
use crate::ops::{Accumulate, Activate, Activation, Embed, Emphasize, Scale, TimestepEmbedding, ToRgb8};

impl Cuda {
    pub(super) fn activate(&self, v: &Activate) -> Result<()> {
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
                Activation::Identity => 7,
            },
            unused: 0,
        };
        self.start(&self.kernels.activate, Launch::each(m * n.div_ceil(vector)), &args)
    }

    pub(super) fn accumulate(&self, v: &Accumulate) -> Result<()> {
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

    pub(super) fn embed(&self, v: &Embed) -> Result<()> {
        assert!(v.positions.is_none_or(|positions| positions.is_dense()), "{v:?}");
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
            out_pitch: int(v.out.pitch),
        };
        self.start(&self.kernels.embed, Launch::each(v.out.len()), &args)
    }

    pub(super) fn emphasize(&self, v: &Emphasize) -> Result<()> {
        let [b, _, t, c] = v.x.shape;
        let args = EmphasizeArgs {
            x: v.x.address,
            weight: v.weight.address,
            t: int(t),
            c: int(c),
            pitch: int(v.x.pitch),
            restore_mean: i32::from(v.restore_mean),
        };
        let launch = Launch { grid: (b as u32, 1, 1), block: (1024, 1, 1), shared_bytes: 0, cluster: 1 };
        self.start(&self.kernels.emphasize, launch, &args)
    }

    pub(super) fn timestep_embedding(&self, v: &TimestepEmbedding) -> Result<()> {
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

    pub(super) fn scale(&self, v: &Scale) -> Result<()> {
        assert!(v.out.is_dense() && v.x.is_dense());
        let n = v.x.len();
        let [factor, summand] = v.factors();
        let args =
            ScaleArgs { out: v.out.address, x: v.x.address, n: int(n), c: int(v.x.c()), factor, summand };
        self.start(&self.kernels.scale, Launch::each(n), &args)
    }

    pub(super) fn to_rgb8(&self, v: &ToRgb8) -> Result<()> {
        assert!(v.out.is_dense() && v.out.c() == 3, "{v:?}");
        let args =
            ToRgb8Args { out: v.out.address, x: v.x.address, m: int(v.x.rows()), x_pitch: int(v.x.pitch) };
        self.start(&self.kernels.to_rgb8, Launch::each(v.out.len()), &args)
    }
}
