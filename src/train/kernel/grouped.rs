//! libtorch's product of rows grouped by matrix, which tch does not wrap.
#![expect(unsafe_code, reason = "calls into bridge.cpp")]

use std::ffi::{CStr, c_char, c_void};

use tch::{TchError, Tensor};

unsafe extern "C" {
    fn mmx_grouped_mm(
        a: *const c_void,
        b: *const c_void,
        ends: *const c_void,
        out: *mut *mut c_void,
    ) -> *mut c_char;
}

/// `a [rows, in]` times `b [groups, in, out]`, each row with its group's matrix: `[rows, out]`; or
/// `a [out, rows]` times `b [rows, in]`, summed within each group: `[groups, out, in]`. `ends`,
/// int32 `[groups]`: where each group's rows end. Without gradients; float32, bfloat16 or float16;
/// rows and columns begin at multiples of 16 bytes.
///
/// # Errors
/// libtorch's: sizes or types that do not fit.
pub(crate) fn grouped_mm(a: &Tensor, b: &Tensor, ends: &Tensor) -> Result<Tensor, TchError> {
    let mut out = std::ptr::null_mut();
    // SAFETY: live tensors; the place takes a new tensor, which is then ours.
    let error = unsafe {
        mmx_grouped_mm(a.as_ptr().cast(), b.as_ptr().cast(), ends.as_ptr().cast(), &raw mut out)
    };
    if error.is_null() {
        // SAFETY: without an error the C++ side has given a tensor away.
        return Ok(unsafe { Tensor::from_ptr(out.cast()) });
    }
    // SAFETY: a C string that the C++ side made with `strdup` and gave away.
    let message = unsafe {
        let message = CStr::from_ptr(error).to_string_lossy().into_owned();
        libc::free(error.cast());
        message
    };
    Err(TchError::Torch(message))
}
