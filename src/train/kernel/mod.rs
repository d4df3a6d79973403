//! Kernels of our own for training on the CPU: operators that libtorch computes in many passes over
//! memory, in one each.
//!
//! In and out: contiguous float32 or bfloat16 tensors on the CPU; everything is computed in
//! float32. Every operator is differentiable ([`crate::kernel::autograd`]). Work is cut into parts
//! that do not depend on the number of threads, and each sum has one order: the same input gives
//! the same bits.

mod attention;
pub(crate) mod autograd;
mod cross_entropy;
mod element;
mod grouped;
mod matmul;
mod memory;
mod norm;
pub(crate) mod orthogonal;
mod parallel;
mod rope;
mod scores;
mod swiglu;

pub(crate) use attention::attention;
pub(crate) use cross_entropy::cross_entropy_and_gradient;
pub(crate) use grouped::grouped_mm;
pub(crate) use matmul::{add_mm, linear, linears, mm};
pub(crate) use norm::{add_norm, norm};
pub(crate) use parallel::parallel;
pub(crate) use rope::rope;
pub(crate) use scores::{Scores, scores, scores_gradient};
pub(crate) use swiglu::swiglu;

#[cfg(test)]
pub(crate) use memory::testing;

use std::sync::LazyLock;

use tch::{Device, Kind, TchError, Tensor};

/// The elements of a contiguous float32 tensor on the CPU, row-major.
pub(crate) fn floats(tensor: &Tensor) -> Result<&[f32], TchError> {
    memory::read(tensor)
}

/// Whether the kernels can take these tensors.
pub(crate) fn takes(tensors: &[&Tensor]) -> bool {
    let float = |kind| matches!(kind, Kind::Float | Kind::BFloat16);
    tensors.iter().all(|t| t.device() == Device::Cpu && float(t.kind()))
}

/// Whether matrix products of these tensors are best computed in float32, by [`linear`], [`mm`] and
/// [`add_mm`]: those of float32 always, those of bfloat16 where the CPU has no faster instructions
/// for them. The answer depends on the CPU alone, so a resumed run computes as it began.
pub(crate) fn takes_products(tensors: &[&Tensor]) -> bool {
    takes(tensors) && (tensors.iter().all(|t| t.kind() == Kind::Float) || !*FAST_BF16)
}

/// Whether bfloat16 is worth its rounding on this CPU: its products are measured beside float32's
/// where the CPU has fast ones, and must take two thirds of the time at most.
///
/// # Errors
/// libtorch's: no memory for a few megabytes.
pub(crate) fn bf16_pays() -> Result<bool, TchError> {
    if !*FAST_BF16 {
        return Ok(false);
    }
    let float = |size: [i64; 2]| Tensor::f_randn(size, (Kind::Float, Device::Cpu));
    let (x, weight) = (float([1024, 512])?, float([1408, 512])?);
    let (x_bf16, weight_bf16) = (x.f_to_kind(Kind::BFloat16)?, weight.f_to_kind(Kind::BFloat16)?);
    let seconds = |matmul: &dyn Fn() -> Result<Tensor, TchError>| {
        let begun = std::time::Instant::now();
        matmul().map(|_| begun.elapsed().as_secs_f64())
    };
    // in turns, so that another process that slows some rounds slows both
    let (mut in_float, mut in_bf16) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..9 {
        in_float = in_float.min(seconds(&|| linear(&x, &weight))?);
        in_bf16 = in_bf16.min(seconds(&|| x_bf16.f_linear(&weight_bf16, None::<Tensor>))?);
    }
    Ok(in_bf16 < in_float * 2.0 / 3.0)
}

/// Intel's AVX-512 BF16 does as many operations per cycle as float32 and needs its operands
/// interleaved: measured on a CPU with it and without AMX, 2048 x 512 x 1408 on one thread, 86
/// GFLOP/s by oneDNN in bfloat16 against 171 in float32. AMX does 16 times as many, AMD's AVX-512
/// BF16 twice as many.
static FAST_BF16: LazyLock<bool> = LazyLock::new(|| {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__cpuid, __cpuid_count, __get_cpuid_max};
        let (most, _) = __get_cpuid_max(0);
        if most < 7 {
            return false;
        }
        let vendor = __cpuid(0);
        let amd = vendor.ebx.to_le_bytes() == *b"Auth";
        let (features, more) = (__cpuid_count(7, 0), __cpuid_count(7, 1));
        let (amx_bf16, avx512_bf16) = (features.edx >> 22 & 1 == 1, more.eax >> 5 & 1 == 1);
        amx_bf16 || (amd && avx512_bf16)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        true
    }
});
