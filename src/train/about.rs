//! The means of training on this machine: libtorch and a device.

use std::path::Path;

use crate::model::device;

/// Whether the kernels of training run on this CPU: they are compiled for the one that builds them, or,
/// in packages, for any with AVX2 and FMA (without which they take eight times as long).
#[must_use]
pub fn runs_here() -> bool {
    #[cfg(all(target_arch = "x86_64", target_feature = "avx2", target_feature = "fma"))]
    {
        // asked of the CPU itself: is_x86_feature_detected! answers by what was compiled for
        use std::arch::x86_64::{__cpuid, __cpuid_count, __get_cpuid_max};
        let (most, _) = __get_cpuid_max(0);
        let fma = most >= 1 && __cpuid(1).ecx >> 12 & 1 == 1;
        let avx2 = most >= 7 && __cpuid_count(7, 0).ebx >> 5 & 1 == 1;
        fma && avx2
    }
    #[cfg(not(all(target_arch = "x86_64", target_feature = "avx2", target_feature = "fma")))]
    true
}

/// libtorch's version, and where it lies.
pub fn libtorch() -> String {
    // by now the library is loaded; where from, the system knows
    let maps = fs_err::read_to_string("/proc/self/maps").unwrap_or_default();
    let line = maps.lines().find(|line| line.contains("libtorch_cpu."));
    let file = line.and_then(|line| Some(line[line.find('/')?..].to_owned()));
    let folder =
        file.as_deref().and_then(|file| Some(Path::new(file).parent()?.parent()?.to_owned()));
    let version = folder
        .as_ref()
        .and_then(|folder| fs_err::read_to_string(folder.join("build-version")).ok())
        .map_or_else(|| "2.11".to_owned(), |text| text.trim().to_owned());
    let place = folder.map_or_else(String::new, |folder| format!(" in {}", folder.display()));
    format!("{version}{place}")
}

/// The best device, in words.
///
/// # Errors
/// See [`device::pick`].
pub fn device() -> crate::Result<String> {
    Ok(device::describe(device::pick(None)?))
}
