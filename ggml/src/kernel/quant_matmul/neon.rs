//! [`Vector`] for NEON, without and with the dot product, and with products of 8-bit matrices (i8mm):
//! 16 rows in four registers.
//!
//! Numbers are multiplied as signed ones: those of fewer than 8 bits are positive. With the dot
//! product (`sdot`, Arm since 2017) four products of each row are added in one instruction; without,
//! products of 16 bits (at most `128 * 127`) are added in pairs to 32 bits. i8mm (`smmla`) adds eight
//! products of each of two rows with each of two rows of activations. All are exact.
#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::aarch64::*;
use std::arch::asm;

use super::vector::{Task, Vector};

/// NEON, which every 64-bit Arm CPU has.
pub(super) struct Neon;

/// NEON with the dot product.
pub(super) struct NeonDotprod;

/// NEON with the dot product and products of 8-bit matrices.
pub(super) struct NeonI8mm;

/// What all have in common.
macro_rules! shared {
    ($name:ident, $features:literal) => {
        type I = [uint8x16_t; 4];
        type F = [float32x4_t; 4];
        type X = int8x16_t;
        type W = [int8x16_t; 4];
        const MOST: usize = 4;
        const SIGNED: bool = true;
        const IN_TURNS: usize = 2;

        unsafe fn enter(task: impl Task) {
            #[target_feature(enable = $features)]
            unsafe fn run(task: impl Task) {
                unsafe { task.run::<$name>() }
            }
            unsafe { run(task) }
        }

        #[inline(always)]
        unsafe fn load(from: *const u8) -> Self::I {
            unsafe {
                [
                    vld1q_u8(from),
                    vld1q_u8(from.add(16)),
                    vld1q_u8(from.add(32)),
                    vld1q_u8(from.add(48)),
                ]
            }
        }
        #[inline(always)]
        unsafe fn store(to: *mut u8, a: Self::I) {
            for (i, a) in a.into_iter().enumerate() {
                unsafe { vst1q_u8(to.add(16 * i), a) }
            }
        }
        #[inline(always)]
        unsafe fn splat(byte: u8) -> Self::I {
            unsafe { [vdupq_n_u8(byte); 4] }
        }
        #[inline(always)]
        unsafe fn and(mut a: Self::I, b: Self::I) -> Self::I {
            for (a, b) in a.iter_mut().zip(b) {
                *a = unsafe { vandq_u8(*a, b) };
            }
            a
        }
        #[inline(always)]
        unsafe fn or(mut a: Self::I, b: Self::I) -> Self::I {
            for (a, b) in a.iter_mut().zip(b) {
                *a = unsafe { vorrq_u8(*a, b) };
            }
            a
        }
        #[inline(always)]
        unsafe fn xor(mut a: Self::I, b: Self::I) -> Self::I {
            for (a, b) in a.iter_mut().zip(b) {
                *a = unsafe { veorq_u8(*a, b) };
            }
            a
        }
        #[inline(always)]
        unsafe fn shr(mut a: Self::I, bits: u32) -> Self::I {
            for a in &mut a {
                *a = unsafe {
                    let shift = vdupq_n_s32(-(bits as i32));
                    vreinterpretq_u8_u32(vshlq_u32(vreinterpretq_u32_u8(*a), shift))
                };
            }
            a
        }
        #[inline(always)]
        unsafe fn shl(mut a: Self::I, bits: u32) -> Self::I {
            for a in &mut a {
                *a = unsafe {
                    let shift = vdupq_n_s32(bits as i32);
                    vreinterpretq_u8_u32(vshlq_u32(vreinterpretq_u32_u8(*a), shift))
                };
            }
            a
        }
        #[inline(always)]
        unsafe fn look_up(table: [u8; 16], mut at: Self::I) -> Self::I {
            for at in &mut at {
                *at = unsafe { vqtbl1q_u8(vld1q_u8(table.as_ptr()), *at) };
            }
            at
        }
        #[inline(always)]
        unsafe fn widen_i8(from: *const u8) -> Self::I {
            unsafe {
                let bytes = vld1q_s8(from.cast());
                let [low, high] = [vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)];
                [
                    vreinterpretq_u8_s32(vmovl_s16(vget_low_s16(low))),
                    vreinterpretq_u8_s32(vmovl_high_s16(low)),
                    vreinterpretq_u8_s32(vmovl_s16(vget_low_s16(high))),
                    vreinterpretq_u8_s32(vmovl_high_s16(high)),
                ]
            }
        }
        #[inline(always)]
        unsafe fn widen_u8(from: *const u8) -> Self::I {
            unsafe {
                let bytes = vld1q_u8(from);
                let [low, high] = [vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes)];
                [
                    vreinterpretq_u8_u32(vmovl_u16(vget_low_u16(low))),
                    vreinterpretq_u8_u32(vmovl_high_u16(low)),
                    vreinterpretq_u8_u32(vmovl_u16(vget_low_u16(high))),
                    vreinterpretq_u8_u32(vmovl_high_u16(high)),
                ]
            }
        }
        #[inline(always)]
        unsafe fn widen_u16(from: *const u8) -> Self::I {
            unsafe {
                let low = vreinterpretq_u16_u8(vld1q_u8(from));
                let high = vreinterpretq_u16_u8(vld1q_u8(from.add(16)));
                [
                    vreinterpretq_u8_u32(vmovl_u16(vget_low_u16(low))),
                    vreinterpretq_u8_u32(vmovl_high_u16(low)),
                    vreinterpretq_u8_u32(vmovl_u16(vget_low_u16(high))),
                    vreinterpretq_u8_u32(vmovl_high_u16(high)),
                ]
            }
        }
        #[inline(always)]
        unsafe fn splat_i32(value: i32) -> Self::I {
            unsafe { [vreinterpretq_u8_s32(vdupq_n_s32(value)); 4] }
        }
        #[inline(always)]
        unsafe fn add(mut a: Self::I, b: Self::I) -> Self::I {
            for (a, b) in a.iter_mut().zip(b) {
                *a = unsafe {
                    let sum = vaddq_s32(vreinterpretq_s32_u8(*a), vreinterpretq_s32_u8(b));
                    vreinterpretq_u8_s32(sum)
                };
            }
            a
        }
        #[inline(always)]
        unsafe fn float(a: Self::I) -> Self::F {
            let mut floats = unsafe { Self::zero() };
            for (float, a) in floats.iter_mut().zip(a) {
                *float = unsafe { vcvtq_f32_s32(vreinterpretq_s32_u8(a)) };
            }
            floats
        }

        #[inline(always)]
        unsafe fn zero() -> Self::F {
            unsafe { [vdupq_n_f32(0.0); 4] }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u8) -> Self::F {
            let mut floats = unsafe { Self::zero() };
            for (i, float) in floats.iter_mut().enumerate() {
                // every such CPU converts, though Rust has no stable name for it
                unsafe {
                    let four = vld1_u8(from.add(8 * i));
                    asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) *float, in(vreg) four,
                        options(pure, nomem, nostack, preserves_flags));
                }
            }
            floats
        }
        #[inline(always)]
        unsafe fn gather_f16(from: *const u8, stride: usize) -> Self::F {
            let mut all = [[0; 2]; 16];
            for (lane, two) in all.iter_mut().enumerate() {
                *two = unsafe { from.add(lane * stride).cast::<[u8; 2]>().read() };
            }
            unsafe { Self::load_f16(all.as_ptr().cast()) }
        }
        #[inline(always)]
        unsafe fn load_f32(from: *const f32) -> Self::F {
            unsafe {
                [
                    vld1q_f32(from),
                    vld1q_f32(from.add(4)),
                    vld1q_f32(from.add(8)),
                    vld1q_f32(from.add(12)),
                ]
            }
        }
        #[inline(always)]
        unsafe fn store_f32(to: *mut f32, a: Self::F) {
            for (i, a) in a.into_iter().enumerate() {
                unsafe { vst1q_f32(to.add(4 * i), a) }
            }
        }
        #[inline(always)]
        unsafe fn repeat(from: *const f32) -> Self::F {
            unsafe { [vdupq_n_f32(from.read()); 4] }
        }
        #[inline(always)]
        unsafe fn mul(mut a: Self::F, b: Self::F) -> Self::F {
            for (a, b) in a.iter_mut().zip(b) {
                *a = unsafe { vmulq_f32(*a, b) };
            }
            a
        }
        #[inline(always)]
        unsafe fn mul_add(a: Self::F, b: Self::F, mut c: Self::F) -> Self::F {
            for (i, c) in c.iter_mut().enumerate() {
                *c = unsafe { vfmaq_f32(*c, a[i], b[i]) };
            }
            c
        }
        #[inline(always)]
        unsafe fn negate(mut a: Self::F) -> Self::F {
            for a in &mut a {
                *a = unsafe { vnegq_f32(*a) };
            }
            a
        }

        #[inline(always)]
        unsafe fn four(from: *const i8) -> int8x16_t {
            unsafe { vreinterpretq_s8_s32(vdupq_n_s32(from.cast::<i32>().read_unaligned())) }
        }
        #[inline(always)]
        unsafe fn weights(numbers: Self::I, _bits: usize) -> [int8x16_t; 4] {
            unsafe {
                [
                    vreinterpretq_s8_u8(numbers[0]),
                    vreinterpretq_s8_u8(numbers[1]),
                    vreinterpretq_s8_u8(numbers[2]),
                    vreinterpretq_s8_u8(numbers[3]),
                ]
            }
        }
        #[inline(always)]
        unsafe fn step(
            sum: Self::Sum,
            weights: [int8x16_t; 4],
            four: int8x16_t,
            bits: usize,
            _k: usize,
            _of: usize,
        ) -> Self::Sum {
            unsafe { Self::turn(sum, weights, four, bits, false) }
        }
        #[inline(always)]
        unsafe fn end_of_turns(sum: Self::Sum, _bits: usize) -> Self::Sum {
            sum
        }

        #[inline(always)]
        unsafe fn rows(first: *const u8, stride: usize) -> [Self::I; 4] {
            unsafe {
                let mut lines = [Self::splat(0); 4];
                for quarter in 0..4 {
                    let row = first.add(4 * quarter * stride);
                    let a = vreinterpretq_u32_u8(vld1q_u8(row));
                    let b = vreinterpretq_u32_u8(vld1q_u8(row.add(stride)));
                    let c = vreinterpretq_u32_u8(vld1q_u8(row.add(2 * stride)));
                    let d = vreinterpretq_u32_u8(vld1q_u8(row.add(3 * stride)));
                    // four rows of four numbers are turned into four columns
                    let (ac, bd) = (vzip1q_u32(a, c), vzip1q_u32(b, d));
                    let (ac_high, bd_high) = (vzip2q_u32(a, c), vzip2q_u32(b, d));
                    lines[0][quarter] = vreinterpretq_u8_u32(vzip1q_u32(ac, bd));
                    lines[1][quarter] = vreinterpretq_u8_u32(vzip2q_u32(ac, bd));
                    lines[2][quarter] = vreinterpretq_u8_u32(vzip1q_u32(ac_high, bd_high));
                    lines[3][quarter] = vreinterpretq_u8_u32(vzip2q_u32(ac_high, bd_high));
                }
                lines
            }
        }

        #[inline(always)]
        unsafe fn round(from: *const f32, to: *mut i8) -> (f32, [i32; 2]) {
            unsafe {
                let mut most = vdupq_n_f32(0.0);
                for i in 0..8 {
                    most = vmaxq_f32(most, vabsq_f32(vld1q_f32(from.add(4 * i))));
                }
                let largest = vmaxvq_f32(most);
                let factor = if largest == 0.0 { 0.0 } else { 127.0 / largest };
                let mut sums = [0; 2];
                for (half, sum) in sums.iter_mut().enumerate() {
                    let mut numbers = [vdupq_n_s32(0); 4];
                    for (i, number) in numbers.iter_mut().enumerate() {
                        let values = vld1q_f32(from.add(16 * half + 4 * i));
                        *number = vcvtnq_s32_f32(vmulq_n_f32(values, factor));
                    }
                    let [a, b, c, d] = numbers;
                    *sum = vaddvq_s32(vaddq_s32(vaddq_s32(a, b), vaddq_s32(c, d)));
                    let low = vcombine_s16(vqmovn_s32(a), vqmovn_s32(b));
                    let high = vcombine_s16(vqmovn_s32(c), vqmovn_s32(d));
                    vst1q_s8(to.add(16 * half), vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
                }
                (largest, sums)
            }
        }
    };
}

/// What the two with the dot product have in common.
macro_rules! dotprod {
    () => {
        type Sum = [int32x4_t; 4];

        #[inline(always)]
        unsafe fn begin(start: Option<*const i32>) -> [int32x4_t; 4] {
            unsafe { [vdupq_n_s32(start.map_or(0, |start| start.read())); 4] }
        }
        #[inline(always)]
        unsafe fn turn(
            mut sum: [int32x4_t; 4],
            weights: [int8x16_t; 4],
            four: int8x16_t,
            _bits: usize,
            _last: bool,
        ) -> [int32x4_t; 4] {
            for (sum, weights) in sum.iter_mut().zip(weights) {
                // Rust has no stable name for it
                unsafe {
                    asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
                        inout(vreg) *sum, in(vreg) weights, in(vreg) four,
                        options(pure, nomem, nostack, preserves_flags));
                }
            }
            sum
        }
        #[inline(always)]
        unsafe fn end(sum: [int32x4_t; 4], _start: Option<*const i32>) -> [uint8x16_t; 4] {
            unsafe {
                [
                    vreinterpretq_u8_s32(sum[0]),
                    vreinterpretq_u8_s32(sum[1]),
                    vreinterpretq_u8_s32(sum[2]),
                    vreinterpretq_u8_s32(sum[3]),
                ]
            }
        }
    };
}

// SAFETY, of all blocks of the three: the caller has promised the instructions and the pointers.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
impl Vector for NeonDotprod {
    shared!(NeonDotprod, "neon,dotprod");
    dotprod!();
}

#[expect(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
impl Vector for NeonI8mm {
    const IN_PAIRS: bool = true;
    shared!(NeonI8mm, "neon,dotprod,i8mm");
    dotprod!();

    #[inline(always)]
    unsafe fn eight(first: [int8x16_t; 4], last: [int8x16_t; 4]) -> [[int8x16_t; 4]; 2] {
        // of each two rows eight columns
        let (mut upper, mut lower) = (first, last);
        for (upper, lower) in upper.iter_mut().zip(&mut lower) {
            unsafe {
                let (a, b) = (vreinterpretq_s32_s8(*upper), vreinterpretq_s32_s8(*lower));
                *upper = vreinterpretq_s8_s32(vzip1q_s32(a, b));
                *lower = vreinterpretq_s8_s32(vzip2q_s32(a, b));
            }
        }
        [upper, lower]
    }
    #[inline(always)]
    unsafe fn pair(
        mut sums: [[int32x4_t; 4]; 2],
        weights: [[int8x16_t; 4]; 2],
        [a, b]: [*const i8; 2],
    ) -> [[int32x4_t; 4]; 2] {
        let eights = unsafe { vcombine_s8(vld1_s8(a), vld1_s8(b)) };
        for (sum, weights) in sums.as_flattened_mut().iter_mut().zip(weights.as_flattened()) {
            // of two rows of weights (of a register's halves) with each of activations; Rust has no
            // stable name for it
            unsafe {
                asm!("smmla {0:v}.4s, {1:v}.16b, {2:v}.16b",
                    inout(vreg) *sum, in(vreg) *weights, in(vreg) eights,
                    options(pure, nomem, nostack, preserves_flags));
            }
        }
        sums
    }
    #[inline(always)]
    unsafe fn together([mut first, mut last]: [[int32x4_t; 4]; 2]) -> [[int32x4_t; 4]; 2] {
        for (first, last) in first.iter_mut().zip(&mut last) {
            [*first, *last] = unsafe { [vzip1q_s32(*first, *last), vzip2q_s32(*first, *last)] };
        }
        [first, last]
    }
    #[inline(always)]
    unsafe fn apart([mut first, mut last]: [[int32x4_t; 4]; 2]) -> [[int32x4_t; 4]; 2] {
        for (first, last) in first.iter_mut().zip(&mut last) {
            [*first, *last] = unsafe { [vuzp1q_s32(*first, *last), vuzp2q_s32(*first, *last)] };
        }
        [first, last]
    }
}

#[expect(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
impl Vector for Neon {
    /// Of each four rows: sums of two columns of the first two, and of the last two.
    type Sum = [[int32x4_t; 2]; 4];
    shared!(Neon, "neon");

    #[inline(always)]
    unsafe fn begin(_start: Option<*const i32>) -> [[int32x4_t; 2]; 4] {
        unsafe { [[vdupq_n_s32(0); 2]; 4] }
    }
    #[inline(always)]
    unsafe fn turn(
        mut sum: [[int32x4_t; 2]; 4],
        weights: [int8x16_t; 4],
        four: int8x16_t,
        _bits: usize,
        _last: bool,
    ) -> [[int32x4_t; 2]; 4] {
        for ([first, last], weights) in sum.iter_mut().zip(weights) {
            unsafe {
                let low = vmull_s8(vget_low_s8(weights), vget_low_s8(four));
                *first = vpadalq_s16(*first, low);
                *last = vpadalq_s16(*last, vmull_high_s8(weights, four));
            }
        }
        sum
    }
    #[inline(always)]
    unsafe fn end(sum: [[int32x4_t; 2]; 4], start: Option<*const i32>) -> [uint8x16_t; 4] {
        unsafe {
            let mut whole = Self::splat_i32(start.map_or(0, |start| start.read()));
            for (whole, [first, last]) in whole.iter_mut().zip(sum) {
                let four = vpaddq_s32(first, last);
                *whole = vreinterpretq_u8_s32(vaddq_s32(vreinterpretq_s32_u8(*whole), four));
            }
            whole
        }
    }
}
