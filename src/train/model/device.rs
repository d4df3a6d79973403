//! Where to compute: by name, or the best device present.
#![expect(
    unsafe_code,
    reason = "libtorch's CUDA part is loaded when it is asked for, through dlopen, and asked through dlsym"
)]

use std::collections::BTreeMap;
use std::sync::{Mutex, Once, PoisonError};

use mmx_converters::words::counted;
use tch::{Cuda, Device, TchError, Tensor};

use crate::error::{Error, Result, TorchError};
use crate::kernel;

/// The device called `name` (`cpu`, `cuda`, `cuda:1`, `mps`), or without a name the first CUDA
/// device, else the CPU. `mps`, the GPU of a Mac, is taken only by name.
///
/// # Errors
/// An unknown name, or a device that is not there.
pub fn pick(name: Option<&str>) -> Result<Device> {
    if name == Some("cpu") {
        return Ok(Device::Cpu);
    }
    if name == Some("mps") {
        return tch::utils::has_mps().then_some(Device::Mps).ok_or_else(|| {
            Error::failed_with_hint(
                "device mps: expected a Mac whose libtorch computes on its GPU, found none",
                "leave `device` out to use the best one present",
            )
        });
    }
    load_cuda();
    let found = Cuda::device_count();
    let device = match name {
        None | Some("auto") => Device::cuda_if_available(),
        Some("cuda") => Device::Cuda(0),
        Some(other) => match other.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
            Some(index) => Device::Cuda(index),
            None => {
                return Err(Error::setting("device", "auto, cpu, cuda, cuda:N or mps", other));
            }
        },
    };
    match device {
        Device::Cuda(index) if index as i64 >= found => Err(Error::failed_with_hint(
            format!("device cuda:{index}: expected fewer than {found}, the CUDA devices found"),
            "leave `device` out to use the best one present",
        )),
        device => Ok(device),
    }
}

/// Loads libtorch's CUDA part, which registers its kernels and devices by itself. The binary is not
/// linked with it: that costs every command 0.4 s and 470 MB, the runner's too (measured with the
/// CUDA 13 wheel). Where libtorch has no such part there are no CUDA devices, and nothing happens.
fn load_cuda() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: a constant string; the library's initializers are libtorch's own, and it is never
        // unloaded.
        unsafe { libc::dlopen(c"libtorch_cuda.so".as_ptr(), libc::RTLD_LAZY | libc::RTLD_GLOBAL) };
    });
}

/// A CUDA device's compute capability, major and minor; nothing where CUDA's runtime is not loaded
/// or does not say.
pub(crate) fn compute_capability(index: usize) -> Option<(i32, i32)> {
    static KNOWN: Mutex<BTreeMap<usize, Option<(i32, i32)>>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    *known.entry(index).or_insert_with(|| ask_capability(index))
}

#[cfg(unix)]
fn ask_capability(index: usize) -> Option<(i32, i32)> {
    use std::ffi::c_int;
    type GetAttribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
    // cudaDevAttrComputeCapabilityMajor and Minor (driver_types.h)
    const MAJOR: c_int = 75;
    const MINOR: c_int = 76;
    let device = c_int::try_from(index).ok()?;
    // SAFETY: a constant string; the default handle looks through what is loaded.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"cudaDeviceGetAttribute".as_ptr()) };
    if found.is_null() {
        return None;
    }
    // SAFETY: the function's type in all versions of CUDA's runtime (cuda_runtime_api.h).
    let get = unsafe { std::mem::transmute::<*mut libc::c_void, GetAttribute>(found) };
    let ask = |attribute| {
        let mut value = 0;
        // SAFETY: the pointer is to a local of that type.
        (unsafe { get(&raw mut value, attribute, device) } == 0).then_some(value)
    };
    Some((ask(MAJOR)?, ask(MINOR)?))
}

#[cfg(not(unix))]
fn ask_capability(_index: usize) -> Option<(i32, i32)> {
    None
}

/// A tensor of the host on a device. To CUDA it goes from page-locked memory, so that the host need
/// not wait for the copy: libtorch keeps such memory until the copy has been made.
///
/// # Errors
/// libtorch's.
pub(crate) fn upload(tensor: &Tensor, device: Device) -> Result<Tensor, TchError> {
    if !device.is_cuda() {
        return tensor.f_to_device(device);
    }
    // `f_pin_memory` warns on stderr, each time, that its device is given: tch gives it always
    match tensor.f_internal_pin_memory(device) {
        Ok(pinned) => pinned.f_to_device_(device, tensor.kind(), true, false),
        Err(_) => tensor.f_to_device(device), // no more of it can be locked
    }
}

/// What `--dtype auto` stands for: bf16 on CUDA and on CPUs where it is measured to be clearly
/// faster, else f32 (on a Mac's GPU, too, where nobody has measured it).
///
/// # Errors
/// libtorch's.
pub fn best_dtype(device: Device) -> Result<&'static str> {
    let bf16 = match device {
        Device::Cpu => {
            kernel::bf16_pays().map_err(|e| Error::torch("measuring products in bfloat16", &e))?
        }
        Device::Cuda(_) => true,
        _ => false,
    };
    Ok(if bf16 { "bf16" } else { "f32" })
}

/// The device in words, as commands name it.
pub fn describe(device: Device) -> String {
    match device {
        Device::Cpu => {
            let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1);
            format!("cpu ({})", counted(threads, "thread"))
        }
        Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_a_device_that_is_not_there_or_unknown() {
        assert_eq!(pick(Some("cpu")).expect("cpu"), Device::Cpu);
        assert!(pick(Some("tpu")).expect_err("unknown").is_misuse());
        let error = pick(Some("cuda:99")).expect_err("nobody has a hundred").to_string();
        assert!(error.starts_with("device cuda:99: expected fewer than "), "{error}");
        if !cfg!(target_os = "macos") {
            let error = pick(Some("mps")).expect_err("no Mac").to_string();
            assert!(error.starts_with("device mps: expected a Mac"), "{error}");
        }
    }
}
