//! The sets that products are written for, and how to enter them.
#![expect(unsafe_code, reason = "code for instructions that not every CPU has")]

#[cfg(target_arch = "x86_64")]
use super::avx2::{Avx2, Avx2Vnni, Avx2Vnni512};
#[cfg(target_arch = "x86_64")]
use super::avx512::Avx512Vnni;
#[cfg(target_arch = "aarch64")]
use super::neon::{Neon, NeonDotprod, NeonI8mm};
use super::vector::Task;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::vector::Vector;
use crate::kernel::cpu::CpuSet;

/// The sets that there are products for.
#[cfg(target_arch = "x86_64")]
pub(super) const SETS: &[CpuSet] = &[CpuSet::Avx2, CpuSet::Avx2Vnni, CpuSet::Avx512Vnni];
#[cfg(target_arch = "aarch64")]
pub(super) const SETS: &[CpuSet] = &[CpuSet::Neon, CpuSet::NeonDotprod, CpuSet::NeonI8mm];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) const SETS: &[CpuSet] = &[];

/// A set that this CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Set(CpuSet);

impl Set {
    /// The best of [`SETS`] where models are loaded for `cpu`.
    pub(super) fn of(cpu: CpuSet) -> Option<Self> {
        cpu.best_of(SETS).filter(|set| set.is_here()).map(Self)
    }
}

/// The most rows of activations that are multiplied at a time.
pub(super) fn most(set: Set) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        match set.0 {
            CpuSet::Avx512Vnni => Avx512Vnni::MOST,
            CpuSet::Avx2Vnni => Avx2Vnni::MOST,
            _ => Avx2::MOST,
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        match set.0 {
            CpuSet::NeonI8mm => NeonI8mm::MOST,
            CpuSet::NeonDotprod => NeonDotprod::MOST,
            _ => Neon::MOST,
        }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        let Set(_) = set;
        1
    }
}

/// Runs a task compiled for a set.
///
/// # Safety
/// What the task says.
pub(super) unsafe fn enter(set: Set, task: impl Task) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a Set is one that this CPU has; the rest as the caller says.
    unsafe {
        match set.0 {
            CpuSet::Avx512Vnni => Avx512Vnni::enter(task),
            CpuSet::Avx2Vnni if is_x86_feature_detected!("avxvnni") => Avx2Vnni::enter(task),
            CpuSet::Avx2Vnni => Avx2Vnni512::enter(task),
            _ => Avx2::enter(task),
        }
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        match set.0 {
            CpuSet::NeonI8mm => NeonI8mm::enter(task),
            CpuSet::NeonDotprod => NeonDotprod::enter(task),
            _ => Neon::enter(task),
        }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = (set, task); // there is no Set
}
