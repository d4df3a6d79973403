//! Prompts: files of tasks to what a policy continues, one draw after the other.
//!
//! In: data files and a seed. Out: per draw the prompt's ids and its task. A draw depends on the
//! seed and its number alone, so that the number is all that a resumed run has to know.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mmx_converters::chat;
use mmx_converters::random::Random;
use mmx_converters::tokenizer::Tokenizer;
use mmx_converters::{Error, Result};
use mmx_data::blocks::Blocks;
use mmx_data::jsonl::Line;
use mmx_data::sample::SYSTEM_PROMPTS;
use mmx_data::task::fault_of;
use mmx_data::{Fields, OnBad, Task};
use serde_json::Value;

/// How tasks become prompts.
#[derive(Clone, Debug)]
pub struct PromptOptions {
    /// Ids of a prompt at most; of a longer one the last are kept, so that the assistant's header
    /// stays. Reference: 768.
    pub max_prompt: usize,
    /// The share of draws whose template opens a thought. Reference: 0.9, of agents 0.1.
    pub thinking_ratio: f64,
    /// The share of chats without a system turn and without tools that get one. Reference: 0.2.
    pub system_ratio: f64,
    /// Seed of order and draws.
    pub seed: u64,
    /// Whether each epoch has an order of its own; else the files' order.
    pub shuffle: bool,
    /// Tools that are offered to tasks without tools of their own, a list in OpenAI's form.
    pub tools: Option<Value>,
    /// What to do with a faulty record.
    pub on_bad: OnBad,
    /// Names of the files' keys for those of the known forms.
    pub fields: Fields,
}

impl Default for PromptOptions {
    fn default() -> Self {
        Self {
            max_prompt: 768,
            thinking_ratio: 0.0,
            system_ratio: 0.0,
            seed: 1337,
            shuffle: true,
            tools: None,
            on_bad: OnBad::Error,
            fields: Fields::default(),
        }
    }
}

/// The tasks of a run.
#[derive(Debug)]
pub struct Prompts {
    options: PromptOptions,
    files: Vec<PathBuf>,
    /// Records as text (a parsed one takes several times the memory), where each lies, and its
    /// file's index.
    records: Vec<(Box<str>, usize, u32)>,
    skipped: Vec<(PathBuf, usize)>,
}

/// A prompt that was drawn.
#[derive(Clone, Debug)]
pub struct Draw {
    /// Index of the task in its data.
    pub sample: u64,
    /// The task.
    pub task: Arc<Task>,
    /// The messages as the template got them: a system turn may have been put before them.
    pub messages: Vec<Value>,
    /// What the template got beside them: tools, whether a thought is opened.
    pub options: chat::Options,
    /// Whether the prompt ends inside a thought.
    pub thinking: bool,
    /// The prompt as text, in full.
    pub text: String,
    /// Its ids, the last ones where it is too long.
    pub prompt: Vec<u32>,
    /// Its ids before that.
    pub full_len: usize,
}

impl Prompts {
    /// Reads files of tasks, in any form and kind of file that chats come in.
    ///
    /// # Errors
    /// An unreadable file, a faulty record (unless those are skipped), no task at all, a share
    /// outside 0 to 1.
    pub fn load(files: &[PathBuf], options: PromptOptions) -> Result<Self> {
        for (name, share) in
            [("thinking_ratio", options.thinking_ratio), ("system_ratio", options.system_ratio)]
        {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::setting(name, "a share from 0 to 1", share));
            }
        }
        if options.max_prompt == 0 {
            return Err(Error::setting("max_prompt", "at least 1", 0));
        }
        let (mut records, mut skipped) = (Vec::new(), Vec::new());
        for (index, path) in (0..).zip(files) {
            let mut blocks = Blocks::open(path)?;
            while let Some(block) = blocks.next_block()? {
                for line in block.lines() {
                    match Task::parse(&line, &options.fields) {
                        Ok(_) => records.push((text_of(path, &line)?, line.label(), index)),
                        Err(fault) if options.on_bad == OnBad::Error => {
                            return Err(fault_of(path, fault));
                        }
                        Err(_) => skipped.push((path.clone(), line.label())),
                    }
                }
            }
        }
        if records.is_empty() {
            let names: Vec<String> = files.iter().map(|p| p.display().to_string()).collect();
            let faulty = skipped.len();
            return Err(Error::failed(format!(
                "{}: expected at least one task, found none ({faulty} faulty)",
                names.join(", ")
            )));
        }
        Ok(Self { options, files: files.to_vec(), records, skipped })
    }

    /// Tasks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// True without a task; [`Prompts::load`] gives none such.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Faulty records that were left out: file and line.
    #[must_use]
    pub fn skipped(&self) -> &[(PathBuf, usize)] {
        &self.skipped
    }

    /// The file and the line (or the record's number) of a task.
    #[must_use]
    pub fn place(&self, sample: u64) -> Option<(&Path, usize)> {
        let (_, line, file) = self.records.get(usize::try_from(sample).ok()?)?;
        Some((self.files.get(*file as usize)?, *line))
    }

    /// A task by its index.
    ///
    /// # Errors
    /// An index that no task has.
    pub fn task(&self, sample: u64) -> Result<Task> {
        let index = usize::try_from(sample).unwrap_or(usize::MAX);
        let Some((text, number, file)) = self.records.get(index) else {
            let tasks = self.len();
            return Err(Error::setting("sample", format!("below {tasks}, the tasks"), sample));
        };
        let bytes = text.as_bytes();
        let line = Line { number: *number, record: None, offset: 0, bytes, damage: None };
        Task::parse(&line, &self.options.fields)
            .map_err(|fault| fault_of(&self.files[*file as usize], fault))
    }

    /// The index of the task that draw number `cursor` takes: all tasks, epoch after epoch, each in
    /// an order of its own.
    #[must_use]
    pub fn sample_at(&self, cursor: u64) -> u64 {
        let tasks = self.len() as u64;
        let (epoch, place) = (cursor / tasks, (cursor % tasks) as usize);
        if !self.options.shuffle {
            return place as u64;
        }
        let mut order: Vec<u64> = (0..tasks).collect();
        Random::new(self.options.seed, epoch).shuffle(&mut order);
        order[place]
    }

    /// Draw number `cursor`, from 0: the same whenever it is asked for.
    ///
    /// # Errors
    /// A tokenizer without a template, a chat that it refuses.
    pub fn draw(&self, tokenizer: &Tokenizer, cursor: u64) -> Result<Draw> {
        self.draw_row(tokenizer, cursor, 0)
    }

    /// [`Prompts::draw`] for one row of a group, whose thought is drawn by itself: the rows of a
    /// group may then differ in it (as the reference's agents do).
    ///
    /// # Errors
    /// See [`Prompts::draw`].
    pub fn draw_row(&self, tokenizer: &Tokenizer, cursor: u64, row: u64) -> Result<Draw> {
        let sample = self.sample_at(cursor);
        let task = self.task(sample)?;
        // streams apart from those of the orders, which are the small numbers
        let mut random = Random::new(self.options.seed ^ 0x7072_6f6d_7074_7321, cursor);
        // all are drawn always, so that one option does not move the other's numbers
        let (for_system, which) = (random.unit(), random.below(SYSTEM_PROMPTS.len()));
        let mut for_row = Random::new(random.next_u64(), row);
        let system = (for_system < self.options.system_ratio).then(|| SYSTEM_PROMPTS[which]);
        let thinking = for_row.unit() < self.options.thinking_ratio;
        let mut draw = self.render(tokenizer, task, system, thinking)?;
        draw.sample = sample;
        Ok(draw)
    }

    /// A task's prompt. `system`: the turn for a chat that has none and no tools. `thinking`: the
    /// prompt ends inside a thought, where the template knows of such (`open_thinking`,
    /// `enable_thinking`).
    ///
    /// # Errors
    /// A tokenizer without a template, a chat that it refuses, an empty prompt.
    pub fn render(
        &self,
        tokenizer: &Tokenizer,
        task: Task,
        system: Option<&str>,
        thinking: bool,
    ) -> Result<Draw> {
        let mut messages = task.messages.clone();
        let mut options = chat::Options::generation();
        options.tools = task.tools.clone().or_else(|| self.options.tools.clone());
        let has_system = messages.first().is_some_and(|m| m["role"] == "system");
        if let Some(system) = system
            && !has_system
            && options.tools.is_none()
        {
            messages.insert(0, chat::message("system", system));
        }
        if thinking {
            options.variables.insert("open_thinking".into(), true.into());
            options.variables.insert("enable_thinking".into(), true.into());
        }
        let rendered = tokenizer.encode_chat(&messages, &options)?;
        let (text, mut prompt) = (rendered.text, rendered.ids);
        if prompt.is_empty() {
            return Err(Error::failed(format!(
                "{}: expected a prompt from the chat template, found an empty one",
                tokenizer.path().display()
            )));
        }
        let full_len = prompt.len();
        prompt.drain(..full_len.saturating_sub(self.options.max_prompt));
        let thinking = text.trim_end().ends_with("<think>");
        let task = Arc::new(task);
        Ok(Draw { sample: 0, task, messages, options, thinking, text, prompt, full_len })
    }
}

/// A record's own text.
fn text_of(path: &Path, line: &Line<'_>) -> Result<Box<str>> {
    let text = mmx_data::jsonl::utf8(line).map_err(|fault| fault_of(path, fault))?;
    Ok(text.into())
}
