//! Exponentials of a row of logits: what a draw weighs each id with.
//!
//! # Limits
//! Sixteen at a time, so a row of 6,400 takes some 2 microseconds, where one call of the library's
//! function for each takes 30: as long as computing the logits of a token in a batch.
#![expect(unsafe_code, reason = "vector instructions")]

use crate::kernel::cpu::CpuSet;
#[cfg(target_arch = "aarch64")]
use crate::kernel::vector::Neon;
#[cfg(target_arch = "x86_64")]
use crate::kernel::vector::{Avx2, Avx512};
use crate::kernel::vector::{LANES, Lanes};

/// The instruction sets that this is written for.
const SETS: [CpuSet; 3] = [CpuSet::Neon, CpuSet::Avx2, CpuSet::Avx512];

/// Fills `to` with e^((x - largest) * factor) of each number of `row`, off by at most 4e-7 of the
/// value; `largest` is the largest number, `factor` more than 0. `cpu`: a set that this CPU has.
pub(crate) fn exponentials(cpu: CpuSet, row: &[f32], largest: f32, factor: f32, to: &mut Vec<f32>) {
    to.resize(row.len(), 0.0);
    let whole = row.len() / LANES * LANES;
    let (head, tail) = row.split_at(whole);
    let (to, rest) = to.split_at_mut(whole);
    // SAFETY: the CPU has the set, as the caller says, and both are of one length, a multiple of 16.
    match cpu.best_of(&SETS) {
        #[cfg(target_arch = "x86_64")]
        Some(CpuSet::Avx512) => unsafe { avx512(head, largest, factor, to) },
        #[cfg(target_arch = "x86_64")]
        Some(CpuSet::Avx2) => unsafe { avx2(head, largest, factor, to) },
        #[cfg(target_arch = "aarch64")]
        Some(CpuSet::Neon) => unsafe { neon(head, largest, factor, to) },
        _ => plain(head, largest, factor, to),
    }
    plain(tail, largest, factor, rest);
}

fn plain(row: &[f32], largest: f32, factor: f32, to: &mut [f32]) {
    for (to, &x) in to.iter_mut().zip(row) {
        *to = ((x - largest) * factor).exp();
    }
}

/// # Safety
/// The CPU has AVX-512 F, BW, DQ, VL; both are of one length, a multiple of 16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn avx512(row: &[f32], largest: f32, factor: f32, to: &mut [f32]) {
    // SAFETY: as the caller says.
    unsafe { each::<Avx512>(row, largest, factor, to) }
}

/// # Safety
/// As for [`avx512`], but AVX2, FMA, F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2(row: &[f32], largest: f32, factor: f32, to: &mut [f32]) {
    // SAFETY: as the caller says.
    unsafe { each::<Avx2>(row, largest, factor, to) }
}

/// # Safety
/// As for [`avx512`], but NEON.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn neon(row: &[f32], largest: f32, factor: f32, to: &mut [f32]) {
    // SAFETY: as the caller says.
    unsafe { each::<Neon>(row, largest, factor, to) }
}

/// # Safety
/// As for [`avx512`]; the CPU has what `V` needs.
#[inline(always)]
unsafe fn each<V: Lanes>(row: &[f32], largest: f32, factor: f32, to: &mut [f32]) {
    // SAFETY: as the caller says: sixteen numbers are there at each step, in both.
    unsafe {
        let (largest, factor) = (V::splat(largest), V::splat(factor));
        for at in (0..row.len()).step_by(LANES) {
            let x = V::load(row.as_ptr().add(at)).sub(largest).mul(factor);
            x.exp().store(to.as_mut_ptr().add(at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mmx_converters::random::SplitMix64;

    #[test]
    fn every_set_gives_the_exponentials() {
        let mut rng = SplitMix64::new(4);
        for n in [1, 16, 77, 6400] {
            let row: Vec<f32> = (0..n).map(|_| (rng.next_f64() * 40.0 - 30.0) as f32).collect();
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let all = SETS.into_iter().chain([CpuSet::Portable]);
            for cpu in all.filter_map(|set| CpuSet::checked(set).ok()) {
                let mut found = Vec::new();
                exponentials(cpu, &row, largest, 1.25, &mut found);
                assert_eq!(found.len(), n);
                for (&x, &y) in row.iter().zip(&found) {
                    let expected = (f64::from(x - largest) * 1.25).exp();
                    // the argument itself is rounded: at most 50 here, so 3e-6 of the value
                    let off = (f64::from(y) - expected).abs();
                    assert!(off <= 5e-6 * expected, "{cpu:?}: e^{x}: {y} for {expected}");
                }
            }
        }
    }
}
