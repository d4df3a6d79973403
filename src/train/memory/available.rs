//! The memory that a run can still take: the system's, this process's control groups', or a CUDA
//! device's.
//!
//! Every answer is an upper bound: what the system could give up (caches, swap) counts as there.
#![expect(unsafe_code, reason = "CUDA's runtime is asked through dlsym")]

use std::path::{Path, PathBuf};

use tch::Device;

/// Bytes that can still be taken on a device; nothing where that is not known.
pub fn available(device: Device) -> Option<u64> {
    match device {
        Device::Cpu => of_system(),
        Device::Cuda(index) => of_cuda(index),
        _ => None,
    }
}

/// The part of them that one of `processes` on this machine can have: of the system's memory a share,
/// a device is its own.
pub fn available_to(device: Device, processes: usize) -> Option<u64> {
    let shares = if device == Device::Cpu { processes.max(1) as u64 } else { 1 };
    available(device).map(|bytes| bytes / shares)
}

/// Resident memory of this process, bytes; 0 where that is not known.
pub fn resident() -> u64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    field(&status, "VmRSS:").unwrap_or(0)
}

fn of_system() -> Option<u64> {
    let meminfo = fs_err::read_to_string("/proc/meminfo").ok()?;
    let groups = fs_err::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = groups.lines().flat_map(folders).filter_map(|folder| of_group(&folder));
    groups.chain(of_meminfo(&meminfo)).min()
}

/// Source: proc_meminfo(5). MemAvailable is what new programs can take without swapping.
fn of_meminfo(text: &str) -> Option<u64> {
    Some(field(text, "MemAvailable:")? + field(text, "SwapFree:").unwrap_or(0))
}

/// The value of a line `NAME N kB`, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The folders of a control group and those around it, from a line of /proc/self/cgroup; those that
/// do not limit memory give none. Source: cgroups(7).
fn folders(line: &str) -> Vec<PathBuf> {
    let mut parts = line.splitn(3, ':');
    let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
    else {
        return Vec::new();
    };
    let root = match controllers {
        "" => Path::new("/sys/fs/cgroup"),
        list if list.split(',').any(|one| one == "memory") => Path::new("/sys/fs/cgroup/memory"),
        _ => return Vec::new(),
    };
    let whole = root.join(path.trim_start_matches('/'));
    whole.ancestors().take_while(|folder| folder.starts_with(root)).map(Path::to_owned).collect()
}

/// What a control group's limit leaves, of either version.
fn of_group(folder: &Path) -> Option<u64> {
    let read = |name: &str| fs_err::read_to_string(folder.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok(); // "max" is no number
    let stat = read("memory.stat").unwrap_or_default();
    if let Some(limit) = number("memory.max") {
        let swap = match (number("memory.swap.max"), number("memory.swap.current")) {
            (Some(limit), used) => limit.saturating_sub(used.unwrap_or(0)),
            // without a limit of its own: as much as there is
            (None, _) => of_swap(),
        };
        let caches = ["file ", "slab_reclaimable "].map(|name| in_stat(&stat, name)).iter().sum();
        return Some(left(limit, number("memory.current")?, caches, swap));
    }
    let limit = number("memory.limit_in_bytes")?;
    let caches = in_stat(&stat, "total_cache ");
    Some(left(limit, number("memory.usage_in_bytes")?, caches, of_swap()))
}

fn left(limit: u64, used: u64, caches: u64, swap: u64) -> u64 {
    limit.saturating_sub(used.saturating_sub(caches)).saturating_add(swap)
}

fn of_swap() -> u64 {
    let meminfo = fs_err::read_to_string("/proc/meminfo").unwrap_or_default();
    field(&meminfo, "SwapFree:").unwrap_or(0)
}

/// A line `NAME N` of memory.stat, in bytes.
fn in_stat(text: &str, name: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
}

/// A CUDA device's free memory. libtorch has loaded CUDA's runtime by now.
#[cfg(unix)]
fn of_cuda(index: usize) -> Option<u64> {
    use std::ffi::{CStr, c_int};
    type SetDevice = unsafe extern "C" fn(c_int) -> c_int;
    type GetDevice = unsafe extern "C" fn(*mut c_int) -> c_int;
    type MemGetInfo = unsafe extern "C" fn(*mut usize, *mut usize) -> c_int;
    let symbol = |name: &CStr| {
        // SAFETY: a constant string; the default handle looks through what is loaded.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        (!found.is_null()).then_some(found)
    };
    let (set, get) = (symbol(c"cudaSetDevice")?, symbol(c"cudaGetDevice")?);
    let info = symbol(c"cudaMemGetInfo")?;
    let (mut before, mut free, mut total) = (0, 0usize, 0usize);
    // SAFETY: the types are those of CUDA's runtime, the same in all its versions
    // (cuda_runtime_api.h); the pointers are to locals of those types.
    unsafe {
        let set = std::mem::transmute::<*mut libc::c_void, SetDevice>(set);
        let get = std::mem::transmute::<*mut libc::c_void, GetDevice>(get);
        let info = std::mem::transmute::<*mut libc::c_void, MemGetInfo>(info);
        if get(&raw mut before) != 0 || set(c_int::try_from(index).ok()?) != 0 {
            return None;
        }
        let answered = info(&raw mut free, &raw mut total) == 0;
        set(before);
        answered.then_some(free as u64)
    }
}

#[cfg(not(unix))]
fn of_cuda(_index: usize) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_read_in_bytes() {
        let text = "MemTotal:  100 kB\nMemAvailable:     70 kB\nSwapFree:  5 kB\n";
        assert_eq!(of_meminfo(text), Some(75 << 10));
        assert_eq!(of_meminfo("MemTotal: 100 kB\n"), None);
    }

    #[test]
    fn a_groups_limit_counts_whatever_group_around_sets_it() {
        let expected = ["a/b", "a", ""].map(|path| Path::new("/sys/fs/cgroup").join(path));
        assert_eq!(folders("0::/a/b"), expected);
        let expected = ["x", ""].map(|path| Path::new("/sys/fs/cgroup/memory").join(path));
        assert_eq!(folders("4:cpu,memory:/x"), expected);
        assert!(folders("1:cpu:/x").is_empty() && folders("").is_empty());

        let dir = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| fs_err::write(dir.path().join(name), text);
        assert_eq!(of_group(dir.path()), None);
        write("memory.max", "max\n").expect("a file");
        assert_eq!(of_group(dir.path()), None);
        write("memory.max", "1000\n").expect("a file");
        write("memory.current", "600\n").expect("a file");
        write("memory.swap.max", "0\n").expect("a file");
        write("memory.stat", "anon 300\nfile 200\nslab_reclaimable 50\nfile_mapped 9\n")
            .expect("a file");
        assert_eq!(of_group(dir.path()), Some(1000 - (600 - 250)));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_takes_some_and_some_is_left() {
        assert!(resident() > 1 << 20);
        assert!(available(Device::Cpu).expect("known on Linux") > 1 << 20);
    }
}
