//! CLIP's text encoders (`CLIPTextModel`, `CLIPTextModelWithProjection`): token ids to hidden states.
//!
//! Easy to get wrong: Stable Diffusion 1.x and 2.x read the last hidden states after the final norm; XL
//! reads those in front of the last layer, without a norm, while its pooled projection comes from the last.

use super::blocks::{Dense, Norm};
use super::config::ClipConfig;
use crate::ops::*;
use crate::weights::plan::Plan;

struct Layer {
    layer_norm1: Norm,
    self_attn_qkv: Dense,
    self_attn_out: Dense,
    layer_norm2: Norm,
    mlp_fc1: Dense,
    mlp_fc2: Dense,
}

pub struct ClipText {
    pub config: ClipConfig,
    token_embedding: Tensor,    // [vocabulary,c]
    position_embedding: Tensor, // [positions,c]
    layers: Vec<Layer>,
    final_layer_norm: Norm,
    text_projection: Option<Dense>,
}

/// Hidden states that somebody wants.
#[derive(Clone, Copy)]
pub struct HiddenStates {
    pub out: Tensor, // [b,1,t,c]
    /// Layers in front of them.
    pub layers: usize,
    /// Whether the final norm is applied to them.
    pub normed: bool,
}

/// The projection of the last hidden states at the end of each text.
#[derive(Clone, Copy)]
pub struct Pooled {
    pub out: Tensor, // [1,1,n,projection_dim]
    /// Row of each text's end token among all `b·t` tokens.
    pub ends: Tensor, // i32 [1,1,1,n]
}

impl ClipText {
    /// `projected`: with the projection that [`Pooled`] takes. `new_tokens`: how many embeddings there is
    /// room for behind those of the vocabulary.
    pub fn new(config: &ClipConfig, projected: bool, new_tokens: usize, plan: &mut Plan) -> Self {
        let c = config.hidden_size;
        let text_projection = projected.then(|| Dense {
            weight: plan.matrix("text_projection.weight", config.projection_dim, c),
            bias: None,
        });
        let layer = |plan: &mut Plan| Layer {
            layer_norm1: Norm::new(plan, "layer_norm1", c),
            self_attn_qkv: Dense::stacked(
                plan,
                &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
                c,
                c,
                true,
            ),
            self_attn_out: Dense::new(plan, "self_attn.out_proj", c, c),
            layer_norm2: Norm::new(plan, "layer_norm2", c),
            mlp_fc1: Dense::new(plan, "mlp.fc1", config.intermediate_size, c),
            mlp_fc2: Dense::new(plan, "mlp.fc2", c, config.intermediate_size),
        };
        plan.scope("text_model", |plan| ClipText {
            config: config.clone(),
            token_embedding: plan.extended_matrix(
                "embeddings.token_embedding.weight",
                config.vocab_size,
                c,
                new_tokens,
            ),
            position_embedding: plan.matrix(
                "embeddings.position_embedding.weight",
                config.max_position_embeddings,
                c,
            ),
            layers: (0..config.num_hidden_layers)
                .map(|i| plan.scope(format!("encoder.layers.{i}"), layer))
                .collect(),
            final_layer_norm: Norm::new(plan, "final_layer_norm", c),
            text_projection,
        })
    }

    /// The rows of new tokens, behind the vocabulary's.
    pub fn new_tokens(&self) -> Tensor {
        let ClipConfig { vocab_size, .. } = self.config;
        let [_, _, n, c] = self.token_embedding.shape;
        let first = self.token_embedding.row(vocab_size);
        Tensor { shape: [1, 1, n - vocab_size, c], ..first }
    }

    /// The hidden states of layer `clip_skip` from the end, 1 being the last.
    pub fn from_end(&self, out: Tensor, clip_skip: usize, normed: bool) -> HiddenStates {
        HiddenStates { out, layers: self.layers.len() + 1 - clip_skip, normed }
    }

    /// Encodes `ids` i32 [b,1,1,t].
    pub fn forward(&self, ops: &mut dyn Ops, ids: Tensor, hidden: HiddenStates, pooled: Option<Pooled>) {
        let [b, _, _, t] = ids.shape;
        let c = self.config.hidden_size;
        let eps = self.config.layer_norm_eps;
        let last = if pooled.is_some() { self.layers.len() } else { hidden.layers };
        ops.scope("text_model", |ops| {
            let buffer = ops.alloc([b, 1, t, c]);
            let normed = ops.alloc([b, 1, t, c]);
            ops.embed(Embed {
                out: buffer,
                ids,
                tokens: self.token_embedding,
                positions: Some(self.position_embedding),
            });
            let mut x = buffer;
            for (i, layer) in self.layers[..last].iter().enumerate() {
                let is_wanted = i + 1 == hidden.layers;
                let out = if is_wanted && !hidden.normed { hidden.out } else { buffer };
                ops.scope(&format!("encoder.layers.{i}"), |ops| {
                    self.layer(ops, layer, out, buffer, x, normed);
                });
                x = out;
                if is_wanted && hidden.normed {
                    ops.layer_norm(self.final_layer_norm.layer(hidden.out, x, eps));
                }
            }
            if let Some(pooled) = pooled {
                let [at_end, normed] = [0, 1].map(|_| ops.alloc([1, 1, pooled.ends.len(), c]));
                let tokens = Tensor { shape: [1, 1, b * t, c], ..x };
                ops.embed(Embed { out: at_end, ids: pooled.ends, tokens, positions: None });
                ops.layer_norm(self.final_layer_norm.layer(normed, at_end, eps));
                let projection = self.text_projection.as_ref().expect("planned with a projection");
                ops.linear(projection.to(pooled.out.as_images(), normed.as_images()));
            }
        });
    }

    /// One layer from `x` to `out`, by way of `between`; either may be `x` itself.
    fn layer(
        &self,
        ops: &mut dyn Ops,
        layer: &Layer,
        out: Tensor,
        between: Tensor,
        x: Tensor,
        normed: Tensor,
    ) {
        let ClipConfig { num_attention_heads: heads, layer_norm_eps: eps, intermediate_size, .. } =
            self.config;
        let [b, _, t, c] = x.shape;
        let qkv = ops.alloc([b, 1, t, 3 * c]);
        let attended = ops.alloc([b, 1, t, c]);
        let hidden = ops.alloc([b, 1, t, intermediate_size]);
        ops.layer_norm(layer.layer_norm1.layer(normed, x, eps));
        ops.linear(layer.self_attn_qkv.to(qkv, normed));
        let [q, k, v] = [0, c, 2 * c].map(|column| qkv.columns(column, c));
        ops.attention(Attention { out: attended, q, k, v, heads, causal: true, keys: None });
        ops.linear(Linear { residual: Some(x), ..layer.self_attn_out.to(between, attended) });

        ops.layer_norm(layer.layer_norm2.layer(normed, between, eps));
        let activation = Some(self.config.hidden_act);
        ops.linear(Linear { activation, ..layer.mlp_fc1.to(hidden, normed) });
        ops.linear(Linear { residual: Some(between), ..layer.mlp_fc2.to(out, hidden) });
    }
}
