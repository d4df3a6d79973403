//! A model that is served: its name, its engine, and prompts for it.

use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use mmx_converters::chat;
use mmx_converters::model::generation::Generation as Defaults;
use mmx_converters::tokenizer::Tokenizer;
use mmx_ggml::run::{Model, Sampling, SlotsOptions};
use serde_json::{Value, json};

use crate::engine::grammar::{Constraint, Function, Grammars};
use crate::engine::{self, Engine, Events, Job, Task, Write};
use crate::error::ApiError;
use crate::options::{ModelOptions, Options};
use mmx_converters::digest;
use mmx_converters::progress::Listener;
use mmx_converters::{Error, Result};
use mmx_models::open::Form;

/// A model that is served, with its engine.
pub(crate) struct ServedModel {
    pub(crate) id: String,
    /// Further names that requests may choose it by.
    pub(crate) aliases: Vec<String>,
    pub(crate) model: Model,
    pub(crate) engine: Engine,
    /// The model's own sampling settings.
    pub(crate) sampling: Sampling,
    /// Most tokens of a text, prompt included.
    pub(crate) n_ctx: usize,
    /// The time at which it was loaded, seconds since 1970.
    pub(crate) created: u64,
    grammars: OnceLock<Grammars>,
    digest: OnceLock<String>,
}

/// A rendered chat, and whether it ends inside a thought.
pub(crate) struct Rendered {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
    pub(crate) thinking: bool,
}

impl ServedModel {
    /// Opens a model and starts its engine.
    ///
    /// # Errors
    /// A model that cannot be opened, that has no tokenizer, or for which there is no memory.
    pub(crate) fn open(
        options: &ModelOptions,
        queue: usize,
        listener: &Arc<dyn Listener>,
    ) -> Result<Self> {
        let path = options.path.as_path();
        let form = Form::open(path)?;
        form.model.warnings.iter().for_each(|warning| listener.warn(warning));
        let model = Model::from_gguf(form.to_gguf()?, options.load.clone())?;
        if let Some(placement) = model.placement() {
            listener.say(&placement);
        }
        if model.gguf().metadata().get("tokenizer.ggml.model").is_none() {
            form.expect_tokenizer()?;
        }
        let tokenizer = model.tokenizer()?;
        if let Some(why) = tokenizer.template().and_then(chat::Template::compile_error) {
            let path = path.display();
            listener.warn(&format!("{path}: the chat template does not compile: {why}"));
        }
        let slots = SlotsOptions {
            slots: options.parallel,
            n_ctx: options.ctx,
            kv: options.kv,
            threads: options.threads,
        };
        let engine = Engine::start(&model, slots, options.speculate, options.prompt_cache, queue)?;
        let defaults = Defaults::from_gguf_keys(model.gguf().metadata()).unwrap_or_default();
        let n_ctx = options.ctx.unwrap_or(model.config().max_position_embeddings.min(4096));
        let id = options.name.clone().or_else(|| {
            // a folder's or file's name says more than "model"; a folder of exports stands for its
            // GGUF
            let path = if form.is_gguf() { form.path() } else { path };
            let path = fs_err::canonicalize(path).ok()?;
            let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
            name.map(|name| name.to_string_lossy().into_owned())
        });
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Ok(Self {
            id: id.ok_or_else(|| Error::failed(format!("{}: it has no name", path.display())))?,
            aliases: options.aliases.clone(),
            sampling: Sampling::from_defaults(&defaults, 0),
            engine,
            n_ctx,
            created,
            grammars: OnceLock::new(),
            digest: OnceLock::new(),
            model,
        })
    }

    /// True for its name and its aliases.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.id == name || self.aliases.iter().any(|alias| alias == name)
    }

    pub(crate) fn tokenizer(&self) -> std::result::Result<&Tokenizer, ApiError> {
        Ok(self.model.tokenizer()?)
    }

    /// Renders messages to the ids of a prompt for an answer. Text of a message never becomes a
    /// control token. `field` of the request holds the messages.
    ///
    /// # Errors
    /// 400: no template, or it refuses the messages.
    pub(crate) fn render(
        &self,
        messages: &[Value],
        tools: Option<Value>,
        variables: serde_json::Map<String, Value>,
        field: &str,
    ) -> std::result::Result<Rendered, ApiError> {
        let tokenizer = self.tokenizer()?;
        if tokenizer.template().is_none() {
            let text = format!("{} has no chat template: use /v1/completions", self.id);
            return Err(ApiError::invalid(field, text));
        }
        let options = chat::Options { tools, add_generation_prompt: true, variables };
        let prompt = tokenizer
            .encode_chat(messages, &options)
            .map_err(|e| ApiError::invalid(field, e.to_string()))?;
        let thinking = prompt.text.trim_end().ends_with("<think>");
        Ok(Rendered { ids: prompt.ids, text: prompt.text, thinking })
    }

    /// Makes the constraint of a text that must be JSON of a schema, which stands at `place` in the
    /// request.
    pub(crate) fn constraint(
        &self,
        schema: Value,
        place: &str,
        thinking: bool,
    ) -> std::result::Result<Constraint, ApiError> {
        self.grammars()?.json(schema, place, after(thinking))
    }

    /// Makes the constraint of a text that must be calls of these tools.
    pub(crate) fn call_constraint(
        &self,
        tools: &[Function],
        several: bool,
        thinking: bool,
    ) -> std::result::Result<Constraint, ApiError> {
        self.grammars()?.calls(tools, several, after(thinking))
    }

    fn grammars(&self) -> std::result::Result<&Grammars, ApiError> {
        if let Some(grammars) = self.grammars.get() {
            return Ok(grammars);
        }
        let tokenizer = self.tokenizer()?;
        let config = self.model.config();
        let ends = tokenizer.stop_ids(&config.eos_token_id);
        let end = ends.first().copied().ok_or_else(|| {
            ApiError::unavailable(format!(
                "{}: no token ends a text, so none can be given a form",
                self.id
            ))
        })?;
        let made = Grammars::new(tokenizer, config.vocab_size, end)?;
        Ok(self.grammars.get_or_init(|| made))
    }

    /// Queues texts: prompts and how each is to be written.
    ///
    /// # Errors
    /// 429 when the queue is full, 503 when the engine is gone.
    pub(crate) fn write(
        &self,
        options: &Options,
        texts: Vec<(Vec<u32>, Write)>,
    ) -> std::result::Result<Events, ApiError> {
        let tasks = texts.into_iter().map(|(prompt, write)| (prompt, Task::Write(Box::new(write))));
        self.submit(options, tasks.collect())
    }

    /// Queues embeddings of several texts.
    ///
    /// # Errors
    /// 429 when the queue is full, 503 when the engine is gone.
    pub(crate) fn embed(
        &self,
        options: &Options,
        texts: Vec<Vec<u32>>,
    ) -> std::result::Result<Events, ApiError> {
        self.submit(options, texts.into_iter().map(|ids| (ids, Task::Embed)).collect())
    }

    fn submit(
        &self,
        options: &Options,
        tasks: Vec<(Vec<u32>, Task)>,
    ) -> std::result::Result<Events, ApiError> {
        let count = tasks.len();
        let (events, receiver) = engine::events(count);
        let since = Instant::now();
        let deadline = since + options.timeout;
        let jobs = tasks.into_iter().enumerate().map(|(index, (prompt, task))| Job {
            prompt,
            task,
            since,
            deadline,
            index,
            texts: count,
            events: events.clone(),
        });
        self.engine.submit(jobs.collect())?;
        Ok(receiver)
    }

    /// Facts about the model for the page and for curious clients.
    pub(crate) fn meta(&self) -> Value {
        let config = self.model.config();
        json!({
            "aliases": self.aliases,
            "n_ctx": self.n_ctx,
            "n_vocab": config.vocab_size,
            "n_embd": config.hidden_size,
            "n_layer": config.num_hidden_layers,
            "n_params": parameters(&self.model),
            "size": self.model.gguf().size(),
            "architecture": config.family.gguf_arch(),
            "chat": self.model.tokenizer().is_ok_and(|t| t.template().is_some()),
            "thinking": self.model.tokenizer().is_ok_and(|t| {
                t.template().is_some_and(|t| t.source().contains("open_thinking"))
            }),
            "sampling": {
                "temperature": self.sampling.temperature,
                "top_k": self.sampling.top_k,
                "top_p": self.sampling.top_p,
                "min_p": self.sampling.min_p,
                "repetition_penalty": self.sampling.repeat_penalty,
            },
        })
    }
}

impl ServedModel {
    /// The type that most of the layers' values have, as file names spell it.
    pub(crate) fn quantization(&self) -> String {
        let mut counts = std::collections::BTreeMap::new();
        for tensor in self.model.gguf().tensors().iter().filter(|t| t.name.starts_with("blk.")) {
            *counts.entry(tensor.ty.name()).or_insert(0) += tensor.bytes;
        }
        let most = counts.into_iter().max_by_key(|(_, bytes)| *bytes);
        most.map_or("unknown", |(name, _)| name).to_uppercase()
    }

    /// SHA-256 of the GGUF, of a split one of its files in order, computed when first asked for.
    pub(crate) fn digest(&self) -> &str {
        let files = || self.model.gguf().files().map(|(_, bytes)| bytes);
        self.digest.get_or_init(|| digest::of_pieces(files()))
    }
}

/// Counts the values of all weights.
pub(crate) fn parameters(model: &Model) -> usize {
    model.gguf().tensors().iter().map(|t| t.shape.iter().product::<usize>()).sum()
}

/// The text after which a grammar begins: the end of a thought, where there is one.
fn after(thinking: bool) -> Option<&'static str> {
    thinking.then_some("</think>")
}
