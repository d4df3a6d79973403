//! float32 to Q6_K, the type of most output heads, sixteen sub-blocks at a time.
//!
//! ggml looks for each sub-block's scale among nineteen candidates, one value after another. The
//! sixteen sub-blocks of a block are independent, so here each is one lane of a vector. Every lane
//! does the same operations in the same order without contracting any, so the bytes are ggml's
//! (tested against it).

use half::f16;

/// Values in a block.
const BLOCK: usize = 256;
/// Sub-blocks in a block, and values in a sub-block.
const LANES: usize = 16;
/// Bytes of a block: low four bits, high two bits, scales, the scale of scales.
const BLOCK_BYTES: usize = BLOCK / 2 + BLOCK / 4 + LANES + 2;
/// Quantized values are -32 to 31.
const LARGEST: f32 = 32.0;
/// Groups smaller than this are zero. Source: ggml-quants.c, GROUP_MAX_EPS.
const SMALLEST: f32 = 1e-15;

type Lanes = [f32; LANES];

/// Quantizes whole blocks; `out` takes 210 bytes for each 256 of `values`.
pub(super) fn quantize(values: &[f32], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512dq") {
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
#[target_feature(enable = "avx512f,avx512dq")]
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

/// Rounded to nearest, ties to even, by adding 1.5 * 2^23: exact below 2^22, and the same bits as
/// ggml's beyond.
#[inline(always)]
fn nearest(x: f32) -> i32 {
    ((x + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

#[inline(always)]
fn level(x: f32) -> i32 {
    nearest(x).clamp(-32, 31)
}

#[inline(always)]
fn block(values: &[f32; BLOCK], out: &mut [u8; BLOCK_BYTES]) {
    let mut columns = [[0f32; LANES]; LANES]; // columns[i][lane]: value i of sub-block `lane`
    for (lane, group) in values.as_chunks::<LANES>().0.iter().enumerate() {
        for (i, &x) in group.iter().enumerate() {
            columns[i][lane] = x;
        }
    }
    let (scales, inverses) = scales(&columns);
    let mut largest = 0f32;
    for scale in scales {
        if scale.abs() > largest.abs() {
            largest = scale;
        }
    }
    out.fill(0);
    if largest.abs() < SMALLEST {
        return;
    }
    let inverse = -128.0 / largest;
    let d = f16::from_f32(1.0 / inverse);
    let small = scales.map(|scale| nearest(inverse * scale).min(127) as i8);

    let mut levels = [0u8; BLOCK]; // 0 to 63, in the order of `values`
    for (lane, group) in levels.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let step = d.to_f32() * f32::from(small[lane]);
        for (i, level_) in group.iter_mut().enumerate() {
            let x = columns[i][lane];
            *level_ = match (step == 0.0, inverses[lane] == 0.0) {
                (false, _) => (level(x / step) + 32) as u8,
                // a scale that rounds to nothing keeps the levels of the search, where there was
                // one
                (true, false) => (level(inverses[lane] * x) + 32) as u8,
                (true, true) => 0,
            };
        }
    }
    let (low, rest) = out.split_at_mut(BLOCK / 2);
    let (high, rest) = rest.split_at_mut(BLOCK / 4);
    for half in 0..2 {
        let q = &levels[128 * half..128 * (half + 1)];
        for l in 0..32 {
            low[64 * half + l] = (q[l] & 15) | (q[l + 64] & 15) << 4;
            low[64 * half + l + 32] = (q[l + 32] & 15) | (q[l + 96] & 15) << 4;
            high[32 * half + l] =
                q[l] >> 4 | q[l + 32] >> 4 << 2 | q[l + 64] >> 4 << 4 | q[l + 96] >> 4 << 6;
        }
    }
    rest[..LANES].copy_from_slice(&small.map(|scale| scale as u8));
    rest[LANES..].copy_from_slice(&d.to_le_bytes());
}

/// The scale of each sub-block with the least squared error, weighted by the values' squares, and
/// what the search multiplied by to reach it.
#[inline(always)]
fn scales(columns: &[Lanes; LANES]) -> (Lanes, Lanes) {
    let (mut largest, mut magnitude) = ([0f32; LANES], [0f32; LANES]);
    for column in columns {
        for lane in 0..LANES {
            let x = column[lane];
            let larger = x.abs() > magnitude[lane];
            magnitude[lane] = if larger { x.abs() } else { magnitude[lane] };
            largest[lane] = if larger { x } else { largest[lane] };
        }
    }
    let inverse_of = |target: f32| largest.map(|largest| -target / largest);
    let mut inverses = inverse_of(LARGEST);
    let (sums, squares) = fit(columns, &inverses);
    let (mut scales, mut best) = ([0f32; LANES], [0f32; LANES]);
    for lane in 0..LANES {
        scales[lane] = if squares[lane] == 0.0 { 0.0 } else { sums[lane] / squares[lane] };
        best[lane] = scales[lane] * sums[lane];
    }
    for step in (-9i8..=9).filter(|&step| step != 0) {
        let tried = inverse_of(LARGEST + 0.1 * f32::from(step));
        let (sums, squares) = fit(columns, &tried);
        for lane in 0..LANES {
            let (sum, square) = (sums[lane], squares[lane]);
            let better = (square > 0.0) & (sum * sum > best[lane] * square);
            let scale = sum / square;
            scales[lane] = if better { scale } else { scales[lane] };
            best[lane] = if better { scale * sum } else { best[lane] };
            inverses[lane] = if better { tried[lane] } else { inverses[lane] };
        }
    }
    for lane in 0..LANES {
        if magnitude[lane] < SMALLEST {
            (scales[lane], inverses[lane]) = (0.0, 0.0);
        }
    }
    (scales, inverses)
}

/// Weighted sums of value times level and of level squared.
#[inline(always)]
fn fit(columns: &[Lanes; LANES], inverses: &Lanes) -> (Lanes, Lanes) {
    let (mut sums, mut squares) = ([0f32; LANES], [0f32; LANES]);
    for column in columns {
        for lane in 0..LANES {
            let x = column[lane];
            let level = level(inverses[lane] * x) as f32;
            let weight = x * x;
            sums[lane] += weight * x * level;
            squares[lane] += weight * level * level;
        }
    }
    (sums, squares)
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
                llama_cpp_sys_2::GGML_TYPE_Q6_K,
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
        let mut rng = SplitMix64::new(6);
        let mut values: Vec<f32> =
            (0..400 * BLOCK).map(|_| (rng.next_f64() - 0.5) as f32).collect();
        for (i, block) in values.chunks_mut(BLOCK).enumerate() {
            match i % 8 {
                0 => block.fill(0.0),
                1 => block[..LANES * 3].fill(0.0), // some lanes empty
                2 => block.iter_mut().skip(1).for_each(|x| *x = 0.0),
                3 => block.iter_mut().for_each(|x| *x *= 1e-20),
                // lanes so small beside the rest that their scale rounds to nothing
                4 => block[LANES..].iter_mut().for_each(|x| *x *= 1e-4),
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
}
