//! llama.cpp itself as judge: what it makes of the same file.
#![expect(unsafe_code, reason = "llama.cpp's interface is C")]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use llama_cpp_sys_2 as sys;

use crate::error::{Error, Result};
use crate::file_type::FileType;
use crate::log;

/// A path as a C string.
fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::Request {
        message: format!("{}: a path with a zero byte", path.display()),
    })
}

/// llama-quantize: `input` (f32, f16 or bf16) to `output` of the type `file`, on `threads` threads.
///
/// # Errors
/// What llama.cpp says.
pub fn quantize_file(input: &Path, output: &Path, file: FileType, threads: usize) -> Result<()> {
    let (c_input, c_output) = (c_path(input)?, c_path(output)?);
    let (code, said) = log::capture(|| {
        // SAFETY: both strings live during the call; the parameters are the library's defaults with
        // three numbers changed, so every pointer in them is null.
        unsafe {
            let mut params = sys::llama_model_quantize_default_params();
            params.ftype = file.id() as sys::llama_ftype;
            params.nthread = threads as i32;
            sys::llama_model_quantize(c_input.as_ptr(), c_output.as_ptr(), &params)
        }
    });
    if code == 0 {
        return Ok(());
    }
    Err(log::library_error(format!("{}: llama.cpp cannot quantize it", input.display()), said))
}
