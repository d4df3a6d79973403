//! [`Lanes`] of NEON, which every 64-bit Arm CPU has.
#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::aarch64::*;
use std::arch::asm;

use super::lanes::{LANES, Lanes};

/// Four registers of NEON: four numbers after the other.
#[derive(Clone, Copy)]
pub(crate) struct Neon([float32x4_t; 4]);

impl Neon {
    /// What `f` makes of each register and its place.
    #[inline(always)]
    fn each(f: impl Fn(usize) -> float32x4_t) -> Self {
        Self([f(0), f(1), f(2), f(3)])
    }
}

/// Float16 numbers as float32: every such CPU converts them, though Rust has no stable name for it.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn widen_f16(four: uint16x4_t) -> float32x4_t {
    let wide: float32x4_t;
    // SAFETY: as the caller says.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) wide, in(vreg) four,
            options(pure, nomem, nostack, preserves_flags));
    }
    wide
}

// SAFETY (of every block): the CPU has the instructions and memory is there, as the trait says.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one reason for all of them, above")]
impl Lanes for Neon {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { Self([vdupq_n_f32(x); 4]) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self::each(|i| unsafe { vld1q_f32(from.add(4 * i)) })
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        Self::each(|i| unsafe { widen_f16(vreinterpret_u16_u8(vld1_u8(from.add(8 * i)))) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        Self::each(|i| unsafe {
            let four = vreinterpret_u16_u8(vld1_u8(from.add(8 * i)));
            vreinterpretq_f32_u32(vshll_n_u16::<16>(four))
        })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        for (i, four) in self.0.into_iter().enumerate() {
            unsafe { vst1q_f32(to.add(4 * i), four) }
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self::each(|i| unsafe { vaddq_f32(self.0[i], other.0[i]) })
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self::each(|i| unsafe { vsubq_f32(self.0[i], other.0[i]) })
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self::each(|i| unsafe { vmulq_f32(self.0[i], other.0[i]) })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // where one is no number, the other set's: `maxps` gives the second
        Self::each(|i| unsafe {
            vbslq_f32(vcgtq_f32(self.0[i], other.0[i]), self.0[i], other.0[i])
        })
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, sum: Self) -> Self {
        Self::each(|i| unsafe { vfmaq_f32(sum.0[i], self.0[i], factor.0[i]) })
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        Self::each(|i| unsafe { vrndnq_f32(self.0[i]) })
    }

    #[inline(always)]
    unsafe fn scale(self, n: Self) -> Self {
        Self::each(|i| unsafe {
            // a float of a power of two has nothing but its exponent
            let exponent = vaddq_s32(vcvtnq_s32_f32(n.0[i]), vdupq_n_s32(127));
            let power = vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent));
            vmulq_f32(self.0[i], power)
        })
    }

    #[inline(always)]
    unsafe fn first(self, n: usize) -> Self {
        const PLACES: [u32; 4] = [0, 1, 2, 3];
        let n = n.min(LANES) as u32;
        Self::each(|i| unsafe {
            let place = vaddq_u32(vld1q_u32(PLACES.as_ptr()), vdupq_n_u32(4 * i as u32));
            let real = vcltq_u32(place, vdupq_n_u32(n));
            vreinterpretq_f32_u32(vandq_u32(real, vreinterpretq_u32_f32(self.0[i])))
        })
    }

    #[inline(always)]
    unsafe fn swap_pairs(self) -> Self {
        Self::each(|i| unsafe { vrev64q_f32(self.0[i]) })
    }

    #[inline(always)]
    unsafe fn sums([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        unsafe {
            let [a, b, c, d] = [a, b, c, d].map(|Self([q, r, s, t])| {
                // eight sums, then four
                vreinterpretq_f64_f32(vaddq_f32(vaddq_f32(q, s), vaddq_f32(r, t)))
            });
            // two of each: [a0 + a2, a1 + a3, b0 + b2, b1 + b3]
            let two = |a, b| {
                let (low, high) = (vzip1q_f64(a, b), vzip2q_f64(a, b));
                vaddq_f32(vreinterpretq_f32_f64(low), vreinterpretq_f32_f64(high))
            };
            let mut sums = [0.0; 4];
            vst1q_f32(sums.as_mut_ptr(), vpaddq_f32(two(a, b), two(c, d)));
            sums
        }
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        let [a, b, c, d] = self.0;
        unsafe { vmaxvq_f32(vmaxq_f32(vmaxq_f32(a, b), vmaxq_f32(c, d))) }
    }
}
