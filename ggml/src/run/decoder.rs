//! A configuration to the graph for one batch of tokens: a branch per field of [`Config`], none per
//! family.
//!
//! In: ids, positions, the cells of the cache to write and where each text's cells begin (or a mask
//! over the past). Out: logits or final hidden states of some tokens or of all. Shapes are
//! outermost first: `n` tokens of the batch, of one text or of several, `past` cells that are
//! looked at.

#![expect(unsafe_code, reason = "a graph must not outlive what it refers to")]

use mmx_converters::arch::{Config, Moe, RopeScaling, rope};
use mmx_converters::gguf::GgmlType;

use super::kv_cache::KvCache;
use super::weights::{Ffn, Fused, Layer, Matrix, Weights};
use crate::error::Result;
use crate::kernel::attention;
use crate::kernel::cpu::CpuSet;
use crate::kernel::custom::Activations;
use crate::kernel::rope::Angles;
use crate::wrap::context::Context;
use crate::wrap::graph::Rope;
use crate::wrap::plan::{Nodes, Plan, Slot};
use crate::wrap::tensor::Tensor;

/// The batch of tokens that a graph is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    /// Tokens of the batch.
    pub(super) tokens: usize,
    /// Cells of the cache that may be looked at, those of the batch included; 0 where the graph
    /// does not depend on them (see [`Batch::new`]).
    pub(super) past: usize,
    /// Tokens whose results are asked for.
    pub(super) outputs: usize,
    /// True for final hidden states (after the last norm) instead of their logits.
    pub(super) hidden: bool,
}

impl Batch {
    /// `tokens` tokens, `past` cells in use after them, results of `outputs` of the tokens.
    pub(super) fn new(
        (cpu, config): (CpuSet, &Config),
        tokens: usize,
        past: usize,
        outputs: usize,
    ) -> Self {
        let past = if attention::fits(cpu, config.head_dim) { 0 } else { past };
        Self { tokens, past, outputs, hidden: false }
    }
}

/// A graph with its inputs and its output.
#[derive(Debug)]
pub(super) struct Graph {
    pub(super) plan: Plan,
    pub(super) batch: Batch,
    /// i32 `[n]`
    pub(super) ids: Slot,
    /// i32 `[n]`
    pub(super) positions: Slot,
    /// i64 `[n]`: cells to write
    pub(super) cells: Slot,
    /// The cells that each token sees.
    pub(super) sight: Sight<Slot>,
    /// i32 `[outputs]`: which tokens' results are asked for; nothing where all are
    pub(super) rows: Option<Slot>,
    /// float32 `[outputs, vocab]`, or `[outputs, hidden]`
    pub(super) results: Slot,
}

/// The form in which a graph is told which cells a token sees.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sight<T> {
    /// i32 `[n]`: the first cell of the token's text; it sees those from there to its own.
    Firsts(T),
    /// float16 `[n, past]`: 0 where a token may look, else minus infinity.
    Mask(T),
}

impl Graph {
    /// Makes the graph. It refers to weights and cache.
    ///
    /// # Safety
    /// It is not computed once the weights or the cache are gone.
    pub(super) unsafe fn new(
        config: &Config,
        weights: &Weights,
        cache: &KvCache,
        batch: Batch,
    ) -> Result<Self> {
        let experts = config.moe.as_ref().map_or(0, |moe| moe.num_experts_per_tok);
        let tensors = 32 + config.num_hidden_layers * (64 + 2 * experts);
        let plan = Plan::new(tensors)?;
        let nodes = plan.nodes();
        let n = batch.tokens;
        let ids = nodes.input(GgmlType::I32, &[n])?;
        let positions = nodes.input(GgmlType::I32, &[n])?;
        let cells = nodes.input(GgmlType::I64, &[n])?;
        let sight = match batch.past {
            0 => Sight::Firsts(nodes.input(GgmlType::I32, &[n])?),
            past => Sight::Mask(nodes.input(GgmlType::F16, &[n, past])?),
        };
        let rows = match batch.outputs {
            all if all == n => None,
            some => Some(nodes.input(GgmlType::I32, &[some])?),
        };
        let [ids_slot, positions_slot, cells_slot] = [ids, positions, cells].map(Slot::of);
        let rows_slot = rows.map(Slot::of);
        let sight_slot = match sight {
            Sight::Firsts(tensor) => Sight::Firsts(Slot::of(tensor)),
            Sight::Mask(tensor) => Sight::Mask(Slot::of(tensor)),
        };
        let context = nodes.context;
        // beside a device, what one operation of ggml does stays where its layer lies
        let cpu = if cache.pair().is_some() { CpuSet::Portable } else { weights.cpu };
        let divisors = weights.rope_divisors.map(|weight| weights.get(weight)).transpose()?;
        let angles = context.angles(cpu, positions, rope_of(config), divisors)?;
        let decoder = Decoder {
            config,
            weights,
            cache,
            batch,
            context,
            nodes,
            positions,
            cells,
            sight,
            rows,
            angles,
            cpu,
        };
        let results = nodes.output(decoder.results(ids)?);
        Ok(Self {
            plan: plan.finish_on(cache.pair())?,
            batch,
            ids: ids_slot,
            positions: positions_slot,
            cells: cells_slot,
            sight: sight_slot,
            rows: rows_slot,
            results,
        })
    }
}

/// The rotary positions of a configuration.
fn rope_of(config: &Config) -> Rope {
    let mut rope = Rope {
        dims: config.head_dim,
        pairs: config.family.gguf_rotates_pairs(),
        theta: config.rope_theta as f32,
        original_length: config.max_position_embeddings,
        scale: 1.0,
        extrapolation: 0.0,
        attention_factor: rope::attention_factor(config) as f32,
        beta_fast: 32.0,
        beta_slow: 1.0,
    };
    if let Some(RopeScaling::Linear { factor }) = &config.rope_scaling {
        rope.scale = (1.0 / factor) as f32;
    }
    if let Some(RopeScaling::Yarn(yarn)) = &config.rope_scaling {
        rope.original_length = yarn.original_max_position_embeddings;
        rope.scale = (1.0 / yarn.factor) as f32;
        rope.extrapolation = 1.0;
        // ggml multiplies by 1 + 0.1 ln(factor) by itself
        rope.attention_factor = (yarn.attention_factor / (1.0 + 0.1 * yarn.factor.ln())) as f32;
        rope.beta_fast = yarn.beta_fast as f32;
        rope.beta_slow = yarn.beta_slow as f32;
    }
    rope
}

/// Everything a layer needs while the graph is made.
struct Decoder<'c> {
    config: &'c Config,
    weights: &'c Weights,
    cache: &'c KvCache,
    batch: Batch,
    context: &'c Context,
    nodes: Nodes<'c>,
    positions: Tensor<'c>,
    cells: Tensor<'c>,
    sight: Sight<Tensor<'c>>,
    rows: Option<Tensor<'c>>,
    angles: Angles<'c>,
    /// The instruction set of kernels that stand for one operation of ggml.
    cpu: CpuSet,
}

impl<'c> Decoder<'c> {
    fn eps(&self) -> f32 {
        self.config.rms_norm_eps as f32
    }

    fn results(&self, ids: Tensor<'c>) -> Result<Tensor<'c>> {
        let (c, w) = (self.context, self.weights);
        let mut x = c.get_rows(w.get(w.embedding)?, ids)?; // [n] -> [n, hidden]
        for (index, layer) in w.layers.iter().enumerate() {
            let mut attended = self.attention(x, index, layer)?;
            if let Some(rows) = self.rows
                && index + 1 == w.layers.len()
            {
                // only these of the last layer's rows are looked at: [n, hidden] -> [outputs,
                // hidden]
                attended = c.get_rows(attended, rows)?;
                x = c.get_rows(x, rows)?;
            }
            x = c.add(self.product(&layer.attn_output, attended)?, x)?;
            let normed = c.norm(self.cpu, x, w.get(layer.ffn_norm)?, self.eps())?;
            x = c.add(self.feed_forward(normed, layer)?, x)?;
        }
        let normed = c.norm(self.cpu, x, w.get(w.output_norm)?, self.eps())?;
        if self.batch.hidden {
            return Ok(normed);
        }
        self.product(&w.output, normed) // [outputs, hidden] -> [outputs, vocab]
    }

    /// Attention without its output projection: `[n, hidden] -> [n, heads * head_dim]`.
    fn attention(&self, x: Tensor<'c>, index: usize, layer: &'c Layer) -> Result<Tensor<'c>> {
        let (c, w, config) = (self.context, self.weights, self.config);
        let (n, head_dim) = (self.batch.tokens, config.head_dim);
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let normed = c.norm(self.cpu, x, w.get(layer.attn_norm)?, self.eps())?;

        let products = self.products(normed, &layer.qkv)?;
        let head_view = |which: usize, heads: usize| {
            let (product, first, _) = layer.qkv.outputs[which];
            c.columns(products[product], first, heads, head_dim) // [n, rows] -> [n, heads, head_dim]
        };
        let mut q = head_view(0, heads)?;
        let mut k = head_view(1, kv_heads)?;
        if let Some(gain) = layer.q_norm {
            q = c.norm(self.cpu, q, w.get(gain)?, self.eps())?;
        }
        if let Some(gain) = layer.k_norm {
            k = c.norm(self.cpu, k, w.get(gain)?, self.eps())?;
        }
        let q = c.turn(q, &self.angles)?;
        let k = c.turn(k, &self.angles)?;

        let (keys, values) = self.cache.layer(index)?;
        let k = c.reshape(k, &[n, kv_heads * head_dim])?;
        let (product, first, rows) = layer.qkv.outputs[2];
        let v = c.columns(products[product], first, 1, rows)?; // [n, 1, kv_heads * head_dim]
        let v = c.middle(v, 0)?; // [n, kv_heads * head_dim]
        let written = (c.set_rows(keys, k, self.cells)?, c.set_rows(values, v, self.cells)?);
        self.nodes.compute(written.0);
        self.nodes.compute(written.1);
        let mask = match self.sight {
            Sight::Firsts(firsts) => {
                let cells = [written.0, written.1];
                return c.cached_attention(w.cpu, q, cells, self.positions, firsts);
            }
            Sight::Mask(mask) => mask,
        };

        // [past, kv_heads * head_dim] -> [kv_heads, past, head_dim]
        let seen = |cache: Tensor<'c>| {
            let past = c.rows(cache, 0, self.batch.past)?;
            c.swap_outer(c.columns(past, 0, kv_heads, head_dim)?)
        };
        let q = c.swap_outer(q)?; // [n, heads, head_dim] -> [heads, n, head_dim]
        let scale = 1.0 / (head_dim as f32).sqrt();
        let attended = c.attention(q, seen(keys)?, seen(values)?, mask, scale)?;
        c.reshape(attended, &[n, heads * head_dim])
    }

    fn feed_forward(&self, x: Tensor<'c>, layer: &'c Layer) -> Result<Tensor<'c>> {
        let (Some(moe), Some(router)) = (&self.config.moe, &layer.router) else {
            return self.dense(x, &layer.ffn);
        };
        let routed = self.routed(x, router, moe, &layer.ffn)?;
        match &layer.shared {
            None => Ok(routed),
            Some(shared) => self.context.add(routed, self.dense(x, shared)?),
        }
    }

    /// `down(silu(gate(x)) * up(x))`: `[n, hidden] -> [n, hidden]`.
    fn dense(&self, x: Tensor<'c>, ffn: &'c Ffn) -> Result<Tensor<'c>> {
        let c = self.context;
        let products = self.products(x, &ffn.gate_up)?; // [n, hidden] -> [n, 2 * ffn] or twice [n, ffn]
        let gated = match products.as_slice() {
            [both] => c.swiglu(*both)?,
            [gate, up] => c.swiglu_split(*gate, *up)?,
            _ => return Err(unexpected_products(products.len())),
        };
        self.product(&ffn.down, gated)
    }

    /// The chosen experts' outputs, weighted and added: `[n, hidden] -> [n, hidden]`.
    fn routed(
        &self,
        x: Tensor<'c>,
        router: &'c Matrix,
        moe: &Moe,
        ffn: &'c Ffn,
    ) -> Result<Tensor<'c>> {
        let c = self.context;
        let [hidden, n, ..] = x.ne();
        let (experts, k) = (moe.num_experts, moe.num_experts_per_tok);
        let scores = c.soft_max(self.product(router, x)?)?; // [n, hidden] -> [n, experts]
        let chosen = c.top_k(scores, k)?; // [n, k]
        let mut share = c.get_rows(c.reshape(scores, &[n, experts, 1])?, chosen)?; // [n, k, 1]
        if moe.norm_topk_prob {
            let flat = c.reshape(share, &[n, k])?;
            share = c.reshape(c.div(flat, c.sum_rows(flat)?)?, &[n, k, 1])?;
        }
        self.nodes.compute(share); // before the products, whose memory it would keep alive otherwise

        let x = c.reshape(x, &[n, 1, hidden])?;
        let products: Vec<_> = ffn
            .gate_up
            .products
            .iter()
            .map(|product| self.expert_matmul(product, x, chosen))
            .collect::<Result<_>>()?; // [n, 1, hidden] -> [n, k, 2 * ffn] or twice [n, k, ffn]
        let gated = match products.as_slice() {
            [both] => c.swiglu(*both)?,
            [gate, up] => c.swiglu_split(*gate, *up)?,
            _ => return Err(unexpected_products(products.len())),
        };
        let out = self.expert_matmul(&ffn.down, gated, chosen)?; // [n, k, ffn] -> [n, k, hidden]
        let out = c.mul(out, share)?;
        let mut sum = c.middle(out, 0)?;
        for index in 1..k {
            sum = c.add(sum, c.middle(out, index)?)?;
        }
        Ok(sum) // [n, k, hidden] -> [n, hidden]
    }

    fn products(&self, x: Tensor<'c>, fused: &'c Fused) -> Result<Vec<Tensor<'c>>> {
        fused.products.iter().map(|product| self.product(product, x)).collect()
    }

    /// `[n, in] -> [n, out]`
    fn product(&self, matrix: &'c Matrix, x: Tensor<'c>) -> Result<Tensor<'c>> {
        let c = self.context;
        match matrix {
            Matrix::Plain(weight) => c.mul_mat(self.weights.get(*weight)?, x),
            Matrix::Float(matrix) => c.float_matmul(matrix, Activations::all(x)),
            Matrix::Quant(packed) => c.quant_matmul(packed, Activations::all(x)),
        }
    }

    /// `[n, 1 or k, in] -> [n, k, out]` with the experts `chosen` `[n, k]`.
    fn expert_matmul(
        &self,
        matrix: &'c Matrix,
        x: Tensor<'c>,
        chosen: Tensor<'c>,
    ) -> Result<Tensor<'c>> {
        let (c, activations) = (self.context, Activations::of_experts(x, chosen));
        match matrix {
            Matrix::Plain(weight) => c.mul_mat_id(self.weights.get(*weight)?, x, chosen),
            Matrix::Float(matrix) => c.float_matmul(matrix, activations),
            Matrix::Quant(packed) => c.quant_matmul(packed, activations),
        }
    }
}

fn unexpected_products(count: usize) -> crate::Error {
    crate::Error::Request { message: format!("gate and up in {count} products, expected 1 or 2") }
}
