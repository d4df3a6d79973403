//! What confines a process between fork and exec: namespaces, limits, Landlock, seccomp.
//!
//! Everything that needs memory is made by [`Plan::new`] in the parent; [`Plan::enter`] runs in the
//! child of a program with threads, where nothing may be allocated and no lock taken: it makes system
//! calls alone. Sources: user_namespaces(7), pid_namespaces(7), landlock(7), seccomp(2).
#![expect(unsafe_code, reason = "system calls that the standard library does not have")]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::sync::OnceLock;

use super::command::Limits;
use super::filter;
use super::rlimits::{self, Resource};

/// The user and group that commands of root run as: nobody. Limits on processes do not hold for root.
const NOBODY: u32 = 65_534;

/// Landlock's rights to change files. Source: linux/landlock.h.
const WRITE_FILE: u64 = 1 << 1;
const REMOVE_AND_MAKE: u64 = 0x1FF0; // bits 4 to 12
const REFER: u64 = 1 << 13; // ABI 2
const TRUNCATE: u64 = 1 << 14; // ABI 3
const IOCTL_DEVICE: u64 = 1 << 15; // ABI 5
/// To bind and to connect TCP, ABI 4.
const TCP: u64 = 0b11;
/// Abstract Unix sockets and signals, ABI 6.
const SCOPES: u64 = 0b11;

#[repr(C)]
struct RulesetAttributes {
    files: u64,
    network: u64,
    scopes: u64,
}

#[repr(C, packed)]
struct PathRule {
    allowed: u64,
    parent: i32,
}

/// What the system has, once it has been asked.
#[derive(Clone, Debug)]
struct Found {
    landlock: u32,
    namespaces: bool,
}

fn found() -> &'static Result<Found, String> {
    static FOUND: OnceLock<Result<Found, String>> = OnceLock::new();
    FOUND.get_or_init(|| {
        // SAFETY: with no attributes and the flag 1 the call gives its version alone.
        let version = unsafe {
            libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, 1)
        };
        let landlock = u32::try_from(version).unwrap_or(0);
        if landlock == 0 {
            return Err("expected Landlock (Linux 5.13 or newer), found none".to_owned());
        }
        let namespaces = has_namespaces();
        // without either a command could send signals to processes outside
        if !namespaces && landlock < 6 {
            return Err("expected namespaces of users, or Landlock 6 (Linux 6.12), found neither"
                .to_owned());
        }
        Ok(Found { landlock, namespaces })
    })
}

/// Whether a process can be confined here, and if not, what is missing.
pub(super) fn check() -> Result<(), String> {
    found().as_ref().map(|_| ()).map_err(Clone::clone)
}

/// Tries namespaces in a process that ends at once.
fn has_namespaces() -> bool {
    let mut process = std::process::Command::new("mmx-probe");
    // SAFETY: system calls alone; the process ends within the closure, so no program is started.
    unsafe {
        process.pre_exec(|| {
            become_nobody();
            enter_namespaces()?;
            libc::_exit(0)
        });
    }
    process.status().is_ok_and(|status| status.success())
}

/// Everything a process needs to be confined.
pub(super) struct Plan {
    ruleset: OwnedFd,
    filter: Vec<libc::sock_filter>,
    limits: Vec<(Resource, u64)>,
    namespaces: bool,
}

impl Plan {
    /// Prepares it for a command with a directory of its own.
    pub(super) fn new(limits: &Limits, own: &Path) -> Result<Self, String> {
        let found = found().as_ref().map_err(Clone::clone)?;
        let words = |error: io::Error| error.to_string();
        // SAFETY: the call only asks.
        if unsafe { libc::geteuid() } == 0 {
            // where nobody is nobody's number here the command stays root of its namespace
            let _ = std::os::unix::fs::chown(own, Some(NOBODY), Some(NOBODY));
        }
        let filter = filter::program(!found.namespaces);
        let mut all = rlimits::of(limits).to_vec();
        // two processes wait for the command
        let others = if found.namespaces { 2 } else { tasks_of_user() };
        all.push((libc::RLIMIT_NPROC as Resource, others + limits.processes));
        Ok(Self {
            ruleset: ruleset(found.landlock, own).map_err(words)?,
            filter,
            limits: all,
            namespaces: found.namespaces,
        })
    }

    /// Confines this process. Called between fork and exec: system calls alone.
    pub(super) fn enter(&self) -> io::Result<()> {
        become_nobody();
        if self.namespaces {
            enter_namespaces()?;
            // this process waits outside, the next one is the first of its namespace: when it ends,
            // the kernel ends all others there
            if let Some(first) = divide()? {
                wait_for(first);
            }
            // SAFETY: constant arguments.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            // and the command is another one, for signals do not reach the first from within
            if let Some(command) = divide()? {
                wait_for(command);
            }
            own_proc();
        }
        rlimits::set(&self.limits)?;
        // SAFETY: constant arguments.
        if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is open: `self` owns it.
        let done =
            unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.ruleset.as_raw_fd(), 0) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        let program = libc::sock_fprog {
            len: self.filter.len() as u16,
            filter: self.filter.as_ptr().cast_mut(),
        };
        // SAFETY: the program lives through the call, which copies it.
        let done = unsafe {
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
        };
        if done != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Root becomes nobody, where it can; other users stay who they are.
fn become_nobody() {
    // SAFETY: system calls with numbers; of those that fail the next steps tell.
    unsafe {
        if libc::geteuid() == 0 {
            libc::setgroups(0, std::ptr::null());
            libc::setresgid(NOBODY, NOBODY, NOBODY);
            libc::setresuid(NOBODY, NOBODY, NOBODY);
            // a process that changed its user could not write its own maps otherwise
            libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
        }
    }
}

/// Namespaces of its own for users, networks, processes, mounts and shared memory.
fn enter_namespaces() -> io::Result<()> {
    // SAFETY: system calls with numbers.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    let kinds = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWIPC;
    // SAFETY: constant flags.
    if unsafe { libc::unshare(kinds) } != 0 {
        return Err(io::Error::last_os_error());
    }
    write(c"/proc/self/setgroups", b"deny")?;
    let mut line = [0; 32];
    write(c"/proc/self/uid_map", map_of(user, &mut line))?;
    write(c"/proc/self/gid_map", map_of(group, &mut line))
}

/// The line `ID ID 1`: within the namespace a user has the number it has outside.
fn map_of(id: u32, line: &mut [u8; 32]) -> &[u8] {
    let mut at = line.len();
    let mut put = |byte: u8| {
        at -= 1;
        line[at] = byte;
    };
    put(b'1');
    for _ in 0..2 {
        put(b' ');
        let mut rest = id;
        loop {
            put(b'0' + (rest % 10) as u8);
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
    }
    &line[at..]
}

/// Writes a file of the kernel's in one call.
fn write(path: &CStr, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the path ends in a zero byte, the bytes live through the call, and the descriptor is
    // this function's own.
    unsafe {
        let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        let written = libc::write(file, bytes.as_ptr().cast(), bytes.len());
        let error = io::Error::last_os_error();
        libc::close(file);
        if written == bytes.len() as isize { Ok(()) } else { Err(error) }
    }
}

/// Shows the namespace's own processes in /proc, where the system allows it; else the command sees
/// that others run, and Landlock keeps it from looking into them.
fn own_proc() {
    let none = std::ptr::null();
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // SAFETY: paths that end in a zero byte; this process has mounts of its own.
    unsafe {
        let private = libc::MS_REC | libc::MS_PRIVATE;
        if libc::mount(none, c"/".as_ptr(), none, private, none.cast()) == 0 {
            let proc = c"proc".as_ptr();
            libc::mount(proc, c"/proc".as_ptr(), proc, flags, none.cast());
        }
    }
}

/// Divides this process in two: the number of the new one, and nothing in the new one itself. Not
/// libc's fork, whose handlers may take locks that threads of the parent held.
fn divide() -> io::Result<Option<libc::pid_t>> {
    let flags = libc::c_long::from(libc::SIGCHLD);
    // SAFETY: with no flag but the signal and no stack the call is fork; this process has one
    // thread, and what goes on does so as a forked one would.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        child => Ok(Some(child as libc::pid_t)),
    }
}

/// Waits for a process and ends as it did. It holds no pipe open meanwhile, and others that end as
/// its children are let go.
fn wait_for(child: libc::pid_t) -> ! {
    // SAFETY: system calls with numbers, in a process that does nothing else any more; the status
    // lives through the call.
    unsafe {
        // its memory is a copy of the program's that started it: nobody is to look into it
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        if libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) != 0 {
            (0..4096).for_each(|descriptor| {
                libc::close(descriptor);
            });
        }
        let mut status = 0;
        loop {
            match libc::waitpid(-1, &raw mut status, 0) {
                found if found == child => break,
                -1 if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted => {
                    libc::_exit(127)
                }
                _ => {}
            }
        }
        if libc::WIFEXITED(status) {
            libc::_exit(libc::WEXITSTATUS(status));
        }
        libc::_exit(128 + libc::WTERMSIG(status))
    }
}

/// Landlock's rules: files may be changed within a directory alone, and written in /dev/null.
fn ruleset(version: u32, own: &Path) -> io::Result<OwnedFd> {
    let mut files = WRITE_FILE | REMOVE_AND_MAKE;
    for (since, right) in [(2, REFER), (3, TRUNCATE), (5, IOCTL_DEVICE)] {
        files |= if version >= since { right } else { 0 };
    }
    let attributes = RulesetAttributes { files, network: TCP, scopes: SCOPES };
    // an older kernel knows a shorter struct
    let size: usize = match version {
        ..4 => 8,
        4..6 => 16,
        6.. => 24,
    };
    // SAFETY: the struct lives through the call and is at least as long as the size.
    let ruleset =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size, 0) };
    let ruleset = i32::try_from(ruleset).ok().filter(|descriptor| *descriptor >= 0);
    let ruleset = ruleset.ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just given this descriptor to nobody else.
    let ruleset = unsafe { OwnedFd::from_raw_fd(ruleset) };
    let null = (Path::new("/dev/null"), WRITE_FILE | (files & TRUNCATE));
    for (path, allowed) in [(own, files), null] {
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: the path ends in a zero byte.
        let parent = unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
        if parent < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given this descriptor to nobody else.
        let parent = unsafe { OwnedFd::from_raw_fd(parent) };
        let rule = PathRule { allowed, parent: parent.as_raw_fd() };
        /// LANDLOCK_RULE_PATH_BENEATH.
        const BENEATH: i32 = 1;
        // SAFETY: the struct lives through the call, both descriptors are open.
        let added = unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                ruleset.as_raw_fd(),
                BENEATH,
                &raw const rule,
                0,
            )
        };
        if added != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(ruleset)
}

/// Processes and threads of this user now: without a namespace of their own a command's count with
/// them.
fn tasks_of_user() -> u64 {
    // SAFETY: the call only asks.
    let user = unsafe { libc::getuid() };
    let entries = fs_err::read_dir("/proc").into_iter().flatten().flatten();
    let threads = entries.filter_map(|entry| {
        let status = fs_err::read_to_string(entry.path().join("status")).ok()?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        (field("Uid:")? == u64::from(user)).then(|| field("Threads:")).flatten()
    });
    threads.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_confined_without_namespaces_too() {
        let own = tempfile::tempdir().expect("a folder");
        let mut plan = Plan::new(&Limits::default(), own.path()).expect("Landlock");
        plan.namespaces = false;
        plan.filter = filter::program(true);
        let script = "import os, socket\nout = []\nfor name, do in [('setsid', os.setsid), ('setpgid', lambda: os.setpgid(0, 0)), \
                      ('socket', socket.socket), ('write', lambda: open('/tmp/mmx-outside', 'w')), ('own', lambda: open('own', 'w'))]:\n\
                      \x20 try: do()\n  except OSError: out.append(name)\nprint(' '.join(out))";
        let mut process = std::process::Command::new("python3");
        process.args(["-c", script]).current_dir(own.path());
        // SAFETY: system calls alone are made between fork and exec.
        unsafe { process.pre_exec(move || plan.enter()) };
        let output = process.output().expect("python3");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "setsid setpgid socket write\n",
            "{said}"
        );
    }

    #[test]
    fn maps_are_written_without_memory_of_their_own() {
        assert_eq!(map_of(65_534, &mut [0; 32]), b"65534 65534 1");
        assert_eq!(map_of(0, &mut [0; 32]), b"0 0 1");
        assert_eq!(map_of(u32::MAX, &mut [0; 32]), b"4294967295 4294967295 1");
    }
}
