//! `UNet2DConditionModel`: noisy latents, a time and a context to a prediction.
//!
//! What does not change between steps is computed outside of the step: the time embeddings of all steps
//! ([`UNet::time_table`], once per run; XL's take in the prompt too, so that each row of a batch has its own) and the cross-attention keys and values of the prompts
//! ([`UNet::context`], once per prompt). The skip connections cost nothing: a down block writes its
//! output into the right columns of the buffer that an up block will read as the concatenation.
//!
//! Easy to get wrong: the concatenation is `[hidden, skip]`; an up block has one resnet more than a
//! down block; up blocks take the levels' heads and depths in reverse; a map of odd size is halved
//! rounding up, and enlarged back to the size that the skip has.

use super::blocks::{Conv, Dense, Norm, Resnet, Transformer};
use super::config::{BlockKind, TextTimeConfig, UNetConfig};
use crate::ops::*;
use crate::weights::plan::Plan;

/// A resnet, and the transformer after it in a cross-attention block.
struct Layer {
    resnet: Resnet,
    attention: Option<Transformer>,
}

struct Block {
    layers: Vec<Layer>,
    /// The conv of `downsamplers.0` or `upsamplers.0`.
    resample: Option<Conv>,
    c: usize,
}

struct Mid {
    first: Resnet,
    attention: Transformer,
    last: Resnet,
}

/// What XL's time embedding has added to it: an MLP of the pooled prompt and the six numbers about size
/// and crop.
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
    pub time_ids: Tensor, // f32 [rows,1,1,6]
}

pub struct UNet {
    pub config: UNetConfig,
    time_linear_1: Dense,
    time_linear_2: Dense,
    /// `time_embedding.cond_proj`, in models with guidance distilled into them.
    cond_proj: Option<Dense>,
    /// `add_embedding` of XL.
    add_embedding: Option<AddEmbedding>,
    /// `time_emb_proj` of every resnet, in the order of their columns.
    time_projections: Vec<Dense>,
    conv_in: Conv,
    down_blocks: Vec<Block>,
    mid_block: Mid,
    up_blocks: Vec<Block>,
    conv_norm_out: Norm,
    conv_out: Conv,
    context_columns: usize,
}

/// Hands out columns of the time and context tables while the model is built.
struct Columns {
    time_projections: Vec<Dense>,
    time: usize,
    context: usize,
}

impl UNet {
    pub fn new(config: &UNetConfig, plan: &mut Plan) -> Self {
        let channels = &config.block_out_channels;
        let levels = channels.len();
        let (groups, eps) = (config.norm_num_groups, config.norm_eps);
        let time_dim = 4 * channels[0];
        let mut columns = Columns { time_projections: Vec::new(), time: 0, context: 0 };

        let resnet = |plan: &mut Plan, columns: &mut Columns, name: &str, i: usize, o: usize| {
            plan.scope(name, |plan| {
                columns.time_projections.push(Dense::new(plan, "time_emb_proj", o, time_dim));
                columns.time += o;
                Resnet::new(plan, i, o, groups, eps).with_time(columns.time - o)
            })
        };
        let transformer = |plan: &mut Plan, columns: &mut Columns, name: &str, level: usize| {
            let (c, layers) = (channels[level], config.transformer_layers_per_block[level]);
            let (heads, context_dim) = (config.heads[level], config.cross_attention_dim);
            plan.scope(name, |plan| {
                Transformer::new(plan, c, layers, heads, groups, context_dim, &mut columns.context)
            })
        };

        let conv_in = Conv::new(plan, "conv_in", channels[0], config.in_channels, 3);
        let [time_linear_1, time_linear_2] = plan.scope("time_embedding", |plan| {
            [("linear_1", channels[0]), ("linear_2", time_dim)]
                .map(|(name, k)| Dense::new(plan, name, time_dim, k))
        });
        let cond_proj = config.time_cond_proj_dim.map(|k| Dense {
            weight: plan.matrix("time_embedding.cond_proj.weight", channels[0], k),
            bias: None,
        });
        let add_embedding = config.text_time.map(|config| {
            plan.scope("add_embedding", |plan| AddEmbedding {
                config,
                linear_1: Dense::new(plan, "linear_1", time_dim, config.width()),
                linear_2: Dense::new(plan, "linear_2", time_dim, time_dim),
            })
        });

        let mut skips = vec![channels[0]];
        let mut down_blocks = Vec::new();
        for (level, &c) in channels.iter().enumerate() {
            let is_last = level + 1 == levels;
            down_blocks.push(plan.scope(format!("down_blocks.{level}"), |plan| {
                let mut layers = Vec::new();
                for j in 0..config.layers_per_block[level] {
                    let i = *skips.last().expect("conv_in is a skip");
                    skips.push(c);
                    layers.push(Layer {
                        resnet: resnet(plan, &mut columns, &format!("resnets.{j}"), i, c),
                        attention: (config.down_blocks[level] == BlockKind::CrossAttention)
                            .then(|| transformer(plan, &mut columns, &format!("attentions.{j}"), level)),
                    });
                }
                let resample = (!is_last).then(|| {
                    skips.push(c);
                    Conv::new(plan, "downsamplers.0.conv", c, c, 3)
                });
                Block { layers, resample, c }
            }));
        }

        let mid_block = plan.scope("mid_block", |plan| {
            let c = channels[levels - 1];
            Mid {
                first: resnet(plan, &mut columns, "resnets.0", c, c),
                attention: transformer(plan, &mut columns, "attentions.0", levels - 1),
                last: resnet(plan, &mut columns, "resnets.1", c, c),
            }
        });

        let mut up_blocks = Vec::new();
        let mut hidden = channels[levels - 1];
        for up in 0..levels {
            let level = levels - 1 - up;
            let c = channels[level];
            up_blocks.push(plan.scope(format!("up_blocks.{up}"), |plan| {
                let mut layers = Vec::new();
                for j in 0..=config.layers_per_block[level] {
                    let skip = skips.pop().expect("as many skips as up resnets");
                    layers.push(Layer {
                        resnet: resnet(plan, &mut columns, &format!("resnets.{j}"), hidden + skip, c),
                        attention: (config.up_blocks[up] == BlockKind::CrossAttention)
                            .then(|| transformer(plan, &mut columns, &format!("attentions.{j}"), level)),
                    });
                    hidden = c;
                }
                let resample = (level > 0).then(|| Conv::new(plan, "upsamplers.0.conv", c, c, 3));
                Block { layers, resample, c }
            }));
        }

        UNet {
            config: config.clone(),
            time_linear_1,
            time_linear_2,
            cond_proj,
            add_embedding,
            time_projections: columns.time_projections,
            conv_in,
            down_blocks,
            mid_block,
            up_blocks,
            conv_norm_out: Norm::new(plan, "conv_norm_out", channels[0]),
            conv_out: Conv::new(plan, "conv_out", config.out_channels, channels[0], 3),
            context_columns: columns.context,
        }
    }

    /// Channels of the input as the first convolution reads it: filled up with zeros.
    pub fn input_channels(&self) -> usize {
        self.conv_in.weight.c()
    }

    /// Columns of the time table: the output channels of all resnets.
    pub fn time_columns(&self) -> usize {
        self.time_projections.iter().map(|dense| dense.weight.w()).sum()
    }

    /// Columns of the context table: keys and values of all cross-attentions.
    pub fn context_columns(&self) -> usize {
        self.context_columns
    }

    /// What every resnet adds at each timestep: `out` [rows,1,n,time_columns], where `rows` is 1 unless
    /// the embedding takes in what differs between the rows of a batch.
    pub fn time_table(&self, ops: &mut dyn Ops, out: Tensor, inputs: TimeInputs) {
        ops.scope("time_embedding", |ops| {
            let n = inputs.timesteps.len();
            let (c, time_dim) = (self.time_linear_1.weight.c(), self.time_linear_2.weight.c());
            let sinusoid = ops.alloc([1, 1, n, c]);
            let hidden = ops.alloc([1, 1, n, time_dim]);
            let embedding = ops.alloc([out.b(), 1, n, time_dim]);
            ops.timestep_embedding(TimestepEmbedding {
                out: sinusoid,
                timesteps: inputs.timesteps,
                flip_sin_to_cos: self.config.flip_sin_to_cos,
                freq_shift: self.config.freq_shift,
            });
            if let (Some(cond_proj), Some(guidance)) = (&self.cond_proj, inputs.guidance) {
                self.add_guidance(ops, cond_proj, sinusoid, guidance);
            }
            // Each resnet projects silu(embedding), so the activation is applied once, here.
            let activation = Some(Activation::Silu);
            ops.linear(Linear { activation, ..self.time_linear_1.to(hidden, sinusoid) });
            let biases = match (&self.add_embedding, inputs.added) {
                (Some(add_embedding), Some(added)) => self.added_biases(ops, add_embedding, added),
                _ => self.time_linear_2.bias.expect("planned with a bias"),
            };
            for row in 0..out.b() {
                let linear = Dense { bias: Some(biases.row(row)), ..self.time_linear_2 };
                ops.linear(Linear { activation, ..linear.to(embedding.images(row, 1), hidden) });
            }
            let mut column = 0;
            for projection in &self.time_projections {
                let n = projection.weight.w();
                ops.linear(projection.to(out.columns(column, n), embedding));
                column += n;
            }
        });
    }

    /// Adds the projected embedding of the guidance scale (`get_guidance_scale_embedding`) to `sinusoid`.
    fn add_guidance(&self, ops: &mut dyn Ops, cond_proj: &Dense, sinusoid: Tensor, guidance: Tensor) {
        let features = ops.alloc([1, 1, guidance.len(), cond_proj.weight.c()]);
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
        let numbers = [1, 1, TextTimeConfig::NUMBERS, config.time_embed_dim];
        for row in 0..rows {
            let of_row = embeds.row(row).columns(config.pooled_dim, numbers[2] * numbers[3]);
            ops.timestep_embedding(TimestepEmbedding {
                out: Tensor::new(of_row.address, numbers, of_row.dtype),
                timesteps: time_ids.images(row, 1),
                flip_sin_to_cos: self.config.flip_sin_to_cos,
                freq_shift: self.config.freq_shift,
            });
        }
        ops.linear(Linear { activation: Some(Activation::Silu), ..linear_1.to(hidden, embeds) });
        for row in 0..rows {
            let residual = self.time_linear_2.bias;
            ops.linear(Linear { residual, ..linear_2.to(biases.row(row), hidden.row(row)) });
        }
        biases
    }

    /// Keys and values of every cross-attention: `out` [b,1,s,context_columns] of `hidden_states` [b,1,s,c].
    pub fn context(&self, ops: &mut dyn Ops, out: Tensor, hidden_states: Tensor) {
        let blocks = self.down_blocks.iter().chain(&self.up_blocks);
        let transformers =
            blocks.flat_map(|block| &block.layers).filter_map(|layer| layer.attention.as_ref());
        ops.scope("context", |ops| {
            for transformer in transformers.chain([&self.mid_block.attention]) {
                transformer.context(ops, out, hidden_states);
            }
        });
    }

    /// The prediction `out` [b,h,w,out_channels] for latents `x` [b,h,w,input_channels], with the time
    /// table's row of each image and the context table [b,1,s,context_columns].
    pub fn forward(&self, ops: &mut dyn Ops, out: Tensor, x: Tensor, time: TableRow, context: Tensor) {
        ops.scope("unet", |ops| {
            let Concatenations { mut skips, inputs } = self.concatenations(ops, x);
            skips.reverse();
            let mut skip = || skips.pop().expect("as many skips as down layers");
            let time = Some(time);

            let mut hidden = skip();
            ops.conv2d(self.conv_in.to(hidden, x));
            for (i, block) in self.down_blocks.iter().enumerate() {
                ops.scope(&format!("down_blocks.{i}"), |ops| {
                    for (j, layer) in block.layers.iter().enumerate() {
                        let next = skip();
                        layer.forward(ops, j, next, hidden, time, context);
                        hidden = next;
                    }
                    if let Some(conv) = &block.resample {
                        let next = skip();
                        ops.conv2d(Conv2d { stride: 2, ..conv.to(next, hidden) });
                        hidden = next;
                    }
                });
            }

            let last = inputs[inputs.len() - 1];
            let c = self.conv_norm_out.weight.c();
            let result = ops.alloc([last.b(), last.h(), last.w(), c]);
            // Where the hidden states go in front of each up resnet: the concatenation's first columns.
            let mut inputs = inputs.into_iter().peekable();
            let hidden_columns = |input: Option<&Tensor>, c: usize| input.map_or(result, |x| x.columns(0, c));

            let deepest = hidden_columns(inputs.peek(), hidden.c());
            ops.scope("mid_block", |ops| {
                let [a, b] = [ops.alloc(hidden.shape), ops.alloc(hidden.shape)];
                self.mid_block.first.forward(ops, "resnets.0", a, hidden, time);
                self.mid_block.attention.forward(ops, "attentions.0", b, a, context);
                self.mid_block.last.forward(ops, "resnets.1", deepest, b, time);
            });
            for (i, block) in self.up_blocks.iter().enumerate() {
                ops.scope(&format!("up_blocks.{i}"), |ops| {
                    for (j, layer) in block.layers.iter().enumerate() {
                        let input = inputs.next().expect("as many inputs as up layers");
                        let next = hidden_columns(inputs.peek(), block.c);
                        match &block.resample {
                            Some(conv) if j + 1 == block.layers.len() => {
                                let small = ops.alloc([input.b(), input.h(), input.w(), block.c]);
                                layer.forward(ops, j, small, input, time, context);
                                ops.conv2d(Conv2d { upsample: true, ..conv.to(next, small) });
                            }
                            _ => layer.forward(ops, j, next, input, time, context),
                        }
                    }
                });
            }

            let normed = ops.alloc(result.shape);
            let norm =
                self.conv_norm_out.group(normed, result, self.config.norm_num_groups, self.config.norm_eps);
            ops.group_norm(GroupNorm { silu: true, ..norm });
            ops.conv2d(self.conv_out.to(out, normed));
        });
    }

    /// Takes the inputs of all up resnets, and finds in them the place of each skip connection.
    fn concatenations(&self, ops: &mut dyn Ops, x: Tensor) -> Concatenations {
        let mut shapes = vec![[x.b(), x.h(), x.w(), self.conv_in.weight.b()]];
        let (mut h, mut w) = (x.h(), x.w());
        for block in &self.down_blocks {
            shapes.extend(block.layers.iter().map(|_| [x.b(), h, w, block.c]));
            if block.resample.is_some() {
                (h, w) = (h.div_ceil(2), w.div_ceil(2));
                shapes.push([x.b(), h, w, block.c]);
            }
        }
        let mut hidden = shapes[shapes.len() - 1][3];
        let mut skips = Vec::new();
        let mut inputs = Vec::new();
        let up_layers = self.up_blocks.iter().flat_map(|block| block.layers.iter().map(|_| block.c));
        for ([b, h, w, skip], c) in shapes.into_iter().rev().zip(up_layers) {
            let input = ops.alloc([b, h, w, hidden + skip]);
            skips.push(input.columns(hidden, skip));
            inputs.push(input);
            hidden = c;
        }
        skips.reverse();
        Concatenations { skips, inputs }
    }
}

struct Concatenations {
    /// In the order in which the down path writes them.
    skips: Vec<Tensor>,
    /// In the order in which the up path reads them.
    inputs: Vec<Tensor>,
}

impl Layer {
    fn forward(
        &self,
        ops: &mut dyn Ops,
        j: usize,
        out: Tensor,
        x: Tensor,
        time: Option<TableRow>,
        context: Tensor,
    ) {
        match &self.attention {
            None => self.resnet.forward(ops, &format!("resnets.{j}"), out, x, time),
            Some(attention) => {
                let mark = ops.arena().mark();
                let hidden = ops.alloc(out.shape);
                self.resnet.forward(ops, &format!("resnets.{j}"), hidden, x, time);
                attention.forward(ops, &format!("attentions.{j}"), out, hidden, context);
                ops.arena().release(mark);
            }
        }
    }
}
