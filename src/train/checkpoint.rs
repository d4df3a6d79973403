//! A checkpoint: a model folder that every tool opens, and beside it in `training/` what is needed
//! to go on exactly: moments, an unfinished accumulation's gradient, position, configuration,
//! digests.
//!
//! Below a run's `--out DIR`:
//! ```text
//! DIR/checkpoint-000123/            after optimizer step 123; the highest number is the newest
//!     config.json model.safetensors tokenizer.json ...
//!     training/optimizer.safetensors   first.NAME, second.NAME (and gradient.NAME), float32;
//!                                      momentum.NAME instead where Muon changes NAME
//!     training/state.json              written last: without it the folder is no checkpoint
//!     (stage lora: adapter_config.json adapter_model.safetensors
//!      instead of config.json model.safetensors)
//! DIR/checkpoint-000123.2/          2 micro-steps into the accumulation after step 123
//! ```
//! A checkpoint is written beside its place, flushed, and renamed: it is there whole or not at all.
//! The ones before it are removed only then, and only if all that is in them was written here.
//! Digests tell a damaged one, whatever happened to the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use mmx_converters::model::adapter;
use mmx_converters::model::folder::{self, Folder, SaveTokenizer};
use mmx_converters::model::generation::Generation;
use mmx_converters::progress::Listener;
use mmx_converters::safetensors::shards;
use mmx_converters::safetensors::{self, SafeTensors, TensorSpec};
use mmx_converters::tensor::Dtype;
use serde::{Deserialize, Serialize};

use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::model::HostTensor;
use crate::optim::{Optimizer, Part};
use crate::trainer::{Position, Trainer};
use mmx_converters::digest;
use mmx_converters::model::run_folder;

/// The folder's name while a checkpoint is written.
const STAGING: (&str, &str) = (".mmx-checkpoint-", ".part");
/// The folder beside the model's files.
const TRAINING: &str = "training";
/// The state of the critic's optimizer, named as that of the policy's.
const CRITIC: &str = "critic.safetensors";
/// What the stage keeps: a critic, what was computed of a batch in hand.
const STAGE: &str = "stage.safetensors";
/// What the source of batches keeps: the rollouts in hand.
const BATCHES: &str = "rollouts.jsonl";
/// The version of state.json.
const FORMAT: u32 = 1;

/// `training/state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Version of this file.
    pub format: u32,
    /// The mmx that wrote it.
    pub mmx: String,
    /// The position of the run.
    pub position: Position,
    /// Updates the optimizer has made (AdamW's bias correction counts them).
    pub optimizer_steps: u64,
    /// Micro-steps in the gradient kept.
    pub accumulated: usize,
    /// Micro-steps of the whole run: the schedule's T.
    pub total_micro_steps: usize,
    /// The resolved configuration.
    pub config: TrainConfig,
    /// The data files and the tokenizer, as name and SHA-256.
    pub sources: Vec<(String, String)>,
    /// SHA-256 of every other file of the folder, by its path in it.
    pub files: BTreeMap<String, String>,
}

/// A whole checkpoint: its folder and what it says.
pub type Found = (PathBuf, State);

/// The parts that a checkpoint is written from, besides the trainer.
pub struct Context<'a> {
    /// The run's folder.
    pub dir: &'a Path,
    /// Writes the tokenizer's files.
    pub tokenizer: Option<SaveTokenizer<'a>>,
    /// Sampling defaults that go with the model.
    pub generation: &'a Generation,
    /// Data files and tokenizer, as name and SHA-256.
    pub sources: &'a [(String, String)],
    /// Checkpoints to keep.
    pub keep: usize,
    /// Hears which files of others are kept.
    pub listener: &'a dyn Listener,
}

/// Writes the trainer's checkpoint and removes all but the newest `keep`, as far as they hold
/// nothing else. Returns its folder. Where there are several processes all have to call it, and the
/// first one writes.
///
/// # Errors
/// The system's refusal (a full disk): the checkpoints that were there are still there. A process
/// that is gone.
pub fn save(context: &Context<'_>, trainer: &Trainer<'_>) -> Result<PathBuf> {
    let dir = context.dir;
    if !trainer.ranks().is_first() {
        attend(trainer.optimizer())?;
        trainer.critic().map_or(Ok(()), attend)?;
        return Ok(place(dir, trainer));
    }
    fs_err::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let staging = tempfile::Builder::new()
        .prefix(STAGING.0)
        .suffix(STAGING.1)
        .tempdir_in(dir)
        .map_err(|e| Error::io(dir, e))?;
    let whole = staging.path().join("checkpoint");
    write_model(context, trainer, &whole)?;
    let training = whole.join(TRAINING);
    fs_err::create_dir_all(&training).map_err(|e| Error::io(&training, e))?;
    write_optimizer(trainer.optimizer(), &training.join("optimizer.safetensors"))?;
    if let Some(critic) = trainer.critic() {
        write_optimizer(critic, &training.join(CRITIC))?;
    }
    let of_stage = trainer.stage().state()?;
    if !of_stage.is_empty() {
        write_stage(&of_stage, &training.join(STAGE))?;
    }
    if let Some(batches) = trainer.batches_state()? {
        mmx_converters::file::write_bytes(&training.join(BATCHES), batches.as_bytes())?;
    }
    let state = State {
        format: FORMAT,
        mmx: env!("CARGO_PKG_VERSION").to_owned(),
        position: trainer.position(),
        optimizer_steps: trainer.optimizer().steps(),
        accumulated: trainer.optimizer().accumulated(),
        total_micro_steps: trainer.plan().micro_steps,
        config: trainer.config().clone(),
        sources: context.sources.to_vec(),
        files: digests(&whole)?,
    };
    let path = training.join("state.json");
    let mut text = serde_json::to_string_pretty(&state)
        .map_err(|e| Error::failed(format!("{}: {e}", path.display())))?;
    text.push('\n');
    mmx_converters::file::write_bytes(&path, text.as_bytes())?;
    sync(&training)?;
    sync(&whole)?;

    let place = place(dir, trainer);
    if place.exists() {
        if check(&place).is_ok() {
            return Ok(place); // a run that was resumed here and went no further
        }
        put_aside(dir, &place, staging.path(), context.listener)?;
    }
    fs_err::rename(&whole, &place).map_err(|e| Error::io(&place, e))?;
    sync(dir)?;
    prune(dir, context.keep, &place, staging.path(), context.listener)?;
    Ok(place)
}

/// The folder of the trainer's checkpoint.
pub fn place(dir: &Path, trainer: &Trainer<'_>) -> PathBuf {
    dir.join(run_folder::name(trainer.position().step, trainer.optimizer().accumulated()))
}

/// The model's folder; with adapters attached, theirs: what is fixed lies where they say.
fn write_model(context: &Context<'_>, trainer: &Trainer<'_>, dir: &Path) -> Result<()> {
    let model = trainer.model();
    if let Some(lora) = model.lora() {
        fs_err::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        lora.to_host()?.write(dir)?;
        if let Some(save) = context.tokenizer {
            save(dir)?;
        }
        return Ok(());
    }
    let layout = folder::carrying_layout(model.config());
    let folder = Folder {
        config: model.config(),
        layout,
        dtype: Dtype::F32,
        generation: context.generation,
        tokenizer: context.tokenizer,
        metadata: &BTreeMap::new(),
        strict: true,
        shard_bytes: None,
    };
    folder::write(dir, &folder, &mut |weight| match model.weight_to_host(&weight.name)? {
        Some(values) => Ok((Dtype::F32, bytemuck::cast_slice(&values).to_vec().into())),
        None => Err(mmx_converters::Error::format(
            dir,
            format!("tensor {}: expected in the model, found none", weight.name),
        )),
    })?;
    Ok(())
}

/// The tensors of the optimizer's state: part, prefix of the name in the file, name, shape.
fn optimizer_tensors(optimizer: &Optimizer) -> Vec<(Part, &'static str, &str, Vec<usize>)> {
    let of = |(prefix, part): (&'static str, Part)| {
        let tensors = optimizer.tensors(part);
        tensors.map(move |(name, shape)| (part, prefix, name, shape))
    };
    parts(optimizer.accumulated()).flat_map(of).collect()
}

/// Writes the optimizer's state a tensor at a time; the other processes [`attend`].
fn write_optimizer(optimizer: &Optimizer, path: &Path) -> Result<()> {
    let tensors = optimizer_tensors(optimizer);
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(_, prefix, name, shape)| {
            let name = format!("{prefix}.{name}");
            TensorSpec { name, dtype: Dtype::F32, shape: shape.clone() }
        })
        .collect();
    // all of one type: in this order
    safetensors::write(path, &specs, &BTreeMap::new(), |i| {
        let (part, _, name, _) = tensors[i];
        let values = optimizer.state(part, name)?;
        Ok(bytemuck::cast_slice(&values).to_vec().into())
    })?;
    Ok(())
}

/// Writes what a stage keeps.
fn write_stage(tensors: &[HostTensor], path: &Path) -> Result<()> {
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|of| TensorSpec { name: of.name.clone(), dtype: Dtype::F32, shape: of.shape.clone() })
        .collect();
    safetensors::write(path, &specs, &BTreeMap::new(), |i| {
        Ok(bytemuck::cast_slice(&tensors[i].values).to_vec().into())
    })?;
    Ok(())
}

/// Reads what a stage keeps; nothing where it kept nothing.
fn read_stage(path: &Path) -> Result<Vec<HostTensor>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let file = SafeTensors::open(path)?;
    let tensors = file.names().filter_map(|name| {
        let view = file.get(name)?;
        let (name, shape) = (name.to_owned(), view.shape.to_vec());
        Some(HostTensor { name, shape, values: view.to_f32() })
    });
    Ok(tensors.collect())
}

/// Gives the first process what it has not of the state that it writes, in the same order.
fn attend(optimizer: &Optimizer) -> Result<()> {
    let tensors = optimizer_tensors(optimizer);
    tensors.iter().try_for_each(|(part, _, name, _)| optimizer.state(*part, name).map(drop))
}

/// The parts of the optimizer's state that a checkpoint keeps, by prefix.
fn parts(accumulated: usize) -> impl Iterator<Item = (&'static str, Part)> {
    Part::ALL.into_iter().filter(move |(_, part)| *part != Part::Gradient || accumulated > 0)
}

/// Puts a checkpoint's optimizer state and position into a trainer whose model was loaded from it.
///
/// # Errors
/// State that does not fit the model.
pub fn restore(checkpoint: &Path, state: &State, trainer: &mut Trainer<'_>) -> Result<()> {
    let training = checkpoint.join(TRAINING);
    let optimizer = trainer.restore(state.position);
    read_optimizer(&training.join("optimizer.safetensors"), state, optimizer)?;
    if let Some(critic) = trainer.restore_critic() {
        read_optimizer(&training.join(CRITIC), state, critic)?;
    }
    trainer.stage().restore(&read_stage(&training.join(STAGE))?)?;
    let batches = training.join(BATCHES);
    if batches.exists() {
        let text = fs_err::read_to_string(&batches).map_err(|e| Error::io(&batches, e))?;
        let Position { epoch, index, .. } = state.position;
        trainer.batches().restore(epoch, index, &text)?;
    }
    Ok(())
}

/// Puts a file's state into an optimizer.
fn read_optimizer(path: &Path, state: &State, optimizer: &mut Optimizer) -> Result<()> {
    let file = SafeTensors::open(path)?;
    let names: Vec<&str> = file.names().collect();
    let kept: Vec<(&str, Part)> = parts(state.accumulated).collect();
    let wanted = kept.iter().map(|(_, part)| optimizer.tensors(*part).count()).sum::<usize>();
    if names.len() != wanted {
        return Err(Error::failed(format!(
            "{}: expected {wanted} tensors, found {}",
            path.display(),
            names.len()
        )));
    }
    for full in names {
        let part = full.split_once('.').and_then(|(prefix, name)| {
            let (_, part) = kept.iter().find(|(of, _)| *of == prefix)?;
            Some((*part, name))
        });
        let (Some((part, name)), Some(view)) = (part, file.get(full)) else {
            return Err(Error::failed(format!(
                "{}: tensor {full}: expected a name that begins with {}.",
                path.display(),
                kept.iter().map(|(prefix, _)| *prefix).collect::<Vec<_>>().join("., ")
            )));
        };
        optimizer.restore(part, name, &view.to_f32())?;
    }
    optimizer.restore_counts(state.optimizer_steps, state.accumulated);
    Ok(())
}

/// Removes what a killed run left of a checkpoint it was writing. The folder must be the caller's
/// alone ([`run_folder::claim`]).
///
/// # Errors
/// The folder cannot be read, or what is in it not removed.
pub fn sweep(dir: &Path) -> Result<()> {
    for entry in fs_err::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(STAGING.0) && name.ends_with(STAGING.1) {
            fs_err::remove_dir_all(&path).map_err(|e| Error::io(&path, e))?;
        }
    }
    Ok(())
}

/// The newest whole checkpoint below `dir`, if there is one, and a sentence for each newer one that
/// is damaged.
///
/// # Errors
/// `dir` cannot be read; it holds checkpoints and all are damaged; the newest was written by
/// another version of mmx, or the system refuses to read it: neither is damage, and an older one no
/// answer.
pub fn newest(dir: &Path) -> Result<(Option<Found>, Vec<String>)> {
    let mut warnings = Vec::new();
    for path in run_folder::checkpoints(dir)?.into_iter().rev() {
        match check(&path) {
            Ok(state) => return Ok((Some((path, state)), warnings)),
            Err(Fault::Damaged(what)) => {
                warnings.push(format!("{what}: damaged, the checkpoint before it is used"));
            }
            Err(Fault::Other(error)) => return Err(*error),
        }
    }
    match warnings.first() {
        None => Ok((None, warnings)),
        Some(first) => {
            Err(Error::failed(format!("{}: no whole checkpoint is left: {first}", dir.display())))
        }
    }
}

/// Why a checkpoint cannot be gone on from.
#[derive(Debug)]
pub enum Fault {
    /// A file is missing, cut short or changed: which, expected and found.
    Damaged(String),
    /// The checkpoint may be whole: another version's, or the system refused to read it.
    Other(Box<Error>),
}

impl Fault {
    fn io(path: &Path, error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::NotFound => {
                Self::Damaged(format!("{}: expected a file, found none", path.display()))
            }
            _ => Self::Other(Box::new(Error::io(path, error))),
        }
    }
}

/// A checkpoint's state, once every file in it has the digest it had.
///
/// # Errors
/// The file that is missing or differs; a state of another version.
pub fn check(checkpoint: &Path) -> Result<State, Fault> {
    #[derive(Deserialize)]
    struct Versioned {
        format: u32,
        mmx: String,
    }
    let path = checkpoint.join(TRAINING).join("state.json");
    let bytes = fs_err::read(&path).map_err(|e| Fault::io(&path, e))?;
    let bad = |e: serde_json::Error| {
        Fault::Damaged(format!("{}: expected a training state: {e}", path.display()))
    };
    let Versioned { format, mmx } = serde_json::from_slice(&bytes).map_err(bad)?;
    if format != FORMAT {
        return Err(Fault::Other(Box::new(Error::failed_with_hint(
            format!("{}: key format: expected {FORMAT}, found {format}", path.display()),
            format!("mmx {mmx} wrote it and goes on with it"),
        ))));
    }
    let state: State = serde_json::from_slice(&bytes).map_err(bad)?;
    for (name, expected) in &state.files {
        let file = checkpoint.join(name);
        let found = digest::of_file(&file).map_err(|e| Fault::io(&file, e))?;
        if found != *expected {
            return Err(Fault::Damaged(format!(
                "{}: expected SHA-256 {expected}, found {found}",
                file.display()
            )));
        }
    }
    Ok(state)
}

/// Keeps the last `keep` up to the one just written. Those numbered beyond it are the damaged ones
/// that the run did not go on from. Each leaves its place in one move, so that none is ever half
/// there.
fn prune(
    dir: &Path,
    keep: usize,
    written: &Path,
    staging: &Path,
    listener: &dyn Listener,
) -> Result<()> {
    let all = run_folder::checkpoints(dir)?;
    let end = all.iter().position(|path| path == written).map_or(all.len(), |i| i + 1);
    let old = end.saturating_sub(keep.max(1));
    for (i, path) in all[..old].iter().chain(&all[end..]).enumerate() {
        if let Some(found) = foreign_file(path)? {
            say_kept(path, &found, listener);
            continue;
        }
        let gone = staging.join(format!("old-{i}"));
        fs_err::rename(path, &gone).map_err(|e| Error::io(path, e))?;
    }
    Ok(())
}

/// Makes the place of a damaged checkpoint free. With files of others in it, it stays under a name
/// that is no checkpoint's.
fn put_aside(dir: &Path, place: &Path, staging: &Path, listener: &dyn Listener) -> Result<()> {
    let mut old = staging.join("damaged");
    if foreign_file(place)?.is_some() {
        let name = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut names = (1..).map(|n| dir.join(format!("damaged-{name}-{n}")));
        old = names.find(|path| !path.exists()).unwrap_or(old);
        listener.say(&format!(
            "{}: damaged, and it holds files that were not written by the training: now {}",
            place.display(),
            old.display()
        ));
    }
    fs_err::rename(place, &old).map_err(|e| Error::io(place, e))
}

/// Tells the listener once that a checkpoint is kept.
fn say_kept(checkpoint: &Path, found: &Path, listener: &dyn Listener) {
    static SAID: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let mut said = SAID.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if said.insert(checkpoint.to_owned()) {
        listener.say(&format!(
            "{}: kept beyond `keep`: {} was not written by the training, or changed since",
            checkpoint.display(),
            found.display()
        ));
    }
}

/// The first file or folder in a checkpoint that [`save`] did not write there, or that was changed
/// since. Of large files only the name is looked at: nobody edits weights by hand, and reading them
/// would cost what writing them does.
fn foreign_file(checkpoint: &Path) -> Result<Option<PathBuf>> {
    /// Endings of the files that people edit.
    const TEXT: [&str; 2] = ["json", "jinja"];
    let state = checkpoint.join(TRAINING).join("state.json");
    let known: Option<State> =
        fs_err::read(&state).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let mut folders = vec![(checkpoint.to_owned(), String::new())];
    while let Some((dir, prefix)) = folders.pop() {
        for entry in fs_err::read_dir(&dir).map_err(|e| Error::io(&dir, e))? {
            let entry = entry.map_err(|e| Error::io(&dir, e))?;
            let path = entry.path();
            let meta = fs_err::symlink_metadata(&path).map_err(|e| Error::io(&path, e))?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if meta.is_dir() && name == TRAINING {
                folders.push((path, format!("{TRAINING}/")));
                continue;
            }
            let own = match known.as_ref().map(|state| state.files.get(&name)) {
                _ if path == state => true,
                Some(Some(expected))
                    if meta.is_file()
                        && path.extension().is_some_and(|e| TEXT.iter().any(|text| e == *text)) =>
                {
                    digest::of_file(&path).map_err(|e| Error::io(&path, e))? == *expected
                }
                Some(expected) => expected.is_some() && meta.is_file(),
                // damaged: by what such files are called
                None => meta.is_file() && is_written(&name),
            };
            if !own {
                return Ok(Some(path));
            }
        }
    }
    Ok(None)
}

/// True for the name of a file that [`save`] writes, in any stage.
fn is_written(name: &str) -> bool {
    let names =
        ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"];
    let more = ["chat_template.jinja", adapter::CONFIG_NAME, adapter::WEIGHTS_NAME];
    let optimizer = name.strip_prefix(TRAINING) == Some("/optimizer.safetensors");
    names.contains(&name) || more.contains(&name) || shards::is_weights(name) || optimizer
}

/// Digests of all files below `dir`, by their path in it, `/` between.
fn digests(dir: &Path) -> Result<BTreeMap<String, String>> {
    fn walk(dir: &Path, prefix: &str, out: &mut BTreeMap<String, String>) -> Result<()> {
        for entry in fs_err::read_dir(dir).map_err(|e| Error::io(dir, e))? {
            let entry = entry.map_err(|e| Error::io(dir, e))?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                walk(&entry.path(), &format!("{name}/"), out)?;
            } else {
                let path = entry.path();
                out.insert(name, digest::of_file(&path).map_err(|e| Error::io(&path, e))?);
            }
        }
        Ok(())
    }
    let mut out = BTreeMap::new();
    walk(dir, "", &mut out)?;
    Ok(out)
}

/// Makes a folder's entries durable.
fn sync(dir: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        let file = fs_err::File::open(dir).map_err(|e| Error::io(dir, e))?;
        file.sync_all().map_err(|e| Error::io(dir, e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use mmx_converters::progress::Silent;

    use super::*;

    /// A checkpoint of a few small files, with its state.
    fn checkpoint(run: &Path, step: usize) -> PathBuf {
        let dir = run.join(run_folder::name(step, 0));
        let training = dir.join(TRAINING);
        fs_err::create_dir_all(&training).expect("a folder");
        for (name, text) in [("config.json", "{}"), ("training/optimizer.safetensors", "x")] {
            fs_err::write(dir.join(name), text).expect("a file");
        }
        let stage = crate::stage::by_name("sft").expect("a stage");
        let state = State {
            format: FORMAT,
            mmx: String::new(),
            position: Position::default(),
            optimizer_steps: 0,
            accumulated: 0,
            total_micro_steps: 0,
            config: TrainConfig::new(stage.as_ref(), mmx_data::Recipe::R2025),
            sources: Vec::new(),
            files: digests(&dir).expect("readable"),
        };
        let text = serde_json::to_string(&state).expect("a state");
        fs_err::write(training.join("state.json"), text).expect("a file");
        dir
    }

    #[test]
    fn rotation_removes_only_checkpoints_that_hold_nothing_else() {
        let run = tempfile::tempdir().expect("a folder");
        let staging = tempfile::tempdir_in(run.path()).expect("a folder");
        let all: Vec<PathBuf> = (1..=7).map(|step| checkpoint(run.path(), step)).collect();
        fs_err::write(all[0].join("notes.txt"), "mine").expect("a file");
        fs_err::create_dir(all[1].join("export")).expect("a folder");
        fs_err::write(all[2].join("config.json"), "[]").expect("a file"); // edited
        fs_err::write(all[3].join("training/plan.txt"), "mine").expect("a file");
        fs_err::remove_file(all[4].join("training/state.json")).expect("a file"); // damaged
        prune(run.path(), 1, &all[6], staging.path(), &Silent).expect("rotated");
        let left: Vec<bool> = all.iter().map(|path| path.exists()).collect();
        assert_eq!(left, [true, true, true, true, false, false, true]);
        assert_eq!(fs_err::read_to_string(all[0].join("notes.txt")).expect("kept"), "mine");
    }

    #[test]
    fn a_damaged_checkpoint_with_files_of_others_is_put_aside_not_removed() {
        let run = tempfile::tempdir().expect("a folder");
        let staging = tempfile::tempdir_in(run.path()).expect("a folder");
        for expected in ["damaged-checkpoint-000009-1", "damaged-checkpoint-000009-2"] {
            let place = checkpoint(run.path(), 9);
            fs_err::write(place.join("training/state.json"), "{").expect("a file");
            fs_err::write(place.join("notes.txt"), "mine").expect("a file");
            put_aside(run.path(), &place, staging.path(), &Silent).expect("moved");
            assert!(!place.exists() && run.path().join(expected).join("notes.txt").exists());
        }
        assert!(run_folder::checkpoints(run.path()).expect("readable").is_empty());
        let place = checkpoint(run.path(), 9);
        put_aside(run.path(), &place, staging.path(), &Silent).expect("moved");
        assert!(!place.exists() && staging.path().join("damaged").exists());
    }
}
