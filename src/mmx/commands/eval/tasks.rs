//! `mmx eval --tasks`: what a model is rewarded for.

use std::path::Path;

use mmx_ggml::run::SessionOptions;
use serde_json::{Map, Value, json};

use super::EvalArgs;
use crate::args::tools;
use crate::error::{Error, Result};
use crate::format;
use mmx_eval::tasks::{Answered, Options, answer_all};
use mmx_rollout::reward::Rewards;
use mmx_rollout::tools::Tools;
use mmx_rollout::{Finish, PromptOptions, Prompts, Toolbox};

/// Runs it.
///
/// # Errors
/// More than one model, tasks without a reward, a file that cannot be read.
pub(super) fn run(args: &EvalArgs, path: &Path, as_json: bool) -> Result<()> {
    let [model_path] = &args.models[..] else {
        let found = args.models.len();
        return Err(Error::usage(format!("--tasks: expected one model, found {found}")));
    };
    let sandbox = args.tools.sandbox();
    let tools = args.tools.open()?;
    let judges = tools::judges(args.device.load_options()?);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let rewards = match &args.reward {
        Some(path) => Rewards::open(path, judges, sandbox)?,
        None => Rewards::of_records(folder.unwrap_or(Path::new(".")), judges, sandbox),
    };
    let prompts = Prompts::load(
        &[path.to_owned()],
        PromptOptions {
            max_prompt: usize::MAX,
            tools: tools.as_ref().map(Tools::shown),
            ..PromptOptions::default()
        },
    )?;
    let form = super::open(args, model_path)?;
    let model = args.device.load(&form)?;
    if model.gguf().metadata().get("tokenizer.ggml.model").is_none() {
        form.expect_tokenizer()?;
    }
    let options = Options {
        max_tokens: args.max_tokens(),
        max_turns: args.max_turns,
        session: SessionOptions { threads: args.threads, ..SessionOptions::default() },
    };
    let bar = indicatif::ProgressBar::new(prompts.len() as u64);
    let tools = tools.as_ref().map(|tools| tools as &dyn Toolbox);
    let mut progress = |done: usize| bar.set_position(done as u64);
    let answered = answer_all(&model, &prompts, tools, &rewards, &options, &mut progress)?;
    bar.finish_and_clear();
    let name = model_path.display();
    let (reward, parts) = means(&answered);
    let count = |finish: Finish| answered.iter().filter(|a| a.written.finish == finish).count();
    let calls = || answered.iter().flat_map(|a| &a.written.calls);
    let (all, valid) = (calls().count(), calls().filter(|call| call.is_valid).count());
    if as_json {
        let parts: Map<String, Value> =
            parts.iter().map(|(name, mean)| (name.clone(), json!(mean))).collect();
        return format::print_json(&json!({
            "model": model_path.to_string_lossy(), "tasks": answered.len(), "reward": reward, "parts": parts,
            "calls": all, "valid_calls": valid, "cut_off": count(Finish::Length),
            "unfinished": count(Finish::Unfinished),
            "answers": answered.iter().map(to_json).collect::<Vec<_>>(),
        }));
    }
    let mut text = format!("{name}: {} tasks, mean reward {reward:.4}\n", answered.len());
    for (part, mean) in &parts {
        text.push_str(&format!("  {part}: {mean:.4}\n"));
    }
    if all > 0 {
        text.push_str(&format!("  {all} calls of tools, {valid} of them valid\n"));
    }
    for (what, finish) in [("cut off", Finish::Length), ("unfinished", Finish::Unfinished)] {
        if count(finish) > 0 {
            text.push_str(&format!("  {} answers {what}\n", count(finish)));
        }
    }
    // the worst first: they are what there is to look at
    let mut worst: Vec<&Answered> = answered.iter().collect();
    worst.sort_by(|a, b| a.score.reward.total_cmp(&b.score.reward));
    for a in worst.iter().take(args.show) {
        text.push_str(&format!(
            "  line {}: reward {:.4}, answered {:?}\n",
            a.line,
            a.score.reward,
            a.written.last()
        ));
    }
    format::print(&text)
}

/// The mean reward, and the mean of each part over the tasks that have it.
fn means(answered: &[Answered]) -> (f64, Vec<(String, f64)>) {
    let mut parts: Vec<(String, f64, usize)> = Vec::new();
    for (name, value) in answered.iter().flat_map(|a| &a.score.parts) {
        match parts.iter_mut().find(|(known, ..)| known == name) {
            Some((_, sum, count)) => {
                *sum += value;
                *count += 1;
            }
            None => parts.push((name.clone(), *value, 1)),
        }
    }
    let sum: f64 = answered.iter().map(|a| a.score.reward).sum();
    let means = parts.into_iter().map(|(name, sum, count)| (name, sum / count as f64));
    (sum / answered.len().max(1) as f64, means.collect())
}

fn to_json(a: &Answered) -> Value {
    let parts: Map<String, Value> =
        a.score.parts.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    json!({
        "line": a.line, "reward": a.score.reward, "parts": parts, "turns": a.written.turns,
        "calls": a.written.calls.iter().map(tools::to_json).collect::<Vec<_>>(), "finish": a.written.finish,
    })
}
