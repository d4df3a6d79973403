//! [`Lanes`]: what kernels over floats need of an instruction set, and the types they read.
#![expect(unsafe_code, reason = "vector instructions")]

/// Numbers of a value.
pub(crate) const LANES: usize = 16;

/// Sixteen float32 numbers.
///
/// # Safety
/// Of every method: the CPU has the set's instructions, and sixteen numbers may be read or written
/// where a pointer says, which need not be aligned.
pub(crate) trait Lanes: Copy {
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// From float16.
    unsafe fn load_f16(from: *const u8) -> Self;
    /// From bfloat16.
    unsafe fn load_bf16(from: *const u8) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn max(self, other: Self) -> Self;
    /// `self * factor + sum`, rounded once.
    unsafe fn mul_add(self, factor: Self, sum: Self) -> Self;
    /// The nearest whole numbers, halves to the even one.
    unsafe fn round(self) -> Self;
    /// `self` times 2 to the power of `n`, whole numbers from -126 to 0.
    unsafe fn scale(self, n: Self) -> Self;
    /// The first `n` numbers, the rest 0.
    unsafe fn first(self, n: usize) -> Self;
    /// Each two neighbours swapped.
    unsafe fn swap_pairs(self) -> Self;
    /// The sums of four times sixteen.
    unsafe fn sums(of: [Self; 4]) -> [f32; 4];
    unsafe fn largest(self) -> f32;

    /// The sum of all.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: as the caller says.
        unsafe { Self::sums([self; 4])[0] }
    }

    /// e^x for x <= 0: 2^n times a polynomial in the rest, off by at most 2e-7 of the value.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: as the caller says.
        unsafe {
            let x = self.max(Self::splat(-87.0));
            let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
            // ln 2 in two parts, the first one exact in few bits
            let r = n.mul_add(Self::splat(-0.693_359_4), x);
            let r = n.mul_add(Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.0 / 720.0);
            for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
                p = p.mul_add(r, Self::splat(c));
            }
            p.scale(n)
        }
    }
}

/// An element type of weights or of a cache.
pub(crate) trait Element {
    /// Bytes of a number.
    const SIZE: usize;

    /// Sixteen numbers as float32.
    ///
    /// # Safety
    /// As for [`Lanes`].
    unsafe fn load<V: Lanes>(from: *const u8) -> V;
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct Bf16;

impl Element for F32 {
    const SIZE: usize = 4;

    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const u8) -> V {
        // SAFETY: as the caller says.
        unsafe { V::load(from.cast()) }
    }
}

impl Element for F16 {
    const SIZE: usize = 2;

    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const u8) -> V {
        // SAFETY: as the caller says.
        unsafe { V::load_f16(from) }
    }
}

impl Element for Bf16 {
    const SIZE: usize = 2;

    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const u8) -> V {
        // SAFETY: as the caller says.
        unsafe { V::load_bf16(from) }
    }
}

/// Has the memory at an address brought into the cache; any address will do.
#[inline(always)]
pub(crate) fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 CPU has the instruction, which reads nothing for the program.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
