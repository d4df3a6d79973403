//! How many CPUs this process may use: the bound of every default number of threads.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// CPUs that this process may use at once: those it may run on, and at most what the CPU quotas of
/// its control groups allow (versions 1 and 2), as containers set them. Read once.
///
/// The standard library knows quotas too, but looks for those of version 2 below the group's own
/// path only: in a container that sees the host's paths in /proc/self/cgroup (Docker's
/// `--cgroupns=host`) it finds none.
pub fn cpus() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        quota(Path::new("/")).map_or(count, |quota| count.min(quota))
    })
}

/// Bounds the threads that tokenize, quantize and export by what [`cpus`] allows, where that is
/// less than the pool would take by itself and `RAYON_NUM_THREADS` does not say otherwise. For a
/// program's beginning: a pool that is there already stays as it is.
pub fn bound_pool() {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    if cpus() < all && std::env::var_os("RAYON_NUM_THREADS").is_none() {
        let _ = rayon::ThreadPoolBuilder::new().num_threads(cpus()).build_global();
    }
}

/// The least quota of this process's control groups and the groups around them, in whole CPUs, at
/// least one; none where there is no quota, or no control groups. `root` is what lies above proc
/// and sys.
fn quota(root: &Path) -> Option<usize> {
    let groups = fs_err::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mounts = root.join("sys/fs/cgroup");
    let mut least: Option<usize> = None;
    for line in groups.lines() {
        // hierarchy:controllers:path; version 2 has no controllers here
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let found = match controllers {
            "" => [mounts.clone(), mounts.join("unified")].map(|m| within(&m, path, version_2)),
            _ if controllers.split(',').any(|c| c == "cpu") => {
                [mounts.join(controllers), mounts.join("cpu")].map(|m| within(&m, path, version_1))
            }
            _ => continue,
        };
        least = found.into_iter().flatten().chain(least).min();
    }
    least.map(|n| n.max(1))
}

/// The least quota from the group at `path` up to the root of the hierarchy at `mount`. Where the
/// path is the host's, the groups on it do not exist here, and the root is the container's own.
fn within(mount: &Path, path: &str, read: fn(&Path) -> Option<usize>) -> Option<usize> {
    let mut group: PathBuf = mount.to_owned();
    let mut groups = vec![group.clone()];
    for part in path.split('/').filter(|part| !part.is_empty() && *part != "..") {
        group.push(part);
        groups.push(group.clone());
    }
    groups.iter().filter_map(|group| read(group)).min()
}

/// `cpu.max` is `QUOTA PERIOD` in microseconds, or `max PERIOD`.
fn version_2(group: &Path) -> Option<usize> {
    let text = fs_err::read_to_string(group.join("cpu.max")).ok()?;
    let mut numbers = text.split_whitespace();
    whole(numbers.next()?, numbers.next()?)
}

/// `cpu.cfs_quota_us` is -1 where there is none.
fn version_1(group: &Path) -> Option<usize> {
    let read = |name: &str| fs_err::read_to_string(group.join(name)).ok();
    whole(&read("cpu.cfs_quota_us")?, &read("cpu.cfs_period_us")?)
}

/// Whole CPUs of a quota: 1.5 are 1, for two threads would each be stopped a quarter of the time.
fn whole(quota: &str, period: &str) -> Option<usize> {
    let quota = quota.trim().parse::<usize>().ok()?; // neither `max` nor -1
    quota.checked_div(period.trim().parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The quota found in a made-up tree of files.
    fn found(files: &[(&str, &str)]) -> Option<usize> {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = root.path().join(path);
            fs_err::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs_err::write(path, text).expect("a file");
        }
        quota(root.path())
    }

    const SELF: &str = "proc/self/cgroup";

    #[test]
    fn no_control_groups_and_no_quota_are_no_bound() {
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[(SELF, "0::/\n")]), None);
        assert_eq!(found(&[(SELF, "0::/\n"), ("sys/fs/cgroup/cpu.max", "max 100000\n")]), None);
        let unbound = ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
        let period = ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
        assert_eq!(found(&[(SELF, "3:cpu:/\n"), unbound, period]), None);
        assert_eq!(found(&[(SELF, "nonsense\n\n:\n"), unbound, period]), None);
    }

    #[test]
    fn a_quota_of_version_2_is_whole_cpus_and_at_least_one() {
        let of = |text: &str| found(&[(SELF, "0::/\n"), ("sys/fs/cgroup/cpu.max", text)]);
        assert_eq!(of("400000 100000\n"), Some(4));
        assert_eq!(of("150000 100000\n"), Some(1));
        assert_eq!(of("20000 100000\n"), Some(1));
        assert_eq!(of("100000 50000"), Some(2));
        for nonsense in ["", "5", "a b", "100000 0", "-5 100000"] {
            assert_eq!(of(nonsense), None, "{nonsense:?}");
        }
    }

    #[test]
    fn the_least_quota_of_the_groups_around_counts() {
        let inner = "sys/fs/cgroup/system.slice/a.service/cpu.max";
        let outer = "sys/fs/cgroup/system.slice/cpu.max";
        let group = (SELF, "0::/system.slice/a.service\n");
        assert_eq!(found(&[group, (inner, "800000 100000"), (outer, "300000 100000")]), Some(3));
        assert_eq!(found(&[group, (inner, "200000 100000"), (outer, "max 100000")]), Some(2));
    }

    /// Docker's `--cgroupns=host`: the path is the host's, what is mounted is the container's own
    /// group.
    #[test]
    fn a_path_of_the_host_falls_back_to_what_is_mounted() {
        let own = ("sys/fs/cgroup/cpu.max", "200000 100000\n");
        assert_eq!(found(&[(SELF, "0::/docker/0123abcd\n"), own]), Some(2));
        let quota = ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "300000\n");
        let period = ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
        let lines = "12:memory:/docker/0123abcd\n4:cpu,cpuacct:/docker/0123abcd\n";
        assert_eq!(found(&[(SELF, lines), quota, period]), Some(3));
    }

    #[test]
    fn version_1_and_both_versions_at_once() {
        let quota = ("sys/fs/cgroup/cpu/docker/a/cpu.cfs_quota_us", "250000\n");
        let period = ("sys/fs/cgroup/cpu/docker/a/cpu.cfs_period_us", "100000\n");
        // the folder is `cpu`, the controllers are two
        assert_eq!(found(&[(SELF, "4:cpu,cpuacct:/docker/a\n"), quota, period]), Some(2));
        let unified = ("sys/fs/cgroup/unified/docker/a/cpu.max", "100000 100000\n");
        let lines = "4:cpu,cpuacct:/docker/a\n0::/docker/a\n";
        assert_eq!(found(&[(SELF, lines), quota, period, unified]), Some(1));
        // a quota of another controller's hierarchy is none
        assert_eq!(found(&[(SELF, "4:cpuset:/docker/a\n"), quota, period]), None);
    }

    #[test]
    fn there_is_at_least_one_and_no_more_than_the_system_has() {
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        assert!((1..=all).contains(&cpus()));
    }
}
