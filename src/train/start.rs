//! The models a training run begins with. In: flags, and the checkpoint to go on from. Out: the
//! model to train, the ones beside it that stay as they are, and the digests by which a resumed run
//! knows them again.

use std::path::{Path, PathBuf};

use mmx_converters::arch::{Config, presets};
use mmx_converters::model::adapter::{self, Adapters};
use mmx_converters::model::generation::Generation;
use mmx_converters::progress::Listener;
use mmx_converters::tokenizer::Tokenizer;
use sha2::{Digest, Sha256};
use tch::{Device, Kind};

use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::memory::estimate::check_model;
use crate::model::Model;
use mmx_converters::digest::hexadecimal;

/// The request's part about models.
pub struct Start<'a> {
    /// Dimensions of a new model by name.
    pub preset: Option<&'a str>,
    /// Dimensions of a new model from a file.
    pub config: Option<&'a Path>,
    /// Model to start from.
    pub from: Option<&'a Path>,
    /// Adapters to begin with.
    pub adapter: Option<&'a Path>,
    /// The teacher that distillation learns from.
    pub teacher: Option<&'a Path>,
    /// The policy that learning from rewards is held to; nothing for the model to start from.
    pub reference: Option<&'a Path>,
    /// The checkpoint to go on from.
    pub resumed: Option<&'a Path>,
    /// The run's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The run's configuration.
    pub train: &'a TrainConfig,
    /// The device that models go to.
    pub device: Device,
    /// The compute type.
    pub compute: Kind,
    /// Hears warnings.
    pub listener: &'a dyn Listener,
}

/// The models, open.
pub struct Models {
    /// The model to train.
    pub model: Model,
    /// The model's sampling settings.
    pub generation: Generation,
    /// Adapters to go on with, and where they are from.
    pub adapters: Option<(PathBuf, Adapters)>,
    /// What adapters' files call the model they are for.
    pub base: Option<String>,
    /// A reference, or distillation's teacher.
    pub frozen: Option<Model>,
    /// What stage ppo's critic begins as.
    pub critic: Option<Model>,
    /// Models that are not in the checkpoint, as name and SHA-256.
    pub sources: Vec<(String, String)>,
}

impl Start<'_> {
    /// Opens the models.
    ///
    /// # Errors
    /// Neither a model to start from nor dimensions; files that cannot be read or do not fit.
    pub fn open(&self) -> Result<Models> {
        if self.train.lora.is_some() {
            return self.open_base();
        }
        let path = match (self.resumed, self.from) {
            (Some(checkpoint), _) => Some(checkpoint.to_owned()),
            (None, Some(from)) => Some(mmx_hub::resolve(from)?),
            (None, None) => None,
        };
        let critic = self.open_critic(path.as_deref())?;
        let (model, generation) = match path {
            Some(path) => self.open_model(&path, true)?,
            None => (self.new_model()?, Generation::default()),
        };
        let frozen = self.open_frozen()?;
        let mut sources = Vec::new();
        if let Some((option, frozen)) = &frozen {
            sources.push((format!("--{option}"), digest(frozen)?));
        }
        let frozen = frozen.map(|(_, frozen)| frozen);
        Ok(Models { model, generation, adapters: None, base: None, frozen, critic, sources })
    }

    /// The model that stays as it is, and the option that names it. A checkpoint does not hold it:
    /// a run that is resumed needs the option again.
    fn open_frozen(&self) -> Result<Option<(&'static str, Model)>> {
        let held = self.train.policy.as_ref().is_some_and(|policy| policy.kl_coef != 0.0);
        let (option, path) = match (self.train.dpo.is_some(), self.train.distill.is_some()) {
            (true, _) => ("from", self.from),
            (_, true) => ("teacher", self.teacher),
            _ if held && self.reference.is_some() => ("reference", self.reference),
            _ if held => ("from", self.from),
            _ => return Ok(None),
        };
        let Some(path) = path else {
            let what =
                if option == "from" { "the reference, a model" } else { "a model to learn from" };
            return Err(Error::setting(option, what, "none"));
        };
        let (model, _) = self.open_model(&mmx_hub::resolve(path)?, false)?;
        Ok(Some((option, model)))
    }

    /// The model that stage ppo's critic begins as: the policy's.
    fn open_critic(&self, path: Option<&Path>) -> Result<Option<Model>> {
        match (&self.train.ppo, path) {
            (Some(_), Some(path)) => Ok(Some(self.open_model(path, true)?.0)),
            (Some(_), None) => Err(Error::setting("from", "a model to start from", "none")),
            (None, _) => Ok(None),
        }
    }

    /// The model that adapters are for: --from, or the one a checkpoint of adapters names.
    fn open_base(&self) -> Result<Models> {
        let resumed = match self.resumed {
            Some(checkpoint) => Some((checkpoint.to_owned(), Adapters::open(checkpoint)?)),
            None => None,
        };
        let path = match (self.from, &resumed) {
            (Some(from), _) => mmx_hub::resolve(from)?,
            (None, Some((checkpoint, _))) => Adapters::base_path(checkpoint)?,
            (None, None) => {
                return Err(Error::setting("from", "the model to adapt", "none"));
            }
        };
        if adapter::is_adapter_folder(&path) {
            return Err(Error::failed_with_hint(
                format!("{}: expected a whole model, found adapters", path.display()),
                "`adapter` goes on with them; `mmx import` writes the model with them merged",
            ));
        }
        let (model, generation) = self.open_model(&path, false)?;
        let adapters = match (resumed, self.adapter) {
            (Some(found), _) => Some(found),
            (None, Some(path)) => {
                let path = mmx_hub::resolve(path)?;
                let adapters = Adapters::open(&path)?;
                Some((path, adapters))
            }
            (None, None) => None,
        };
        let whole = fs_err::canonicalize(&path).map_err(|e| Error::io(&path, e))?;
        let sources = vec![("--from".to_owned(), digest(&model)?)];
        let base = Some(whole.display().to_string());
        let critic = self.open_critic(Some(&path))?;
        Ok(Models { model, generation, adapters, base, frozen: None, critic, sources })
    }

    /// `trained`: all its weights are.
    fn open_model(&self, path: &Path, trained: bool) -> Result<(Model, Generation)> {
        let open = mmx_converters::Model::open(path)?;
        open.warnings.iter().for_each(|warning| self.listener.warn(warning));
        check_vocabulary(&open.config, self.tokenizer, path)?;
        let optimizer = self.train.optimizer();
        check_model(&open.config, trained.then_some(&optimizer), self.device)?;
        Ok((Model::from_model(&open, self.device, self.compute)?, open.generation.clone()))
    }

    /// A model with initial values, of --preset or --config.
    fn new_model(&self) -> Result<Model> {
        let tokenizer = self.tokenizer;
        let config = match (self.preset, self.config) {
            (Some(name), _) => {
                let mut config = presets::preset(name).ok_or_else(|| {
                    let known = presets::NAMES.join(", ");
                    Error::setting("preset", format!("one of {known}"), name)
                })?;
                config.vocab_size = tokenizer.vocab_size();
                let id = |id: Option<u32>, default| id.unwrap_or(default);
                config.bos_token_id = id(tokenizer.bos_id(), config.bos_token_id);
                config.pad_token_id = id(tokenizer.pad_id(), config.pad_token_id);
                if !tokenizer.eos_ids().is_empty() {
                    config.eos_token_id = tokenizer.eos_ids().to_vec();
                }
                config
            }
            (None, Some(path)) => {
                let (config, warnings) = Config::read(path)?;
                warnings.iter().for_each(|warning| self.listener.warn(warning));
                check_vocabulary(&config, tokenizer, path)?;
                config
            }
            (None, None) => {
                return Err(Error::setting(
                    "from",
                    "a model to start from, or a preset or config for a new one",
                    "none",
                ));
            }
        };
        check_model(&config, Some(&self.train.optimizer()), self.device)?;
        Model::random(&config, self.train.seed, self.device, self.compute)
    }
}

/// Every id of the tokenizer must have a row in the embedding.
fn check_vocabulary(config: &Config, tokenizer: &Tokenizer, path: &Path) -> Result<()> {
    if tokenizer.vocab_size() <= config.vocab_size {
        return Ok(());
    }
    Err(Error::failed(format!(
        "{}: key vocab_size: expected at least {}, the tokenizer's ids, found {}",
        path.display(),
        tokenizer.vocab_size(),
        config.vocab_size
    )))
}

/// A model's weights by their values, whatever file they came from.
fn digest(model: &Model) -> Result<String> {
    let mut hash = Sha256::new();
    for tensor in model.to_host()? {
        hash.update(tensor.name.as_bytes());
        hash.update(bytemuck::cast_slice::<f32, u8>(&tensor.values));
    }
    Ok(hexadecimal(&hash.finalize()))
}
