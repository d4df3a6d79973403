//! Calls into `c10d.cpp`: the store where processes find each other, and the collectives.
#![expect(unsafe_code, reason = "calls into c10d.cpp")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tch::Tensor;

/// What the C++ side made and takes back.
type Owned = NonNull<c_void>;
type Pointer = *mut c_void;
/// Null, or a message that `malloc` made.
type Refusal = *mut c_char;

unsafe extern "C" {
    fn mmx_c10d_quiet();
    fn mmx_c10d_store(
        host: *const c_char,
        port: u16,
        serve: bool,
        prefix: *const c_char,
        timeout_ms: i64,
        out: *mut Pointer,
    ) -> Refusal;
    fn mmx_c10d_set(store: Pointer, key: *const c_char, value: *const c_char) -> Refusal;
    fn mmx_c10d_get(
        store: Pointer,
        key: *const c_char,
        timeout_ms: i64,
        out: *mut *mut c_char,
    ) -> Refusal;
    fn mmx_c10d_store_free(store: Pointer);
    fn mmx_c10d_gloo(
        store: Pointer,
        host: *const c_char,
        rank: c_int,
        size: c_int,
        timeout_ms: i64,
        out: *mut Pointer,
    ) -> Refusal;
    fn mmx_c10d_free(backend: Pointer);
    fn mmx_c10d_abort(backend: Pointer) -> Refusal;
    fn mmx_c10d_start(
        backend: Pointer,
        operation: c_int,
        output: Pointer,
        input: Pointer,
        root: c_int,
        out: *mut Pointer,
    ) -> Refusal;
    fn mmx_c10d_wait(pending: Pointer, limit_ms: i64, ended: *mut bool) -> Refusal;
    fn mmx_c10d_pending_free(pending: Pointer);
}

/// The library of `nccl.cpp`.
const NCCL: &str = "libmmx_nccl.so";

/// Where that library lies: beside this program, in `lib` beside its folder, or where it was built.
fn nccl_library() -> Option<PathBuf> {
    let program = std::env::current_exe().unwrap_or_default();
    let folder = program.parent().unwrap_or(Path::new(""));
    let built = option_env!("MMX_NCCL_FOLDER").map(PathBuf::from);
    let folders = [Some(folder.to_owned()), folder.parent().map(|up| up.join("lib")), built];
    folders.into_iter().flatten().map(|folder| folder.join(NCCL)).find(|path| path.is_file())
}

/// The first line of what libtorch said.
pub(super) type Result<T> = std::result::Result<T, String>;

/// An operation of all ranks; the numbers are those of `c10d.cpp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    AllReduce = 0,
    Broadcast = 1,
    AllGather = 2,
    ReduceScatter = 3,
    Reduce = 4,
}

/// Takes a message over.
fn check(refusal: Refusal) -> Result<()> {
    if refusal.is_null() {
        return Ok(());
    }
    Err(text(refusal))
}

/// Takes a string over that the C++ side made.
fn text(made: *mut c_char) -> String {
    // SAFETY: both callers have it from the C++ side, not null, made by `malloc` and given away.
    unsafe {
        let text = CStr::from_ptr(made).to_string_lossy().into_owned();
        libc::free(made.cast());
        text
    }
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| format!("expected text without a zero, found {text:?}"))
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4).clamp(1, i64::MAX / 4)
}

fn owned(made: Pointer) -> Result<Owned> {
    NonNull::new(made).ok_or_else(|| "libtorch made nothing".to_owned())
}

/// c10d's store, where processes find each other by keys.
#[derive(Debug)]
pub(super) struct Store(Owned);

// SAFETY: c10d's stores lock whatever they do, and nothing in them belongs to a thread.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// Serves the store at an address, or connects to the one there.
    pub(super) fn open(
        (host, port): (&str, u16),
        serve: bool,
        prefix: &str,
        timeout: Duration,
    ) -> Result<Self> {
        let (host, prefix) = (c_string(host)?, c_string(prefix)?);
        let mut out = std::ptr::null_mut();
        // SAFETY: strings and the place of the result live through the call.
        check(unsafe {
            mmx_c10d_quiet();
            mmx_c10d_store(
                host.as_ptr(),
                port,
                serve,
                prefix.as_ptr(),
                millis(timeout),
                &raw mut out,
            )
        })?;
        owned(out).map(Self)
    }

    pub(super) fn set(&self, key: &str, value: &str) -> Result<()> {
        let (key, value) = (c_string(key)?, c_string(value)?);
        // SAFETY: a store that lives as long as `self`, strings that live through the call.
        check(unsafe { mmx_c10d_set(self.0.as_ptr(), key.as_ptr(), value.as_ptr()) })
    }

    /// Waits until a key is there.
    pub(super) fn get(&self, key: &str, timeout: Duration) -> Result<String> {
        let key = c_string(key)?;
        let mut out = std::ptr::null_mut();
        // SAFETY: as for `set`; `out` is written where no error is returned.
        check(unsafe {
            mmx_c10d_get(self.0.as_ptr(), key.as_ptr(), millis(timeout), &raw mut out)
        })?;
        Ok(if out.is_null() { String::new() } else { text(out) })
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: made by `open`, freed once.
        unsafe { mmx_c10d_store_free(self.0.as_ptr()) }
    }
}

/// The connections of a rank to all others. Operations have to be begun by one thread at a time.
#[derive(Debug)]
pub(super) struct Backend {
    handle: Owned,
    /// Nobody frees it: freed, it waits for operations that may never end.
    kept: AtomicBool,
}

// SAFETY: c10d's backends do their work on threads of their own and belong to none.
unsafe impl Send for Backend {}
// SAFETY: `start` is called by one thread at a time (`Group` holds a lock); `abort` may be called
// beside it.
unsafe impl Sync for Backend {}

impl Backend {
    /// Connects over gloo, from this machine's address `own`.
    pub(super) fn gloo(
        store: &Store,
        own: IpAddr,
        rank: usize,
        size: usize,
        timeout: Duration,
    ) -> Result<Self> {
        let own = c_string(&own.to_string())?;
        let number = |n: usize| c_int::try_from(n).map_err(|_| format!("{n} processes"));
        let (rank, size) = (number(rank)?, number(size)?);
        let mut out = std::ptr::null_mut();
        // SAFETY: a live store, a string that lives through the call.
        check(unsafe {
            let store = store.0.as_ptr();
            mmx_c10d_gloo(store, own.as_ptr(), rank, size, millis(timeout), &raw mut out)
        })?;
        owned(out).map(|handle| Self { handle, kept: AtomicBool::new(false) })
    }

    /// Connects over NCCL, between CUDA devices.
    ///
    /// The code is in a library of its own, which needs libtorch's CUDA part: that one has to be
    /// loaded already.
    pub(super) fn nccl(store: &Store, rank: usize, size: usize, timeout: Duration) -> Result<Self> {
        type Make = unsafe extern "C" fn(Pointer, c_int, c_int, i64, *mut Pointer) -> Refusal;
        let number = |n: usize| c_int::try_from(n).map_err(|_| format!("{n} processes"));
        let (rank, size) = (number(rank)?, number(size)?);
        let library = nccl_library().ok_or_else(|| {
            format!("{NCCL}, which CUDA devices need among processes: expected beside mmx-train, found none")
        })?;
        let path = c_string(&library.to_string_lossy())?;
        // SAFETY: a string that lives through the call; the library's initializers are libtorch's
        // own, and it is never unloaded.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        let symbol = match handle.is_null() {
            true => std::ptr::null_mut(),
            // SAFETY: a library that is loaded, a constant string.
            false => unsafe { libc::dlsym(handle, c"mmx_c10d_nccl".as_ptr()) },
        };
        if symbol.is_null() {
            // SAFETY: after a failure of either call it is a string until the next one.
            let reason = unsafe { CStr::from_ptr(libc::dlerror()) };
            return Err(format!("{}: {}", library.display(), reason.to_string_lossy()));
        }
        // SAFETY: the function of nccl.cpp, which is built together with this file.
        let make = unsafe { std::mem::transmute::<Pointer, Make>(symbol) };
        let mut out = std::ptr::null_mut();
        // SAFETY: a live store, and the place of the result lives through the call.
        check(unsafe { make(store.0.as_ptr(), rank, size, millis(timeout), &raw mut out) })?;
        owned(out).map(|handle| Self { handle, kept: AtomicBool::new(false) })
    }

    /// From now on nobody frees it: an operation has begun that may never end.
    pub(super) fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    /// Begins an operation on contiguous tensors; `input` is none where `output` is changed in
    /// place. The tensors are kept until it ends.
    pub(super) fn start(
        &self,
        operation: Operation,
        output: &Tensor,
        input: Option<&Tensor>,
        root: usize,
    ) -> Result<Work> {
        let pointer = |tensor: &Tensor| tensor.as_ptr().cast_mut().cast::<c_void>();
        let mut out = std::ptr::null_mut();
        // SAFETY: a live backend, live tensors; the C++ side copies their handles.
        check(unsafe {
            mmx_c10d_start(
                self.handle.as_ptr(),
                operation as c_int,
                pointer(output),
                input.map_or(std::ptr::null_mut(), pointer),
                c_int::try_from(root).unwrap_or(c_int::MAX),
                &raw mut out,
            )
        })?;
        owned(out).map(Work)
    }

    /// Ends what waits for other ranks, where the backend can.
    pub(super) fn abort(&self) -> Result<()> {
        // SAFETY: a live backend.
        check(unsafe { mmx_c10d_abort(self.handle.as_ptr()) })
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if !self.kept.load(Ordering::Relaxed) {
            // SAFETY: made by this file, freed once.
            unsafe { mmx_c10d_free(self.handle.as_ptr()) }
        }
    }
}

/// An operation that has begun.
#[derive(Debug)]
pub(super) struct Work(Owned);

// SAFETY: waiting and freeing are bound to no thread.
unsafe impl Send for Work {}

impl Work {
    /// Waits at most so long; false where it has not ended yet.
    pub(super) fn wait(&self, limit: Duration) -> Result<bool> {
        let mut ended = false;
        // SAFETY: live, and the place of the result lives through the call.
        check(unsafe { mmx_c10d_wait(self.0.as_ptr(), millis(limit), &raw mut ended) })?;
        Ok(ended)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: made by `start`, freed once; libtorch keeps the tensors as long as it needs them.
        unsafe { mmx_c10d_pending_free(self.0.as_ptr()) }
    }
}
