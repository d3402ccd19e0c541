//! One verb with its operands, as backends get it: what it writes, costs and is called.

use super::tensor::Tensor;
use super::verbs::*;
use crate::dtype::DType;

/// One verb with its arguments: what a backend executes, records, counts or times.
#[expect(clippy::large_enum_variant, reason = "a stage has a few hundred calls, and they are to be Copy")]
#[derive(Clone, Copy, Debug)]
pub enum Call {
    Conv2d(Conv2d),
    Linear(Linear),
    GroupNorm(GroupNorm),
    LayerNorm(LayerNorm),
    Attention(Attention),
    Activate(Activate),
    Geglu(Geglu),
    Accumulate(Accumulate),
    Embed(Embed),
    Emphasize(Emphasize),
    TimestepEmbedding(TimestepEmbedding),
    Scale(Scale),
    ModelInput(ModelInput),
    SamplerStep(SamplerStep),
    ToRgb8(ToRgb8),
}

impl Call {
    /// The verb's name, the same word in kernels, tests, benches and the log.
    pub fn name(&self) -> &'static str {
        match self {
            Call::Conv2d(_) => "conv2d",
            Call::Linear(_) => "linear",
            Call::GroupNorm(_) => "group_norm",
            Call::LayerNorm(_) => "layer_norm",
            Call::Attention(_) => "attention",
            Call::Activate(_) => "activate",
            Call::Geglu(_) => "geglu",
            Call::Accumulate(_) => "accumulate",
            Call::Embed(_) => "embed",
            Call::Emphasize(_) => "emphasize",
            Call::TimestepEmbedding(_) => "timestep_embedding",
            Call::Scale(_) => "scale",
            Call::ModelInput(_) => "model_input",
            Call::SamplerStep(_) => "sampler_step",
            Call::ToRgb8(_) => "to_rgb8",
        }
    }

    /// What the verb writes.
    pub fn out(&self) -> Tensor {
        match self {
            Call::Conv2d(v) => v.out,
            Call::Linear(v) => v.out,
            Call::GroupNorm(v) => v.out,
            Call::LayerNorm(v) => v.out,
            Call::Attention(v) => v.out,
            Call::Activate(v) => v.out,
            Call::Geglu(v) => v.out,
            Call::Accumulate(v) => v.x,
            Call::Embed(v) => v.out,
            Call::Emphasize(v) => v.x,
            Call::TimestepEmbedding(v) => v.out,
            Call::Scale(v) => v.out,
            Call::ModelInput(v) => v.out,
            Call::SamplerStep(v) => v.x,
            Call::ToRgb8(v) => v.out,
        }
    }

    /// Asserts that shapes and dtypes fit; every backend may rely on it.
    ///
    /// # Panics
    /// With the whole call in the message: a wrong shape is a bug of the model's code.
    pub fn check(&self) {
        match self {
            Call::Conv2d(v) => v.check(),
            Call::Linear(v) => v.check(),
            Call::GroupNorm(v) => {
                assert!(v.out.shape == v.x.shape && v.x.c().is_multiple_of(v.groups), "{v:?}");
                assert!(v.weight.c() == v.x.c() && v.bias.c() == v.x.c(), "{v:?}");
                assert!(v.out.address != v.x.address || v.out == v.x, "{v:?}");
            }
            Call::LayerNorm(v) => {
                assert!(
                    v.out.shape == v.x.shape && v.weight.c() == v.x.c() && v.bias.c() == v.x.c(),
                    "{v:?}"
                );
            }
            Call::Attention(v) => v.check(),
            Call::Activate(v) => {
                assert!(v.out.shape == v.x.shape && v.out.dtype == v.x.dtype, "{v:?}");
            }
            Call::Accumulate(v) => {
                let TableRow { table, index } = v.gain;
                assert!(v.x.shape == v.y.shape && table.c() == 1 && table.dtype == DType::F32, "{v:?}");
                assert!(index.dtype == DType::I32 && index.c() >= v.x.b(), "{v:?}");
            }
            Call::Geglu(v) => {
                v.projection().check();
                assert!(v.hidden.c() == 2 * v.out.c() && v.out.rows() == v.x.rows(), "{v:?}");
            }
            Call::Embed(v) => {
                assert!(v.ids.dtype == DType::I32 && v.ids.len() == v.out.rows(), "{v:?}");
                assert!(v.tokens.c() == v.out.c(), "{v:?}");
                let fits =
                    |positions: Tensor| positions.c() == v.out.c() && positions.rows() >= v.out.tokens();
                assert!(v.positions.is_none_or(fits), "{v:?}");
            }
            Call::Emphasize(v) => {
                let [b, h, t, _] = v.x.shape;
                assert!(h == 1 && v.weight.shape == [b, 1, 1, t], "{v:?}");
                assert!(v.weight.dtype == DType::F32 && v.weight.is_dense(), "{v:?}");
            }
            Call::TimestepEmbedding(v) => {
                assert!(v.timesteps.len() == v.out.rows() && v.out.c().is_multiple_of(2), "{v:?}");
                assert_eq!(v.timesteps.dtype, DType::F32);
            }
            Call::Scale(v) => assert!(v.out.shape == v.x.shape && v.x.dtype == DType::F32, "{v:?}"),
            Call::ModelInput(v) => v.check(),
            Call::SamplerStep(v) => v.check(),
            Call::ToRgb8(v) => assert!(v.out.shape == v.x.shape && v.out.dtype == DType::U8, "{v:?}"),
        }
    }

    /// Floating-point operations of the matrix products (a multiply and an add count two); zero for
    /// the verbs that only move data.
    pub fn flops(&self) -> u64 {
        let n = match self {
            Call::Conv2d(v) => 2 * v.out.len() * v.kernel().pow(2) * v.x.c(),
            Call::Linear(v) => 2 * v.out.len() * v.x.c(),
            Call::Geglu(v) => 2 * v.hidden.len() * v.x.c(),
            Call::Attention(v) => {
                let pairs = v.q.b() * v.q.tokens() * v.longest();
                4 * pairs * v.q.c() / if v.causal { 2 } else { 1 }
            }
            _ => 0,
        };
        n as u64
    }

    /// Bytes that must move: every input read once, every output written once.
    pub fn bytes(&self) -> u64 {
        let optional = |t: Option<Tensor>| t.map_or(0, |t| t.bytes());
        let n = match self {
            Call::Conv2d(v) => {
                let row = v.row.map_or(0, |row| v.out.b() * row.table.c() * row.table.dtype.size());
                // Without an odd number of rows or columns, the last of the sums is not read.
                let taps = if v.upsample { v.kinds().map(|kinds| kinds + 2) } else { [v.kernel(); 2] };
                let weight = v.weight.bytes() / v.weight.tokens() * taps[0] * taps[1];
                v.out.bytes() + v.x.bytes() + weight + optional(v.bias) + optional(v.residual) + row
            }
            Call::Linear(v) => {
                v.out.bytes() + v.x.bytes() + v.weight.bytes() + optional(v.bias) + optional(v.residual)
            }
            Call::GroupNorm(v) => v.out.bytes() + v.x.bytes() + v.weight.bytes() + v.bias.bytes(),
            Call::LayerNorm(v) => v.out.bytes() + v.x.bytes() + v.weight.bytes() + v.bias.bytes(),
            Call::Attention(v) => {
                let keys = v.q.b() * v.longest() * v.k.c() * v.k.dtype.size();
                v.out.bytes() + v.q.bytes() + 2 * keys
            }
            Call::Activate(v) => v.out.bytes() + v.x.bytes(),
            Call::Accumulate(v) => 2 * v.x.bytes() + v.y.bytes(),
            Call::Embed(v) => {
                let rows = if v.positions.is_some() { 3 } else { 2 };
                rows * v.out.bytes() + v.ids.bytes()
            }
            Call::Emphasize(v) => 2 * v.x.bytes() + v.weight.bytes(),
            Call::Geglu(v) => v.out.bytes() + v.x.bytes() + v.weight.bytes() + v.bias.bytes(),
            Call::TimestepEmbedding(v) => v.out.bytes() + v.timesteps.bytes(),
            Call::Scale(v) => v.out.bytes() + v.x.bytes(),
            Call::ModelInput(v) => v.out.bytes() + v.out.rows() * v.x.c() * v.x.dtype.size(),
            // x and saved are read and written; history, noise and what is known only where the row or the mask asks for
            // them, and the output a second time only where guidance is rescaled.
            Call::SamplerStep(v) => {
                let of_images = |slots: Tensor| slots.bytes() / slots.b() * v.rows.tokens();
                let known = v.known.map_or(0, |known| of_images(known.mask));
                4 * of_images(v.x) + v.output.bytes() + known
            }
            Call::ToRgb8(v) => v.out.bytes() + v.x.bytes(),
        };
        n as u64
    }

    /// The shape in one phrase, for benches and profiles.
    pub fn shape(&self) -> String {
        match self {
            Call::Conv2d(v) => {
                let [b, h, w, i] = v.x.shape;
                let (o, k) = (v.weight.b(), if v.upsample { 3 } else { v.kernel() });
                let up = if v.upsample { " up2" } else { "" };
                let stride = if v.stride == 1 { String::new() } else { format!(" /{}", v.stride) };
                format!("{b}x{h}x{w}x{i} -> {o} {k}x{k}{stride}{up}")
            }
            Call::Linear(v) => format!("m={} k={} n={}", v.x.rows(), v.x.c(), v.out.c()),
            Call::Geglu(v) => format!("m={} k={} n=2x{}", v.x.rows(), v.x.c(), v.out.c()),
            Call::Attention(v) => {
                let causal = if v.causal { " causal" } else { "" };
                let (b, heads, t, s) = (v.q.b(), v.heads, v.q.tokens(), v.longest());
                format!("b={b} heads={heads} t={t} s={s} d={}{causal}", v.q.c() / heads)
            }
            other => {
                let [b, h, w, c] = other.out().shape;
                format!("{b}x{h}x{w}x{c}")
            }
        }
    }
}
