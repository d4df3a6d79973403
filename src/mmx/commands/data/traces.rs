//! `mmx data show` for stages that learn from rewards: prompts as the policy reads them, and rollouts,
//! what was sampled marked, with their rewards.

use std::path::Path;

use mmx_converters::Error;
use mmx_converters::tokenizer::Tokenizer;
use mmx_converters::words::counted;
use mmx_data::Fields;
use mmx_data::blocks::Blocks;
use mmx_data::jsonl;
use mmx_data::task::fault_of;
use mmx_rollout::{PromptOptions, Prompts, Rollout};
use serde_json::{Map, Value, json};

use crate::commands::tokenizer::piece;
use crate::error::Result;

/// What is to be shown.
pub(super) struct Request<'a> {
    pub(super) file: &'a Path,
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) fields: Fields,
    pub(super) samples: usize,
    pub(super) line: Option<u32>,
    /// Marks what was sampled.
    pub(super) marked: &'a dyn Fn(&[u32], &[bool]) -> String,
}

/// Shows a file of rollouts, or one of tasks: the first record tells.
pub(super) fn show(request: &Request<'_>, as_json: bool) -> Result<()> {
    let rollouts = rollouts(request)?;
    let samples = match rollouts {
        Some(rollouts) => show_rollouts(request, &rollouts, as_json),
        None => show_tasks(request, as_json)?,
    };
    if as_json {
        println!("{}", json!({ "samples": samples }));
    }
    Ok(())
}

/// The rollouts of a file with their lines, as many as are shown; nothing where it holds tasks.
fn rollouts(request: &Request<'_>) -> Result<Option<Vec<(usize, Rollout)>>> {
    let mut found = Vec::new();
    let mut blocks = Blocks::open(request.file)?;
    while let Some(block) = blocks.next_block()? {
        for line in block.lines() {
            let wanted = request.line.is_none_or(|number| line.label() == number as usize);
            if found.is_empty() {
                let object = jsonl::object(&line).map_err(|fault| fault_of(request.file, fault))?;
                if !(object.contains_key("response_ids") && object.contains_key("mask")) {
                    return Ok(None);
                }
            }
            if !wanted {
                continue;
            }
            let text = jsonl::utf8(&line).map_err(|fault| fault_of(request.file, fault))?;
            let rollout = Rollout::from_json(text).map_err(|error| {
                Error::failed(format!("{}:{}: {error}", request.file.display(), line.label()))
            })?;
            found.push((line.label(), rollout));
            if found.len() == request.samples {
                return Ok(Some(found));
            }
        }
    }
    match (found.is_empty(), request.line) {
        (true, Some(line)) => Err(Error::failed(format!(
            "{}: line {line}: expected a rollout, found none",
            request.file.display()
        ))
        .into()),
        (empty, _) => Ok((!empty).then_some(found)),
    }
}

fn show_rollouts(
    request: &Request<'_>,
    rollouts: &[(usize, Rollout)],
    as_json: bool,
) -> Vec<Value> {
    let mut samples = Vec::new();
    for (line, rollout) in rollouts {
        let ids = [&rollout.prompt[..], &rollout.ids].concat();
        let mut sampled = vec![false; rollout.prompt.len()];
        sampled.extend(&rollout.sampled);
        if as_json {
            let pieces: Vec<String> = ids.iter().map(|&id| piece(request.tokenizer, id)).collect();
            let parts: Map<String, Value> =
                rollout.parts.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
            samples.push(json!({
                "line": line, "sample": rollout.sample, "group": rollout.group, "ids": ids, "sampled": sampled,
                "pieces": pieces, "finish": rollout.finish, "parts": parts, "reward": rollout.reward,
            }));
            continue;
        }
        let parts: Vec<String> =
            rollout.parts.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        let parts =
            if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
        let finish = json!(rollout.finish);
        println!(
            "line {line}, task {}, group {}: {}, {} sampled, ended by {}, reward {:.4}{parts}",
            rollout.sample,
            rollout.group,
            counted(ids.len(), "token"),
            rollout.sampled.iter().filter(|sampled| **sampled).count(),
            finish.as_str().unwrap_or_default(),
            rollout.reward,
        );
        println!("{}\n", (request.marked)(&ids, &sampled));
    }
    samples
}

fn show_tasks(request: &Request<'_>, as_json: bool) -> Result<Vec<Value>> {
    let options = PromptOptions { fields: request.fields.clone(), ..PromptOptions::default() };
    let prompts = Prompts::load(&[request.file.to_owned()], options)?;
    let line_of = |sample: u64| prompts.place(sample).map_or(0, |(_, line)| line);
    let wanted =
        |sample: &u64| request.line.is_none_or(|number| line_of(*sample) == number as usize);
    let chosen: Vec<u64> = (0..prompts.len() as u64).filter(wanted).take(request.samples).collect();
    if let (true, Some(line)) = (chosen.is_empty(), request.line) {
        let file = request.file.display();
        return Err(
            Error::failed(format!("{file}: line {line}: expected a task, found none")).into()
        );
    }
    let mut samples = Vec::new();
    for sample in chosen {
        let draw = prompts.render(request.tokenizer, prompts.task(sample)?, None, false)?;
        let reward = draw.task.record.get("reward").cloned().unwrap_or(Value::Null);
        if as_json {
            let pieces: Vec<String> =
                draw.prompt.iter().map(|&id| piece(request.tokenizer, id)).collect();
            samples.push(json!({
                "line": line_of(sample), "ids": draw.prompt, "pieces": pieces, "length": draw.full_len,
                "reward": reward,
            }));
            continue;
        }
        let cut = match draw.full_len > draw.prompt.len() {
            true => format!(" (the last of {})", draw.full_len),
            false => String::new(),
        };
        println!("line {}: {}{cut}", line_of(sample), counted(draw.prompt.len(), "token"));
        println!("{}", request.tokenizer.decode(&draw.prompt, false));
        if !reward.is_null() {
            println!("reward: {reward}");
        }
        println!();
    }
    Ok(samples)
}
