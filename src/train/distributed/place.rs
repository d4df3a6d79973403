//! Who a process is among those of its run, from the variables that launchers set.

use std::collections::HashMap;

use crate::error::{Error, Result};

/// The port of the run's store where the launcher names none: torch's own default.
const PORT: u16 = 29500;

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
    /// The launch this is, where a launcher starts anew: keys in the store of one are not another's.
    pub launch: String,
}

impl Place {
    /// The place that this process's environment gives it; none for a process on its own.
    ///
    /// # Errors
    /// A variable that is missing beside others, or has an impossible value.
    pub fn from_environment() -> Result<Option<Self>> {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self::from_variables(&std::env::vars_os().filter_map(text).collect())
    }

    /// The place that variables give.
    ///
    /// # Errors
    /// See [`Place::from_environment`].
    pub fn from_variables(variables: &HashMap<String, String>) -> Result<Option<Self>> {
        let Some(rank) = number(variables, "RANK")? else { return Ok(None) };
        let size = number(variables, "WORLD_SIZE")?
            .ok_or_else(|| Error::failed("WORLD_SIZE: expected beside RANK, found none"))?;
        let local_rank = number(variables, "LOCAL_RANK")?.unwrap_or(rank);
        let local_size = number(variables, "LOCAL_WORLD_SIZE")?.unwrap_or(size);
        let host = variables.get("MASTER_ADDR").cloned().unwrap_or_else(|| "127.0.0.1".into());
        let port = number(variables, "MASTER_PORT")?.unwrap_or(PORT);
        let served = variables.get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|v| v == "True");
        let launch = variables.get("TORCHELASTIC_RESTART_COUNT").cloned().unwrap_or_default();
        Ok((size > 1).then_some(Self {
            rank,
            size,
            local_rank,
            local_size,
            master: (host, port),
            served,
            launch,
        }))
    }
}

/// A variable's number, where it is set.
fn number<T: std::str::FromStr>(
    variables: &HashMap<String, String>,
    name: &str,
) -> Result<Option<T>> {
    let Some(value) = variables.get(name) else { return Ok(None) };
    let number = value.trim().parse();
    number
        .map(Some)
        .map_err(|_| Error::failed(format!("variable {name}: expected a number, found {value:?}")))
}
