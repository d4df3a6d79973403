//! The requests of one prompt: which comes next by the answers that are there, and what becomes of
//! them.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use mmx_converters::random::Random;
use mmx_converters::{Error, Result};
use mmx_data::asking::{
    self, Chat, Compared, Journal, Prompt, Verdict, asked, user, verdict, whole,
};
use serde_json::{Map, Value, json};

use super::settings::{Generate, Mode};
use crate::reading::Source;

/// A prompt on its way.
pub(super) struct Task {
    pub(super) number: u64,
    pub(super) source: Source,
    pub(super) prompt: Result<Prompt, String>,
}

/// Steps of a prompt's requests.
const ANSWER: u8 = 0;
const SECOND: u8 = 1;
const IN_ORDER: u8 = 2;
const SWAPPED: u8 = 3;
const INSTRUCTION: u8 = 4;

/// Seeds that are shown for a new instruction. Source: Wang et al. (2023), section 2.2: 8.
const SHOWN: usize = 8;

/// What the threads share.
pub(super) struct Working<'a> {
    pub(super) job: &'a Generate,
    pub(super) chat: &'a dyn Chat,
    pub(super) judge: &'a dyn Chat,
    pub(super) journal: &'a Journal<(u64, u8)>,
    pub(super) tokens: AtomicU64,
    pub(super) resumed: AtomicU64,
    pub(super) requests: AtomicU64,
    /// Prompts in a row that failed.
    pub(super) failing: AtomicUsize,
    pub(super) stop: AtomicBool,
    pub(super) fault: Mutex<Option<Error>>,
}

/// A prompt's outcome: a record, or the rule that leaves it out.
pub(super) type Outcome = Result<Map<String, Value>, (&'static str, String)>;

impl Working<'_> {
    pub(super) fn is_over(&self) -> bool {
        let spent = self.tokens.load(Ordering::Relaxed);
        self.stop.load(Ordering::Relaxed) || self.job.budget.is_some_and(|budget| spent >= budget)
    }

    pub(super) fn fail(&self, error: Error) {
        self.stop.store(true, Ordering::Relaxed);
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// Asks for all that a prompt needs and the journal has not.
    pub(super) fn ask_all(&self, task: &Task, seeds: &[String]) -> Result<Result<(), String>> {
        let (mut asked_now, mut spent_now) = (0, 0);
        loop {
            match self.step(task, seeds)? {
                Step::Ask(step, body) => {
                    let chat =
                        if matches!(step, IN_ORDER | SWAPPED) { self.judge } else { self.chat };
                    let stopped = || self.stop.load(Ordering::Relaxed);
                    match asked(chat, &body, self.job.retries, whole, &stopped) {
                        Ok(answer) => {
                            self.journal.put((task.number, step), &answer)?;
                            self.requests.fetch_add(1, Ordering::Relaxed);
                            self.tokens.fetch_add(tokens_of(&answer), Ordering::Relaxed);
                            asked_now += 1;
                            spent_now += tokens_of(&answer);
                        }
                        Err(why) => return Ok(Err(why)),
                    }
                }
                Step::Done(_, tokens, answers) => {
                    let before = answers - asked_now;
                    self.resumed.fetch_add(before, Ordering::Relaxed);
                    self.requests.fetch_add(before, Ordering::Relaxed);
                    self.tokens.fetch_add(tokens - spent_now, Ordering::Relaxed);
                    return Ok(Ok(()));
                }
            }
        }
    }

    /// A prompt's outcome by the journal, with its tokens; nothing where answers are missing.
    pub(super) fn outcome(&self, task: &Task, seeds: &[String]) -> Result<(Option<Outcome>, u64)> {
        match self.step(task, seeds)? {
            Step::Ask(..) => Ok((None, 0)),
            Step::Done(outcome, tokens, ..) => Ok((Some(outcome), tokens)),
        }
    }

    /// What comes next for a prompt, by the answers that are there.
    fn step(&self, task: &Task, seeds: &[String]) -> Result<Step> {
        let mut answers =
            Answers { journal: self.journal, number: task.number, tokens: 0, count: 0 };
        let outcome = self.next_step(task, seeds, &mut answers)?;
        Ok(match outcome {
            Err((step, body)) => Step::Ask(step, body),
            Ok(outcome) => Step::Done(outcome, answers.tokens, answers.count),
        })
    }

    fn next_step(
        &self,
        task: &Task,
        seeds: &[String],
        answers: &mut Answers<'_>,
    ) -> Result<Result<Outcome, (u8, Value)>> {
        let job = self.job;
        let prompt = match (&job.mode, &task.prompt) {
            (Mode::Instructions { .. }, _) => {
                let turns = [user(&invent(seeds, job.sampling.seed, task.number))];
                let Some(answer) = answers.get(INSTRUCTION)? else {
                    return Ok(Err((
                        INSTRUCTION,
                        job.body(&turns, None, task.number, INSTRUCTION),
                    )));
                };
                let text = answer["content"].as_str().unwrap_or_default();
                let text = text.rsplit("</think>").next().unwrap_or_default().trim();
                if text.is_empty() {
                    return Ok(Ok(Err(("instruction.empty", "no text".to_owned()))));
                }
                job.with_system(Prompt { turns: vec![user(text)], tools: None })
            }
            (_, Ok(prompt)) => prompt.clone(),
            (_, Err(why)) => return Ok(Ok(Err(("prompt", why.clone())))),
        };
        let Prompt { turns, tools } = &prompt;
        let mut own = Vec::new();
        let steps: &[u8] =
            if matches!(job.mode, Mode::Pairs { .. }) { &[ANSWER, SECOND] } else { &[ANSWER] };
        for &step in steps {
            match answers.get(step)? {
                Some(answer) => own.push(answer),
                None => return Ok(Err((step, job.body(turns, tools.as_ref(), task.number, step)))),
            }
        }
        let mut made = Vec::new();
        for answer in &own {
            match turn_of(answer) {
                Ok(turn) => made.push(turn),
                Err(left_out) => return Ok(Ok(Err(left_out))),
            }
        }
        let mut before = turns.clone();
        if let (Some(tools), Some(first)) = (tools, before[0].as_object_mut()) {
            first.insert("tools".into(), tools.to_string().into());
        }
        let chat = |turn: &Value| [&before[..], std::slice::from_ref(turn)].concat();
        let mut record = Map::new();
        let Mode::Pairs { judge_prompt } = &job.mode else {
            record.insert("conversations".into(), chat(&made[0]).into());
            return Ok(Ok(Ok(record)));
        };
        let [first, second] = [0, 1].map(|i: usize| spoken(&made[i]));
        if first == second {
            return Ok(Ok(Err(("pair.same", first.chars().take(80).collect()))));
        }
        let asked = turns.iter().rev().find(|turn| turn["role"] == "user");
        let question = asked.and_then(|turn| turn["content"].as_str()).unwrap_or_default();
        let mut verdicts = [None; 2];
        for (i, step) in [IN_ORDER, SWAPPED].into_iter().enumerate() {
            let (first, second) = if i == 0 { (&first, &second) } else { (&second, &first) };
            let Some(answer) = answers.get(step)? else {
                let texts = Compared { question, reference: None, first, second };
                let turns = [user(&asking::prompt(judge_prompt, &texts))];
                return Ok(Err((step, job.body(&turns, None, task.number, step))));
            };
            verdicts[i] = verdict(answer["content"].as_str().unwrap_or_default());
        }
        let (chosen, rejected) = match verdicts {
            [Some(Verdict::First), Some(Verdict::Second)] => (0, 1),
            [Some(Verdict::Second), Some(Verdict::First)] => (1, 0),
            _ => return Ok(Ok(Err(("pair.tie", "no verdict that both orders give".to_owned())))),
        };
        record.insert("chosen".into(), chat(&made[chosen]).into());
        record.insert("rejected".into(), chat(&made[rejected]).into());
        Ok(Ok(Ok(record)))
    }
}

/// What comes next for a prompt.
enum Step {
    /// A request.
    Ask(u8, Value),
    /// Nothing: its outcome, tokens, number of answers.
    Done(Outcome, u64, u64),
}

/// The answers to a prompt that the journal holds.
struct Answers<'a> {
    journal: &'a Journal<(u64, u8)>,
    number: u64,
    tokens: u64,
    count: u64,
}

impl Answers<'_> {
    /// The message of an answer.
    fn get(&mut self, step: u8) -> Result<Option<Value>> {
        let Some(answer) = self.journal.get(&(self.number, step))? else { return Ok(None) };
        self.tokens += tokens_of(&answer);
        self.count += 1;
        let mut message = answer["choices"][0]["message"].clone();
        if answer["choices"][0]["finish_reason"] == "length" {
            message["cut"] = true.into();
        }
        Ok(Some(message))
    }
}

/// Tokens of a request and its answer, as the server counts them; a character each where it does
/// not.
fn tokens_of(answer: &Value) -> u64 {
    answer["usage"]["total_tokens"].as_u64().unwrap_or_else(|| {
        let content = answer["choices"][0]["message"]["content"].as_str().unwrap_or_default();
        content.chars().count() as u64
    })
}

/// An answer's turn: its text with think tags as they are, thoughts and tool calls beside it.
fn turn_of(message: &Value) -> Result<Value, (&'static str, String)> {
    let content = message["content"].as_str().unwrap_or_default();
    if message["cut"] == true {
        let end: String =
            content.chars().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect();
        return Err(("answer.cut_off", end));
    }
    let calls = message["tool_calls"].as_array().filter(|calls| !calls.is_empty());
    if content.trim().is_empty() && calls.is_none() {
        return Err(("answer.empty", "no text and no tool call".to_owned()));
    }
    let mut turn = json!({ "role": "assistant", "content": content });
    // vLLM and DeepSeek name thoughts so, others reasoning
    let thought = message["reasoning_content"].as_str().or(message["reasoning"].as_str());
    if let Some(thought) = thought.filter(|thought| !thought.trim().is_empty()) {
        turn["reasoning_content"] = thought.into();
    }
    if let Some(calls) = calls {
        turn["tool_calls"] = calls.clone().into();
    }
    Ok(turn)
}

/// What a judge sees of an answer.
fn spoken(turn: &Value) -> String {
    let content = turn["content"].as_str().unwrap_or_default();
    match &turn["tool_calls"] {
        Value::Null => content.to_owned(),
        calls => format!("{content}\n{calls}"),
    }
}

/// The request for a new instruction.
fn invent(seeds: &[String], seed: u64, number: u64) -> String {
    let mut random = Random::new(seed, number ^ 0x5e1f);
    let mut order: Vec<usize> = (0..seeds.len()).collect();
    random.shuffle(&mut order);
    let shown = order.iter().take(SHOWN).enumerate();
    let list: String = shown.map(|(i, at)| format!("{}. {}\n", i + 1, seeds[*at])).collect();
    format!(
        "Here are instructions that people give to an assistant:\n\n{list}\nWrite one new instruction in the same \
         language, of another topic and another kind. Write the instruction alone, without a number and without an answer."
    )
}
