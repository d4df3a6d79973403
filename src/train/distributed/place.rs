//! Who a process is among those of its run, from the variables that launchers set.
//!
//! In: an environment. Out: a [`Place`], or nothing for a process on its own. The first launcher
//! whose variables are there counts: one inside another's processes is what the user means.

use std::collections::HashMap;

use crate::error::{Error, Result};

/// The port of the run's store where the launcher names none: torch's own default.
const PORT: u16 = 29500;
/// Ports for jobs that are told apart by a number begin here: below those that Linux gives out by
/// itself (32768).
const JOB_PORTS: u16 = 20000;

/// The place of a process among those of its run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of this process, from 0.
    pub rank: usize,
    /// Number of processes.
    pub size: usize,
    /// Number of this process among those of its machine, from 0.
    pub local_rank: usize,
    /// Number of processes on this machine.
    pub local_size: usize,
    /// Host and port where rank 0's store is found.
    pub master: (String, u16),
    /// The launcher serves the store already: rank 0 need not.
    pub served: bool,
    /// The number of this launch, where a launcher starts a run anew: keys in the store of one
    /// launch are not another's.
    pub launch: String,
    /// Threads that the launcher means each process to have, if it says so.
    pub threads: Option<usize>,
    /// The launcher gives each process CPUs of its own, so those it may use need not be divided.
    pub own_cpus: bool,
}

/// A launcher's variables.
struct Launcher {
    /// Which number a process has.
    rank: &'static str,
    /// How many there are.
    size: &'static [&'static str],
    local_rank: &'static [&'static str],
    local_size: &'static [&'static str],
    /// Variables one of which has to be there too.
    mark: &'static [&'static str],
    /// The job's number or name, of which a port is made.
    job: &'static [&'static str],
    /// It may give each process CPUs of its own.
    binds: bool,
    /// How to name the master where this is not clear.
    hint: &'static str,
}

const LAUNCHERS: &[Launcher] = &[
    // torchrun, and everything else that follows torch.distributed
    Launcher {
        rank: "RANK",
        size: &["WORLD_SIZE"],
        local_rank: &["LOCAL_RANK"],
        local_size: &["LOCAL_WORLD_SIZE"],
        mark: &[],
        job: &[],
        binds: false,
        hint: "torchrun sets it; set it where RANK is set",
    },
    // mpirun of Open MPI
    Launcher {
        rank: "OMPI_COMM_WORLD_RANK",
        size: &["OMPI_COMM_WORLD_SIZE"],
        local_rank: &["OMPI_COMM_WORLD_LOCAL_RANK"],
        local_size: &["OMPI_COMM_WORLD_LOCAL_SIZE"],
        mark: &[],
        job: &["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"],
        binds: true,
        hint: "mpirun -x MASTER_ADDR=HOST sets it",
    },
    // srun: a batch script has SLURM_PROCID and SLURM_NTASKS too, and is one process
    Launcher {
        rank: "SLURM_PROCID",
        size: &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"],
        local_rank: &["SLURM_LOCALID"],
        local_size: &[],
        mark: &["SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS"],
        job: &["SLURM_JOB_ID", "SLURM_JOBID"],
        binds: true,
        hint: "Slurm sets SLURM_STEP_NODELIST, from which it is taken",
    },
    // mpiexec of MPICH and Intel MPI
    Launcher {
        rank: "PMI_RANK",
        size: &["PMI_SIZE"],
        local_rank: &["MPI_LOCALRANKID"],
        local_size: &["MPI_LOCALNRANKS"],
        mark: &[],
        job: &[],
        binds: true,
        hint: "mpiexec -genv MASTER_ADDR HOST sets it",
    },
];

impl Place {
    /// The place that this process's environment gives it; none for a process on its own.
    ///
    /// # Errors
    /// A variable that is missing beside others, or has an impossible value.
    pub fn from_environment() -> Result<Option<Self>> {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self::from_variables(&Variables(std::env::vars_os().filter_map(text).collect()))
    }

    /// The place that variables give.
    fn from_variables(variables: &Variables) -> Result<Option<Self>> {
        let is_there = |name: &&str| variables.0.contains_key(*name);
        let there = |launcher: &&Launcher| {
            is_there(&launcher.rank)
                && (launcher.mark.is_empty() || launcher.mark.iter().any(&is_there))
        };
        let Some(launcher) = LAUNCHERS.iter().find(there) else { return Ok(None) };
        let rank = variables.number::<usize>(&[launcher.rank])?.unwrap_or_default();
        let size = variables.number(launcher.size)?.ok_or_else(|| {
            let [name, ..] = launcher.size else { return Error::failed("no size") };
            Error::failed(format!(
                "variable {name}: expected the number of processes beside {}, found none",
                launcher.rank
            ))
        })?;
        let below = |name: &str, number: usize, limit: usize| match number < limit {
            true => Ok(()),
            false => Err(Error::failed(format!(
                "variable {name}: expected less than {limit}, the number of processes, found {number}"
            ))),
        };
        below(launcher.rank, rank, size)?;
        if size == 1 {
            return Ok(None);
        }
        let local_size = match variables.number(launcher.local_size)? {
            Some(number) => number,
            None => variables.slurm_tasks_here()?.unwrap_or(size),
        };
        let local_rank = match variables.number(launcher.local_rank)? {
            Some(number) => number,
            None if local_size == size => rank,
            None => {
                let name = launcher.local_rank.first().unwrap_or(&"LOCAL_RANK");
                return Err(Error::failed(format!(
                    "variable {name}: expected the number among this machine's processes, found none"
                )));
            }
        };
        below(launcher.local_rank.first().unwrap_or(&""), local_rank, local_size)?;
        let first_node = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"]
            .iter()
            .filter(|_| launcher.rank == "SLURM_PROCID")
            .find_map(|name| first_host(variables.0.get(*name)?));
        let host = match variables.text("MASTER_ADDR").map(str::to_owned).or(first_node) {
            Some(host) => host,
            None if local_size == size => "127.0.0.1".to_owned(),
            None => {
                return Err(Error::failed_with_hint(
                    "variable MASTER_ADDR: expected the host of rank 0, found none",
                    launcher.hint,
                ));
            }
        };
        let job = launcher.job.iter().find_map(|name| variables.text(name));
        let port = match variables.number(&["MASTER_PORT"])? {
            Some(0) => return Err(Error::failed("variable MASTER_PORT: expected a port, found 0")),
            Some(port) => port,
            None => job.map_or(PORT, port_of),
        };
        let elastic = variables.text("TORCHELASTIC_RESTART_COUNT").is_some();
        // torchrun sets one thread where nobody says how many
        let threads = variables
            .number::<usize>(&["OMP_NUM_THREADS"])?
            .filter(|&threads| threads > 1 || !elastic);
        let cpus = variables.number(&["SLURM_CPUS_PER_TASK"])?;
        Ok(Some(Self {
            rank,
            size,
            local_rank,
            local_size,
            master: (host, port),
            served: variables.text("TORCHELASTIC_USE_AGENT_STORE") == Some("True"),
            launch: variables.text("TORCHELASTIC_RESTART_COUNT").unwrap_or_default().to_owned(),
            threads: threads.or(cpus).filter(|threads| *threads > 0),
            own_cpus: launcher.binds,
        }))
    }

    /// The CPU threads of this process, where the user has not said how many.
    pub fn default_threads(&self) -> usize {
        let usable = mmx_converters::cpus::cpus();
        let online = fs_err::read_to_string("/sys/devices/system/cpu/online").ok();
        self.share_of_threads(usable, online.and_then(|list| count_of(&list)).unwrap_or(usable))
    }

    /// The CPU threads where a process may use `usable` of the machine's CPUs.
    fn share_of_threads(&self, usable: usize, machine: usize) -> usize {
        match self.threads {
            Some(threads) => threads,
            None if self.own_cpus && usable < machine => usable,
            None => (usable / self.local_size).max(1),
        }
    }
}

/// An environment.
struct Variables(HashMap<String, String>);

impl Variables {
    /// A variable's text, where it is set and not empty.
    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|text| text.trim()).filter(|text| !text.is_empty())
    }

    /// The number of the first of these variables that is set.
    fn number<T: std::str::FromStr>(&self, names: &[&str]) -> Result<Option<T>> {
        let Some((name, text)) = names.iter().find_map(|name| Some((name, self.0.get(*name)?)))
        else {
            return Ok(None);
        };
        let number = text.trim().parse();
        number.map(Some).map_err(|_| {
            Error::failed(format!("variable {name}: expected a whole number, found {text:?}"))
        })
    }

    /// The number of Slurm's tasks on this node: of `2(x3),1` those of node SLURM_NODEID.
    fn slurm_tasks_here(&self) -> Result<Option<usize>> {
        let names = ["SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"];
        let found = names.iter().find_map(|name| Some((name, self.text(name)?)));
        let (Some((name, text)), Some(node)) = (found, self.number::<usize>(&["SLURM_NODEID"])?)
        else {
            return Ok(None);
        };
        let mut before = 0usize;
        for group in text.split(',') {
            let (tasks, nodes) = match group.split_once("(x") {
                Some((tasks, nodes)) => (tasks, nodes.trim_end_matches(')')),
                None => (group, "1"),
            };
            let (Ok(tasks), Ok(nodes)) = (tasks.parse(), nodes.parse::<usize>()) else { break };
            before = before.saturating_add(nodes);
            if node < before {
                return Ok(Some(tasks));
            }
        }
        Err(Error::failed(format!(
            "variable {name}: expected the tasks of each node, as 2(x3),1, with a node {node}, found {text:?}"
        )))
    }
}

/// The first host of Slurm's list: of `gpu[03-07,9],login` it is gpu03.
fn first_host(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list.trim();
    loop {
        let end = rest.find(['[', ',']).unwrap_or(rest.len());
        let (before, after) = rest.split_at(end);
        host.push_str(before);
        match after.strip_prefix('[') {
            None => break, // a comma, or the end
            Some(after) => {
                let (inside, after) = after.split_once(']')?;
                host.push_str(inside.split([',', '-']).next()?);
                rest = after;
            }
        }
    }
    Some(host).filter(|host| !host.is_empty())
}

/// The length of a list of numbers and ranges: 6 of `0-3,8-9`.
fn count_of(list: &str) -> Option<usize> {
    let length = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)? + 1)
    };
    list.trim().split(',').map(length).sum()
}

/// A port for a job, so that two jobs of one machine hardly share one.
fn port_of(job: &str) -> u16 {
    // FNV-1a, 32 bits: any function would do that is the same everywhere
    let hash = job
        .bytes()
        .fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    JOB_PORTS + (hash % 10_000) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(variables: &[(&str, &str)]) -> Result<Option<Place>> {
        let owned = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Place::from_variables(&Variables(owned.collect()))
    }

    fn of(variables: &[(&str, &str)]) -> Place {
        place(variables).expect("variables").expect("many processes")
    }

    fn error(variables: &[(&str, &str)]) -> String {
        place(variables).expect_err("refused").to_string()
    }

    /// Two nodes of two, the second node's first process.
    const TORCHRUN: &[(&str, &str)] = &[
        ("RANK", "2"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_RANK", "0"),
        ("LOCAL_WORLD_SIZE", "2"),
        ("MASTER_ADDR", "10.0.0.1"),
        ("MASTER_PORT", "1234"),
        ("TORCHELASTIC_USE_AGENT_STORE", "True"),
        ("TORCHELASTIC_RESTART_COUNT", "3"),
        ("OMP_NUM_THREADS", "1"),
    ];
    const SLURM: &[(&str, &str)] = &[
        ("SLURM_PROCID", "5"),
        ("SLURM_NTASKS", "7"),
        ("SLURM_LOCALID", "1"),
        ("SLURM_NODEID", "2"),
        ("SLURM_STEP_NODELIST", "gpu[03-05,9]"),
        ("SLURM_STEP_TASKS_PER_NODE", "2(x3),1"),
        ("SLURM_JOB_ID", "4711"),
    ];

    fn with(
        base: &[(&'static str, &'static str)],
        more: &[(&'static str, &'static str)],
    ) -> Vec<(&'static str, &'static str)> {
        base.iter().chain(more).copied().collect()
    }

    #[test]
    fn a_process_on_its_own_has_no_place() {
        assert_eq!(place(&[]).expect("nothing"), None);
        assert_eq!(place(&[("RANK", "0"), ("WORLD_SIZE", "1")]).expect("one"), None);
        // within a batch script, before any srun
        let batch = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4"), ("SLURM_JOB_NODELIST", "a")];
        assert_eq!(place(&batch).expect("one"), None);
    }

    #[test]
    fn torchrun_says_who_we_are_and_serves_the_store() {
        let place = of(TORCHRUN);
        assert_eq!((place.rank, place.size, place.local_rank, place.local_size), (2, 4, 0, 2));
        assert_eq!(place.master, ("10.0.0.1".to_owned(), 1234));
        assert!(place.served);
        assert_eq!(place.launch, "3");
        assert_eq!(place.share_of_threads(8, 8), 4, "torchrun's own single thread is no wish");
        let place = of(&with(TORCHRUN, &[("OMP_NUM_THREADS", "3")]));
        assert_eq!(place.share_of_threads(8, 8), 3);
        let place = of(&[("RANK", "1"), ("WORLD_SIZE", "2")]);
        assert_eq!(place.master, ("127.0.0.1".to_owned(), PORT));
        assert_eq!((place.local_rank, place.local_size, place.served), (1, 2, false));
        assert_eq!(place.share_of_threads(1, 1), 1);
    }

    #[test]
    fn mpirun_says_who_we_are() {
        let one = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        let place = of(&one);
        assert_eq!(place.master, ("127.0.0.1".to_owned(), PORT));
        assert_eq!(place.share_of_threads(1, 8), 1, "bound to one of eight");
        assert_eq!(place.share_of_threads(8, 8), 4, "not bound");
        let ports = ["a1", "a2"].map(|job| of(&with(&one, &[("PMIX_NAMESPACE", job)])).master.1);
        assert!(ports[0] != ports[1] && ports.iter().all(|port| (20000..30000).contains(port)));
        let two = with(&one, &[("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "3")]);
        let expected = "variable MASTER_ADDR: expected the host of rank 0, found none";
        assert_eq!(error(&two), expected);
        let place = of(&with(&two, &[("MASTER_ADDR", "node1")]));
        assert_eq!(place.master.0, "node1");
        let mpich = [
            ("PMI_RANK", "0"),
            ("PMI_SIZE", "2"),
            ("MPI_LOCALRANKID", "0"),
            ("MPI_LOCALNRANKS", "2"),
        ];
        assert_eq!((of(&mpich).rank, of(&mpich).size), (0, 2));
    }

    #[test]
    fn slurm_names_the_first_host_and_a_port_of_the_job() {
        let place = of(SLURM);
        assert_eq!((place.rank, place.size, place.local_rank, place.local_size), (5, 7, 1, 2));
        assert_eq!(place.master.0, "gpu03");
        assert!((20000..30000).contains(&place.master.1));
        let place = of(&with(SLURM, &[("MASTER_ADDR", "x"), ("MASTER_PORT", "99")]));
        assert_eq!(place.master, ("x".to_owned(), 99));
        let last = with(SLURM, &[("SLURM_NODEID", "3"), ("SLURM_LOCALID", "0")]);
        assert_eq!(of(&last).local_size, 1);
        assert_eq!(of(&with(SLURM, &[("SLURM_CPUS_PER_TASK", "6")])).share_of_threads(64, 64), 6);
        // torchrun started once a node by srun
        assert_eq!(of(&with(SLURM, TORCHRUN)).rank, 2);
        let more = error(&with(SLURM, &[("SLURM_NODEID", "9")]));
        assert!(more.starts_with("variable SLURM_STEP_TASKS_PER_NODE: expected"), "{more}");
    }

    #[test]
    fn first_hosts_of_lists() {
        for (list, host) in [
            ("node7", "node7"),
            ("a,b", "a"),
            ("gpu[03-07,9],login", "gpu03"),
            ("rack[2,4]node[10-12]x", "rack2node10x"),
            ("n[8]", "n8"),
        ] {
            assert_eq!(first_host(list).as_deref(), Some(host), "{list}");
        }
        for list in ["", "gpu[03", ",a"] {
            assert_eq!(first_host(list), None, "{list}");
        }
    }

    #[test]
    fn lengths_of_lists() {
        for (list, length) in
            [("0-3,8-9\n", Some(6)), ("0", Some(1)), ("0-1,7", Some(3)), ("", None), ("3-1", None)]
        {
            assert_eq!(count_of(list), length, "{list}");
        }
    }

    #[test]
    fn impossible_values_are_named() {
        let of = |name, value| error(&with(TORCHRUN, &[(name, value)]));
        assert_eq!(of("RANK", "x"), "variable RANK: expected a whole number, found \"x\"");
        assert_eq!(
            of("WORLD_SIZE", ""),
            "variable WORLD_SIZE: expected a whole number, found \"\""
        );
        assert_eq!(of("RANK", "-1"), "variable RANK: expected a whole number, found \"-1\"");
        let rank = "variable RANK: expected less than 4, the number of processes, found 4";
        assert_eq!(of("RANK", "4"), rank);
        assert_eq!(of("WORLD_SIZE", "0"), rank.replace('4', "0").replace("found 0", "found 2"));
        let local = "variable LOCAL_RANK: expected less than 2, the number of processes, found 2";
        assert_eq!(of("LOCAL_RANK", "2"), local);
        assert_eq!(of("MASTER_PORT", "0"), "variable MASTER_PORT: expected a port, found 0");
        let port = "variable MASTER_PORT: expected a whole number, found \"70000\"";
        assert_eq!(of("MASTER_PORT", "70000"), port);
        let size = "variable WORLD_SIZE: expected the number of processes beside RANK, found none";
        assert_eq!(error(&[("RANK", "0")]), size);
    }
}
