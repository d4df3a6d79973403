//! Devices besides the CPU (features `cuda`, `metal`, `vulkan`): what there is, and a graph's part on one.
#![expect(unsafe_code, reason = "devices are C objects")]

use std::ffi::{CStr, c_char};
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use crate::error::{Error, Result};
use crate::wrap::cpu::kernels;
use crate::wrap::log;
use crate::wrap::plan::BufferType;
use crate::wrap::tensor::Tensor;

/// A device that layers can be put on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// What [`crate::run::LoadOptions::device`] takes: `CUDA0`, `Vulkan0`.
    pub name: String,
    /// The maker's name for it.
    pub description: String,
    /// Memory, bytes.
    pub memory: u64,
    /// Memory nobody uses now, bytes.
    pub free: u64,
}

/// The devices there are, the best first as ggml counts. The first call starts their drivers.
///
/// # Errors
/// No kernels for the CPU: nothing can be computed then.
pub fn devices() -> Result<Vec<Device>> {
    Ok(all()?.into_iter().map(DeviceRef::describe).collect())
}

/// A device of ggml's, CPU or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceRef(NonNull<sys::ggml_backend_device>);

// SAFETY: devices are static objects, whose functions may be called from any thread.
unsafe impl Send for DeviceRef {}
// SAFETY: as above.
unsafe impl Sync for DeviceRef {}

fn all() -> Result<Vec<DeviceRef>> {
    kernels()?; // a dynamic build registers everything there
    let (found, _) = log::capture(|| {
        // SAFETY: indices below the count give static objects.
        unsafe {
            (0..sys::ggml_backend_dev_count())
                .filter_map(|i| DeviceRef::new(sys::ggml_backend_dev_get(i)))
                .filter(|device| {
                    let kind = sys::ggml_backend_dev_type(device.raw());
                    [sys::GGML_BACKEND_DEVICE_TYPE_GPU, sys::GGML_BACKEND_DEVICE_TYPE_IGPU]
                        .contains(&kind)
                })
                .collect()
        }
    });
    Ok(found)
}

impl DeviceRef {
    pub(crate) fn new(raw: sys::ggml_backend_dev_t) -> Option<Self> {
        NonNull::new(raw).map(Self)
    }

    /// The device of this name, or the first.
    pub(crate) fn find(name: Option<&str>) -> Result<Self> {
        let all = all()?;
        let known: Vec<String> = all.iter().map(|device| device.describe().name).collect();
        let at = match name {
            None => all.first(),
            Some(name) => {
                let at = known.iter().position(|known| known.eq_ignore_ascii_case(name));
                at.and_then(|at| all.get(at))
            }
        };
        at.copied().ok_or_else(|| Error::Request {
            message: format!(
                "device: expected {}, found {}",
                if known.is_empty() {
                    "one (mmx was built without cuda, metal and vulkan, or their drivers see none)"
                        .to_owned()
                } else {
                    format!("one of {}", known.join(", "))
                },
                name.unwrap_or("none")
            ),
        })
    }

    pub(crate) fn describe(self) -> Device {
        let text = |ptr: *const c_char| {
            if ptr.is_null() {
                return String::new();
            }
            // SAFETY: ggml's names are strings that live as long as the device.
            unsafe { CStr::from_ptr(ptr) }.to_string_lossy().into_owned()
        };
        // SAFETY: a live device; the two numbers are variables here.
        unsafe {
            let (mut free, mut total) = (0, 0);
            sys::ggml_backend_dev_memory(self.raw(), &mut free, &mut total);
            Device {
                name: text(sys::ggml_backend_dev_name(self.raw())),
                description: text(sys::ggml_backend_dev_description(self.raw())),
                memory: total as u64,
                free: free as u64,
            }
        }
    }

    /// The device's own memory.
    pub(crate) fn memory(self) -> BufferType {
        // SAFETY: a live device; its kinds of memory are static.
        BufferType::from_raw(unsafe { sys::ggml_backend_dev_buffer_type(self.raw()) })
    }

    /// True when the device can compute `op` with its operand number `operand`, which has no memory yet, in
    /// memory of this kind.
    pub(crate) fn supports(self, op: Tensor<'_>, operand: usize, kind: BufferType) -> bool {
        // SAFETY: op and its operand are live tensors without memory, which one thread holds; the operand gets an
        // empty buffer for the question and loses it again.
        unsafe {
            let tensor = (*op.raw()).src[operand];
            if tensor.is_null() {
                return false;
            }
            let buffer = sys::ggml_backend_buft_alloc_buffer(kind.raw(), 0);
            if buffer.is_null() {
                return false;
            }
            (*tensor).buffer = buffer;
            let answer = sys::ggml_backend_dev_supports_op(self.raw(), op.raw());
            (*tensor).buffer = std::ptr::null_mut();
            sys::ggml_backend_buffer_free(buffer);
            answer
        }
    }

    /// A stream of work on the device.
    pub(crate) fn start(self) -> Result<Stream> {
        // SAFETY: a live device; no parameters.
        let (ptr, said) =
            log::capture(|| unsafe { sys::ggml_backend_dev_init(self.raw(), std::ptr::null()) });
        NonNull::new(ptr).map(Stream).ok_or_else(|| log::library_error(self.describe().name, said))
    }

    pub(crate) fn raw(self) -> sys::ggml_backend_dev_t {
        self.0.as_ptr()
    }
}

/// What graphs are given to: a device's queue, or the CPU with its scratch memory.
#[derive(Debug)]
pub(crate) struct Stream(NonNull<sys::ggml_backend>);

// SAFETY: used by one thread at a time, the one that holds the owner's graphs mutably.
unsafe impl Send for Stream {}
// SAFETY: as above; what is shared are names.
unsafe impl Sync for Stream {}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the pointer came from ggml_backend_dev_init; nothing is being computed.
        unsafe { sys::ggml_backend_free(self.0.as_ptr()) }
    }
}

impl Stream {
    pub(crate) fn raw(&self) -> sys::ggml_backend_t {
        self.0.as_ptr()
    }
}

/// Where the layers of a model lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Split {
    /// The device beside the CPU.
    pub(crate) device: DeviceRef,
    /// The first layer on it; the output matrix counts as the layer after the last.
    pub(crate) first_layer: usize,
}

/// A device and the CPU, between which ggml's scheduler divides graphs.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) device: Stream,
    pub(crate) cpu: Stream,
}

impl Pair {
    pub(crate) fn start(device: DeviceRef) -> Result<Self> {
        Ok(Self { device: device.start()?, cpu: kernels()?.device.start()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_named() {
        let message = DeviceRef::find(Some("Abacus7")).unwrap_err().to_string();
        assert!(message.ends_with("found Abacus7"), "{message}");
        for device in devices().unwrap() {
            let found = DeviceRef::find(Some(&device.name.to_lowercase())).unwrap();
            assert_eq!(found.describe().name, device.name);
        }
    }
}
