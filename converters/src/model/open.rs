//! [`Model`]: anything with weights, open: a checkpoint or Transformers folder, a GGUF, or a
//! `.pth`.
//!
//! In: a path. Out: the configuration, and every weight of the family's table in MiniMind's own
//! layout, taken from the memory map.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::arch::{self, Config, Layout, Place, Weight, assemble, public_tensors};
use crate::error::{Error, Result, TensorReport};
use crate::gguf::{GgmlType, Gguf};
use crate::model::adapter::{self, Adapters};
use crate::model::generation::{self, Generation};
use crate::model::run_folder;
use crate::model::source::{
    Aside, EMBEDDING, HEAD, Source, Stored, compare, other_layer_count, plain_f32,
};
use crate::pth::Pth;
use crate::safetensors::SafeTensors;
use crate::tensor::{self, Dtype};

/// Turns `elements` values of a block type into float32 (ggml's own dequantizers, in crate
/// mmx-ggml).
pub type Dequantize<'a> = &'a (dyn Fn(GgmlType, &[u8], usize) -> Result<Vec<f32>> + Sync);

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
    weights: Vec<Weight>,
    source: Source,
    /// Merged into the weights they belong to when those are read.
    adapters: Option<Adapters>,
}

/// What lies beside the weights in a folder.
struct Beside {
    config: Config,
    generation: Generation,
    warnings: Vec<String>,
}

impl Beside {
    /// Reads what lies beside the weights; `given` replaces config.json. Nothing without either.
    fn read(dir: &Path, given: Option<Config>) -> Result<Option<Self>> {
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
        let tokenizer = generation::tokenizer_eos(dir).unwrap_or_else(|error| {
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
    /// with a config.json beside it, told apart by what they are, not by their names. A folder of
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
            b"PK\x03\x04" | [0x80, ..] => {
                let dir = path.parent().filter(|p| !p.as_os_str().is_empty());
                Self::open_pth(path, dir.unwrap_or(Path::new(".")), config)
            }
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
        if adapter::is_adapter_folder(&base) {
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
        let tied = file.tensor("output.weight").is_none();
        let config = Config::from_gguf_keys(file.metadata(), path, tied)?;
        let generation = Generation::from_gguf_keys(file.metadata()).unwrap_or_default();
        let source = Source::Gguf(Box::new(file));
        let layout = Layout::Gguf;
        Self::check(path, config, generation, Vec::new(), &[layout], source)
    }

    fn open_folder(dir: &Path, config: Option<Config>) -> Result<Self> {
        let mut beside = Beside::read(dir, config)?.ok_or_else(|| {
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

    fn open_pth(path: &Path, dir: &Path, config: Option<Config>) -> Result<Self> {
        let file = Pth::open(path)?;
        let mut beside = Beside::read(dir, config)?.ok_or_else(|| {
            Error::format(path, "expected its dimensions: a config.json beside it or a preset")
                .with_hint("`mmx import FILE --preset NAME --out DIR` says what it is")
        })?;
        beside.warnings.extend(file.notes().iter().cloned());
        Self::check_beside(path, beside, Source::Pth(file))
    }

    fn check_beside(path: &Path, beside: Beside, source: Source) -> Result<Self> {
        let Beside { config, generation, warnings } = beside;
        let layouts = [Layout::Transformers, Layout::Reference, Layout::Transformers5, Layout::Mlx];
        Self::check(path, config, generation, warnings, &layouts, source)
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
        let adapters = None;
        let model = Self { path, config, generation, warnings, layout, weights, source, adapters };
        model.check_tied_head()?;
        Ok(model)
    }

    /// A tied model may carry its head beside the embedding, but only as the same values.
    fn check_tied_head(&self) -> Result<()> {
        if !self.config.tie_word_embeddings || self.layout == Layout::Gguf {
            return Ok(());
        }
        let Some(Ok(head)) = self.source.get(HEAD) else { return Ok(()) };
        let Some(Ok(embedding)) = self.source.get(EMBEDDING) else { return Ok(()) };
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
                "expected false, since {HEAD} differs from {EMBEDDING}, found true: one of the two would be lost"
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
            Source::Gguf(file) if self.adapters.is_none() => Some(file),
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

    /// A weight's bytes in MiniMind's layout and row order, in the element type of the source.
    /// Borrowed from the memory map where they lie there in one run.
    ///
    /// # Errors
    /// The source holds it in a block type: see [`Model::weight_with`].
    pub fn weight(&self, weight: &Weight) -> Result<(Dtype, Cow<'_, [u8]>)> {
        let found = self.base_weight(weight)?;
        Ok(self.adapted(weight, found))
    }

    /// A weight with its adapter merged, where it has one: float32 then, whatever the base is
    /// stored in.
    fn adapted<'a>(
        &self,
        weight: &Weight,
        (dtype, data): (Dtype, Cow<'a, [u8]>),
    ) -> (Dtype, Cow<'a, [u8]>) {
        let Some(adapters) = &self.adapters else { return (dtype, data) };
        let Some(adapter) = adapters.of(weight) else { return (dtype, data) };
        let shape = [weight.elements()];
        let base = tensor::TensorView { dtype, shape: &shape, data: &data }.to_f32();
        let merged = adapter.merged(&base, adapters.scale_of(adapter));
        (Dtype::F32, Cow::Owned(tensor::encode_f32(&merged, Dtype::F32)))
    }

    fn base_weight(&self, weight: &Weight) -> Result<(Dtype, Cow<'_, [u8]>)> {
        let place = weight.place(self.layout);
        let stored = self.stored(&place)?;
        let Some(dtype) = stored.ty.dtype() else {
            return Err(Error::unsupported(
                format!("{}: tensor {}", self.path.display(), place.tensor),
                format!(
                    "expected an unquantized type, found {}: its values need ggml's dequantizer",
                    stored.ty.name()
                ),
            ));
        };
        let size = dtype.size();
        let bytes = match (place.run(), stored.data) {
            (Some(run), Cow::Borrowed(data)) => {
                Cow::Borrowed(&data[run.start * size..run.end * size])
            }
            (Some(_), owned) if place.is_whole() => owned,
            (_, data) => Cow::Owned(assemble::take(&place, size, &data)),
        };
        Ok((dtype, self.reference_rows(weight, bytes)))
    }

    /// [`Model::weight`] of a file with block types: these become float32 by `dequantize`.
    ///
    /// # Errors
    /// What `dequantize` returns.
    pub fn weight_with(
        &self,
        weight: &Weight,
        dequantize: Dequantize<'_>,
    ) -> Result<(Dtype, Cow<'_, [u8]>)> {
        let place = weight.place(self.layout);
        let stored = self.stored(&place)?;
        if stored.ty.dtype().is_some() {
            return self.weight(weight);
        }
        let (block, bytes) = (stored.ty.block_elements(), stored.ty.block_bytes());
        let in_blocks = |n: usize| n / block * bytes;
        let values = match place.run() {
            // whole blocks of this weight alone
            Some(run) if run.start.is_multiple_of(block) && run.end.is_multiple_of(block) => {
                let data = &stored.data[in_blocks(run.start)..in_blocks(run.end)];
                tensor::encode_f32(&dequantize(stored.ty, data, run.len())?, Dtype::F32)
            }
            _ => {
                let elements = place.shape.iter().product();
                let all = dequantize(stored.ty, &stored.data, elements)?;
                assemble::take(&place, 4, &tensor::encode_f32(&all, Dtype::F32))
            }
        };
        if values.len() != weight.elements() * 4 {
            return Err(Error::format(
                &self.path,
                format!(
                    "tensor {}: expected {} values from the dequantizer, found {}",
                    place.tensor,
                    weight.elements(),
                    values.len() / 4
                ),
            ));
        }
        let rows = self.reference_rows(weight, Cow::Owned(values));
        Ok(self.adapted(weight, (Dtype::F32, rows)))
    }

    /// A weight's values as float32, in MiniMind's layout and row order.
    ///
    /// # Errors
    /// As [`Model::weight`].
    pub fn weight_f32(&self, weight: &Weight) -> Result<Vec<f32>> {
        let (dtype, data) = self.weight(weight)?;
        let shape = [weight.elements()];
        Ok(tensor::TensorView { dtype, shape: &shape, data: &data }.to_f32())
    }

    fn reference_rows<'a>(&self, weight: &Weight, bytes: Cow<'a, [u8]>) -> Cow<'a, [u8]> {
        match weight.gguf_permuted_heads {
            Some(_) if self.layout == Layout::Gguf => {
                Cow::Owned(assemble::from_gguf_rows(weight, bytes.into_owned()))
            }
            _ => bytes,
        }
    }

    fn stored(&self, place: &Place) -> Result<Stored<'_>> {
        match self.source.get(&place.tensor) {
            Some(Ok(stored)) => Ok(stored),
            // `check` has seen them all: only a weight of another model ends here
            _ => Err(Error::format(
                &self.path,
                format!("tensor {}: expected a weight of the model, found none", place.tensor),
            )),
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
