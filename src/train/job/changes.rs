//! What must not differ: between the processes of a run, and between a run and its going on.

use std::path::Path;

use mmx_converters::progress::Listener;
use mmx_converters::words::counted;

use crate::checkpoint::State;
use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::ranks::Ranks;

/// Processes that differ in what they learn from would train no model together.
pub(super) fn same_everywhere(
    ranks: &Ranks,
    config: &TrainConfig,
    sources: &[(String, String)],
) -> Result<()> {
    let encode = |what: &(TrainConfig, Vec<(String, String)>)| {
        serde_json::to_string(what).map_err(|e| Error::failed(format!("configuration: {e}")))
    };
    let own = encode(&(config.clone(), sources.to_vec()))?;
    let first = ranks.text_of_first(&own)?;
    if first == own {
        return Ok(());
    }
    let first: (TrainConfig, Vec<(String, String)>) = serde_json::from_str(&first)
        .map_err(|e| Error::failed(format!("rank 0's configuration: {e}")))?;
    let (mut changes, harmless) = first.0.differences(config);
    changes.extend(harmless);
    let digests = |of: &[(String, String)]| of.iter().map(|(_, d)| d.clone()).collect::<Vec<_>>();
    if digests(&first.1) != digests(sources) {
        let other = sources.iter().zip(&first.1).find(|(own, first)| own.1 != first.1);
        changes.push(match other {
            Some(((name, _), _)) => format!("{name}: another content than rank 0's"),
            None => format!("{}, rank 0 has {}", counted(sources.len(), "file"), first.1.len()),
        });
    }
    match changes.is_empty() {
        true => Ok(()),
        false => Err(Error::failed(format!(
            "expected what rank 0 trains with, found something else: {}",
            changes.join("; ")
        ))),
    }
}

/// A run goes on exactly or not at all.
pub(super) fn refuse_changes(
    path: &Path,
    state: &State,
    config: &TrainConfig,
    sources: &[(String, String)],
    listener: &dyn Listener,
) -> Result<()> {
    let (mut changes, harmless) = state.config.differences(config);
    let digests = |of: &[(String, String)]| of.iter().map(|(_, d)| d.clone()).collect::<Vec<_>>();
    if digests(&state.sources) != digests(sources) {
        for (name, digest) in sources {
            if !state.sources.iter().any(|(_, was)| was == digest) {
                changes.push(format!("{name}: another content than before"));
            }
        }
        if state.sources.len() != sources.len() || changes.is_empty() {
            changes.push("`data`: other files or another order than before".into());
        }
    }
    if changes.is_empty() {
        harmless.iter().for_each(|change| listener.say(&format!("goes on with {change}")));
        return Ok(());
    }
    let hint = match state.config.batch_size == config.batch_size {
        true => String::new(),
        false => format!(
            "`global_batch` {} keeps its batches with any number of processes; else ",
            state.config.batch_size * state.config.accumulation
        ),
    };
    Err(Error::failed_with_hint(
        format!("{}: cannot go on with other settings: {}", path.display(), changes.join("; ")),
        format!(
            "{hint}give the settings of the run's beginning, or start a new run with `from` and \
             another `out`"
        ),
    ))
}
