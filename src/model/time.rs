//! The time embedding of a U-Net or a ControlNet, as a table: what every resnet adds at each timestep.

use super::blocks::Dense;
use super::config::{TextTimeConfig, UNetConfig};
use crate::ops::*;
use crate::weights::plan::Plan;

/// What XL's time embedding has added to it: an MLP of the pooled prompt and the numbers about size and
/// crop.
struct AddEmbedding {
    config: TextTimeConfig,
    linear_1: Dense,
    linear_2: Dense,
}

/// What the time embeddings are made of.
#[derive(Clone, Copy)]
pub struct TimeInputs {
    pub timesteps: Tensor, // f32 [1,1,1,n]
    /// `1000·(guidance scale - 1)` at each timestep, for a model with guidance distilled into it.
    pub guidance: Option<Tensor>, // f32 [1,1,1,n]
    /// Of XL.
    pub added: Option<AddedInputs>,
}

/// XL's inputs besides the timestep, for each row of a batch.
#[derive(Clone, Copy)]
pub struct AddedInputs {
    /// The pooled prompts in the first columns; the features of `time_ids` are written into the others.
    pub embeds: Tensor, // [1,1,rows,TextTimeConfig::width]
    pub time_ids: Tensor, // f32 [rows,1,1,TextTimeConfig::numbers]
}

pub struct TimeEmbedding {
    flip_sin_to_cos: bool,
    freq_shift: f32,
    linear_1: Dense,
    linear_2: Dense,
    /// `time_embedding.cond_proj`, in models with guidance distilled into them.
    cond_proj: Option<Dense>,
    /// `add_embedding` of XL.
    add_embedding: Option<AddEmbedding>,
    /// `time_emb_proj` of every resnet, in the order of their columns.
    projections: Vec<Dense>,
    columns: usize,
}

impl TimeEmbedding {
    /// Without columns: resnets get theirs from [`TimeEmbedding::project`].
    pub fn new(config: &UNetConfig, plan: &mut Plan) -> Self {
        let c = config.block_out_channels[0];
        let time_dim = 4 * c;
        let [linear_1, linear_2] = plan.scope("time_embedding", |plan| {
            [("linear_1", c), ("linear_2", time_dim)].map(|(name, k)| Dense::new(plan, name, time_dim, k))
        });
        let cond_proj = config
            .time_cond_proj_dim
            .map(|k| Dense { weight: plan.matrix("time_embedding.cond_proj.weight", c, k), bias: None });
        let add_embedding = config.text_time.map(|config| {
            plan.scope("add_embedding", |plan| AddEmbedding {
                config,
                linear_1: Dense::new(plan, "linear_1", time_dim, config.width()),
                linear_2: Dense::new(plan, "linear_2", time_dim, time_dim),
            })
        });
        TimeEmbedding {
            flip_sin_to_cos: config.flip_sin_to_cos,
            freq_shift: config.freq_shift,
            linear_1,
            linear_2,
            cond_proj,
            add_embedding,
            projections: Vec::new(),
            columns: 0,
        }
    }

    /// Plans the projection of a resnet of `o` channels; returns the first of its columns.
    pub fn project(&mut self, plan: &mut Plan, o: usize) -> usize {
        self.projections.push(Dense::new(plan, "time_emb_proj", o, self.linear_2.weight.w()));
        self.columns += o;
        self.columns - o
    }

    /// Memory for the inputs of tables of so many timesteps.
    pub fn inputs(&self, ops: &mut dyn Ops, tables: usize, timesteps: usize) -> TimeInputs {
        let config = self.add_embedding.as_ref().map(|add_embedding| add_embedding.config);
        let embeds = config.map(|config| (ops.alloc([1, 1, tables, config.width()]), config.numbers));
        let mut floats = |rows, c| ops.arena().alloc([rows, 1, 1, c], DType::F32);
        TimeInputs {
            timesteps: floats(1, timesteps),
            guidance: self.cond_proj.as_ref().map(|_| floats(1, timesteps)),
            added: embeds.map(|(embeds, n)| AddedInputs { embeds, time_ids: floats(tables, n) }),
        }
    }

    /// Columns of the table: the output channels of all resnets.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// What every resnet adds at each timestep: `out` [rows,1,n,columns], where `rows` is 1 unless the
    /// embedding takes in what differs between the rows of a batch.
    pub fn table(&self, ops: &mut dyn Ops, out: Tensor, inputs: TimeInputs) {
        ops.scope("time_embedding", |ops| {
            let n = inputs.timesteps.len();
            let (c, time_dim) = (self.linear_1.weight.c(), self.linear_2.weight.c());
            let sinusoid = ops.alloc([n, 1, 1, c]);
            let hidden = ops.alloc([n, 1, 1, time_dim]);
            let embedding = ops.alloc([out.b() * n, 1, 1, time_dim]);
            ops.timestep_embedding(TimestepEmbedding {
                out: sinusoid,
                timesteps: inputs.timesteps,
                flip_sin_to_cos: self.flip_sin_to_cos,
                freq_shift: self.freq_shift,
            });
            if let (Some(cond_proj), Some(guidance)) = (&self.cond_proj, inputs.guidance) {
                self.add_guidance(ops, cond_proj, sinusoid, guidance);
            }
            // Each resnet projects silu(embedding), so the activation is applied once, here.
            let activation = Some(Activation::Silu);
            ops.linear(Linear { activation, ..self.linear_1.to(hidden, sinusoid) });
            let biases = match (&self.add_embedding, inputs.added) {
                (Some(add_embedding), Some(added)) => self.added_biases(ops, add_embedding, added),
                _ => self.linear_2.bias.expect("planned with a bias"),
            };
            for row in 0..out.b() {
                let linear = Dense { bias: Some(biases.row(row)), ..self.linear_2 };
                ops.linear(Linear { activation, ..linear.to(embedding.images(row * n, n), hidden) });
            }
            let mut column = 0;
            for projection in &self.projections {
                let n = projection.weight.w();
                ops.linear(projection.to(out.columns(column, n).as_images(), embedding));
                column += n;
            }
        });
    }

    /// Adds the projected embedding of the guidance scale (`get_guidance_scale_embedding`) to `sinusoid`.
    fn add_guidance(&self, ops: &mut dyn Ops, cond_proj: &Dense, sinusoid: Tensor, guidance: Tensor) {
        let features = ops.alloc([guidance.len(), 1, 1, cond_proj.weight.c()]);
        ops.timestep_embedding(TimestepEmbedding {
            out: features,
            timesteps: guidance,
            flip_sin_to_cos: false,
            freq_shift: 1.0,
        });
        ops.linear(Linear { residual: Some(sinusoid), ..cond_proj.to(sinusoid, features) });
    }

    /// What is added to the time embeddings of each row of a batch, with the bias of their last layer:
    /// [1,1,rows,time_dim].
    fn added_biases(&self, ops: &mut dyn Ops, add_embedding: &AddEmbedding, added: AddedInputs) -> Tensor {
        let AddEmbedding { config, linear_1, linear_2 } = add_embedding;
        let AddedInputs { embeds, time_ids } = added;
        let rows = time_ids.b();
        let [hidden, biases] = [0, 1].map(|_| ops.alloc([1, 1, rows, linear_2.weight.w()]));
        let numbers = [1, 1, config.numbers, config.time_embed_dim];
        for row in 0..rows {
            let of_row = embeds.row(row).columns(config.pooled_dim, numbers[2] * numbers[3]);
            ops.timestep_embedding(TimestepEmbedding {
                out: Tensor::new(of_row.address, numbers, of_row.dtype),
                timesteps: time_ids.images(row, 1),
                flip_sin_to_cos: self.flip_sin_to_cos,
                freq_shift: self.freq_shift,
            });
        }
        let first = linear_1.to(hidden.as_images(), embeds.as_images());
        ops.linear(Linear { activation: Some(Activation::Silu), ..first });
        for row in 0..rows {
            let residual = self.linear_2.bias;
            ops.linear(Linear { residual, ..linear_2.to(biases.row(row), hidden.row(row)) });
        }
        biases
    }
}
