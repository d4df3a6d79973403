//! RMS norms with their gain as one operation.
//!
//! # Limits
//! ggml adds up the squares of a row one after the other in float64: 4 cycles each, half a
//! microsecond for 512, and multiplies by the gain in a second pass; a model of 26M reads its 17
//! norms' rows in a tenth of that. Here sixteen sums are made side by side in float32, which is
//! off by at most some 2e-7 of the sum. The order of a row's sum is always the same.
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
use crate::wrap::tensor::Tensor;

/// The instruction sets that this is written for.
const SETS: [CpuSet; 3] = [CpuSet::Neon, CpuSet::Avx2, CpuSet::Avx512];
/// Numbers that are worth a turn of a thread.
const TURN: usize = 4096;

impl Context {
    /// RMSNorm over the last dimension of `x` `[.., n]`, times `gain` `[n]`, by our own kernel where
    /// there is one for `cpu`, a set that this CPU has, and else by ggml's.
    ///
    /// # Errors
    /// Shapes that do not fit, or no room.
    pub(crate) fn norm<'c>(
        &'c self,
        cpu: CpuSet,
        x: Tensor<'c>,
        gain: Tensor<'c>,
        eps: f32,
    ) -> Result<Tensor<'c>> {
        let [n, b, c, d] = x.ne();
        let plain = |t: &Tensor<'c>| t.ty() == Some(GgmlType::F32) && t.nb()[0] == size_of::<f32>();
        let fits = n.is_multiple_of(LANES)
            && n > 0
            && d == 1
            && gain.ne() == [n, 1, 1, 1]
            && [x, gain].iter().all(plain);
        let Some(compute) = kernel(cpu).filter(|_| fits) else {
            return self.rms_norm(x, gain, eps);
        };
        let eps = self.keep(eps);
        // SAFETY: the operands are what `compute` takes, as checked; eps lives as long as this
        // context.
        unsafe { self.custom("a norm", &[c, b, n], &[x, gain], compute, eps.cast_mut().cast()) }
    }
}

/// The kernel for a set.
fn kernel(cpu: CpuSet) -> Option<Compute> {
    match cpu.best_of(&SETS)? {
        #[cfg(target_arch = "x86_64")]
        CpuSet::Avx512 => Some(avx512),
        #[cfg(target_arch = "x86_64")]
        CpuSet::Avx2 => Some(avx2),
        #[cfg(target_arch = "aarch64")]
        CpuSet::Neon => Some(neon),
        _ => None,
    }
}

/// Computes one thread's turns, with AVX-512.
///
/// # Safety
/// The CPU has AVX-512 F, BW, DQ, VL; for nodes made by [`Context::norm`], whose operands are
/// computed; `eps` is a float32.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn avx512(target: *mut sys::ggml_tensor, worker: Worker<'_>, eps: *mut c_void) {
    // SAFETY: as the caller says.
    unsafe { turns::<Avx512>(target, worker, *eps.cast::<f32>()) }
}

/// [`avx512`] with AVX2.
///
/// # Safety
/// As there, but AVX2, FMA, F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2(target: *mut sys::ggml_tensor, worker: Worker<'_>, eps: *mut c_void) {
    // SAFETY: as the caller says.
    unsafe { turns::<Avx2>(target, worker, *eps.cast::<f32>()) }
}

/// [`avx512`] with NEON.
///
/// # Safety
/// As there, but NEON.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn neon(target: *mut sys::ggml_tensor, worker: Worker<'_>, eps: *mut c_void) {
    // SAFETY: as the caller says.
    unsafe { turns::<Neon>(target, worker, *eps.cast::<f32>()) }
}

/// # Safety
/// As for [`avx512`]; the CPU has what `V` needs.
#[inline(always)]
unsafe fn turns<V: Lanes>(target: *mut sys::ggml_tensor, worker: Worker<'_>, eps: f32) {
    // SAFETY: as the caller says; rows are addressed by the strides of `x`, the target's follow one
    // another.
    unsafe {
        let [x, gain] = [0, 1].map(|i: usize| &*(*target).src[i]);
        let (n, rows) = (x.ne[0] as usize, x.ne[1] as usize);
        let gain = gain.data.cast::<f32>().cast_const();
        for row in worker.turns(rows * x.ne[2] as usize, TURN / n).flatten() {
            let from = x.data.cast::<u8>().add(row / rows * x.nb[2] + row % rows * x.nb[1]);
            let (from, to) = (from.cast::<f32>(), (*target).data.cast::<f32>().add(row * n));
            let mut sum = V::splat(0.0);
            for at in (0..n).step_by(LANES) {
                let x = V::load(from.add(at));
                sum = x.mul_add(x, sum);
            }
            let scale = V::splat(1.0 / (sum.sum() / n as f32 + eps).sqrt());
            for at in (0..n).step_by(LANES) {
                let x = V::load(from.add(at)).mul(scale);
                x.mul(V::load(gain.add(at))).store(to.add(at));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::custom::trial::compute_apart;
    use mmx_converters::random::SplitMix64;

    #[test]
    fn equals_the_naive_twin_with_the_same_bits_on_every_set() {
        let mut rng = SplitMix64::new(7);
        let mut random =
            |n: usize| -> Vec<f32> { (0..n).map(|_| rng.next_f64() as f32 * 4.0 - 2.0).collect() };
        for (tokens, heads, n) in [(0, 1, 16), (1, 1, 512), (5, 1, 48), (3, 4, 96)] {
            // heads are columns of wider rows
            let (wide, gain) = (random(tokens * (heads + 1) * n), random(n));
            let mut expected = Vec::new();
            for row in wide.chunks((heads + 1) * n).flat_map(|row| row[n..].chunks(n)) {
                let square = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
                let scale = 1.0 / (square / n as f64 + 1e-5).sqrt();
                let products = row.iter().zip(&gain);
                expected.extend(products.map(|(&x, &g)| f64::from(x) * scale * f64::from(g)));
            }
            let mut first: Option<Vec<f32>> = None;
            for cpu in SETS.into_iter().filter(|set| set.is_here()) {
                let context = Context::new(8, 0).unwrap();
                let x = context.tensor(GgmlType::F32, &[tokens, (heads + 1) * n]).unwrap();
                let x = context.columns(x, n, heads, n).unwrap();
                let g = context.tensor(GgmlType::F32, &[n]).unwrap();
                let node = context.norm(cpu, x, g, 1e-5).unwrap();
                assert_eq!(node.ne(), [n, heads, tokens, 1]);
                let eps = std::ptr::from_ref(&1e-5f32).cast_mut().cast();
                let operands = [bytemuck::cast_slice(&wide), bytemuck::cast_slice(&gain)];
                for threads in [1, 3] {
                    let found =
                        compute_apart(node, &operands, (kernel(cpu).unwrap(), eps), threads);
                    assert_eq!(found.len(), expected.len());
                    for (found, expected) in found.iter().zip(&expected) {
                        let error = (f64::from(*found) - expected).abs();
                        assert!(error < 2e-6, "{cpu}: {found} for {expected}");
                    }
                    assert_eq!(&found, first.get_or_insert_with(|| found.clone()), "{cpu}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_left_to_ggml() {
        let Some(cpu) = CpuSet::here().pop() else { return };
        let context = Context::new(8, 0).unwrap();
        let tensor = |shape: &[usize]| context.tensor(GgmlType::F32, shape).unwrap();
        assert!(context.norm(cpu, tensor(&[2, 24]), tensor(&[24]), 1e-5).is_ok());
        assert!(context.norm(cpu, tensor(&[2, 32]), tensor(&[16]), 1e-5).is_err());
    }
}
