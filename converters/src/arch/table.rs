//! The table of a model: every tensor it has, by its configuration.

use super::config::Config;
use super::weight::{Role, Row, Weight};

/// The table of a model: every tensor once, in the order of the forward pass.
pub fn weights(config: &Config) -> Vec<Weight> {
    let (hidden, head_dim) = (config.hidden_size, config.head_dim);
    let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
    let mut rows = Vec::new();
    rows.push(Row::plain(
        "model.embed_tokens",
        "token_embd",
        &[config.vocab_size, hidden],
        Role::Embedding,
    ));
    for layer in 0..config.num_hidden_layers {
        let mut add = |hf: &str, gguf: &str, shape: &[usize], role: Role| {
            let mut row = Row::plain(
                &format!("model.layers.{layer}.{hf}"),
                &format!("blk.{layer}.{gguf}"),
                shape,
                role,
            );
            row.layer = Some(layer);
            if config.family.gguf_rotates_pairs() {
                row.gguf_permuted_heads = match role {
                    Role::Query => Some(heads),
                    Role::Key => Some(kv_heads),
                    _ => None,
                };
            }
            rows.push(row);
        };
        add("input_layernorm", "attn_norm", &[hidden], Role::Norm);
        add("self_attn.q_proj", "attn_q", &[heads * head_dim, hidden], Role::Query);
        add("self_attn.k_proj", "attn_k", &[kv_heads * head_dim, hidden], Role::Key);
        add("self_attn.v_proj", "attn_v", &[kv_heads * head_dim, hidden], Role::Value);
        add("self_attn.o_proj", "attn_output", &[hidden, heads * head_dim], Role::AttentionOutput);
        if config.family.qk_norm() {
            add("self_attn.q_norm", "attn_q_norm", &[head_dim], Role::Norm);
            add("self_attn.k_norm", "attn_k_norm", &[head_dim], Role::Norm);
        }
        add("post_attention_layernorm", "ffn_norm", &[hidden], Role::Norm);
        match (&config.moe, &config.family.spec().moe) {
            (Some(moe), Some(of_family)) => (of_family.rows)(config, moe, layer, &mut rows),
            _ => {
                let ffn = config.intermediate_size;
                add("mlp.gate_proj", "ffn_gate", &[ffn, hidden], Role::Gate);
                add("mlp.up_proj", "ffn_up", &[ffn, hidden], Role::Up);
                add("mlp.down_proj", "ffn_down", &[hidden, ffn], Role::Down);
            }
        }
    }
    rows.push(Row::plain("model.norm", "output_norm", &[hidden], Role::Norm));
    if !config.tie_word_embeddings {
        rows.push(Row::plain("lm_head", "output", &[config.vocab_size, hidden], Role::Head));
    }
    rows
}

impl Config {
    /// Parameters in all (tied head counted once), and those one token uses.
    pub fn parameters(&self) -> (usize, usize) {
        let rows = weights(self);
        let total = rows.iter().map(Weight::elements).sum::<usize>();
        let idle = self.moe.as_ref().map_or(0, |moe| {
            3 * self.hidden_size
                * moe.intermediate_size
                * (moe.num_experts - moe.num_experts_per_tok)
                * self.num_hidden_layers
        });
        (total, total - idle)
    }
}
