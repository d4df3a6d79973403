//! Prompts to records: asked by several threads, written in order.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};

use mmx_converters::{Error, Result, digest};
use mmx_data::asking::{Chat, Journal, prompt_of};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::settings::{Generate, Mode};
use super::similar;
use super::steps::{Outcome, Task, Working};
use crate::reading::{self, Reading, Source};
use crate::report::{Example, Report};
use crate::writing::Output;

/// What was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Generated {
    /// What became of the prompts.
    #[serde(flatten)]
    pub report: Report,
    /// Tokens as the server counts them, prompts and answers.
    pub tokens: u64,
    /// Requests that were answered, now or in a run before.
    pub requests: u64,
    /// Those that the journal held already.
    pub resumed: u64,
    /// Prompts that the budget did not suffice for.
    pub beyond_budget: u64,
}

impl Generate {
    /// The journal's place beside an output.
    #[must_use]
    pub fn journal_of(out: &Path) -> PathBuf {
        PathBuf::from(format!("{}.journal", out.display()))
    }

    /// Asks for everything that the journal has not, then writes the records in order.
    ///
    /// # Errors
    /// Files that cannot be read or written, requests that failed for good; what was answered is in
    /// the journal then.
    pub fn run(
        &self,
        reading: &Reading,
        chats: (&dyn Chat, &dyn Chat),
        journal: &Path,
        output: &mut Output<'_>,
    ) -> Result<Generated> {
        let seeds = match self.mode {
            Mode::Instructions { .. } => self.seeds(reading)?,
            _ => Vec::new(),
        };
        let journal = Journal::open(journal, &self.digest(reading)?)?;
        let working = Working {
            job: self,
            chat: chats.0,
            judge: chats.1,
            journal: &journal,
            tokens: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            failing: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            fault: Mutex::new(None),
        };
        let failed: Mutex<Vec<(Source, String)>> = Mutex::new(Vec::new());
        let (send, receive) = sync_channel::<Task>(2 * self.parallel.max(1));
        let receive = Mutex::new(receive);
        let fed = std::thread::scope(|scope| {
            for _ in 0..self.parallel.max(1) {
                scope.spawn(|| {
                    while let Some((task, over)) = next(&receive, &working) {
                        // what waits is taken from the channel all the same, so that its end is seen
                        if over {
                            continue;
                        }
                        match working.ask_all(&task, &seeds) {
                            Ok(Ok(())) => working.failing.store(0, Ordering::Relaxed),
                            Ok(Err(why)) => {
                                let row = working.failing.fetch_add(1, Ordering::Relaxed) + 1;
                                if row >= 2 * working.job.parallel.max(1) {
                                    working.stop.store(true, Ordering::Relaxed);
                                }
                                let mut failed =
                                    failed.lock().unwrap_or_else(PoisonError::into_inner);
                                failed.push((task.source, why));
                            }
                            Err(error) => working.fail(error),
                        }
                    }
                });
            }
            let fed = self.tasks(reading, |task| {
                if !working.is_over() {
                    let _ = send.send(task); // the threads are there until the channel closes
                }
                Ok(())
            });
            drop(send);
            fed
        });
        fed?;
        if let Some(error) = working.fault.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        let mut failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        failed.sort();
        let given_up = working.stop.load(Ordering::Relaxed);
        if let Some((source, why)) = failed.first().filter(|_| !self.skip_failed || given_up) {
            let place = match reading.files.get(source.file) {
                Some(path) => format!("{}:{}", path.display(), source.number),
                None => format!("request {}", source.number),
            };
            return Err(Error::failed_with_hint(
                format!("{} prompts were not answered, the first {place}: {why}", failed.len()),
                "what was answered is kept: the same command goes on with the rest",
            ));
        }
        self.write(reading, &working, &seeds, &failed, output)
    }

    /// The digest of what the answers depend on.
    fn digest(&self, reading: &Reading) -> Result<String> {
        let files =
            reading.files.iter().map(|path| digest::of_file(path).map_err(|e| Error::io(path, e)));
        let settings = json!({
            "mode": self.mode, "model": self.model, "judge": self.judge, "system": self.system,
            "sampling": self.sampling, "files": files.collect::<Result<Vec<_>>>()?,
            "fields": Vec::<String>::from(reading.fields.clone()),
        });
        Ok(digest::of_bytes(settings.to_string().as_bytes()))
    }

    /// Calls `take` with every prompt, in order.
    fn tasks(&self, reading: &Reading, mut take: impl FnMut(Task) -> Result<()>) -> Result<()> {
        if let Mode::Instructions { count } = self.mode {
            for number in 0..count {
                let source = Source { file: usize::MAX, number: number as usize + 1 };
                take(Task { number, source, prompt: Err(String::new()) })?;
            }
            return Ok(());
        }
        let mut number = 0;
        let work = |raw: reading::Raw<'_>| (raw.source, prompt_of(&raw.mapped()));
        reading::for_each(reading, "asking", work, |(source, prompt)| {
            take(Task { number, source, prompt: prompt.map(|prompt| self.with_system(prompt)) })?;
            number += 1;
            Ok(())
        })?;
        Ok(())
    }

    /// The instructions of the seeds.
    fn seeds(&self, reading: &Reading) -> Result<Vec<String>> {
        let mut seeds = Vec::new();
        let work = |raw: reading::Raw<'_>| (raw.source, prompt_of(&raw.mapped()));
        reading::for_each(reading, "reading", work, |(source, prompt)| {
            let path = reading.files[source.file].display();
            let prompt =
                prompt.map_err(|why| Error::failed(format!("{path}:{}: {why}", source.number)))?;
            let asked = prompt.turns.iter().rev().find(|turn| turn["role"] == "user");
            seeds.extend(asked.and_then(|turn| turn["content"].as_str()).map(str::to_owned));
            Ok(())
        })?;
        match seeds.is_empty() {
            true => Err(Error::failed("expected seeds with instructions, found none")),
            false => Ok(seeds),
        }
    }

    /// Writes the records from the journal.
    fn write(
        &self,
        reading: &Reading,
        working: &Working<'_>,
        seeds: &[String],
        failed: &[(Source, String)],
        output: &mut Output<'_>,
    ) -> Result<Generated> {
        let mut made = Generated {
            requests: working.requests.load(Ordering::Relaxed),
            resumed: working.resumed.load(Ordering::Relaxed),
            ..Generated::default()
        };
        let failed_at: BTreeSet<Source> = failed.iter().map(|(source, _)| *source).collect();
        let mut known: Vec<Vec<u64>> = seeds.iter().map(|seed| similar::words(seed)).collect();
        let mut over = false;
        self.tasks(reading, |task| {
            let source = task.source;
            let example =
                |found: String, text: &str| Example::new(&reading.files, source, found, text);
            let report = &mut made.report;
            if over {
                made.beyond_budget += 1;
                return Ok(());
            }
            report.read += 1;
            if failed_at.contains(&source) {
                let why = failed.iter().find(|(at, _)| *at == source).map(|(_, why)| why.clone());
                report.drop("request", || example(why.unwrap_or_default(), ""));
                return Ok(());
            }
            let (outcome, tokens) = working.outcome(&task, seeds)?;
            let Some(outcome) = outcome else {
                // it was not asked: the budget was used up
                over = true;
                report.read -= 1;
                made.beyond_budget += 1;
                return Ok(());
            };
            if self.budget.is_some_and(|budget| made.tokens + tokens > budget) {
                over = true;
                report.read -= 1;
                made.beyond_budget += 1;
                return Ok(());
            }
            made.tokens += tokens;
            let outcome = outcome.and_then(|record| match self.mode {
                Mode::Instructions { .. } => fresh(record, &mut known),
                _ => Ok(record),
            });
            match outcome {
                Ok(record) => {
                    let line = Value::Object(record).to_string();
                    report.kept += 1;
                    report.kept_text_bytes += line.len() as u64;
                    output.push(&line)
                }
                Err((rule, found)) => {
                    report.drop(rule, || example(found, ""));
                    Ok(())
                }
            }
        })?;
        Ok(made)
    }
}

/// The next prompt, and whether it is too late for it; nothing once all are taken. Both are told
/// under one lock, so that no prompt is asked after one that was not.
fn next(receive: &Mutex<Receiver<Task>>, working: &Working<'_>) -> Option<(Task, bool)> {
    let receive = receive.lock().unwrap_or_else(PoisonError::into_inner);
    let task = receive.recv().ok()?;
    Some((task, working.is_over()))
}

/// A record whose instruction is not too much like those before.
fn fresh(record: Map<String, Value>, known: &mut Vec<Vec<u64>>) -> Outcome {
    let asked = record["conversations"]
        .as_array()
        .and_then(|turns| turns.iter().find(|turn| turn["role"] == "user")?["content"].as_str());
    let words = similar::words(asked.unwrap_or_default());
    let alike = known.iter().any(|other| {
        similar::most(other, &words) >= similar::ALIKE
            && similar::rouge_l(other, &words) >= similar::ALIKE
    });
    if words.is_empty() || alike {
        return Err(("instruction.alike", asked.unwrap_or_default().chars().take(80).collect()));
    }
    known.push(words);
    Ok(record)
}
