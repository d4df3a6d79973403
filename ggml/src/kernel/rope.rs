//! Rotary positions whose sines and cosines are computed once for all layers.
//!
//! ggml's operation computes them anew for each layer's queries and keys: 32 pairs of sine and
//! cosine for a head of 64, a microsecond a token, 16 times a token of a model of 8 layers. Here its
//! results for heads of ones and zeros, which are the sines and cosines themselves (scaled as YaRN
//! has it), are kept for the graph, and the layers multiply.
#![expect(unsafe_code, reason = "vector instructions, and a callback from C")]

use std::ffi::c_void;

use llama_cpp_sys_2 as sys;
use mmx_converters::gguf::GgmlType;

use crate::error::Result;
use crate::kernel::cpu::CpuSet;
use crate::kernel::custom::{Compute, Worker};
#[cfg(target_arch = "aarch64")]
use crate::kernel::vector::Neon;
#[cfg(target_arch = "x86_64")]
use crate::kernel::vector::{Avx2, Avx512};
use crate::kernel::vector::{LANES, Lanes};
use crate::wrap::context::Context;
use crate::wrap::graph::Rope;
use crate::wrap::tensor::Tensor;

/// The instruction sets that this is written for.
const SETS: [CpuSet; 3] = [CpuSet::Neon, CpuSet::Avx2, CpuSet::Avx512];
/// Numbers that are worth a turn of a thread.
const TURN: usize = 4096;

/// The angles of a graph's tokens.
#[derive(Clone, Copy)]
pub(crate) struct Angles<'c> {
    /// float32 `[n, 2 * head_dim]`: what each number of a head is multiplied by, then what its
    /// partner is multiplied by; nothing where ggml's operation is used.
    table: Option<Tensor<'c>>,
    positions: Tensor<'c>,
    rope: Rope,
    divisors: Option<Tensor<'c>>,
    cpu: CpuSet,
}

impl Context {
    /// The angles of heads at `positions` (i32 `[n]`); `divisors` as [`Context::rope`] takes them.
    /// `cpu`: a set that this CPU has.
    ///
    /// # Errors
    /// Shapes that do not fit, or no room.
    pub(crate) fn angles<'c>(
        &'c self,
        cpu: CpuSet,
        positions: Tensor<'c>,
        rope: Rope,
        divisors: Option<Tensor<'c>>,
    ) -> Result<Angles<'c>> {
        let [n, ..] = positions.ne();
        let fits = rope.dims.is_multiple_of(2 * LANES) && rope.dims > 0;
        let mut table = None;
        if fits && kernel(cpu, rope.pairs).is_some() {
            let (units, spread): (Compute, Compute) = match rope.pairs {
                true => (units::<true>, spread::<true>),
                false => (units::<false>, spread::<false>),
            };
            let nothing = std::ptr::null_mut();
            // SAFETY: what `units` and `spread` take, as their conditions say.
            unsafe {
                let units =
                    self.custom("units", &[n, 1, rope.dims], &[positions], units, nothing)?;
                let turned = self.rope(units, positions, &rope, divisors)?;
                table =
                    Some(self.custom("angles", &[n, 2 * rope.dims], &[turned], spread, nothing)?);
            }
        }
        Ok(Angles { table, positions, rope, divisors, cpu })
    }

    /// Turns `x` `[n, heads, head_dim]`, each token by its angles.
    ///
    /// # Errors
    /// Shapes that do not fit, or no room.
    pub(crate) fn turn<'c>(&'c self, x: Tensor<'c>, angles: &Angles<'c>) -> Result<Tensor<'c>> {
        let Angles { table, positions, rope, divisors, cpu } = angles;
        let [head_dim, heads, n, last] = x.ne();
        let fits = x.ty() == Some(GgmlType::F32)
            && x.nb()[0] == size_of::<f32>()
            && head_dim == rope.dims
            && positions.ne() == [n, 1, 1, 1]
            && last == 1;
        match (table, kernel(*cpu, rope.pairs)) {
            (Some(table), Some(compute)) if fits => {
                let (shape, nothing) = ([n, heads, head_dim], std::ptr::null_mut());
                // SAFETY: the operands are what the kernel takes, as checked.
                unsafe { self.custom("rotary positions", &shape, &[x, *table], compute, nothing) }
            }
            _ => self.rope(x, *positions, rope, *divisors),
        }
    }
}

/// The place of the `i`-th pair's numbers in a head of `dims`.
fn pair<const PAIRS: bool>(i: usize, dims: usize) -> [usize; 2] {
    if PAIRS { [2 * i, 2 * i + 1] } else { [i, i + dims / 2] }
}

/// Heads whose pairs are (1, 0): turned, they are (cosine, sine).
///
/// # Safety
/// For a contiguous node of float32 `[n, 1, dims]`.
unsafe fn units<const PAIRS: bool>(
    target: *mut sys::ggml_tensor,
    worker: Worker<'_>,
    _: *mut c_void,
) {
    // SAFETY: as the caller says.
    unsafe {
        let (dims, n) = ((*target).ne[0] as usize, (*target).ne[2] as usize);
        for token in worker.turns(n, TURN / dims).flatten() {
            let to = (*target).data.cast::<f32>().add(token * dims);
            for i in 0..dims / 2 {
                let [a, b] = pair::<PAIRS>(i, dims);
                to.add(a).write(1.0);
                to.add(b).write(0.0);
            }
        }
    }
}

/// From (cosine, sine) of each pair to what the pair's numbers are multiplied by (the cosine, both)
/// and what their partners are multiplied by (minus the sine, the sine).
///
/// # Safety
/// For a contiguous node of float32 `[n, 2 * dims]`, its operand a contiguous one `[n, 1, dims]`.
unsafe fn spread<const PAIRS: bool>(
    target: *mut sys::ggml_tensor,
    worker: Worker<'_>,
    _: *mut c_void,
) {
    // SAFETY: as the caller says.
    unsafe {
        let (dims, n) = ((*target).ne[0] as usize / 2, (*target).ne[1] as usize);
        let turned = (*(*target).src[0]).data.cast::<f32>().cast_const();
        for token in worker.turns(n, TURN / dims).flatten() {
            let from = turned.add(token * dims);
            let to = (*target).data.cast::<f32>().add(token * 2 * dims);
            for i in 0..dims / 2 {
                let [a, b] = pair::<PAIRS>(i, dims);
                let (cos, sin) = (*from.add(a), *from.add(b));
                to.add(a).write(cos);
                to.add(b).write(cos);
                to.add(dims + a).write(-sin);
                to.add(dims + b).write(sin);
            }
        }
    }
}

/// The kernel for a set and an order of pairs.
fn kernel(cpu: CpuSet, pairs: bool) -> Option<Compute> {
    match cpu.best_of(&SETS)? {
        #[cfg(target_arch = "x86_64")]
        CpuSet::Avx512 => Some(if pairs { avx512::<true> } else { avx512::<false> }),
        #[cfg(target_arch = "x86_64")]
        CpuSet::Avx2 => Some(if pairs { avx2::<true> } else { avx2::<false> }),
        #[cfg(target_arch = "aarch64")]
        CpuSet::Neon => Some(if pairs { neon::<true> } else { neon::<false> }),
        _ => None,
    }
}

/// Computes one thread's turns, with AVX-512.
///
/// # Safety
/// The CPU has AVX-512 F, BW, DQ, VL; for nodes made by [`Context::turn`], whose operands are
/// computed.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn avx512<const PAIRS: bool>(
    target: *mut sys::ggml_tensor,
    worker: Worker<'_>,
    _: *mut c_void,
) {
    // SAFETY: as the caller says.
    unsafe { turns::<Avx512, PAIRS>(target, worker) }
}

/// [`avx512`] with AVX2.
///
/// # Safety
/// As there, but AVX2, FMA, F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<const PAIRS: bool>(
    target: *mut sys::ggml_tensor,
    worker: Worker<'_>,
    _: *mut c_void,
) {
    // SAFETY: as the caller says.
    unsafe { turns::<Avx2, PAIRS>(target, worker) }
}

/// [`avx512`] with NEON.
///
/// # Safety
/// As there, but NEON.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn neon<const PAIRS: bool>(
    target: *mut sys::ggml_tensor,
    worker: Worker<'_>,
    _: *mut c_void,
) {
    // SAFETY: as the caller says.
    unsafe { turns::<Neon, PAIRS>(target, worker) }
}

/// # Safety
/// As for [`avx512`]; the CPU has what `V` needs.
#[inline(always)]
unsafe fn turns<V: Lanes, const PAIRS: bool>(target: *mut sys::ggml_tensor, worker: Worker<'_>) {
    // SAFETY: as the caller says; heads are addressed by the strides of `x`, the target's follow one
    // another; a head is a multiple of 32 numbers.
    unsafe {
        let [x, table] = [0, 1].map(|i: usize| &*(*target).src[i]);
        let (dims, heads) = (x.ne[0] as usize, x.ne[1] as usize);
        for item in worker.turns(heads * x.ne[2] as usize, TURN / dims).flatten() {
            let (token, head) = (item / heads, item % heads);
            let from = x.data.cast::<u8>().add(token * x.nb[2] + head * x.nb[1]);
            let (from, to) = (from.cast::<f32>(), (*target).data.cast::<f32>().add(item * dims));
            let own = table.data.cast::<f32>().add(token * 2 * dims);
            let other = own.add(dims);
            for at in (0..dims).step_by(LANES) {
                let number = V::load(from.add(at));
                let partner = match PAIRS {
                    true => number.swap_pairs(),
                    false if at < dims / 2 => V::load(from.add(at + dims / 2)),
                    false => V::load(from.add(at - dims / 2)),
                };
                let turned = partner.mul(V::load(other.add(at)));
                number.mul_add(V::load(own.add(at)), turned).store(to.add(at));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wrap::plan::{Plan, Slot};
    use crate::wrap::pool::Pool;
    use mmx_converters::random::SplitMix64;

    #[test]
    fn equals_ggmls_with_the_same_bits_on_every_set() {
        let mut rng = SplitMix64::new(8);
        for (heads, dims, pairs) in [(1, 32, true), (3, 64, false), (2, 96, true), (2, 96, false)] {
            for (yarn, divided) in [(false, false), (true, false), (false, true)] {
                let rope = Rope {
                    dims,
                    pairs,
                    theta: 1e4,
                    original_length: 64,
                    scale: if yarn { 0.25 } else { 1.0 },
                    extrapolation: if yarn { 1.0 } else { 0.0 },
                    attention_factor: if yarn { 0.9 } else { 1.0 },
                    beta_fast: 32.0,
                    beta_slow: 1.0,
                };
                let at = [0, 1, 100, 7, 31_000];
                let x: Vec<f32> =
                    (0..at.len() * (heads + 1) * dims).map(|_| rng.next_f64() as f32).collect();
                let mut first: Option<Vec<f32>> = None;
                for cpu in SETS.into_iter().filter(|set| set.is_here()) {
                    let plan = Plan::new(16).unwrap();
                    let nodes = plan.nodes();
                    let c = nodes.context;
                    let wide = nodes.input(GgmlType::F32, &[at.len(), (heads + 1) * dims]).unwrap();
                    let positions = nodes.input(GgmlType::I32, &[at.len()]).unwrap();
                    let heads = c.columns(wide, dims, heads, dims).unwrap();
                    let divisors =
                        divided.then(|| nodes.input(GgmlType::F32, &[dims / 2]).unwrap());
                    let angles = c.angles(cpu, positions, rope, divisors).unwrap();
                    assert!(angles.table.is_some());
                    let ours = nodes.output(c.turn(heads, &angles).unwrap());
                    let theirs = nodes.output(c.rope(heads, positions, &rope, divisors).unwrap());
                    let (wide, positions) = (Slot::of(wide), Slot::of(positions));
                    let divisors = divisors.map(Slot::of);
                    let mut plan = plan.finish().unwrap();
                    for threads in [1, 2] {
                        plan.data_mut::<f32>(wide).copy_from_slice(&x);
                        plan.data_mut::<i32>(positions).copy_from_slice(&at);
                        if let Some(divisors) = divisors {
                            let values: Vec<f32> = (0..dims / 2).map(|i| 1.0 + i as f32).collect();
                            plan.data_mut::<f32>(divisors).copy_from_slice(&values);
                        }
                        plan.compute(&mut Pool::new(threads).unwrap()).unwrap();
                        let found = plan.data_mut::<f32>(ours).to_vec();
                        let expected = plan.data_mut::<f32>(theirs);
                        for (found, expected) in found.iter().zip(expected) {
                            assert!((found - *expected).abs() < 1e-6, "{found} for {expected}");
                        }
                        assert_eq!(&found, first.get_or_insert_with(|| found.clone()), "{cpu}");
                    }
                }
            }
        }
    }
}
