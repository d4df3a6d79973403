//! Grouped-query causal self-attention, with RMSNorm on queries and keys where the family has it.

use mmx_converters::arch::Config;
use tch::Tensor;

use super::linear::{Linear, Norm, Parts};
use super::rope::Tables;
use super::samples::{Padded, Samples};
use super::variable::Torch;
use crate::error::Result;
use crate::kernel;

/// One layer's attention.
#[derive(Debug)]
pub(super) struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    /// MiniMind-3: over head_dim, before the rotary positions.
    query_key_norm: Option<(Norm, Norm)>,
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
}

impl Attention {
    pub(super) fn new(config: &Config, parts: &Parts<'_>, base: &str) -> Result<Self> {
        let eps = config.rms_norm_eps;
        let query_key_norm = if config.family.qk_norm() {
            let (query, key) = (format!("{base}.q_norm"), format!("{base}.k_norm"));
            Some((parts.norm(&query, eps)?, parts.norm(&key, eps)?))
        } else {
            None
        };
        Ok(Self {
            query: parts.linear(&format!("{base}.q_proj"))?,
            key: parts.linear(&format!("{base}.k_proj"))?,
            value: parts.linear(&format!("{base}.v_proj"))?,
            output: parts.linear(&format!("{base}.o_proj"))?,
            query_key_norm,
            heads: config.num_attention_heads as i64,
            kv_heads: config.num_key_value_heads as i64,
            head_dim: config.head_dim as i64,
        })
    }

    /// Attends: `[batch, seq, hidden]` to the same shape. `samples` follow one another in
    /// the `batch * seq` positions; none where each row is one.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        rope: &Tables,
        samples: Option<&Samples>,
    ) -> Torch<Tensor> {
        let (batch, seq, _) = x.size3()?;
        let compute = x.kind();
        let [query, key, value] = Linear::several(x, [&self.query, &self.key, &self.value])?;
        // [batch, seq, hidden] -> [batch, seq, heads, head_dim]
        let mut query = query.f_view([batch, seq, self.heads, self.head_dim])?;
        let mut key = key.f_view([batch, seq, self.kv_heads, self.head_dim])?;
        let value = value.f_view([batch, seq, self.kv_heads, self.head_dim])?;
        if let Some((query_norm, key_norm)) = &self.query_key_norm {
            query = query_norm.forward(&query, compute)?;
            key = key_norm.forward(&key, compute)?;
        }
        let (query, key) = (rope.rotate(&query)?, rope.rotate(&key)?);
        let mixed = if kernel::takes(&[&query, &key, &value]) {
            let rows = vec![seq; batch as usize];
            let lengths = samples.map_or(&rows[..], Samples::lengths);
            let parents = samples.map_or(&[][..], Samples::parents);
            kernel::attention(&query, &key, &value, lengths, parents)?
        } else {
            self.with_libtorch(&query, &key, &value, samples)?
        };
        // [.., heads, head_dim] -> [batch, seq, heads * head_dim]
        self.output.forward(&mixed.f_reshape([batch, seq, self.heads * self.head_dim])?)
    }

    /// Attention by libtorch's kernels, for devices: `[batch, seq, heads, head_dim]`, or
    /// `[batch * seq, heads, head_dim]` where there are samples.
    fn with_libtorch(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        samples: Option<&Samples>,
    ) -> Torch<Tensor> {
        let (batch, seq, _, _) = query.size4()?;
        let (key, value) = (self.repeated(key)?, self.repeated(value)?);
        let Some(samples) = samples else { return causal(query, &key, &value) };
        if !samples.parents().is_empty() {
            let message = "attention: expected samples by themselves on this device";
            return Err(tch::TchError::Torch(message.to_owned()));
        }
        // each sample in a row of its own: no position sees another sample, nor what fills its row
        // up, which comes later
        let Padded { from, back, tables } = samples.padded()?;
        let sizes: Vec<i64> = tables.iter().map(|(rows, length)| rows * length).collect();
        // one split each way: the gradient of a slice would be as large as the whole
        let split = |t: &Tensor| {
            let flat = t.f_view([batch * seq, self.heads, self.head_dim])?;
            flat.f_index_select(0, from)?.f_split_with_sizes(sizes.as_slice(), 0)
        };
        let (query, key, value) = (split(query)?, split(&key)?, split(&value)?);
        let parts = tables.iter().zip(&query).zip(&key).zip(&value);
        let mixed = parts.map(|(((&(rows, length), query), key), value)| {
            // [rows * length, heads, head_dim] -> [rows, length, heads, head_dim]
            let table = |t: &Tensor| t.f_view([rows, length, self.heads, self.head_dim]);
            let mixed = causal(&table(query)?, &table(key)?, &table(value)?)?;
            mixed.f_reshape([rows * length, self.heads, self.head_dim])
        });
        Tensor::f_cat(&mixed.collect::<Torch<Vec<_>>>()?, 0)?.f_index_select(0, back)
    }

    /// Each key or value head for the query heads that share it:
    /// `[batch, seq, kv_heads, head_dim]` to `[batch, seq, heads, head_dim]`.
    fn repeated(&self, x: &Tensor) -> Torch<Tensor> {
        let (batch, seq, kv_heads, head_dim) = x.size4()?;
        let group = self.heads / kv_heads;
        if group == 1 {
            return Ok(x.shallow_clone());
        }
        x.f_unsqueeze(3)?
            .f_expand([batch, seq, kv_heads, group, head_dim], false)?
            .f_reshape([batch, seq, self.heads, head_dim])
    }
}

/// Causal attention of query, key and value, each `[batch, seq, heads, head_dim]`, to that shape.
fn causal(query: &Tensor, key: &Tensor, value: &Tensor) -> Torch<Tensor> {
    // [batch, seq, heads, head_dim] -> [batch, heads, seq, head_dim]
    let turned = |t: &Tensor| t.f_transpose(1, 2);
    Tensor::f_scaled_dot_product_attention(
        &turned(query)?,
        &turned(key)?,
        &turned(value)?,
        None::<Tensor>,
        0.0,
        true, // causal
        None, // scale 1 / sqrt(head_dim)
        false,
    )?
    .f_transpose(1, 2)
}
