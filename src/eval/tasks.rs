//! Tasks that a model answers, calling tools if there are some, and what it is rewarded for.
//!
//! In: a model in the runner, prompts, tools, rewards. Out: what it wrote for each task, and the
//! score. The likeliest token is taken each time, so that a second run gives the same.

use mmx_converters::Result;
use mmx_converters::tokenizer::Tokenizer;
use mmx_ggml::run::{Model, Session, SessionOptions, reusable};
use mmx_models::compare;
use mmx_rollout::{
    Completion, Conversation, Draw, Finish, Limits, Prompts, Request, Score, Scorer, Toolbox,
    Written, reward,
};

/// A task that was answered.
#[derive(Clone, Debug)]
pub struct Answered {
    /// Its index among the tasks.
    pub sample: u64,
    /// The line in its file, from 1; of records that are no lines, the record's number.
    pub line: usize,
    /// What the model wrote, and the tools it called.
    pub written: Written,
    /// What it is rewarded for.
    pub score: Score,
}

/// How tasks are answered.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tokens of a turn at most.
    pub max_tokens: usize,
    /// Turns at most.
    pub max_turns: usize,
    /// The runner's.
    pub session: SessionOptions,
}

/// Answers all tasks in the files' order.
///
/// # Errors
/// A task that a reward cannot score (before the first answer), a prompt beyond the context, a
/// tool or reward that cannot be run, the runner's failure.
pub fn answer_all(
    model: &Model,
    prompts: &Prompts,
    tools: Option<&dyn Toolbox>,
    scorer: &dyn Scorer,
    options: &Options,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Answered>> {
    reward::check(prompts, scorer)?;
    let tokenizer = model.tokenizer()?;
    let session = Session::new(model, options.session)?;
    let limits = Limits {
        max_new: options.max_tokens,
        max_turns: options.max_turns,
        context: session.n_ctx(),
        learn_stop: false,
        ..Limits::default()
    };
    let stop = tokenizer.stop_ids(&model.config().eos_token_id);
    let mut reader = Reader { session, held: Vec::new(), stop };
    let mut answered = Vec::with_capacity(prompts.len());
    for sample in 0..prompts.len() as u64 {
        let mut draw = prompts.render(tokenizer, prompts.task(sample)?, None, false)?;
        draw.sample = sample;
        let written = reader.answer(tokenizer, &draw, &limits, tools)?;
        let score = scorer.score(&draw, std::slice::from_ref(&written))?;
        let score = score.into_iter().next().unwrap_or_default();
        let line = prompts.place(sample).map_or(0, |(_, line)| line);
        answered.push(Answered { sample, line, written, score });
        progress(answered.len());
    }
    Ok(answered)
}

/// A session and what it has read.
struct Reader {
    session: Session,
    held: Vec<u32>,
    stop: Vec<u32>,
}

impl Reader {
    fn answer(
        &mut self,
        tokenizer: &Tokenizer,
        draw: &Draw,
        limits: &Limits,
        tools: Option<&dyn Toolbox>,
    ) -> Result<Written> {
        let mut row = Conversation::new(tokenizer, draw, limits, tools, 0, 0);
        let mut request = row.request();
        if request.is_none() {
            // the runner says what does not fit
            self.session.truncate(0);
            self.session.prefill(&draw.prompt)?;
        }
        while let Some(now) = request {
            request = row.push(self.complete(&now)?)?;
        }
        Ok(row.finish().1)
    }

    /// The likeliest continuation of a prompt.
    fn complete(&mut self, request: &Request) -> Result<Completion> {
        let common = reusable(&self.held, &request.prompt);
        self.session.truncate(common);
        // an error leaves nothing that can be trusted
        self.held.clear();
        let mut next = compare::argmax(self.session.prefill(&request.prompt[common..])?) as u32;
        let mut ids = vec![next];
        let mut read = request.prompt.clone();
        while !self.stop.contains(&next) && ids.len() < request.max_new {
            read.push(next);
            next = compare::argmax(self.session.decode(next)?) as u32;
            ids.push(next);
        }
        self.held = read;
        let finish = if self.stop.contains(&next) { Finish::Stop } else { Finish::Length };
        Ok(Completion { logps: vec![0.0; ids.len()], ids, finish })
    }
}
