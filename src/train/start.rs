//! The models a training run begins with. In: flags, and the checkpoint to go on from. Out: the
//! model to train, the ones beside it that stay as they are, and the digests by which a resumed run
//! knows them again.

use std::path::{Path, PathBuf};

use mmx_converters::arch::{Config, presets};
use mmx_converters::model::adapter::Adapters;
use mmx_converters::model::generation::Generation;
use mmx_converters::model::holds_adapters;
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

/// What a model is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// All its weights are trained.
    Trained,
    /// It is compared with the trained one.
    Frozen,
    /// Nothing of it changes: a teacher, or the model of adapters.
    AsItIs,
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
            Some(path) => self.open_model(&path, Use::Trained)?,
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
        let used = if option == "teacher" { Use::AsItIs } else { Use::Frozen };
        let (model, _) = self.open_model(&mmx_hub::resolve(path)?, used)?;
        Ok(Some((option, model)))
    }

    /// The model that stage ppo's critic begins as: the policy's.
    fn open_critic(&self, path: Option<&Path>) -> Result<Option<Model>> {
        match (&self.train.ppo, path) {
            (Some(_), Some(path)) => Ok(Some(self.open_model(path, Use::Trained)?.0)),
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
        if holds_adapters(&path) {
            return Err(Error::failed_with_hint(
                format!("{}: expected a whole model, found adapters", path.display()),
                "`adapter` goes on with them; `mmx import` writes the model with them merged",
            ));
        }
        let (model, generation) = self.open_model(&path, Use::AsItIs)?;
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

    fn open_model(&self, path: &Path, used: Use) -> Result<(Model, Generation)> {
        let mut open = mmx_converters::Model::open(path)?;
        open.warnings.iter().for_each(|warning| self.listener.warn(warning));
        let trained = used == Use::Trained;
        if trained {
            self.turn_by(&mut open.config, path)?;
        }
        if used != Use::AsItIs {
            let said = open.grow_for(self.tokenizer)?;
            said.iter().for_each(|sentence| self.listener.say(sentence));
        }
        check_vocabulary(&open.config, self.tokenizer, path)?;
        let optimizer = self.train.optimizer();
        check_model(&open.config, trained.then_some(&optimizer), self.device)?;
        Ok((Model::from_model(&open, self.device, self.compute)?, open.generation.clone()))
    }

    /// Gives a model that is trained the rotary base asked for, and room for the samples' length.
    ///
    /// # Errors
    /// A model whose rotary positions are scaled: the base is a part of its scaling. A checkpoint
    /// that goes on was trained with the base it has.
    fn turn_by(&self, config: &mut Config, path: &Path) -> Result<()> {
        let Some(theta) = self.train.rope_theta else { return Ok(()) };
        if let Some(scaling) = &config.rope_scaling {
            return Err(Error::failed_with_hint(
                format!(
                    "{}: key rope_scaling: expected none where `rope_theta` gives another base, found {}",
                    path.display(),
                    scaling.kind()
                ),
                "train with its scaling and base as they are, or export it with another scaling first",
            ));
        }
        config.rope_theta = theta;
        let longest = self.train.max_seq_len;
        config.max_position_embeddings = config.max_position_embeddings.max(longest);
        Ok(())
    }

    /// A model with initial values, of --preset or --config.
    fn new_model(&self) -> Result<Model> {
        let tokenizer = self.tokenizer;
        let mut config = match (self.preset, self.config) {
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
        self.turn_by(&mut config, self.config.unwrap_or(Path::new("preset")))?;
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
