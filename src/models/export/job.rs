//! An export under way: what may be refused is refused first, then file after file is written.

use std::path::{Path, PathBuf};
use std::time::Instant;

use mmx_converters::arch::{Layout, Weight};
use mmx_converters::file;
use mmx_converters::gguf::{self, GgmlType, Value};
use mmx_converters::manifest::Manifest;
use mmx_converters::model::adapter::{self, Adapters};
use mmx_converters::model::fallback::{self, Fallback};
use mmx_converters::model::folder;
use mmx_converters::model::to_gguf::ToGguf;
use mmx_converters::quant::imatrix::Imatrix;
use mmx_converters::tensor::Dtype;
use mmx_ggml::FileType;

use super::frontier::Chosen;
use super::report::{Exported, FileFallback, Report, dtype_name};
use super::request::{AdapterForm, Request};
use super::source::{Source, folder_of};
use super::{card, modelfile};
use crate::consumers::check::{self, weights_digest};
use crate::open::Form;
use crate::{blocks, verify};
use mmx_converters::{Error, Result};

/// The types of a GGUF.
pub(super) enum Target<'a> {
    /// The types that llama-quantize mixes for a file type.
    Type(FileType),
    /// Types that were chosen tensor by tensor.
    Chosen(&'a Chosen),
}

impl Target<'_> {
    fn name(&self) -> String {
        match self {
            Self::Type(file_type) => file_type.to_string(),
            Self::Chosen(_) => "auto".to_owned(),
        }
    }
}

/// The state of an export under way.
pub(super) struct Job<'a> {
    pub(super) request: &'a Request,
    pub(super) source: &'a Source,
    pub(super) out: PathBuf,
    /// Note of the files that mmx wrote below `out`.
    pub(super) manifest: Manifest,
    pub(super) name: String,
    /// Label of the model's size, such as `26M`.
    pub(super) label: String,
    pub(super) table: Vec<Weight>,
    pub(super) tokenizer_keys: Vec<(String, Value)>,
    pub(super) imatrix: Option<Imatrix>,
    pub(super) imatrix_keys: Vec<(String, Value)>,
    pub(super) report: Report,
}

impl Job<'_> {
    /// Refuses what cannot be exported, before anything is written.
    pub(super) fn check(&mut self) -> Result<()> {
        let (config, request) = (&self.source.model.config, self.request);
        let gguf = !request.gguf.is_empty() || request.auto.is_some();
        if !request.hf.is_empty() {
            config.check_carried_by(Layout::Transformers)?;
        }
        if gguf {
            config.check_carried_by(Layout::Gguf)?;
        }
        let wanted = |form| request.adapter.contains(&form);
        match self.source.adapters()? {
            Some(adapters) if wanted(AdapterForm::Peft) => adapters.check_peft(config)?,
            None if !request.adapter.is_empty() => {
                return Err(Error::failed_with_hint(
                    format!(
                        "{}: expected adapters, found a whole model",
                        self.report.model.display()
                    ),
                    "adapters are a folder of stage lora, or a file together with `base` MODEL",
                ));
            }
            _ => (),
        }
        match &self.source.tokenizer {
            Some(tokenizer) if gguf => self.tokenizer_keys = tokenizer.to_gguf_keys(config)?,
            Some(_) => (),
            None => {
                let message = format!(
                    "{}: found no tokenizer.json: the files hold no tokenizer and take ids only",
                    folder_of(&self.report.model).display()
                );
                let hint = "(`tokenizer` DIR says where it is)";
                self.report.warnings.push(format!("{message} {hint}"));
                self.tokenizer_keys = ids_only(config);
            }
        }
        if let (Some(imatrix), Some(path)) = (&self.imatrix, &request.imatrix) {
            check_imatrix(imatrix, path, &self.table)?;
            self.report.warnings.extend(imatrix.warnings());
            self.imatrix_keys = imatrix.keys(path);
        }
        if request.strict {
            for &dtype in &request.hf {
                let get = &mut |w: &Weight| self.source.weight(w);
                let fallbacks =
                    fallback::float_fallbacks(&self.table, Layout::Transformers, dtype, get)?;
                fallback::refuse_fallbacks(&format!("`hf` {}", dtype_name(dtype)), &fallbacks)?;
            }
            for &file_type in &request.gguf {
                let target = Target::Type(file_type);
                let path = self.gguf_path(&target);
                self.with_spec(&target, |spec| {
                    spec.check(&path, &mut |w| self.source.weight(w)).map(|_| ())
                })?;
            }
        }
        Ok(())
    }

    /// Refuses a target that is an input, or that somebody else wrote, before anything is written.
    pub(super) fn check_places(&mut self) -> Result<()> {
        let request = self.request;
        let adapters = self.source.model.adapters();
        let base = adapters.and_then(|adapters| adapters.base.as_deref()).map(Path::new);
        let given = [&request.base, &request.tokenizer, &request.imatrix];
        let text = request.auto.as_ref().and_then(|goal| goal.text.as_deref());
        let given = given.into_iter().filter_map(Option::as_deref).chain(base).chain(text);
        let inputs: Vec<PathBuf> =
            std::iter::once(self.report.model.as_path()).chain(given).map(Path::to_owned).collect();
        let refuse_input =
            |path: &Path| file::refuse_input(path, inputs.iter().map(|p| p.as_path()));

        let mut folders: Vec<(PathBuf, bool)> =
            request.hf.iter().map(|&dtype| (self.hf_folder(dtype), false)).collect();
        let mut files: Vec<PathBuf> =
            request.gguf.iter().map(|&ty| self.gguf_path(&Target::Type(ty))).collect();
        if request.auto.is_some() {
            files.push(self.gguf_path(&Target::Chosen(&Chosen::default())));
        }
        if request.split_bytes.is_some() && self.out.is_dir() {
            // how many parts there will be is not known yet: any that is there might be replaced
            files = self.files_of(&files)?;
        }
        if request.pth {
            files.push(self.pth_path());
        }
        for form in &request.adapter {
            match form {
                AdapterForm::Peft => folders.push((self.out.join(PEFT), true)),
                AdapterForm::Gguf => files.push(self.lora_path()),
            }
        }
        for (dir, peft) in &folders {
            refuse_input(dir)?;
            let tokenizer = self.source.tokenizer.is_some();
            let mut foreign = None;
            if !request.overwrite {
                foreign = folder::foreign_file(dir, tokenizer, &mut self.manifest)?;
            }
            if *peft {
                files.extend(PEFT_FILES.map(|name| dir.join(name)));
            }
            refuse_foreign(foreign)?;
        }
        for path in files {
            refuse_input(&path)?;
            let free = request.overwrite || self.manifest.is_free(&path)?;
            refuse_foreign((!free).then_some(path))?;
        }
        Ok(())
    }

    /// Writes a text for people beside the model, unless somebody else's or a changed one is there:
    /// that is kept, and said.
    pub(super) fn write_text(
        &mut self,
        path: PathBuf,
        format: &'static str,
        ty: &str,
        text: &str,
    ) -> Result<()> {
        let same = || fs_err::read(&path).is_ok_and(|old| old == text.as_bytes());
        if !self.request.overwrite && !self.manifest.is_free(&path)? && !same() {
            self.report.warnings.push(format!(
                "{}: kept: mmx did not write it, or it was changed since (`overwrite` replaces it)",
                path.display()
            ));
            return Ok(());
        }
        file::write_bytes(&path, text.as_bytes())?;
        self.manifest.add(&path)?; // saved at the end: the same text is known without it
        self.done(path, format, ty.to_owned(), text.len() as u64, 0.0);
        Ok(())
    }

    /// Takes note that a file is mmx's.
    fn written(&mut self, path: &Path) -> Result<()> {
        self.manifest.add(path)?;
        self.manifest.save()
    }

    fn pth_path(&self) -> PathBuf {
        self.out.join(format!("{}-{}.pth", self.name, self.label))
    }

    fn lora_path(&self) -> PathBuf {
        self.out.join(format!("{}-lora.gguf", self.name))
    }

    pub(super) fn gguf_path(&self, target: &Target<'_>) -> PathBuf {
        self.out.join(format!("{}-{}-{}.gguf", self.name, self.label, target.name()))
    }

    /// Makes the specification from which a GGUF is written, and hands it to `run`.
    pub(super) fn with_spec<T>(
        &self,
        target: &Target<'_>,
        run: impl FnOnce(&ToGguf<'_>) -> mmx_converters::Result<T>,
    ) -> Result<T> {
        let config = &self.source.model.config;
        let importance = self.imatrix.is_some();
        let (file_type, recipe): (FileType, Recipe<'_>) = match target {
            Target::Type(ty) => {
                let ty = *ty;
                let recipe = move |name: &str, shape: &[usize]| {
                    blocks::recipe_with(ty, config, name, shape, importance)
                };
                (ty, Box::new(recipe))
            }
            Target::Chosen(chosen) => {
                let recipe = move |name: &str, _: &[usize]| (chosen.type_of(name), None);
                (chosen.file_type(), Box::new(recipe))
            }
        };
        let quantize = |name: &str, ty: GgmlType, values: &[f32], row: usize| match &self.imatrix {
            Some(imatrix) => blocks::quantize_weighted(imatrix, name, ty, values, row),
            None => blocks::quantize(name, ty, values, row),
        };
        let quantized = file_type.is_quantized() && importance;
        let spec = ToGguf {
            config,
            name: &self.name,
            license: self.request.license.as_deref(),
            generation: &self.source.model.generation,
            file_type: file_type.id(),
            tokenizer: &self.tokenizer_keys,
            recipe: &recipe,
            quantize: &quantize,
            extra: if quantized { &self.imatrix_keys } else { &[] },
            strict: self.request.strict,
        };
        run(&spec)
    }

    pub(super) fn done(
        &mut self,
        path: PathBuf,
        format: &'static str,
        ty: String,
        bytes: u64,
        seconds: f64,
    ) {
        self.report.files.push(Exported { path, format, ty, bytes, seconds });
    }

    pub(super) fn write_folders(&mut self) -> Result<()> {
        for &dtype in &self.request.hf {
            let begin = Instant::now();
            let dir = self.hf_folder(dtype);
            let (strict, shard_bytes) = (self.request.strict, self.request.shard_bytes);
            let layout = Layout::Transformers;
            let over = (&mut self.manifest, self.request.overwrite);
            let written =
                self.source.write_folder(&dir, layout, dtype, strict, shard_bytes, over)?;
            let mut seconds = begin.elapsed().as_secs_f64();
            for (path, bytes) in written.files {
                let weights = path.extension().is_some_and(|e| e == "safetensors");
                let own = if weights { std::mem::take(&mut seconds) } else { 0.0 };
                self.done(path, "transformers", dtype_name(dtype).to_owned(), bytes, own);
            }
            let mut files = self.report.files.iter();
            let first = files.find(|f| f.path.starts_with(&dir) && f.seconds > 0.0);
            let path = first.map_or_else(|| dir.clone(), |file| file.path.clone());
            let of_file = |fallback| FileFallback { path: path.clone(), fallback };
            self.report.fallbacks.extend(written.fallbacks.into_iter().map(of_file));
        }
        Ok(())
    }

    fn hf_folder(&self, dtype: Dtype) -> PathBuf {
        self.out.join(format!("hf-{}", dtype_name(dtype)))
    }

    pub(super) fn write_adapters(&mut self) -> Result<()> {
        let Some(adapters) = self.source.model.adapters() else { return Ok(()) };
        for &form in &self.request.adapter {
            let begin = Instant::now();
            match form {
                AdapterForm::Peft => {
                    let dir = self.out.join(PEFT);
                    let named = self.request.card.base_model.clone().or(adapters.base.clone());
                    let adapters = Adapters { base: named, ..adapters.clone() };
                    fs_err::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
                    adapters.write(&dir)?;
                    if let Some(tokenizer) = &self.source.tokenizer {
                        tokenizer.save(&dir)?;
                    }
                    for path in folder::tokenizer_files(&dir) {
                        self.written(&path)?;
                    }
                    let mut seconds = begin.elapsed().as_secs_f64();
                    for path in PEFT_FILES.map(|name| dir.join(name)) {
                        self.written(&path)?;
                        let size = fs_err::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
                        let own = std::mem::take(&mut seconds);
                        self.done(path, "peft", "f32".to_owned(), size, own);
                    }
                }
                AdapterForm::Gguf => {
                    fs_err::create_dir_all(&self.out).map_err(|e| Error::io(&self.out, e))?;
                    let path = self.lora_path();
                    let config = &self.source.model.config;
                    let size = adapters.write_gguf(&path, &self.name, config, &self.table)?;
                    self.written(&path)?;
                    let seconds = begin.elapsed().as_secs_f64();
                    self.done(path, "gguf", "lora".to_owned(), size, seconds);
                }
            }
        }
        Ok(())
    }

    pub(super) fn write_pth(&mut self) -> Result<()> {
        if !self.request.pth {
            return Ok(());
        }
        let begin = Instant::now();
        let path = self.pth_path();
        let model = &self.source.model;
        let dtype = model.dtype();
        let get = &mut |w: &Weight| self.source.weight(w);
        let bytes = mmx_converters::pth::write(&path, &model.config, dtype, get)?;
        self.written(&path)?;
        let seconds = begin.elapsed().as_secs_f64();
        self.done(path, "pth", dtype_name(dtype).to_owned(), bytes, seconds);
        Ok(())
    }

    pub(super) fn write_gguf(&mut self, target: &Target<'_>) -> Result<()> {
        let begin = Instant::now();
        let path = self.gguf_path(target);
        let limit = self.request.split_bytes;
        let (files, found) = self.with_spec(target, |spec| {
            spec.write_split(&path, limit, &mut |w| self.source.weight(w))
        })?;
        for (file, _) in &files {
            self.written(file)?;
        }
        self.drop_other_files(&path, &files)?;
        // a split model is named by its first file
        let path = files.first().map_or(path, |(path, _)| path.clone());
        let of_file = |fallback| FileFallback { path: path.clone(), fallback };
        self.report.fallbacks.extend(found.into_iter().map(of_file));
        let mut seconds = begin.elapsed().as_secs_f64();
        for (path, bytes) in files {
            let own = std::mem::take(&mut seconds);
            self.done(path, "gguf", target.name(), bytes, own);
        }
        Ok(())
    }

    /// The files in the output folder that hold one of these GGUFs, whole or a part of it.
    fn files_of(&self, ggufs: &[PathBuf]) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs_err::read_dir(&self.out).map_err(|e| Error::io(&self.out, e))? {
            let path = entry.map_err(|e| Error::io(&self.out, e))?.path();
            if ggufs.contains(&gguf::without_part(&path)) {
                found.push(path);
            }
        }
        Ok(found)
    }

    /// Removes what an export before this one wrote of the same GGUF in other files, so that
    /// readers find one model. The model that is exported stays, also where it is such a file.
    fn drop_other_files(&mut self, whole: &Path, written: &[(PathBuf, u64)]) -> Result<()> {
        let full = |path: &Path| fs_err::canonicalize(path).ok().map(|p| gguf::without_part(&p));
        let source = full(&self.report.model);
        let mut dropped = false;
        for old in self.files_of(&[whole.to_owned()])? {
            let other = written.iter().all(|(path, _)| *path != old);
            if other && full(&old) != source && self.manifest.is_own(&old)? {
                fs_err::remove_file(&old).map_err(|e| Error::io(&old, e))?;
                dropped = true;
            }
        }
        if dropped {
            self.manifest.save()?;
        }
        Ok(())
    }

    /// Path, type and text of each Modelfile; the first one is what `ollama create` finds by
    /// itself.
    pub(super) fn modelfiles(&mut self) -> Result<Vec<(PathBuf, String, String)>> {
        let Some(ollama) = &self.request.ollama else { return Ok(Vec::new()) };
        let types = self.request.gguf.iter().map(FileType::to_string);
        let auto = self.request.auto.is_some().then(|| "auto".to_owned());
        let mut all = Vec::new();
        for ty in types.chain(auto) {
            let gguf = self.out.join(format!("{}-{}-{ty}.gguf", self.name, self.label));
            let license = self.request.license.as_deref();
            let written = modelfile::modelfile(self.source, ollama, &gguf, license)?;
            self.report.warnings.extend(written.warnings);
            let first = all.is_empty();
            let name = if first { "Modelfile".to_owned() } else { format!("Modelfile-{ty}") };
            all.push((self.out.join(name), ty, written.text));
        }
        Ok(all)
    }

    /// Compares every folder and GGUF written, in every engine, with the model.
    pub(super) fn verify(&mut self) -> Result<()> {
        /// Tokens of the built-in text: enough for means, few enough to wait for.
        const TOKENS: usize = 128;
        let ggufs = self.report.files.iter().filter(|f| f.format == "gguf" && f.ty != "lora");
        // one file stands for all of a split model
        let ggufs = ggufs.filter(|f| !mmx_converters::gguf::is_further_part(&f.path));
        let folders = self.request.hf.iter().map(|&dtype| self.hf_folder(dtype));
        let others: Vec<PathBuf> = folders.chain(ggufs.map(|f| f.path.clone())).collect();
        let request = verify::Request {
            reference: self.report.model.clone(),
            others,
            engines: Vec::new(),
            input: verify::Input::Sample(TOKENS),
            tolerance: None,
            threads: 1,
            servers: Vec::new(),
        };
        let base = self.request.base.as_deref();
        let tokenizer = self.request.tokenizer.as_deref();
        let model = Source::open_on(&self.report.model, base, tokenizer)?.model;
        let form = Form::of(model).on(base.map(mmx_hub::resolve).transpose()?);
        let report = verify::verify_form(&form, &request, &mut |_, _| ())?;
        self.report.verified = Some(report);
        Ok(())
    }

    /// The digests of what was written, where there are checks for them.
    fn checked_digests(&self) -> Result<Vec<(PathBuf, String)>> {
        let Some(checks) = &self.request.checks else { return Ok(Vec::new()) };
        let ggufs = self.report.files.iter().filter(|f| f.format == "gguf" && f.ty != "lora");
        let folders = self.request.hf.iter().map(|&dtype| self.hf_folder(dtype));
        let digests = folders
            .chain(ggufs.map(|f| f.path.clone()))
            .map(|path| Ok((path.clone(), weights_digest(&path)?)))
            .collect::<Result<Vec<_>>>()?;
        let known = |row: &check::Row| digests.iter().any(|(_, sha256)| *sha256 == row.sha256);
        if !checks.rows.iter().any(known) {
            return Err(Error::failed_with_hint(
                "`card`: expected rows on the files of this export, found rows on others only",
                "they are told by the SHA-256 of their weights: let `mmx verify` check these very files",
            ));
        }
        Ok(digests)
    }

    /// Writes README.md beside the GGUFs and into each Transformers folder.
    pub(super) fn write_cards(&mut self) -> Result<()> {
        let digests = self.checked_digests()?;
        let card = card::Card {
            name: &self.name,
            license: self.request.license.as_deref(),
            words: &self.request.card,
            source: self.source,
            verified: self.report.verified.as_ref(),
            checks: self.request.checks.as_ref().map(|checks| (checks, digests.as_slice())),
        };
        let ggufs: Vec<&Exported> =
            self.report.files.iter().filter(|f| f.format == "gguf" && f.ty != "lora").collect();
        let mut cards = Vec::new();
        if !ggufs.is_empty() {
            cards.push((self.out.clone(), card.of_ggufs(&ggufs, self.request.ollama.is_some())));
        }
        for &dtype in &self.request.hf {
            cards.push((self.hf_folder(dtype), card.of_folder(dtype)));
        }
        if self.request.adapter.contains(&AdapterForm::Peft) {
            cards.push((self.out.join(PEFT), card.of_adapters()));
        }
        for (dir, text) in cards {
            let path = dir.join(card::FILE_NAME);
            self.write_text(path, "card", "md", &text)?;
        }
        Ok(())
    }
}

/// The folder of the adapters alone, below the export's.
const PEFT: &str = "adapter-peft";
/// Files of the folder of adapters, besides a tokenizer's.
const PEFT_FILES: [&str; 2] = [adapter::CONFIG_NAME, adapter::WEIGHTS_NAME];

/// Refuses to replace a file that mmx did not write, where one was found.
fn refuse_foreign(found: Option<PathBuf>) -> Result<()> {
    let Some(path) = found else { return Ok(()) };
    let fault = mmx_converters::Error::Foreign { path };
    let hint = "`overwrite` replaces it, `out` DIR writes elsewhere";
    Err(Error::failed_with_hint(fault.to_string(), hint))
}

/// A recipe for one file.
type Recipe<'a> = Box<dyn Fn(&str, &[usize]) -> (GgmlType, Option<Fallback>) + 'a>;

/// Refuses an importance matrix of another model: entries that no tensor has, or of other sizes.
fn check_imatrix(imatrix: &Imatrix, path: &Path, table: &[Weight]) -> Result<()> {
    let publics = mmx_converters::arch::public_tensors(table, Layout::Gguf);
    for name in imatrix.entries.keys() {
        let Some(public) = publics.iter().find(|public| public.name == *name) else {
            return Err(Error::failed(format!(
                "{}: tensor {name}: expected a tensor of the model, found none of that name",
                path.display()
            )));
        };
        let experts = if public.shape.len() == 3 { public.shape[0] } else { 1 };
        let columns = public.shape.last().copied().unwrap_or(1);
        imatrix.weights_of(name, experts, columns)?;
    }
    Ok(())
}

/// The tokenizer keys of a model without a tokenizer: llama.cpp loads such a file and takes ids.
fn ids_only(config: &mmx_converters::arch::Config) -> Vec<(String, Value)> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let eos = config.eos_token_id.first().copied().unwrap_or(2);
    vec![
        (key("model"), Value::String("none".to_owned())),
        (key("bos_token_id"), Value::U32(config.bos_token_id)),
        (key("eos_token_id"), Value::U32(eos)),
        (key("padding_token_id"), Value::U32(config.pad_token_id)),
    ]
}
