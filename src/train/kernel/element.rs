//! float32 and bfloat16 elements, rows of them, and a vectorizable exponential.

use half::bf16;
use tch::Kind;

/// The element type of a tensor that a kernel reads and writes.
pub(super) trait Element: Copy + Send + Sync + 'static {
    /// libtorch's name of the type.
    const KIND: Kind;
    /// The element's value.
    fn get(self) -> f32;
    /// The nearest element to a value; ties to even.
    fn of(value: f32) -> Self;
}

impl Element for f32 {
    const KIND: Kind = Kind::Float;
    fn get(self) -> f32 {
        self
    }
    fn of(value: f32) -> Self {
        value
    }
}

impl Element for bf16 {
    const KIND: Kind = Kind::BFloat16;
    fn get(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    /// Without a branch, so that loops over it become vector instructions.
    fn of(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = if value.is_nan() { 0x7fc0 } else { rounded };
        Self::from_bits(quiet as u16)
    }
}

/// Reads `row` as float32.
pub(super) fn load<T: Element>(row: &[T], into: &mut [f32]) {
    for (to, from) in into.iter_mut().zip(row) {
        *to = from.get();
    }
}

/// Writes float32 values, rounded to the row's type.
pub(super) fn store<T: Element>(from: &[f32], row: &mut [T]) {
    for (to, &from) in row.iter_mut().zip(from) {
        *to = T::of(from);
    }
}

/// The number of lanes in which sums run.
pub(super) const LANES: usize = 16;

/// Sum of products, in a fixed order.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for i in 0..LANES {
            sums[i] = a[i].mul_add(b[i], sums[i]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// The largest value; negative infinity of none.
pub(super) fn largest(row: &[f32]) -> f32 {
    let (lanes, rest) = row.as_chunks::<LANES>();
    let mut most = [f32::NEG_INFINITY; LANES];
    for lane in lanes {
        for i in 0..LANES {
            most[i] = if lane[i] > most[i] { lane[i] } else { most[i] };
        }
    }
    most.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

/// Replaces each x by exp(x - `shift`) and gives their sum.
pub(super) fn exp_all(row: &mut [f32], shift: f32) -> f32 {
    let (lanes, rest) = row.as_chunks_mut::<LANES>();
    let mut sums = [0.0f32; LANES];
    for lane in lanes {
        for i in 0..LANES {
            lane[i] = exp(lane[i] - shift);
            sums[i] += lane[i];
        }
    }
    let mut sum = sums.iter().sum::<f32>();
    for x in rest {
        *x = exp(*x - shift);
        sum += *x;
    }
    sum
}

/// e^x to 2 units in the last place; 0 below -87.3, infinity above 88.7, NaN of NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 7 (the remainder is
/// below 6e-9), 2^n by the exponent's bits.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    /// ln 2 in two parts, the first with so few bits that n times it is exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// Added to a small number, leaves its nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    let bounded = x.clamp(-88.0, 89.0); // keeps NaN
    let shifted = bounded.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, bounded));
    let mut p = 1.0 / 5040.0;
    p = f32::mul_add(p, r, 1.0 / 720.0);
    p = f32::mul_add(p, r, 1.0 / 120.0);
    p = f32::mul_add(p, r, 1.0 / 24.0);
    p = f32::mul_add(p, r, 1.0 / 6.0);
    p = f32::mul_add(p, r, 0.5);
    p = f32::mul_add(p, r, 1.0);
    p = f32::mul_add(p, r, 1.0);
    // 2^n in two factors: n reaches 128, which alone has no float
    let whole = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = whole >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    let value = p * power(half) * power(whole - half);
    if x < -87.3 { 0.0 } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_two_units_and_right_at_the_ends() {
        for i in -87_000..88_700 {
            let x = i as f32 * 1e-3;
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((found / expected - 1.0).abs() < 2.5e-7, "{x}: {found:e} {expected:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn bfloat16_is_rounded_as_the_half_crate_rounds() {
        for bits in (0..=u32::MAX).step_by(65_521 / 3) {
            let value = f32::from_bits(bits);
            let (ours, theirs) = (<bf16 as Element>::of(value), bf16::from_f32(value));
            assert!(ours == theirs || (ours.is_nan() && theirs.is_nan()), "{value:e}");
        }
    }

    #[test]
    fn sums_and_maxima_take_every_element() {
        let row: Vec<f32> = (0..37).map(|i| i as f32 - 20.0).collect();
        assert_eq!(dot(&row, &[1.0; 37]), row.iter().sum::<f32>());
        assert_eq!(largest(&row), 16.0);
        assert_eq!(largest(&row[..3]), -18.0);
        let mut row = vec![1.0f32; 37];
        assert_eq!(exp_all(&mut row, 1.0), 37.0);
        assert!(row.iter().all(|&x| x == 1.0));
    }
}
