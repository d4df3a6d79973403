//! [`Model`]: anything with weights, open: a checkpoint or Transformers folder, a GGUF, or a
//! `.pth`.
//!
//! In: a path. Out: the configuration, and every weight of the family's table in MiniMind's own
//! layout, taken from the memory map.

use std::path::{Path, PathBuf};

use crate::arch::{self, Config, Layout, Weight, public_tensors};
use crate::error::{Error, Result, TensorReport};
use crate::gguf::{GgmlType, Gguf};
use crate::model::adapter::{self, Adapters};
use crate::model::alone;
use crate::model::generation::{self, Generation};
use crate::model::grow::Grown;
use crate::model::run_folder;
use crate::model::source::{Aside, Source, compare, ends_of, other_layer_count, plain_f32};
use crate::pth::Pth;
use crate::safetensors::SafeTensors;
use crate::tensor::{self, Dtype};
use crate::tokenizer::Tokenizer;
use crate::words::counted;

/// An open model: every tensor is there, with the right shape, and none is left over.
#[derive(Debug)]
pub struct Model {
    /// The file or folder.
    pub path: PathBuf,
    /// Dimensions and constants; `eos_token_id` is the union of all the sources beside the weights.
    pub config: Config,
    /// Default sampling: the source's own, else the reference's.
    pub generation: Generation,
    /// Sentences for the user: assumptions made while reading.
    pub warnings: Vec<String>,
    /// How the source names and packs its tensors.
    pub layout: Layout,
    pub(super) weights: Vec<Weight>,
    pub(super) source: Source,
    /// Merged into the weights they belong to when those are read.
    pub(super) adapters: Option<Adapters>,
    /// Rows of tokens that the file has none of.
    pub(super) grown: Option<Grown>,
}

/// What lies beside the weights in a folder.
struct Beside {
    config: Config,
    generation: Generation,
    warnings: Vec<String>,
}

impl Beside {
    /// Reads what lies beside the weights, and the end of `tokenizer`, a folder; `given` replaces
    /// config.json. Nothing without either.
    fn read(dir: &Path, given: Option<Config>, tokenizer: &Path) -> Result<Option<Self>> {
        let path = dir.join("config.json");
        let (mut config, mut warnings) = match given {
            Some(config) => {
                if path.exists() {
                    arch::quantized::refuse_file(&path)?; // the weights beside it are that either way
                }
                (config, Vec::new())
            }
            None if path.exists() => Config::read(&path)?,
            None => return Ok(None),
        };
        let (generation, stops) = Generation::read(dir)?.unwrap_or_default();
        // weights can be used without a tokenizer: what is wrong with it is a warning here, and an
        // error for whoever opens it
        let tokenizer = generation::tokenizer_eos(tokenizer).unwrap_or_else(|error| {
            warnings.push(error.to_string());
            None
        });
        let (ends, said) = generation::ends(dir, &config, tokenizer, &stops);
        config.eos_token_id = ends;
        warnings.extend(said);
        Ok(Some(Self { config, generation, warnings }))
    }
}

impl Model {
    /// Opens a folder (config.json with model.safetensors or its shards), a `.gguf`, or a `.pth`
    /// (with a config.json beside it, or known by its tensors), told apart by what they are, not by their names. A folder of
    /// adapters (PEFT's form) is the model it names with the adapters merged.
    ///
    /// # Errors
    /// Whatever is wrong with the files; [`Error::Tensors`] with all missing, unexpected and
    /// mismatched tensors at once where they are not those of the configuration.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, None)
    }

    /// [`Model::open`] with a configuration that replaces the one beside the weights (a preset, for
    /// weights that come alone). A GGUF carries its own.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open_with(path: impl AsRef<Path>, config: Option<Config>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() {
            if adapter::is_adapter_folder(path) {
                return Self::open_adapted(path, config);
            }
            return Self::open_folder(path, config);
        }
        let mut magic = [0; 4];
        let mut file = fs_err::File::open(path).map_err(|e| Error::io(path, e))?;
        let read = std::io::Read::read(&mut file, &mut magic).map_err(|e| Error::io(path, e))?;
        match &magic[..read] {
            b"GGUF" => Self::open_gguf(path),
            b"PK\x03\x04" | [0x80, ..] => Self::open_pth(path, config),
            _ => {
                // a Git LFS pointer says so itself
                crate::file::Bytes::map(path)?;
                Err(Error::format(
                    path,
                    "expected a folder with config.json and model.safetensors, a GGUF file or a .pth",
                ))
            }
        }
    }

    fn open_adapted(dir: &Path, config: Option<Config>) -> Result<Self> {
        let base = Adapters::base_path(dir)?;
        if alone::holds_adapters(&base) {
            return Err(Error::key(
                dir.join(adapter::CONFIG_NAME),
                "base_model_name_or_path",
                format!("expected a whole model, found adapters: {}", base.display()),
            ));
        }
        let mut model = Self::open_with(base, config)?;
        let adapters = Adapters::open_for(dir, &model.config, &model.weights)?;
        model.path = dir.to_owned();
        model.adapters = Some(adapters);
        Ok(model)
    }

    /// The base model with adapters merged: PEFT's folder, a GGUF adapter, or a safetensors or
    /// `.pth` file of the weights alone.
    ///
    /// # Errors
    /// As [`Model::open`]; a base that is no whole model; adapters that do not fit it.
    pub fn open_adapters(path: &Path, base: &Path, config: Option<Config>) -> Result<Self> {
        let mut model = Self::open_with(base, config)?;
        if model.adapters.is_some() {
            return Err(Error::format(base, "expected a whole model as the base, found adapters"));
        }
        let mut adapters = Adapters::open_for(path, &model.config, &model.weights)?;
        adapters.base = Some(base.to_string_lossy().into_owned());
        model.path = path.to_owned();
        model.adapters = Some(adapters);
        Ok(model)
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let file = Gguf::open(path)?;
        if let Some(kind) = file.metadata().string("general.type").filter(|kind| *kind != "model") {
            return Err(Error::key(path, "general.type", format!("expected model, found {kind}")));
        }
        let config = Config::from_gguf(&file)?;
        let generation = Generation::from_gguf_keys(file.metadata()).unwrap_or_default();
        let source = Source::Gguf(Box::new(file));
        let layout = Layout::Gguf;
        Self::check(path, config, generation, Vec::new(), &[layout], source)
    }

    fn open_folder(dir: &Path, config: Option<Config>) -> Result<Self> {
        let mut beside = Beside::read(dir, config, dir)?.ok_or_else(|| {
            let expected =
                "expected config.json and model.safetensors in the folder, found no config.json";
            let error = Error::format(dir, expected);
            match choices(dir) {
                Some(choices) => error.with_hint(choices),
                None => error,
            }
        })?;
        let has = |name: &str| dir.join(name).exists();
        let old = dir.join("pytorch_model.bin");
        if old.exists()
            && !has(crate::safetensors::FILE_NAME)
            && !has(crate::safetensors::INDEX_NAME)
        {
            let file = Pth::open(old)?;
            beside.warnings.extend(file.notes().iter().cloned());
            return Self::check_beside(dir, beside, Source::Pth(file));
        }
        let file = SafeTensors::open_folder(dir)?;
        beside.warnings.extend(file.notes().iter().cloned());
        Self::check_beside(dir, beside, Source::SafeTensors(file))
    }

    fn open_pth(path: &Path, config: Option<Config>) -> Result<Self> {
        let file = Pth::open(path)?;
        if alone::is_adapters(&file) {
            let base = alone::base_of(path, &file)?;
            let mut model = Self::open_adapters(path, &base, config)?;
            let sentence = format!("{}: adapters, put on {}", path.display(), base.display());
            model.warnings.insert(0, sentence);
            return Ok(model);
        }
        let dir = alone::folder_of(path);
        let mut sentence = None;
        let given = match config {
            None if !dir.join("config.json").exists() => {
                let (config, about) = alone::config(path, &file)?;
                sentence = Some(about);
                Some(config)
            }
            given => given,
        };
        let tokenizer = alone::tokenizer_folder(dir).unwrap_or_else(|| dir.to_owned());
        let Some(mut beside) = Beside::read(dir, given, &tokenizer)? else {
            // there was one just now
            return Err(Error::format(dir.join("config.json"), "expected a file, found none"));
        };
        beside.warnings.splice(0..0, sentence);
        if tokenizer != dir {
            let sentence = format!("{}: tokenizer of {}", path.display(), tokenizer.display());
            beside.warnings.push(sentence);
        }
        beside.warnings.extend(file.notes().iter().cloned());
        Self::check_beside(path, beside, Source::Pth(file))
    }

    /// The folder of the model's tokenizer, if there is one: the model's own, a file's or that of
    /// the model that adapters belong to; for a `.pth` also where the reference keeps it. A GGUF
    /// carries its own.
    pub fn tokenizer_folder(&self) -> Option<PathBuf> {
        let base = self.adapters.as_ref().and_then(|adapters| adapters.base.as_deref());
        let mut places = [Some(self.path.as_path()), base.map(Path::new)].into_iter().flatten();
        places.find_map(|place| {
            let (dir, file) = if place.is_dir() {
                (place, false)
            } else {
                (alone::folder_of(place), matches!(self.source, Source::Pth(_)))
            };
            let own = dir.join("tokenizer.json").is_file().then(|| dir.to_owned());
            if file { alone::tokenizer_folder(dir) } else { own }
        })
    }

    fn check_beside(path: &Path, beside: Beside, source: Source) -> Result<Self> {
        let Beside { config, generation, warnings } = beside;
        let all = [
            Layout::Transformers,
            Layout::Reference,
            Layout::Transformers5,
            Layout::Mlx,
            // the families of its time are those whose GGUF rotates pairs
            Layout::LmConfig,
        ];
        let layouts = if config.family.gguf_rotates_pairs() { &all[..] } else { &all[..4] };
        Self::check(path, config, generation, warnings, layouts, source)
    }

    /// Finds the layout whose tensors are the file's; if there is none, reports against the nearest
    /// one.
    fn check(
        path: &Path,
        config: Config,
        generation: Generation,
        mut warnings: Vec<String>,
        layouts: &[Layout],
        source: Source,
    ) -> Result<Self> {
        let fault = |report| Err(Error::Tensors { path: path.to_owned(), report });
        // before the table is made, which may be long for nothing
        if let Some(report) = other_layer_count(&config, &source.names()) {
            return fault(report);
        }
        let weights = arch::weights(&config);
        let mut best: Option<TensorReport> = None;
        let mut found = None;
        for &layout in layouts {
            let publics = public_tensors(&weights, layout);
            let (report, aside) = compare(&publics, &source, &config);
            if report.is_empty() {
                found = Some((layout, aside));
                break;
            }
            let faults =
                |r: &TensorReport| r.missing.len() + r.unexpected.len() + r.mismatched.len();
            if best.as_ref().is_none_or(|old| faults(&report) < faults(old)) {
                best = Some(report);
            }
        }
        let Some((layout, Aside { buffers, others })) = found else {
            return fault(best.unwrap_or_default());
        };
        if !buffers.is_empty() {
            warnings.push(format!(
                "{}: {} precomputed tables are left aside: {}",
                path.display(),
                buffers.len(),
                buffers.join(", ")
            ));
        }
        if !others.is_empty() {
            let tensors = if others.len() == 1 { "tensor" } else { "tensors" };
            warnings.push(format!(
                "{}: {} {tensors} that the model does not need, of types that no weight has, are left aside: {}",
                path.display(),
                others.len(),
                others.join(", ")
            ));
        }
        let path = path.to_owned();
        let (adapters, grown) = (None, None);
        let model =
            Self { path, config, generation, warnings, layout, weights, source, adapters, grown };
        model.check_tied_head()?;
        Ok(model)
    }

    /// A tied model may carry its head beside the embedding, but only as the same values.
    fn check_tied_head(&self) -> Result<()> {
        if !self.config.tie_word_embeddings || self.layout == Layout::Gguf {
            return Ok(());
        }
        let (head_name, embedding_name) = ends_of(self.layout);
        let Some(Ok(head)) = self.source.get(head_name) else { return Ok(()) };
        let Some(Ok(embedding)) = self.source.get(embedding_name) else { return Ok(()) };
        let same = head.shape == embedding.shape
            && if head.ty == embedding.ty {
                head.data == embedding.data
            } else {
                plain_f32(&head) == plain_f32(&embedding)
            };
        if same {
            return Ok(());
        }
        Err(Error::key(
            &self.path,
            "tie_word_embeddings",
            format!(
                "expected false, since {head_name} differs from {embedding_name}, found true: one of the two would be lost"
            ),
        ))
    }

    /// The family's table: every weight of the model, in the order of the forward pass.
    pub fn weights(&self) -> &[Weight] {
        &self.weights
    }

    /// The type in which the source holds a weight.
    pub fn stored_type(&self, weight: &Weight) -> GgmlType {
        match self.source.info(&weight.place(self.layout).tensor) {
            Some(Ok((ty, _))) => ty,
            _ => GgmlType::F32, // a weight of another model
        }
    }

    /// The element type of most of the source's values; float32 for block types and doubles.
    pub fn dtype(&self) -> Dtype {
        let mut counts = [(Dtype::F32, 0usize), (Dtype::F16, 0), (Dtype::Bf16, 0)];
        for weight in &self.weights {
            let dtype = self.stored_type(weight).dtype().unwrap_or(Dtype::F32);
            let slot = counts.iter().position(|(d, _)| *d == dtype).unwrap_or(0);
            counts[slot].1 += weight.elements();
        }
        // the first of equals
        counts.iter().rev().max_by_key(|(_, n)| *n).map_or(Dtype::F32, |(dtype, _)| *dtype)
    }

    /// A mark by which the model is known again: of its tensors as the source holds them, its
    /// adapters and its dimensions. Copies have the same one wherever they lie.
    pub fn mark(&self) -> String {
        let (bytes, tensors) = self.source.mark();
        let mut hash = crc32fast::Hasher::new();
        let config = self.config.to_minimind_json(Dtype::F32).to_string();
        hash.update(format!("{bytes} {tensors} {config}").as_bytes());
        for (module, adapter) in self.adapters.iter().flat_map(|adapters| &adapters.modules) {
            hash.update(module.as_bytes());
            hash.update(&tensor::encode_f32(&adapter.a, Dtype::F32));
            hash.update(&tensor::encode_f32(&adapter.b, Dtype::F32));
        }
        format!("{bytes}-{:08x}", hash.finalize())
    }

    /// The adapters that are merged into the weights, if the model was opened with some.
    pub fn adapters(&self) -> Option<&Adapters> {
        self.adapters.as_ref()
    }

    /// The GGUF behind the model, if it is one (and not the base of adapters).
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.source {
            Source::Gguf(file) if self.adapters.is_none() && self.grown.is_none() => Some(file),
            Source::Gguf(_) | Source::SafeTensors(_) | Source::Pth(_) => None,
        }
    }

    /// The safetensors behind the model, if it is a folder.
    pub fn safetensors(&self) -> Option<&SafeTensors> {
        match &self.source {
            Source::SafeTensors(file) => Some(file),
            Source::Gguf(_) | Source::Pth(_) => None,
        }
    }

    /// The PyTorch checkpoint behind the model, if it is one.
    pub fn pth(&self) -> Option<&Pth> {
        match &self.source {
            Source::Pth(file) => Some(file),
            Source::SafeTensors(_) | Source::Gguf(_) => None,
        }
    }

    /// Gives the model a row for each token that `new` has and `old`, the model's own tokenizer, has
    /// not: the mean of the rows of the pieces that `old` cuts it into. All other rows stay. Returns
    /// the number of new tokens; 0 leaves the model as it was.
    ///
    /// # Errors
    /// A token of `old` that is another one in `new`, or one that `old` cannot cut.
    pub fn grow(&mut self, old: &Tokenizer, new: &Tokenizer) -> Result<usize> {
        if self.grown.is_some() {
            return Err(Error::misuse("a model gets rows for new tokens once"));
        }
        let Some(grown) = Grown::new(&self.config, &self.weights, old, new)? else { return Ok(0) };
        let added = grown.added();
        self.config.vocab_size = self.config.vocab_size.max(new.vocab_size());
        self.weights = arch::weights(&self.config);
        self.grown = Some(grown);
        Ok(added)
    }

    /// [`Model::grow`] from the tokenizer that the model has or that lies with it, where `new` has
    /// more entries. Returns a sentence for the user about what was done.
    ///
    /// # Errors
    /// As [`Model::grow`], where the model has too few rows for `new`; its tokenizer is unreadable.
    pub fn grow_for(&mut self, new: &Tokenizer) -> Result<Option<String>> {
        let own = match (self.gguf(), self.tokenizer_folder()) {
            (Some(gguf), _) if gguf.metadata().get("tokenizer.ggml.tokens").is_some() => {
                Tokenizer::from_gguf(gguf.metadata(), gguf.path())?
            }
            (None, Some(folder)) => Tokenizer::open(folder)?,
            _ => return Ok(None),
        };
        if own.vocab_size() >= new.vocab_size() {
            return Ok(None);
        }
        match self.grow(&own, new) {
            Ok(added) => Ok(Some(format!(
                "{}: {} of {} begin as the mean of the rows of their pieces",
                self.path.display(),
                counted(added, "new token"),
                new.path().display()
            ))),
            // another tokenizer altogether, for which there are rows
            Err(error) if new.vocab_size() <= self.config.vocab_size => {
                Ok(Some(format!("{error}: the model's rows stay as they are")))
            }
            Err(error) => Err(error),
        }
    }
}

/// A sentence with the models to choose from in a folder; nothing where there is none.
fn choices(dir: &Path) -> Option<String> {
    /// Models that one sentence names.
    const SHOWN: usize = 12;
    let found = run_folder::choices(dir);
    let names: Vec<_> = found.iter().take(SHOWN).map(|path| path.display().to_string()).collect();
    let more = if found.len() > SHOWN { ", ..." } else { "" };
    (!names.is_empty()).then(|| format!("name the one that is meant: {}{more}", names.join(", ")))
}
