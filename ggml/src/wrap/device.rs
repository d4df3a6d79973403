//! A device of ggml's, the CPU or another (features `cuda`, `metal`, `vulkan`), and the stream of
//! work on it.
#![expect(unsafe_code, reason = "devices are C objects")]

use std::ffi::{CStr, c_char};
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use crate::error::Result;
use crate::wrap::buffer::BufferType;
use crate::wrap::log;
use crate::wrap::tensor::Tensor;

/// A device that layers can be put on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The name that [`crate::run::LoadOptions::device`] takes: `CUDA0`, `Vulkan0`.
    pub name: String,
    /// The maker's name for it.
    pub description: String,
    /// Memory, bytes.
    pub memory: u64,
    /// Memory nobody uses now, bytes.
    pub free: u64,
}

/// A device of ggml's, CPU or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceRef(NonNull<sys::ggml_backend_device>);

// SAFETY: devices are static objects, whose functions may be called from any thread.
unsafe impl Send for DeviceRef {}
// SAFETY: as above.
unsafe impl Sync for DeviceRef {}

impl DeviceRef {
    pub(crate) fn new(raw: sys::ggml_backend_dev_t) -> Option<Self> {
        NonNull::new(raw).map(Self)
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

    /// True when the device can compute `op` with its operand number `operand`, which has no memory
    /// yet, in memory of this kind.
    pub(crate) fn supports(self, op: Tensor<'_>, operand: usize, kind: BufferType) -> bool {
        // SAFETY: op and its operand are live tensors without memory, which one thread holds; the
        // operand gets an empty buffer for the question and loses it again.
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

/// A stream of work that graphs are given to: a device's queue, or the CPU with its scratch memory.
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
