//! Instruction sets: what this CPU has, and which of it the kernels use.
//!
//! A kernel of ours names the sets that it is written for; a model that is loaded takes the best of
//! them that the CPU has. `MMX_CPU=NAME` in the environment, or [`LoadOptions::cpu`], takes a lesser
//! one, so that each can be tested and measured on one machine. ggml's own kernels, which compute
//! what no kernel of ours does, stay what ggml was compiled for (or what it chose itself in a build
//! with the feature `dynamic`).
//!
//! [`LoadOptions::cpu`]: crate::run::LoadOptions::cpu

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use crate::error::{Error, Result};

/// An instruction set that kernels are written for, of each kind of CPU from the least to the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CpuSet {
    /// None: everything is computed by ggml's kernels.
    Portable,
    /// NEON: every 64-bit Arm CPU.
    Neon,
    /// NEON with the dot product: most since 2017 (Armv8.2), all of Apple's.
    NeonDotprod,
    /// NEON with the dot product and products of 8-bit matrices (i8mm): servers and phones since
    /// 2021 (Armv8.6, or as an extension), Apple's since 2022 (M2).
    NeonI8mm,
    /// AVX2, FMA and F16C: Intel since 2013 (Haswell), AMD since 2017 (Zen).
    Avx2,
    /// AVX2 and, on 256 bits, VNNI: as AVX-VNNI (Intel since 2021, AMD since 2024) or as AVX-512
    /// VNNI with VL, which computes the same.
    Avx2Vnni,
    /// AVX-512 F, BW, DQ and VL: Intel's servers since 2017.
    Avx512,
    /// AVX-512 with VNNI: Intel's servers since 2019, AMD since 2022 (Zen 4).
    Avx512Vnni,
}

impl CpuSet {
    /// All sets, of each kind of CPU from the least to the best.
    pub const ALL: [Self; 8] = [
        Self::Portable,
        Self::Neon,
        Self::NeonDotprod,
        Self::NeonI8mm,
        Self::Avx2,
        Self::Avx2Vnni,
        Self::Avx512,
        Self::Avx512Vnni,
    ];

    /// The name, as `MMX_CPU` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::NeonDotprod => "neon-dotprod",
            Self::NeonI8mm => "neon-i8mm",
            Self::Avx2 => "avx2",
            Self::Avx2Vnni => "avx2-vnni",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512-vnni",
        }
    }

    /// True where this CPU has the set's instructions.
    pub fn is_here(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            let avx512vnni = avx512 && is_x86_feature_detected!("avx512vnni");
            match self {
                Self::Portable => true,
                Self::Neon | Self::NeonDotprod | Self::NeonI8mm => false,
                Self::Avx2 => avx2,
                Self::Avx2Vnni => avx512vnni || (avx2 && is_x86_feature_detected!("avxvnni")),
                Self::Avx512 => avx512,
                Self::Avx512Vnni => avx512vnni,
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            match self {
                Self::Portable => true,
                Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
                Self::NeonDotprod => {
                    Self::Neon.is_here() && std::arch::is_aarch64_feature_detected!("dotprod")
                }
                Self::NeonI8mm => {
                    Self::NeonDotprod.is_here() && std::arch::is_aarch64_feature_detected!("i8mm")
                }
                _ => false,
            }
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            self == Self::Portable
        }
    }

    /// The sets that this CPU has, from the least to the best.
    pub fn here() -> Vec<Self> {
        Self::ALL.into_iter().filter(|set| set.is_here()).collect()
    }

    /// The set that models are loaded for where [`LoadOptions::cpu`] says nothing: the one that
    /// `MMX_CPU` names, else the best that the CPU has; found at the first call.
    ///
    /// # Errors
    /// `MMX_CPU` names no set, or one that the CPU lacks.
    ///
    /// [`LoadOptions::cpu`]: crate::run::LoadOptions::cpu
    pub fn of_process() -> Result<Self> {
        static FOUND: OnceLock<std::result::Result<CpuSet, String>> = OnceLock::new();
        let found = FOUND.get_or_init(|| {
            let asked = std::env::var_os("MMX_CPU").filter(|name| !name.is_empty());
            let best = Self::here().pop().unwrap_or(Self::Portable);
            asked.map_or(Ok(best), |name| {
                let set = name.to_string_lossy().parse::<Self>().and_then(Self::checked);
                set.map_err(|error| format!("MMX_CPU: {error}"))
            })
        });
        found.clone().map_err(|message| Error::Request { message })
    }

    /// This set, if the CPU has it.
    ///
    /// # Errors
    /// It has not: the error names what it has.
    pub fn checked(self) -> Result<Self> {
        match self.is_here() {
            true => Ok(self),
            false => Err(Error::Request {
                message: format!(
                    "expected an instruction set that this CPU has ({}), found {self}",
                    names(&Self::here())
                ),
            }),
        }
    }

    /// True where a kernel for `other` may run where this set may.
    fn includes(self, other: Self) -> bool {
        let is_arm = |set| matches!(set, Self::Neon | Self::NeonDotprod | Self::NeonI8mm);
        // AVX-512 without VNNI has none on 256 bits either
        other == Self::Portable
            || other <= self
                && is_arm(other) == is_arm(self)
                && (self, other) != (Self::Avx512, Self::Avx2Vnni)
    }

    /// The best of the sets that a kernel is written for which may run where this one may.
    pub(crate) fn best_of(self, kernels: &[Self]) -> Option<Self> {
        kernels.iter().copied().filter(|&set| self.includes(set)).max()
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CpuSet {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|set| set.name() == name);
        known.ok_or_else(|| Error::Request {
            message: format!(
                "expected one of {} (this CPU has {}), found {name:?}",
                names(&Self::ALL),
                names(&Self::here())
            ),
        })
    }
}

/// Names of sets after one another.
fn names(sets: &[CpuSet]) -> String {
    sets.iter().map(|set| set.name()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use CpuSet::{Avx2, Avx2Vnni, Avx512, Avx512Vnni, Neon, NeonDotprod, NeonI8mm, Portable};

    #[test]
    fn a_kernel_takes_the_best_set_that_the_cpu_has() {
        let of = [Avx2, Avx2Vnni, Avx512Vnni];
        assert_eq!(Portable.best_of(&of), None);
        assert_eq!(Avx2.best_of(&of), Some(Avx2));
        assert_eq!(Avx2Vnni.best_of(&of), Some(Avx2Vnni));
        assert_eq!(Avx512.best_of(&of), Some(Avx2), "without VNNI");
        assert_eq!(Avx512Vnni.best_of(&of), Some(Avx512Vnni));
        assert_eq!(Avx512Vnni.best_of(&[Avx2Vnni]), Some(Avx2Vnni));
        assert_eq!(Avx2Vnni.best_of(&[Avx512]), None);
        assert_eq!(Avx2.best_of(&[Neon]), None);
        assert_eq!(NeonDotprod.best_of(&[Neon]), Some(Neon));
        assert_eq!(NeonI8mm.best_of(&[Neon, NeonDotprod, Avx2]), Some(NeonDotprod));
        assert_eq!(Neon.best_of(&[NeonDotprod, Avx2]), None);
        assert_eq!(Avx512Vnni.best_of(&[Neon, NeonI8mm]), None);
    }

    #[test]
    fn names_are_read_back_and_others_refused() {
        for set in CpuSet::ALL {
            assert_eq!(set.name().parse::<CpuSet>().unwrap(), set);
            match set.checked() {
                Ok(found) => assert!(found == set && CpuSet::here().contains(&set)),
                Err(error) => {
                    let message = error.to_string();
                    assert!(message.contains(set.name()), "{message}");
                    assert!(message.contains("portable"), "what the CPU has: {message}");
                }
            }
        }
        let message = "sse9".parse::<CpuSet>().unwrap_err().to_string();
        assert!(message.contains("\"sse9\"") && message.contains("avx2-vnni"), "{message}");
    }

    #[test]
    fn what_the_cpu_has_includes_what_a_lesser_one_has() {
        for set in CpuSet::here() {
            for other in CpuSet::ALL.into_iter().filter(|&other| set.includes(other)) {
                assert!(other.is_here(), "{other} on a CPU with {set}");
            }
        }
    }
}
