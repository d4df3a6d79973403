//! Operations on tensors: shapes checked in Rust, where ggml would end the process, then one C call
//! each.
//!
//! Shapes in comments and messages are outermost first. Nothing is computed here: an operation is a
//! node of a graph, which `plan.rs` computes.
#![expect(unsafe_code, reason = "operations are C functions")]

use llama_cpp_sys_2 as sys;
use mmx_converters::gguf::GgmlType;

use crate::error::{Error, Result};
use crate::wrap::context::Context;
use crate::wrap::tensor::Tensor;

/// ggml's number for halves that turn. Source: GGML_ROPE_TYPE_NEOX, ggml.h (a macro, so not in the
/// bindings).
const ROPE_NEOX: i32 = 2;

/// The parameters of a rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Values of a head that turn.
    pub dims: usize,
    /// Neighbouring pairs turn (`llama`), else the two halves of a head (`qwen3`).
    pub pairs: bool,
    /// Base of the frequencies.
    pub theta: f32,
    /// YaRN's trained length; any value without YaRN.
    pub original_length: usize,
    /// 1/factor of YaRN, or 1.
    pub scale: f32,
    /// 1 with YaRN, else 0.
    pub extrapolation: f32,
    /// What ggml multiplies cosine and sine by, before its own 1 + 0.1 ln(factor) of YaRN.
    pub attention_factor: f32,
    /// YaRN's ramp, turns.
    pub beta_fast: f32,
    /// YaRN's ramp, turns.
    pub beta_slow: f32,
}

/// True for rows one after the other without gaps, within each row too.
fn is_contiguous(x: Tensor<'_>) -> bool {
    // SAFETY: a valid tensor.
    unsafe { sys::ggml_is_contiguous(x.raw()) }
}

/// True where ggml takes a matrix for a transposed one.
fn is_transposed(x: Tensor<'_>) -> bool {
    x.nb()[0] > x.nb()[1]
}

fn mismatch(op: &str, found: &[&Tensor<'_>]) -> Error {
    let shapes: Vec<_> = found.iter().map(|t| format!("{:?}", t.shape())).collect();
    Error::Request { message: format!("{op}: shapes {} do not fit", shapes.join(" and ")) }
}

fn check(op: &str, fits: bool, found: &[&Tensor<'_>]) -> Result<()> {
    if fits { Ok(()) } else { Err(mismatch(op, found)) }
}

macro_rules! node {
    ($self:expr, $name:literal, $call:expr) => {
        match $self.require_room($name) {
            Err(error) => Err(error),
            // SAFETY: every tensor lives as long as this context, which has room for the node, and
            // the shapes were checked above as ggml would check them.
            Ok(()) => unsafe { Tensor::from_raw($call, $name) },
        }
    };
}

impl Context {
    /// `[n, in]` times the transpose of `weight` `[out, in]`: `[n, out]`, float32. Leading
    /// dimensions of `x` may be multiples of the weight's.
    ///
    /// # Errors
    /// Shapes that do not fit, or no room.
    pub fn mul_mat<'c>(&'c self, weight: Tensor<'c>, x: Tensor<'c>) -> Result<Tensor<'c>> {
        let (w, v) = (weight.ne(), x.ne());
        let fits = w[0] == v[0]
            && !is_transposed(weight)
            && w[2] > 0
            && w[3] > 0
            && v[2].is_multiple_of(w[2])
            && v[3].is_multiple_of(w[3]);
        check("matrix product", fits, &[&weight, &x])?;
        node!(self, "a product", sys::ggml_mul_mat(self.raw(), weight.raw(), x.raw()))
    }

    /// Per token the products with the chosen experts: `weight` `[experts, out, in]`, `x`
    /// `[n, 1 or k, in]`, `ids` i32 `[n, k]`: `[n, k, out]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or no room.
    pub fn mul_mat_id<'c>(
        &'c self,
        weight: Tensor<'c>,
        x: Tensor<'c>,
        ids: Tensor<'c>,
    ) -> Result<Tensor<'c>> {
        let (w, v, i) = (weight.ne(), x.ne(), ids.ne());
        let fits = w[0] == v[0]
            && !is_transposed(weight)
            && w[3] == 1
            && v[3] == 1
            && i[2] * i[3] == 1
            && i[1] == v[2]
            && v[1] > 0
            && i[0].is_multiple_of(v[1])
            && ids.ty() == Some(GgmlType::I32);
        check("expert product", fits, &[&weight, &x, &ids])?;
        node!(self, "a product", sys::ggml_mul_mat_id(self.raw(), weight.raw(), x.raw(), ids.raw()))
    }

    /// Rows of `table` `[rows, n]` by `ids` i32 `[k]`: float32 `[k, n]`. With one more leading
    /// dimension on both, per index of it.
    ///
    /// # Errors
    /// Shapes that do not fit, or no room.
    pub fn get_rows<'c>(&'c self, table: Tensor<'c>, ids: Tensor<'c>) -> Result<Tensor<'c>> {
        let (t, i) = (table.ne(), ids.ne());
        let fits = t[2] == i[1] && t[3] == i[2] && i[3] == 1 && ids.ty() == Some(GgmlType::I32);
        check("row look-up", fits, &[&table, &ids])?;
        node!(self, "rows", sys::ggml_get_rows(self.raw(), table.raw(), ids.raw()))
    }

    /// Writes `rows` `[k, n]` into `target` `[rows, n]` at the indices `at` i64 `[k]`; gives
    /// `target`.
    ///
    /// # Errors
    /// Shapes that do not fit, or no room.
    pub fn set_rows<'c>(
        &'c self,
        target: Tensor<'c>,
        rows: Tensor<'c>,
        at: Tensor<'c>,
    ) -> Result<Tensor<'c>> {
        let (t, r, i) = (target.ne(), rows.ne(), at.ne());
        let fits = t[0] == r[0]
            && t[2] * t[3] * r[2] * r[3] * i[1] * i[2] * i[3] == 1
            && r[1] == i[0]
            && rows.ty() == Some(GgmlType::F32)
            && matches!(at.ty(), Some(GgmlType::I64 | GgmlType::I32));
        check("row store", fits, &[&target, &rows, &at])?;
        node!(self, "a store", sys::ggml_set_rows(self.raw(), target.raw(), rows.raw(), at.raw()))
    }

    /// RMSNorm over the last dimension, times `gain`.
    ///
    /// # Errors
    /// Shapes that do not fit, or no room.
    pub fn rms_norm<'c>(&'c self, x: Tensor<'c>, gain: Tensor<'c>, eps: f32) -> Result<Tensor<'c>> {
        check("norm", gain.ne() == [x.ne()[0], 1, 1, 1], &[&x, &gain])?;
        let normed: Tensor<'c> =
            node!(self, "a norm", sys::ggml_rms_norm(self.raw(), x.raw(), eps))?;
        self.mul(normed, gain)
    }

    /// `a + b`; `b` may have dimensions of 1 where `a` has more.
    ///
    /// # Errors
    /// Shapes that do not fit, or no room.
    pub fn add<'c>(&'c self, a: Tensor<'c>, b: Tensor<'c>) -> Result<Tensor<'c>> {
        check("sum", repeats(&a, &b), &[&a, &b])?;
        node!(self, "a sum", sys::ggml_add(self.raw(), a.raw(), b.raw()))
    }

    /// `a * b`, element by element; `b` may have dimensions of 1 where `a` has more.
    ///
    /// # Errors
    /// Shapes that do not fit, or no room.
    pub fn mul<'c>(&'c self, a: Tensor<'c>, b: Tensor<'c>) -> Result<Tensor<'c>> {
        check("product", repeats(&a, &b), &[&a, &b])?;
        node!(self, "a product", sys::ggml_mul(self.raw(), a.raw(), b.raw()))
    }

    /// `a / b`, element by element; `b` may have dimensions of 1 where `a` has more.
    ///
    /// # Errors
    /// Shapes that do not fit, or no room.
    pub fn div<'c>(&'c self, a: Tensor<'c>, b: Tensor<'c>) -> Result<Tensor<'c>> {
        check("quotient", repeats(&a, &b), &[&a, &b])?;
        node!(self, "a quotient", sys::ggml_div(self.raw(), a.raw(), b.raw()))
    }

    /// `silu(gate) * up`, where the last dimension of `x` holds gate, then up:
    /// `[.., 2n] -> [.., n]`.
    ///
    /// # Errors
    /// An odd last dimension, or no room.
    pub fn swiglu<'c>(&'c self, x: Tensor<'c>) -> Result<Tensor<'c>> {
        check("SwiGLU", x.ne()[0].is_multiple_of(2) && is_contiguous(x), &[&x])?;
        node!(self, "a SwiGLU", sys::ggml_swiglu(self.raw(), x.raw()))
    }

    /// `silu(gate) * up`.
    ///
    /// # Errors
    /// Shapes that differ, or no room.
    pub fn swiglu_split<'c>(&'c self, gate: Tensor<'c>, up: Tensor<'c>) -> Result<Tensor<'c>> {
        let fits = gate.ne() == up.ne() && gate.ty() == up.ty();
        let fits = fits && is_contiguous(gate) && is_contiguous(up);
        check("SwiGLU", fits, &[&gate, &up])?;
        node!(self, "a SwiGLU", sys::ggml_swiglu_split(self.raw(), gate.raw(), up.raw()))
    }

    /// Turns `x` `[n, heads, head_dim]` by the positions i32 `[n]`; `divisors`, float32
    /// `[dims / 2]`, divide the frequencies.
    ///
    /// # Errors
    /// Shapes that do not fit, or no room.
    pub fn rope<'c>(
        &'c self,
        x: Tensor<'c>,
        positions: Tensor<'c>,
        rope: &Rope,
        divisors: Option<Tensor<'c>>,
    ) -> Result<Tensor<'c>> {
        let fits = positions.ne() == [x.ne()[2], 1, 1, 1]
            && positions.ty() == Some(GgmlType::I32)
            && rope.dims <= x.ne()[0]
            && rope.dims.is_multiple_of(2)
            && divisors.is_none_or(|divisors| {
                divisors.ne() == [rope.dims / 2, 1, 1, 1] && divisors.ty() == Some(GgmlType::F32)
            });
        check("rotary positions", fits, &[&x, &positions])?;
        let mode = if rope.pairs { 0 } else { ROPE_NEOX };
        node!(
            self,
            "rotary positions",
            sys::ggml_rope_ext(
                self.raw(),
                x.raw(),
                positions.raw(),
                divisors.map_or(std::ptr::null_mut(), |divisors| divisors.raw()),
                rope.dims as i32,
                mode,
                rope.original_length as i32,
                rope.theta,
                rope.scale,
                rope.extrapolation,
                rope.attention_factor,
                rope.beta_fast,
                rope.beta_slow,
            )
        )
    }

    /// Attention of `q` `[heads, n, head_dim]` over `k`, `v` `[kv_heads, past, head_dim]` with an
    /// additive float16 `mask` `[n, past]`: `[n, heads, head_dim]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or no room.
    pub fn attention<'c>(
        &'c self,
        q: Tensor<'c>,
        k: Tensor<'c>,
        v: Tensor<'c>,
        mask: Tensor<'c>,
        scale: f32,
    ) -> Result<Tensor<'c>> {
        let (qs, ks, vs, ms) = (q.ne(), k.ne(), v.ne(), mask.ne());
        let fits = qs[0] == ks[0]
            && ks[1] == vs[1]
            && ks[2] == vs[2]
            && ks[2] > 0
            && qs[2].is_multiple_of(ks[2])
            && ms == [ks[1], qs[1], 1, 1]
            && qs[3] * ks[3] * vs[3] == 1
            && is_contiguous(mask)
            && mask.ty() == Some(GgmlType::F16);
        check("attention", fits, &[&q, &k, &v, &mask])?;
        let out: Tensor<'c> = node!(
            self,
            "attention",
            sys::ggml_flash_attn_ext(
                self.raw(),
                q.raw(),
                k.raw(),
                v.raw(),
                mask.raw(),
                scale,
                0.0,
                0.0,
            )
        )?;
        // SAFETY: the tensor was made by ggml_flash_attn_ext just now.
        unsafe { sys::ggml_flash_attn_ext_set_prec(out.raw(), sys::GGML_PREC_F32) };
        Ok(out)
    }

    /// Softmax over the last dimension of contiguous data.
    ///
    /// # Errors
    /// Data that are not contiguous, or no room.
    pub fn soft_max<'c>(&'c self, x: Tensor<'c>) -> Result<Tensor<'c>> {
        check("softmax", is_contiguous(x), &[&x])?;
        node!(self, "a softmax", sys::ggml_soft_max(self.raw(), x.raw()))
    }

    /// Indices of the `k` largest values of each row, largest first: i32 `[.., k]`.
    ///
    /// # Errors
    /// `k` beyond the row, or no room.
    pub fn top_k<'c>(&'c self, x: Tensor<'c>, k: usize) -> Result<Tensor<'c>> {
        check("top k", k >= 1 && k <= x.ne()[0], &[&x])?;
        node!(self, "the largest", sys::ggml_argsort_top_k(self.raw(), x.raw(), k as i32))
    }

    /// Sums over the last dimension: `[.., n] -> [.., 1]`.
    ///
    /// # Errors
    /// No room.
    pub fn sum_rows<'c>(&'c self, x: Tensor<'c>) -> Result<Tensor<'c>> {
        node!(self, "sums", sys::ggml_sum_rows(self.raw(), x.raw()))
    }

    /// Reshapes contiguous data; the shape is outermost first.
    ///
    /// # Errors
    /// Another number of elements, data that are not contiguous, or no room.
    pub fn reshape<'c>(&'c self, x: Tensor<'c>, shape: &[usize]) -> Result<Tensor<'c>> {
        let ne = crate::wrap::tensor::to_ne(shape);
        let elements = shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
        let fits = elements == Some(x.elements()) && shape.len() <= 4 && is_contiguous(x);
        check("reshape", fits, &[&x])?;
        node!(
            self,
            "a shape",
            sys::ggml_reshape_4d(self.raw(), x.raw(), ne[0], ne[1], ne[2], ne[3])
        )
    }

    /// A part of each row of `x` `[n, row]`, seen as heads: columns
    /// `first..first + heads * head_dim` as `[n, heads, head_dim]`.
    ///
    /// # Errors
    /// Columns beyond the row, or no room.
    pub fn columns<'c>(
        &'c self,
        x: Tensor<'c>,
        first: usize,
        heads: usize,
        head_dim: usize,
    ) -> Result<Tensor<'c>> {
        let (ne, nb) = (x.ne(), x.nb());
        let end = heads.checked_mul(head_dim).and_then(|n| n.checked_add(first));
        let fits = end.is_some_and(|end| end <= ne[0]) && ne[2] * ne[3] == 1;
        let plain = x.ty().is_some_and(|ty| ty.block_elements() == 1);
        check("columns", fits && plain, &[&x])?;
        node!(
            self,
            "columns",
            sys::ggml_view_3d(
                self.raw(),
                x.raw(),
                head_dim as i64,
                heads as i64,
                ne[1] as i64,
                head_dim * nb[0],
                nb[1],
                first * nb[0],
            )
        )
    }

    /// Rows `first..first + rows` of `x` `[n, row]`.
    ///
    /// # Errors
    /// Rows beyond the tensor, or no room.
    pub fn rows<'c>(&'c self, x: Tensor<'c>, first: usize, rows: usize) -> Result<Tensor<'c>> {
        let (ne, nb) = (x.ne(), x.nb());
        let end = first.checked_add(rows);
        check("rows", end.is_some_and(|end| end <= ne[1]) && ne[2] * ne[3] == 1, &[&x])?;
        let offset = first * nb[1];
        node!(
            self,
            "rows",
            sys::ggml_view_2d(self.raw(), x.raw(), ne[0] as i64, rows as i64, nb[1], offset)
        )
    }

    /// Element `index` of the middle dimension of `x` `[n, k, row]`: `[n, row]`.
    ///
    /// # Errors
    /// An index beyond it, or no room.
    pub fn middle<'c>(&'c self, x: Tensor<'c>, index: usize) -> Result<Tensor<'c>> {
        let (ne, nb) = (x.ne(), x.nb());
        check("slice", index < ne[1] && ne[3] == 1, &[&x])?;
        let offset = index * nb[1];
        node!(
            self,
            "a slice",
            sys::ggml_view_2d(self.raw(), x.raw(), ne[0] as i64, ne[2] as i64, nb[2], offset)
        )
    }

    /// Swaps the first two dimensions of three: `[a, b, c] -> [b, a, c]`, a view.
    ///
    /// # Errors
    /// No room.
    pub fn swap_outer<'c>(&'c self, x: Tensor<'c>) -> Result<Tensor<'c>> {
        node!(self, "a view", sys::ggml_permute(self.raw(), x.raw(), 0, 2, 1, 3))
    }
}

/// True when `b`, repeated, has the shape of `a`.
fn repeats(a: &Tensor<'_>, b: &Tensor<'_>) -> bool {
    a.ne().iter().zip(b.ne()).all(|(&a, b)| b > 0 && a.is_multiple_of(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_shapes_that_ggml_would_abort_on() {
        let c = Context::new(16, 0).unwrap();
        let w = c.tensor(GgmlType::F32, &[5, 8]).unwrap();
        let x = c.tensor(GgmlType::F32, &[3, 7]).unwrap();
        let message = c.mul_mat(w, x).unwrap_err().to_string();
        assert!(message.contains("[5, 8] and [3, 7]"), "{message}");
        assert!(c.add(x, w).is_err());
        assert!(c.reshape(x, &[4, 5]).is_err());
        assert!(c.columns(x, 4, 1, 4).is_err());
        assert!(c.rows(x, 2, 2).is_err());
        assert!(c.top_k(x, 8).is_err());
        assert!(c.swiglu(x).is_err(), "an odd row has no halves");
        assert!(c.get_rows(w, x).is_err(), "float ids");
        assert!(c.rows(x, usize::MAX, 2).is_err());
        assert!(c.columns(x, 2, usize::MAX, 2).is_err());
        assert!(c.reshape(x, &[1 << 63, 2, 21]).is_err());
    }

    #[test]
    fn rejects_orders_that_ggml_would_abort_on() {
        let c = Context::new(16, 0).unwrap();
        let ids = |shape: &[usize]| c.tensor(GgmlType::I32, shape).unwrap();
        let x = c.tensor(GgmlType::F32, &[4, 2, 6]).unwrap();
        let turned = c.swap_outer(x).unwrap(); // [2, 4, 6]
        assert!(c.soft_max(turned).is_err());
        assert!(c.swiglu(turned).is_err());
        assert!(c.swiglu_split(turned, turned).is_err());
        let halves = c.tensor(GgmlType::F16, &[4, 2, 6]).unwrap();
        assert!(c.swiglu_split(x, halves).is_err(), "of two types");
        let deep = c.tensor(GgmlType::F32, &[2, 1, 3, 6]).unwrap();
        assert!(c.get_rows(deep, ids(&[1, 3])).is_err(), "no ids for the outermost");
        let rope = Rope {
            dims: 6,
            pairs: true,
            theta: 1e4,
            original_length: 1,
            scale: 1.0,
            extrapolation: 0.0,
            attention_factor: 1.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
        };
        assert!(c.rope(x, ids(&[2, 4]), &rope, None).is_err(), "positions are one row");
        assert!(c.rope(x, ids(&[4]), &rope, None).is_ok());
        let divisors = |n: usize| c.tensor(GgmlType::F32, &[n]).unwrap();
        assert!(c.rope(x, ids(&[4]), &rope, Some(divisors(2))).is_err(), "a divisor too few");
        assert!(c.rope(x, ids(&[4]), &rope, Some(divisors(3))).is_ok());
        // SAFETY: a valid tensor and a context with room.
        let across =
            unsafe { Tensor::from_raw(sys::ggml_transpose(c.raw(), x.raw()), "a view").unwrap() };
        let v = c.tensor(GgmlType::F32, &[4, 1, 2]).unwrap();
        assert!(c.mul_mat(across, v).is_err());
        assert!(c.mul_mat_id(across, v, ids(&[4, 1])).is_err());
    }

    #[test]
    fn a_full_context_is_an_error() {
        let c = Context::new(2, 0).unwrap();
        let x = c.tensor(GgmlType::F32, &[3, 8]).unwrap();
        let made =
            (0..8).map(|_| c.tensor(GgmlType::F32, &[3, 8]).map(|_| ())).find(|r| r.is_err());
        assert!(made.is_some());
        assert_eq!(x.shape(), [3, 8]);
    }
}
