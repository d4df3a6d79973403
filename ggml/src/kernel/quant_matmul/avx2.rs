//! [`Vector`] for AVX2, without and with VNNI: 16 rows in two registers.
//!
//! Without VNNI, products of unsigned with signed bytes are added in pairs to 16 bits
//! (`vpmaddubsw`). How many such pairs fit into 16 bits depends on the numbers: at most
//! `2 * 15 * 128` each of 4 bits (8 pairs), `2 * 31 * 128` of 5 (4 pairs), `2 * 63 * 128` of 6 (2
//! pairs); of 8 bits one, where the weight is made unsigned and the activation takes its sign
//! (`2 * 128 * 127`). So sums are exact.
#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::x86_64::*;

use super::vector::{Task, Vector};

/// AVX2, FMA, F16C.
pub(super) struct Avx2;

/// The same with VNNI on 256 bits, where it is AVX-VNNI.
pub(super) struct Avx2Vnni;

/// The same where it is AVX-512 VNNI with VL.
pub(super) struct Avx2Vnni512;

/// Sums of 16 bits, and of 32.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    short: [__m256i; 2],
    whole: [__m256i; 2],
}

/// What the three have in common.
macro_rules! shared {
    ($name:ident, $features:literal) => {
        unsafe fn enter(task: impl Task) {
            #[target_feature(enable = $features)]
            unsafe fn run(task: impl Task) {
                unsafe { task.run::<$name>() }
            }
            unsafe { run(task) }
        }

        #[inline(always)]
        unsafe fn load(from: *const u8) -> [__m256i; 2] {
            unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
        }
        #[inline(always)]
        unsafe fn store(to: *mut u8, a: [__m256i; 2]) {
            unsafe {
                _mm256_storeu_si256(to.cast(), a[0]);
                _mm256_storeu_si256(to.add(32).cast(), a[1]);
            }
        }
        #[inline(always)]
        unsafe fn splat(byte: u8) -> [__m256i; 2] {
            unsafe { [_mm256_set1_epi8(byte as i8); 2] }
        }
        #[inline(always)]
        unsafe fn and(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
            unsafe { [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn or(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
            unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn xor(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
            unsafe { [_mm256_xor_si256(a[0], b[0]), _mm256_xor_si256(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn shr(a: [__m256i; 2], bits: u32) -> [__m256i; 2] {
            unsafe {
                let bits = _mm_cvtsi32_si128(bits as i32);
                [_mm256_srl_epi32(a[0], bits), _mm256_srl_epi32(a[1], bits)]
            }
        }
        #[inline(always)]
        unsafe fn shl(a: [__m256i; 2], bits: u32) -> [__m256i; 2] {
            unsafe {
                let bits = _mm_cvtsi32_si128(bits as i32);
                [_mm256_sll_epi32(a[0], bits), _mm256_sll_epi32(a[1], bits)]
            }
        }
        #[inline(always)]
        unsafe fn look_up(table: [u8; 16], at: [__m256i; 2]) -> [__m256i; 2] {
            unsafe {
                let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
                [_mm256_shuffle_epi8(table, at[0]), _mm256_shuffle_epi8(table, at[1])]
            }
        }
        #[inline(always)]
        unsafe fn widen_i8(from: *const u8) -> [__m256i; 2] {
            unsafe {
                [
                    _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())),
                    _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.add(8).cast())),
                ]
            }
        }
        #[inline(always)]
        unsafe fn widen_u8(from: *const u8) -> [__m256i; 2] {
            unsafe {
                [
                    _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())),
                    _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.add(8).cast())),
                ]
            }
        }
        #[inline(always)]
        unsafe fn widen_u16(from: *const u8) -> [__m256i; 2] {
            unsafe {
                [
                    _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())),
                    _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(16).cast())),
                ]
            }
        }
        #[inline(always)]
        unsafe fn splat_i32(value: i32) -> [__m256i; 2] {
            unsafe { [_mm256_set1_epi32(value); 2] }
        }
        #[inline(always)]
        unsafe fn add(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
            unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn float(a: [__m256i; 2]) -> [__m256; 2] {
            unsafe { [_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])] }
        }

        #[inline(always)]
        unsafe fn zero() -> [__m256; 2] {
            unsafe { [_mm256_setzero_ps(); 2] }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u8) -> [__m256; 2] {
            unsafe {
                [
                    _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                    _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast())),
                ]
            }
        }
        #[inline(always)]
        unsafe fn gather_f16(from: *const u8, stride: usize) -> [__m256; 2] {
            unsafe {
                // no gather: it takes 3.6 ns where this takes 2.1 (Zen 4), and qemu 7.2 takes one whose
                // index lies in ymm4 for one without an index
                let mut halves = [_mm256_setzero_ps(); 2];
                for (half, to) in halves.iter_mut().enumerate() {
                    let mut eight = [0u16; 8];
                    for (row, number) in eight.iter_mut().enumerate() {
                        let from = from.add((8 * half + row) * stride).cast::<u16>();
                        *number = from.read_unaligned();
                    }
                    *to = _mm256_cvtph_ps(_mm_loadu_si128(eight.as_ptr().cast()));
                }
                halves
            }
        }
        #[inline(always)]
        unsafe fn load_f32(from: *const f32) -> [__m256; 2] {
            unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
        }
        #[inline(always)]
        unsafe fn store_f32(to: *mut f32, a: [__m256; 2]) {
            unsafe {
                _mm256_storeu_ps(to, a[0]);
                _mm256_storeu_ps(to.add(8), a[1]);
            }
        }
        #[inline(always)]
        unsafe fn repeat(from: *const f32) -> [__m256; 2] {
            unsafe { [_mm256_set1_ps(from.read()); 2] }
        }
        #[inline(always)]
        unsafe fn mul(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn mul_add(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
            unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        }
        #[inline(always)]
        unsafe fn negate(a: [__m256; 2]) -> [__m256; 2] {
            unsafe {
                let sign = _mm256_set1_ps(-0.0);
                [_mm256_xor_ps(a[0], sign), _mm256_xor_ps(a[1], sign)]
            }
        }
        #[inline(always)]
        unsafe fn four(from: *const i8) -> __m256i {
            unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
        }

        #[inline(always)]
        unsafe fn rows(first: *const u8, stride: usize) -> [[__m256i; 2]; 4] {
            unsafe {
                let mut lines = [[_mm256_setzero_si256(); 2]; 4];
                for half in 0..2 {
                    // rows j and j + 4 in the two parts of a register
                    let mut pairs = [_mm256_setzero_si256(); 4];
                    for (j, pair) in pairs.iter_mut().enumerate() {
                        let low = first.add((8 * half + j) * stride);
                        let high = _mm_loadu_si128(low.add(4 * stride).cast());
                        *pair = _mm256_set_m128i(high, _mm_loadu_si128(low.cast()));
                    }
                    // in each part, four rows of four numbers are turned into four columns
                    let [a, b, c, d] = pairs;
                    let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
                    let (ef, gh) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
                    lines[0][half] = _mm256_unpacklo_epi64(ab, cd);
                    lines[1][half] = _mm256_unpackhi_epi64(ab, cd);
                    lines[2][half] = _mm256_unpacklo_epi64(ef, gh);
                    lines[3][half] = _mm256_unpackhi_epi64(ef, gh);
                }
                lines
            }
        }

        #[inline(always)]
        unsafe fn round(from: *const f32, to: *mut i8) -> (f32, [i32; 2]) {
            unsafe {
                let mut values = [_mm256_setzero_ps(); 4];
                let mut most = _mm256_setzero_ps();
                for (i, value) in values.iter_mut().enumerate() {
                    *value = _mm256_loadu_ps(from.add(8 * i));
                    most = _mm256_max_ps(most, _mm256_andnot_ps(_mm256_set1_ps(-0.0), *value));
                }
                let most =
                    _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps::<1>(most));
                let most = _mm_max_ps(most, _mm_movehl_ps(most, most));
                let most = _mm_max_ss(most, _mm_movehdup_ps(most));
                let largest = _mm_cvtss_f32(most);
                let factor = if largest == 0.0 { 0.0 } else { 127.0 / largest };
                let factor = _mm256_set1_ps(factor);
                let mut numbers = [_mm256_setzero_si256(); 4];
                for (number, value) in numbers.iter_mut().zip(values) {
                    *number = _mm256_cvtps_epi32(_mm256_mul_ps(value, factor));
                }
                let [a, b, c, d] = numbers;
                let mut sums = [0; 2];
                for (half, sum) in sums.iter_mut().enumerate() {
                    let eight = _mm256_add_epi32(numbers[2 * half], numbers[2 * half + 1]);
                    let four = _mm_add_epi32(
                        _mm256_castsi256_si128(eight),
                        _mm256_extracti128_si256::<1>(eight),
                    );
                    let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
                    let one = _mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two));
                    *sum = _mm_cvtsi128_si32(one);
                }
                // packing takes halves of registers in turn: put right by the last step
                let all = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
                let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
                _mm256_storeu_si256(to.cast(), _mm256_permutevar8x32_epi32(all, order));
                (largest, sums)
            }
        }
    };
}

/// The products with VNNI, by `$dot`.
macro_rules! vnni {
    ($dot:ident) => {
        type I = [__m256i; 2];
        type F = [__m256; 2];
        type X = __m256i;
        type W = [__m256i; 2];
        type Sum = [__m256i; 2];
        const MOST: usize = 4;
        const SIGNED: bool = false;
        const IN_TURNS: usize = 2;

        #[inline(always)]
        unsafe fn weights(numbers: [__m256i; 2], _bits: usize) -> [__m256i; 2] {
            numbers
        }
        #[inline(always)]
        unsafe fn begin(start: Option<*const i32>) -> [__m256i; 2] {
            unsafe {
                match start {
                    Some(start) => [_mm256_set1_epi32(start.read()); 2],
                    None => [_mm256_setzero_si256(); 2],
                }
            }
        }
        #[inline(always)]
        unsafe fn step(
            sum: [__m256i; 2],
            weights: [__m256i; 2],
            four: __m256i,
            _bits: usize,
            _k: usize,
            _of: usize,
        ) -> [__m256i; 2] {
            unsafe { [$dot(sum[0], weights[0], four), $dot(sum[1], weights[1], four)] }
        }
        #[inline(always)]
        unsafe fn turn(
            sum: [__m256i; 2],
            weights: [__m256i; 2],
            four: __m256i,
            _bits: usize,
            _last: bool,
        ) -> [__m256i; 2] {
            unsafe { [$dot(sum[0], weights[0], four), $dot(sum[1], weights[1], four)] }
        }
        #[inline(always)]
        unsafe fn end_of_turns(sum: [__m256i; 2], _bits: usize) -> [__m256i; 2] {
            sum
        }
        #[inline(always)]
        unsafe fn end(sum: [__m256i; 2], _start: Option<*const i32>) -> [__m256i; 2] {
            sum
        }
    };
}

// SAFETY, of all blocks of the three: the caller has promised the instructions and the pointers.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
impl Vector for Avx2Vnni {
    vnni!(_mm256_dpbusd_avx_epi32);
    shared!(Avx2Vnni, "avx2,fma,f16c,avxvnni");
}

#[expect(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
impl Vector for Avx2Vnni512 {
    vnni!(_mm256_dpbusd_epi32);
    shared!(Avx2Vnni512, "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni");
}

#[expect(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
impl Vector for Avx2 {
    type I = [__m256i; 2];
    type F = [__m256; 2];
    type X = __m256i;
    /// Of 8 bits: without the sign, and with it.
    type W = [[__m256i; 2]; 2];
    type Sum = Sums;
    const MOST: usize = 4;
    const SIGNED: bool = true;
    const IN_TURNS: usize = 1;

    #[inline(always)]
    unsafe fn weights(numbers: [__m256i; 2], bits: usize) -> [[__m256i; 2]; 2] {
        if bits < 8 {
            return [numbers; 2];
        }
        unsafe { [[_mm256_abs_epi8(numbers[0]), _mm256_abs_epi8(numbers[1])], numbers] }
    }
    #[inline(always)]
    unsafe fn begin(_start: Option<*const i32>) -> Sums {
        unsafe { Sums { short: [_mm256_setzero_si256(); 2], whole: [_mm256_setzero_si256(); 2] } }
    }
    #[inline(always)]
    unsafe fn step(
        sum: Sums,
        [unsigned, signed]: [[__m256i; 2]; 2],
        four: __m256i,
        bits: usize,
        k: usize,
        of: usize,
    ) -> Sums {
        let pairs = match bits {
            0..=4 => 8.min(of),
            5 => 4,
            6 => 2,
            _ => 1,
        };
        let mut new = sum;
        for half in 0..2 {
            unsafe {
                let four = if bits < 8 { four } else { _mm256_sign_epi8(four, signed[half]) };
                let products = _mm256_maddubs_epi16(unsigned[half], four);
                new.short[half] = match k % pairs {
                    0 => products,
                    _ => _mm256_adds_epi16(sum.short[half], products),
                };
                if k % pairs == pairs - 1 {
                    let wide = _mm256_madd_epi16(new.short[half], _mm256_set1_epi16(1));
                    new.whole[half] = match k + 1 {
                        first if first == pairs => wide,
                        _ => _mm256_add_epi32(sum.whole[half], wide),
                    };
                }
            }
        }
        new
    }
    #[inline(always)]
    unsafe fn turn(
        sum: Sums,
        [unsigned, signed]: [[__m256i; 2]; 2],
        four: __m256i,
        bits: usize,
        last: bool,
    ) -> Sums {
        let mut new = sum;
        for half in 0..2 {
            unsafe {
                let four = if bits < 8 { four } else { _mm256_sign_epi8(four, signed[half]) };
                let products = _mm256_maddubs_epi16(unsigned[half], four);
                new.short[half] = match bits {
                    5.. if bits == 8 || !last => products,
                    _ => _mm256_add_epi16(sum.short[half], products),
                };
                if bits == 8 || bits > 4 && last {
                    let wide = _mm256_madd_epi16(new.short[half], _mm256_set1_epi16(1));
                    new.whole[half] = _mm256_add_epi32(sum.whole[half], wide);
                }
            }
        }
        new
    }
    #[inline(always)]
    unsafe fn end_of_turns(mut sum: Sums, bits: usize) -> Sums {
        if bits <= 4 {
            for (whole, short) in sum.whole.iter_mut().zip(sum.short) {
                *whole = unsafe { _mm256_madd_epi16(short, _mm256_set1_epi16(1)) };
            }
        }
        sum
    }
    #[inline(always)]
    unsafe fn end(sum: Sums, start: Option<*const i32>) -> [__m256i; 2] {
        let Some(start) = start else { return sum.whole };
        unsafe { Self::add(sum.whole, Self::splat_i32(start.read())) }
    }

    shared!(Avx2, "avx2,fma,f16c");
}
