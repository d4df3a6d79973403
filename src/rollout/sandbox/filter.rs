//! The system calls that a confined process may not make: a program for the kernel's BPF machine.
//!
//! What Landlock leaves open is closed here: sockets of every family, attributes and owners of files,
//! and doors to other processes. Source: seccomp(2), linux/filter.h.

/// The architecture that the numbers of system calls are of. Source: linux/audit.h.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xC000_00B7;

/// Offsets within struct seccomp_data.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// x86-64 numbers from here on are those of the x32 ABI.
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;

/// Refused in every process.
const REFUSED: &[libc::c_long] = &[
    // network; a pair of sockets leads nowhere and stays
    libc::SYS_socket,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // files' attributes, which Landlock does not guard
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    452, // fchmodat2, which libc does not name everywhere
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    463, // setxattrat
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    466, // removexattrat
    libc::SYS_utimensat,
    libc::SYS_truncate,
    // other processes, the kernel, other namespaces
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_open_tree,
    libc::SYS_unshare,
    libc::SYS_setns,
];

/// Older calls of x86-64, for which aarch64 has only the newer ones above.
#[cfg(target_arch = "x86_64")]
const REFUSED_TOO: &[libc::c_long] = &[
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
];
#[cfg(target_arch = "aarch64")]
const REFUSED_TOO: &[libc::c_long] = &[];

/// Refused where processes have no namespace of their own: a process that left its group would
/// outlive it.
const LEAVING: &[libc::c_long] = &[libc::SYS_setsid, libc::SYS_setpgid];

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn jump(code: u32, k: u32, yes: u8, no: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: yes, jf: no, k }
}

/// The filter. `in_group`: processes may not leave their group.
pub(super) fn program(in_group: bool) -> Vec<libc::sock_filter> {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
    let load = BPF_LD | BPF_W | BPF_ABS;
    let equal = BPF_JMP | BPF_JEQ | BPF_K;
    let give = BPF_RET | BPF_K;
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut program = vec![
        statement(load, ARCHITECTURE),
        jump(equal, ARCH, 1, 0),
        statement(give, libc::SECCOMP_RET_KILL_PROCESS),
        statement(load, NUMBER),
    ];
    #[cfg(target_arch = "x86_64")]
    {
        program.push(jump(BPF_JMP | libc::BPF_JGE | BPF_K, X32, 0, 1));
        program.push(statement(give, refuse));
    }
    let leaving: &[libc::c_long] = if in_group { LEAVING } else { &[] };
    for number in REFUSED.iter().chain(REFUSED_TOO).chain(leaving) {
        program.push(jump(equal, *number as u32, 0, 1));
        program.push(statement(give, refuse));
    }
    program.push(statement(give, libc::SECCOMP_RET_ALLOW));
    program
}
