//! float32 to Q8_0, the type of weights that are quantized anew at every step of learning from
//! rewards, many values at a time.
//!
//! ggml rounds one value after another, each by a call of the C library. Here the values of a block
//! are lanes of vectors, with the same operations on each, so the bytes are ggml's (tested against
//! it).

use half::f16;

/// Values in a block.
const BLOCK: usize = 32;
/// Bytes of a block: the scale, then the levels.
const BLOCK_BYTES: usize = 2 + BLOCK;
/// Quantized values are -127 to 127.
const LARGEST: f32 = 127.0;
/// Values whose largest is found side by side.
const LANES: usize = 16;

/// Quantizes whole blocks of finite values; `out` takes 34 bytes for each 32 of `values`.
pub(super) fn quantize(values: &[f32], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bw") {
            // SAFETY: the CPU has the features that the function is compiled for.
            return unsafe { quantize_avx512(values, out) };
        }
        if std::is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { quantize_avx2(values, out) };
        }
    }
    blocks(values, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn quantize_avx512(values: &[f32], out: &mut [u8]) {
    blocks(values, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn quantize_avx2(values: &[f32], out: &mut [u8]) {
    blocks(values, out);
}

#[inline(always)]
fn blocks(values: &[f32], out: &mut [u8]) {
    for (values, out) in values.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut().0) {
        block(values, out);
    }
}

/// Source: ggml-quants.c, quantize_row_q8_0_ref.
#[inline(always)]
fn block(values: &[f32; BLOCK], out: &mut [u8; BLOCK_BYTES]) {
    let mut magnitudes = [0f32; LANES];
    for group in values.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            let x = group[lane].abs();
            magnitudes[lane] = if x > magnitudes[lane] { x } else { magnitudes[lane] };
        }
    }
    let step = magnitudes.iter().fold(0f32, |a, &b| if b > a { b } else { a }) / LARGEST;
    let inverse = 1.0 / step;
    // a step that has no inverse is 0 as float16: ggml's levels are then 0 on x86
    let inverse = if inverse.is_finite() { inverse } else { 0.0 };
    let (scale, levels) = out.split_at_mut(2);
    scale.copy_from_slice(&f16::from_f32(step).to_le_bytes());
    for (level, &x) in levels.iter_mut().zip(values) {
        *level = nearest(x * inverse) as i8 as u8;
    }
}

/// Rounded to nearest, halves away from zero, as C's `roundf`: exact, as no sum is rounded.
#[inline(always)]
fn nearest(x: f32) -> i32 {
    let whole = x as i32;
    let rest = x - whole as f32;
    whole + i32::from(rest >= 0.5) - i32::from(rest <= -0.5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mmx_converters::random::SplitMix64;

    fn by_ggml(values: &[f32]) -> Vec<u8> {
        let mut out = vec![0; values.len() / BLOCK * BLOCK_BYTES];
        // SAFETY: one row of whole blocks, and room for exactly their bytes.
        unsafe {
            llama_cpp_sys_2::ggml_quantize_chunk(
                llama_cpp_sys_2::GGML_TYPE_Q8_0,
                values.as_ptr(),
                out.as_mut_ptr().cast(),
                0,
                1,
                values.len() as i64,
                std::ptr::null(),
            );
        }
        out
    }

    #[test]
    fn the_bytes_are_ggmls() {
        let mut rng = SplitMix64::new(8);
        let mut values: Vec<f32> =
            (0..4000 * BLOCK).map(|_| (rng.next_f64() - 0.5) as f32).collect();
        for (i, block) in values.chunks_mut(BLOCK).enumerate() {
            match i % 8 {
                0 => block.fill(0.0),
                1 => block.iter_mut().skip(1).for_each(|x| *x = 0.0),
                2 => block.iter_mut().for_each(|x| *x *= 1e-36),
                3 => block.iter_mut().for_each(|x| *x *= 1e-4),
                // halves, exactly and next to it
                4 => {
                    let halves = (0..).map(|level| level as f32 - 15.5);
                    block.iter_mut().zip(halves).for_each(|(x, half)| *x = half);
                    block[0] = 127.0;
                    for x in &mut block[8..20] {
                        *x = if i % 16 == 4 { x.next_up() } else { x.next_down() };
                    }
                }
                5 => block.iter_mut().for_each(|x| *x = x.signum()), // ties for the largest
                6 => block.iter_mut().for_each(|x| *x = x.powi(7) * 1e4),
                _ => {}
            }
        }
        let expected = by_ggml(&values);
        let mut found = vec![1; expected.len()];
        quantize(&values, &mut found);
        assert!(found == expected, "as this CPU can");
        found.fill(1);
        blocks(&values, &mut found);
        assert!(found == expected, "as any CPU can");
    }

    #[test]
    fn blocks_too_small_for_a_scale_are_zeros() {
        let mut out = [1; BLOCK_BYTES];
        quantize(&[1e-40; BLOCK], &mut out);
        assert_eq!(out, [0; BLOCK_BYTES]);
    }
}
