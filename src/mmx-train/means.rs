//! The means of learning from rewards: the runner or a server samples, rewards and tools are those
//! of files.

use std::path::{Path, PathBuf};

use mmx_converters::quant::file_type::FileType;
use mmx_ggml::run::LoadOptions;
use mmx_rollout::Toolbox;
use mmx_rollout::reward::Rewards;
use mmx_rollout::sandbox::Sandbox;
use mmx_rollout::tools::Tools;
use mmx_training::learn::{EngineSize, Means};

use crate::engine;
use crate::error::Result;
use crate::tools::judges;

/// What samples, rewards and answers calls.
#[derive(Debug)]
pub(crate) struct Choice {
    /// A server in place of the runner.
    pub(crate) engine: Option<String>,
    /// A file of rewards for all tasks.
    pub(crate) reward: Option<PathBuf>,
    /// A file of tools.
    pub(crate) tools: Option<PathBuf>,
    /// The stage calls tools.
    pub(crate) of_agent: bool,
    pub(crate) threads: Option<usize>,
    /// The type of the runner's weights.
    pub(crate) dtype: FileType,
    pub(crate) allow_unsandboxed: bool,
}

impl Choice {
    /// Opens files of rewards and tools; the engine is made once the policy is known.
    ///
    /// # Errors
    /// A file that cannot be read or is none of rewards or tools; a server that does not answer.
    pub(crate) fn open(self, data: &[PathBuf]) -> Result<Means> {
        let sandbox = Sandbox { allow_unsandboxed: self.allow_unsandboxed };
        let judges = judges(LoadOptions::default());
        let folder = data.first().and_then(|file| file.parent()).unwrap_or(Path::new("."));
        let rewards = match &self.reward {
            Some(path) => Rewards::open(path, judges, sandbox)?,
            None => Rewards::of_records(folder, judges, sandbox),
        };
        let tools = match &self.tools {
            Some(path) => Some(Tools::open(path, sandbox)?),
            // tasks of agents bring their own descriptions of the calculator
            None if self.of_agent => Some(Tools::calculator()),
            None => None,
        };
        // shown to all tasks only where they were asked for
        let shown = tools.as_ref().filter(|_| self.tools.is_some()).map(Tools::shown);
        let (server, threads, dtype) = (self.engine, self.threads, self.dtype);
        Ok(Means {
            engine: Box::new(move |EngineSize { config, .. }| match &server {
                Some(name) => engine::server(name, true).unwrap_or_else(|| {
                    let expected = "a server, openai:URL[#MODEL]";
                    Err(mmx_converters::Error::setting("engine", expected, name))
                }),
                None => engine::runner(config, dtype, threads),
            }),
            scorer: Box::new(rewards),
            tools: tools.map(|tools| Box::new(tools) as Box<dyn Toolbox>),
            shown,
        })
    }
}
