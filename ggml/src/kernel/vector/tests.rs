#![expect(unsafe_code, reason = "vector instructions")]

use half::{bf16, f16};
use mmx_converters::random::SplitMix64;

use super::*;

/// Sixteen numbers as one would write it down.
#[derive(Clone, Copy)]
struct Plain([f32; LANES]);

impl Plain {
    fn each(f: impl Fn(usize) -> f32) -> Self {
        Self(std::array::from_fn(f))
    }

    /// Halves onto halves.
    fn folded(self, f: impl Fn(f32, f32) -> f32) -> f32 {
        let mut numbers = self.0;
        for apart in [8, 4, 2, 1] {
            for i in 0..apart {
                numbers[i] = f(numbers[i], numbers[i + apart]);
            }
        }
        numbers[0]
    }
}

// SAFETY (of every block): memory is there, as the trait says.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one reason for all of them, above")]
impl Lanes for Plain {
    unsafe fn splat(x: f32) -> Self {
        Self([x; LANES])
    }
    unsafe fn load(from: *const f32) -> Self {
        Self::each(|i| unsafe { from.add(i).read_unaligned() })
    }
    unsafe fn load_f16(from: *const u8) -> Self {
        Self::each(|i| unsafe { from.cast::<f16>().add(i).read_unaligned().to_f32() })
    }
    unsafe fn load_bf16(from: *const u8) -> Self {
        Self::each(|i| unsafe { from.cast::<bf16>().add(i).read_unaligned().to_f32() })
    }
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    unsafe fn add(self, other: Self) -> Self {
        Self::each(|i| self.0[i] + other.0[i])
    }
    unsafe fn sub(self, other: Self) -> Self {
        Self::each(|i| self.0[i] - other.0[i])
    }
    unsafe fn mul(self, other: Self) -> Self {
        Self::each(|i| self.0[i] * other.0[i])
    }
    unsafe fn max(self, other: Self) -> Self {
        Self::each(|i| if self.0[i] > other.0[i] { self.0[i] } else { other.0[i] })
    }
    unsafe fn mul_add(self, factor: Self, sum: Self) -> Self {
        Self::each(|i| self.0[i].mul_add(factor.0[i], sum.0[i]))
    }
    unsafe fn round(self) -> Self {
        Self::each(|i| self.0[i].round_ties_even())
    }
    unsafe fn scale(self, n: Self) -> Self {
        Self::each(|i| self.0[i] * n.0[i].exp2())
    }
    unsafe fn first(self, n: usize) -> Self {
        Self::each(|i| if i < n { self.0[i] } else { 0.0 })
    }
    unsafe fn swap_pairs(self) -> Self {
        Self::each(|i| self.0[i ^ 1])
    }
    unsafe fn sums(of: [Self; 4]) -> [f32; 4] {
        of.map(|numbers| numbers.folded(|a, b| a + b))
    }
    unsafe fn largest(self) -> f32 {
        self.folded(f32::max)
    }
}

/// What every method gives for numbers `a`, `b`, `c` and some whole ones, as bits.
fn all<V: Lanes>([a, b, c]: [&[f32; LANES]; 3]) -> Vec<u32> {
    let whole = a.map(|x| -(x.abs() * 30.0).floor().min(126.0));
    let mut found = Vec::new();
    // SAFETY: only sets that this CPU has are asked for; 16 numbers are there.
    unsafe {
        let mut note = |x: V| {
            let mut numbers = [0f32; LANES];
            x.store(numbers.as_mut_ptr());
            found.extend(numbers.map(f32::to_bits));
        };
        let [x, y, z, n] = [a, b, c, &whole].map(|numbers| V::load(numbers.as_ptr()));
        for each in [
            x.add(y),
            x.sub(y),
            x.mul(y),
            x.max(y),
            x.mul_add(y, z),
            x.round(),
            z.scale(n),
            x.swap_pairs(),
            n.add(x.mul(V::splat(0.01))).max(n).sub(V::splat(1.0)).exp(),
        ] {
            note(each);
        }
        for count in 0..=LANES + 1 {
            note(x.first(count));
        }
        let numbers = V::sums([x, y, z, n]).into_iter().chain([y.sum(), x.largest()]);
        found.extend(numbers.map(f32::to_bits));
    }
    found
}

/// All numbers of 16 bits as float32, from float16 and from bfloat16; those that are none as 1.
fn wide<V: Lanes>() -> Vec<u32> {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let mut found = Vec::new();
    for sixteen in all.chunks(LANES) {
        let mut numbers = [[0f32; LANES]; 2];
        let [f16, bf16] = &mut numbers;
        // SAFETY: as in `all`.
        unsafe {
            V::load_f16(sixteen.as_ptr().cast()).store(f16.as_mut_ptr());
            V::load_bf16(sixteen.as_ptr().cast()).store(bf16.as_mut_ptr());
        }
        let bits = |x: &f32| if x.is_nan() { 1 } else { x.to_bits() };
        found.extend(numbers.as_flattened().iter().map(bits));
    }
    found
}

fn equals_its_plain_twin<V: Lanes>() {
    assert!(wide::<V>() == wide::<Plain>(), "float16 and bfloat16 are read as what they are");
    let mut rng = SplitMix64::new(3);
    for width in [1.0, 100.0, 1e30] {
        for _ in 0..100 {
            let mut random = || -> [f32; LANES] {
                std::array::from_fn(|_| ((rng.next_f64() - 0.5) * width) as f32)
            };
            let numbers = [random(), random(), random()];
            assert_eq!(all::<V>(numbers.each_ref()), all::<Plain>(numbers.each_ref()), "{width}");
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn every_set_computes_the_bits_of_its_plain_twin() {
    use crate::kernel::cpu::CpuSet;
    if CpuSet::Avx2.is_here() {
        equals_its_plain_twin::<Avx2>();
    }
    if CpuSet::Avx512.is_here() {
        equals_its_plain_twin::<Avx512>();
    }
}

#[cfg(target_arch = "aarch64")]
#[test]
fn neon_computes_the_bits_of_its_plain_twin() {
    equals_its_plain_twin::<Neon>();
}
