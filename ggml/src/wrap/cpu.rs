//! The CPU's kernels: linked into the program, or (feature `dynamic`) those of the shared library
//! that ggml chooses for this CPU when they are first needed.
//!
//! In that case they lie in the folder `mmx` beside ggml's own library, or where `MMX_BACKENDS`
//! says. All functions are reached through ggml's registry, so that both kinds of build are the
//! same code.
#![expect(unsafe_code, reason = "ggml's registry hands out C functions")]

use std::ffi::CStr;
use std::sync::OnceLock;

use llama_cpp_sys_2 as sys;

use crate::error::{Error, Result};
use crate::wrap::buffer::BufferType;
use crate::wrap::device::DeviceRef;
use crate::wrap::log;

type NewPool = unsafe extern "C" fn(*mut sys::ggml_threadpool_params) -> *mut sys::ggml_threadpool;
type FreePool = unsafe extern "C" fn(*mut sys::ggml_threadpool);
type SetPool = unsafe extern "C" fn(sys::ggml_backend_t, *mut sys::ggml_threadpool);
type SetThreads = unsafe extern "C" fn(sys::ggml_backend_t, i32);
type ExtraTypes =
    unsafe extern "C" fn(sys::ggml_backend_dev_t) -> *mut sys::ggml_backend_buffer_type_t;
type Features = unsafe extern "C" fn(sys::ggml_backend_reg_t) -> *mut sys::ggml_backend_feature;

/// The CPU as a device, and those of its functions that ggml-base does not have.
#[derive(Debug)]
pub(crate) struct Kernels {
    registry: sys::ggml_backend_reg_t,
    pub(crate) device: DeviceRef,
    pub(crate) new_pool: NewPool,
    pub(crate) free_pool: FreePool,
    pub(crate) set_pool: SetPool,
    pub(crate) set_threads: SetThreads,
    extra: Option<ExtraTypes>,
    features: Option<Features>,
}

// SAFETY: static objects and functions of ggml.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

/// The kernels, found at the first call.
///
/// # Errors
/// No library with kernels for this CPU, which only a `dynamic` build can lack.
pub(crate) fn kernels() -> Result<&'static Kernels> {
    static FOUND: OnceLock<std::result::Result<Kernels, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let (registry, said) = log::capture(registry);
        find(registry?).ok_or_else(|| format!("ggml's CPU backend lacks a function; {said}"))
    });
    found.as_ref().map_err(|message| Error::Library {
        doing: "kernels for this CPU".to_owned(),
        message: message.clone(),
    })
}

/// The CPU's entry in ggml's registry.
#[cfg(not(feature = "dynamic"))]
#[expect(clippy::unnecessary_wraps, reason = "the dynamic twin can fail")]
fn registry() -> std::result::Result<sys::ggml_backend_reg_t, String> {
    // SAFETY: returns a static object. Asked for directly: the registry would start every device
    // there is.
    Ok(unsafe { sys::ggml_backend_cpu_reg() })
}

/// The CPU's entry in ggml's registry, after everything in the folder has been registered.
#[cfg(feature = "dynamic")]
fn registry() -> std::result::Result<sys::ggml_backend_reg_t, String> {
    use std::os::unix::ffi::OsStrExt;
    let folder = folder()?;
    let c = std::ffi::CString::new(folder.as_os_str().as_bytes())
        .map_err(|_| format!("{}: a path with a zero byte", folder.display()))?;
    // SAFETY: strings that live during the calls; ggml keeps what it loads for good.
    let registry = unsafe {
        sys::ggml_backend_load_all_from_path(c.as_ptr());
        sys::ggml_backend_reg_by_name(c"CPU".as_ptr())
    };
    if registry.is_null() {
        return Err(format!(
            "expected libraries ggml-cpu-* in {}, found none for this CPU; MMX_BACKENDS says where they are",
            folder.display()
        ));
    }
    Ok(registry)
}

/// Where the kernels' libraries lie.
#[cfg(feature = "dynamic")]
fn folder() -> std::result::Result<std::path::PathBuf, String> {
    if let Some(folder) = std::env::var_os("MMX_BACKENDS") {
        return Ok(folder.into());
    }
    let base = file_of(sys::ggml_init as *const std::ffi::c_void)
        .ok_or("the system does not say where ggml's library is; MMX_BACKENDS says it")?;
    let real = fs_err::canonicalize(&base).map_err(|e| e.to_string())?;
    Ok(real.with_file_name("mmx"))
}

/// The file that a function or object was loaded from.
#[cfg(feature = "dynamic")]
fn file_of(address: *const std::ffi::c_void) -> Option<std::path::PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    // SAFETY: any address may be asked for; the string belongs to the loader and is copied.
    unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(address, &mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        let name = CStr::from_ptr(info.dli_fname).to_bytes();
        Some(std::ffi::OsStr::from_bytes(name).into())
    }
}

fn find(registry: sys::ggml_backend_reg_t) -> Option<Kernels> {
    /// A function of the registry by name.
    ///
    /// # Safety
    /// `F` is the type that ggml documents for the name.
    unsafe fn function<F: Copy>(registry: sys::ggml_backend_reg_t, name: &CStr) -> Option<F> {
        const { assert!(size_of::<F>() == size_of::<*mut std::ffi::c_void>()) };
        // SAFETY: a live registry entry and a string; a pointer that is not null is a function of
        // type F by this function's own condition, and pointers to functions are as large as those
        // to data.
        unsafe {
            let found = sys::ggml_backend_reg_get_proc_address(registry, name.as_ptr());
            (!found.is_null()).then(|| std::mem::transmute_copy(&found))
        }
    }
    // SAFETY: the types are those of ggml-cpu.h and ggml-backend.h for these names; a CPU has one
    // device.
    unsafe {
        Some(Kernels {
            registry,
            device: DeviceRef::new(sys::ggml_backend_reg_dev_get(registry, 0))?,
            new_pool: function(registry, c"ggml_threadpool_new")?,
            free_pool: function(registry, c"ggml_threadpool_free")?,
            set_pool: function(registry, c"ggml_backend_cpu_set_threadpool")?,
            set_threads: function(registry, c"ggml_backend_set_n_threads")?,
            extra: function(registry, c"ggml_backend_dev_get_extra_bufts"),
            features: function(registry, c"ggml_backend_get_features"),
        })
    }
}

impl Kernels {
    /// The CPU's kinds of memory that keep weights in another order for speed.
    pub(crate) fn extra_types(&self) -> Vec<BufferType> {
        let Some(get) = self.extra else { return Vec::new() };
        let mut types = Vec::new();
        // SAFETY: the list that ggml returns is static and ends with null.
        unsafe {
            let mut list = get(self.device.raw());
            while !list.is_null() && !(*list).is_null() {
                types.push(BufferType::from_raw(*list));
                list = list.add(1);
            }
        }
        types
    }
}

/// Describes what the CPU's kernels were compiled for: the name of the library that was chosen, if
/// one was, and the instruction sets in use.
///
/// # Errors
/// No library with kernels for this CPU, which only a `dynamic` build can lack.
pub fn cpu_kernels() -> Result<String> {
    let kernels = kernels()?;
    let mut names = Vec::new();
    if let Some(get) = kernels.features {
        // SAFETY: ggml's list is static and ends with a null name; names are static strings.
        unsafe {
            let mut feature = get(kernels.registry);
            while !feature.is_null() && !(*feature).name.is_null() {
                names.push(CStr::from_ptr((*feature).name).to_string_lossy().into_owned());
                feature = feature.add(1);
            }
        }
    }
    let features = names.join(" ");
    #[cfg(feature = "dynamic")]
    if let Some(file) = file_of(kernels.new_pool as *const std::ffi::c_void)
        && let Some(name) = file.file_stem()
    {
        return Ok(format!("{} ({features})", name.to_string_lossy()));
    }
    Ok(features)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_and_named() {
        let known = kernels().unwrap();
        assert!(known.extra_types().len() < 100);
        let named = cpu_kernels().unwrap();
        assert!(named.contains("REPACK"), "{named}");
    }
}
