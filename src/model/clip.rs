//! CLIP's text encoder (`CLIPTextModel`): token ids to hidden states.

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
    config: ClipConfig,
    token_embedding: Tensor,    // [vocabulary,c]
    position_embedding: Tensor, // [positions,c]
    layers: Vec<Layer>,
    final_layer_norm: Norm,
}

impl ClipText {
    pub fn new(config: &ClipConfig, plan: &mut Plan) -> Self {
        let c = config.hidden_size;
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
            token_embedding: plan.matrix("embeddings.token_embedding.weight", config.vocab_size, c),
            position_embedding: plan.matrix(
                "embeddings.position_embedding.weight",
                config.max_position_embeddings,
                c,
            ),
            layers: (0..config.num_hidden_layers)
                .map(|i| plan.scope(format!("encoder.layers.{i}"), layer))
                .collect(),
            final_layer_norm: Norm::new(plan, "final_layer_norm", c),
        })
    }

    /// Last hidden states after the final norm, `out` [b,1,t,c], of `ids` i32 [b,1,1,t].
    pub fn forward(&self, ops: &mut dyn Ops, out: Tensor, ids: Tensor) {
        let [b, _, t, c] = out.shape;
        let eps = self.config.layer_norm_eps;
        let heads = self.config.num_attention_heads;
        ops.scope("text_model", |ops| {
            let x = ops.alloc([b, 1, t, c]);
            let normed = ops.alloc([b, 1, t, c]);
            ops.embed(Embed {
                out: x,
                ids,
                tokens: self.token_embedding,
                positions: self.position_embedding,
            });
            for (i, layer) in self.layers.iter().enumerate() {
                ops.scope(&format!("encoder.layers.{i}"), |ops| {
                    let qkv = ops.alloc([b, 1, t, 3 * c]);
                    let attended = ops.alloc([b, 1, t, c]);
                    let hidden = ops.alloc([b, 1, t, self.config.intermediate_size]);
                    ops.layer_norm(layer.layer_norm1.layer(normed, x, eps));
                    ops.linear(layer.self_attn_qkv.to(qkv, normed));
                    let [q, k, v] = [0, c, 2 * c].map(|column| qkv.columns(column, c));
                    ops.attention(Attention { out: attended, q, k, v, heads, causal: true });
                    ops.linear(Linear { residual: Some(x), ..layer.self_attn_out.to(x, attended) });

                    ops.layer_norm(layer.layer_norm2.layer(normed, x, eps));
                    let activation = Some(self.config.hidden_act);
                    ops.linear(Linear { activation, ..layer.mlp_fc1.to(hidden, normed) });
                    ops.linear(Linear { residual: Some(x), ..layer.mlp_fc2.to(x, hidden) });
                });
            }
            ops.layer_norm(self.final_layer_norm.layer(out, x, eps));
        });
    }
}
