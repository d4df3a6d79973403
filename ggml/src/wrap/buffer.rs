//! Memory for tensors: its kinds ([`BufferType`]), and the data of tensors in it ([`Buffer`]).
#![expect(unsafe_code, reason = "buffers are C objects")]

use std::ffi::c_void;
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;
use mmx_converters::gguf::Gguf;

use crate::error::{Error, Result};
use crate::wrap::context::Context;
use crate::wrap::log;
use crate::wrap::tensor::Tensor;

/// Where ggml wants a tensor's data to begin. Source: TENSOR_ALIGNMENT, ggml-backend.cpp.
pub(crate) const ALIGNMENT: usize = 32;

/// A kind of memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BufferType(sys::ggml_backend_buffer_type_t);

impl BufferType {
    /// Plain memory.
    pub(crate) fn cpu() -> Self {
        log::install();
        // SAFETY: returns a static object.
        Self(unsafe { sys::ggml_backend_cpu_buffer_type() })
    }

    pub(crate) fn from_raw(raw: sys::ggml_backend_buffer_type_t) -> Self {
        Self(raw)
    }

    pub(crate) fn raw(self) -> sys::ggml_backend_buffer_type_t {
        self.0
    }
}

/// The owner of tensors' data; freed when dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    ptr: NonNull<sys::ggml_backend_buffer>,
}

// SAFETY: a buffer is memory; reading it from several threads is sound, and it is written only
// through functions that take the tensor's owner mutably or before it is shared.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the pointer came from ggml and is freed once; tensors in it are not used
        // afterwards, since their owners keep context and buffer together.
        unsafe { sys::ggml_backend_buffer_free(self.ptr.as_ptr()) }
    }
}

impl Buffer {
    /// Memory for every tensor of `context` that has none; nothing when there is none to give.
    pub(crate) fn for_all(context: &Context, kind: BufferType) -> Result<Option<Self>> {
        // SAFETY: a live context and a static buffer type.
        let (ptr, said) = log::capture(|| unsafe {
            if sys::ggml_get_first_tensor(context.raw()).is_null() {
                return None;
            }
            Some(sys::ggml_backend_alloc_ctx_tensors_from_buft(context.raw(), kind.0))
        });
        match ptr.map(NonNull::new) {
            None => Ok(None),
            Some(Some(ptr)) => Ok(Some(Self { ptr })),
            Some(None) => Err(log::library_error("memory for tensors", said)),
        }
    }

    /// The own bytes of one of the files as memory for tensors, or nothing where they begin at an
    /// odd address (a file in memory).
    ///
    /// # Safety
    /// The tensors put there are weights, which nothing writes, and are not read once `gguf` is
    /// gone.
    pub(crate) unsafe fn of_file(gguf: &Gguf, part: usize) -> Result<Option<Self>> {
        let bytes = gguf.part(part);
        if bytes.as_ptr().align_offset(ALIGNMENT) != 0 {
            return Ok(None);
        }
        // SAFETY: the pointer is that of a live slice that does not move; the rest is this
        // function's own condition.
        let ptr = unsafe {
            sys::ggml_backend_cpu_buffer_from_ptr(
                bytes.as_ptr().cast_mut().cast::<c_void>(),
                bytes.len(),
            )
        };
        match NonNull::new(ptr) {
            Some(ptr) => Ok(Some(Self { ptr })),
            None => Err(log::library_error("memory for tensors", String::new())),
        }
    }

    /// Puts a tensor at `offset` of [`Buffer::of_file`]'s bytes, those of file `part`.
    pub(crate) fn place(
        &self,
        gguf: &Gguf,
        part: usize,
        tensor: Tensor<'_>,
        offset: usize,
    ) -> Result<()> {
        let bytes = gguf.part(part);
        let fits = bytes.get(offset..).is_some_and(|rest| {
            rest.len() >= tensor.bytes() && rest.as_ptr().align_offset(ALIGNMENT) == 0
        });
        if !fits {
            return Err(Error::Request {
                message: format!("a tensor of {} bytes at {offset} of the file", tensor.bytes()),
            });
        }
        // SAFETY: the range lies in the file and is aligned, as checked; ggml checks that it lies
        // in the buffer.
        let status = unsafe {
            let address = bytes.as_ptr().add(offset).cast_mut().cast::<c_void>();
            sys::ggml_backend_tensor_alloc(self.ptr.as_ptr(), tensor.raw(), address)
        };
        if status == sys::GGML_STATUS_SUCCESS {
            return Ok(());
        }
        Err(log::library_error("memory for tensors", format!("status {status}")))
    }

    /// Tells ggml's scheduler that operations are to be computed where these tensors lie.
    pub(crate) fn holds_weights(&self) {
        // SAFETY: sets a property of a live buffer.
        unsafe {
            sys::ggml_backend_buffer_set_usage(
                self.ptr.as_ptr(),
                sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS,
            );
        }
    }

    /// Fills all of the memory with zeros.
    pub(crate) fn clear(&mut self) {
        // SAFETY: a live buffer.
        unsafe { sys::ggml_backend_buffer_clear(self.ptr.as_ptr(), 0) }
    }
}

/// Copies a tensor's data in, all at once; memory of another order is filled in that order.
pub(crate) fn fill(tensor: Tensor<'_>, data: &[u8]) -> Result<()> {
    if tensor.bytes() != data.len() || !tensor.is_allocated() {
        return Err(Error::Request {
            message: format!("expected {} bytes of data, found {}", tensor.bytes(), data.len()),
        });
    }
    // SAFETY: the tensor has memory for exactly these bytes.
    unsafe { sys::ggml_backend_tensor_set(tensor.raw(), data.as_ptr().cast(), 0, data.len()) };
    Ok(())
}

/// Copies bytes of a tensor's data from `from` on.
pub(crate) fn read_bytes(tensor: Tensor<'_>, from: usize, bytes: &mut [u8]) -> Result<()> {
    check_range(tensor, from, bytes.len())?;
    // SAFETY: the tensor has memory and the range lies in it, as checked.
    unsafe {
        let data = bytes.as_mut_ptr().cast::<c_void>();
        sys::ggml_backend_tensor_get(tensor.raw(), data, from, bytes.len());
    }
    Ok(())
}

/// Copies bytes into a tensor's data from `to` on.
pub(crate) fn write_bytes(tensor: Tensor<'_>, to: usize, bytes: &[u8]) -> Result<()> {
    check_range(tensor, to, bytes.len())?;
    // SAFETY: the tensor has memory and the range lies in it, as checked.
    unsafe {
        let data = bytes.as_ptr().cast::<c_void>();
        sys::ggml_backend_tensor_set(tensor.raw(), data, to, bytes.len());
    }
    Ok(())
}

fn check_range(tensor: Tensor<'_>, from: usize, length: usize) -> Result<()> {
    let end = from.checked_add(length);
    if !tensor.is_allocated() || end.is_none_or(|end| end > tensor.bytes()) {
        return Err(Error::Request {
            message: format!("{length} bytes at {from} of a tensor of {} bytes", tensor.bytes()),
        });
    }
    Ok(())
}
