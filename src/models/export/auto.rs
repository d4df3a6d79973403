//! The search for a type for each tensor by what it costs: the smallest file within a divergence,
//! or the best within a size.
//!
//! In: a model, a text, a goal. Out: the types, and the points that were measured on the way.
//!
//! What a tensor's rounding does to the model is measured once, with that tensor alone in a coarse
//! type: the KL divergence of the logits. Other types of the same tensor are taken to cost in
//! proportion to the squared error of their values (weighted by the importance matrix where there
//! is one), and tensors to add up. Then the cheapest steps are taken in order: from the smallest
//! file on, always the one that lowers the divergence most per byte. That gives an ordered line of
//! files; the ones shown and the one chosen are measured as a whole.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use mmx_converters::arch::Weight;
use mmx_converters::gguf::{GgmlType, Gguf};
use mmx_converters::model::to_gguf::ToGguf;
use mmx_converters::tensor::{Dtype, TensorView};
use mmx_ggml::FileType;
use mmx_ggml::run::{KvType, LoadOptions, Model, Session, SessionOptions};

use super::frontier::{Choice, Chosen, Point, line, plot};
use super::job::{Job, Target};
pub use super::request::{Goal, Limit};
use crate::compare;
use crate::{blocks, verify};
use mmx_converters::{Error, Result};

/// Number of points of the line that are measured for the table.
const SHOWN: usize = 7;
/// File types measured beside the line.
const COMPARED: [FileType; 5] =
    [FileType::Q8_0, FileType::Q6_K, FileType::Q5_K_M, FileType::Q4_K_M, FileType::Q4_0];

/// The types a matrix of these rows may get, from fine to coarse.
fn candidates(row: usize) -> Vec<GgmlType> {
    use GgmlType::{
        F16, IQ4_NL, IQ4_XS, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0,
    };
    let all: &[GgmlType] = match row {
        n if n.is_multiple_of(256) => &[F16, Q8_0, Q6_K, Q5_K, Q4_K, IQ4_XS, Q3_K, Q2_K],
        n if n.is_multiple_of(32) => &[F16, Q8_0, Q5_1, Q5_0, Q4_1, IQ4_NL, Q4_0],
        _ => &[F16],
    };
    all.to_vec()
}

/// The coarse type in which a tensor's weight in the whole is measured.
fn probe(row: usize) -> GgmlType {
    match row {
        n if n.is_multiple_of(256) => GgmlType::Q3_K,
        n if n.is_multiple_of(32) => GgmlType::Q4_0,
        _ => GgmlType::F16,
    }
}

/// The state of a search.
struct Search<'a, 'j> {
    job: &'a Job<'j>,
    ids: Vec<u32>,
    reference: Vec<f32>,
    vocab: usize,
}

impl Job<'_> {
    /// Chooses the types of `--gguf auto` and adds what was measured to the report.
    pub(super) fn choose(&mut self, goal: &Goal) -> Result<Chosen> {
        let (chosen, points) = {
            let ids = self.ids_of(goal)?;
            let mut search = Search { job: self, ids, reference: Vec::new(), vocab: 0 };
            search.run(goal.limit)?
        };
        self.report.frontier = points;
        let path = self.out.join(format!("{}-frontier.svg", self.name));
        let text = plot(&self.report.frontier);
        fs_err::create_dir_all(&self.out).map_err(|e| Error::io(&self.out, e))?;
        self.write_text(path, "plot", "svg", &text)?;
        Ok(chosen)
    }

    fn ids_of(&self, goal: &Goal) -> Result<Vec<u32>> {
        let config = &self.source.model.config;
        let most = goal.tokens.min(config.max_position_embeddings).max(2);
        let text = match &goal.text {
            Some(path) => Some(fs_err::read_to_string(path).map_err(|e| Error::io(path, e))?),
            None => None,
        };
        let mut ids = match (&self.source.tokenizer, &text, &goal.text) {
            (Some(tokenizer), text, _) => {
                tokenizer.encode_text(text.as_deref().unwrap_or(crate::sample_text::SAMPLE_TEXT))?
            }
            (None, None, _) => verify::made_up_ids(most, config.vocab_size),
            (None, Some(_), path) => {
                return Err(Error::failed(format!(
                    "{}: expected a tokenizer with the model to read this text, found none",
                    path.as_deref().unwrap_or(Path::new("the text")).display()
                )));
            }
        };
        ids.truncate(most);
        if ids.len() < 2 {
            let place = match &goal.text {
                Some(path) => path.display().to_string(),
                None => "`tokens`".to_owned(),
            };
            return Err(Error::failed(format!(
                "{place}: expected at least two tokens to measure on, found {}",
                ids.len()
            )));
        }
        Ok(ids)
    }
}

impl Search<'_, '_> {
    fn say(&self, text: &str) {
        if let Some(progress) = self.job.request.progress {
            progress(text);
        }
    }

    fn run(&mut self, limit: Limit) -> Result<(Chosen, Vec<Point>)> {
        self.say("measuring the model as it is");
        let exact = Chosen::default();
        let model = self.load(&exact)?;
        self.vocab = model.config().vocab_size;
        self.reference = logits(&model, &self.ids)?;
        let file = model.gguf();
        let overhead = file.bytes().len() as u64
            - file.tensors().iter().map(|t| padded(t.bytes as u64)).sum::<u64>();
        let kept: u64 = file
            .tensors()
            .iter()
            .filter(|t| !self.is_matrix(&t.name))
            .map(|t| padded(t.bytes as u64))
            .sum();
        let names: Vec<String> =
            file.tensors().iter().map(|t| t.name.clone()).filter(|n| self.is_matrix(n)).collect();
        let mut tensors = Vec::new();
        for (i, name) in names.iter().enumerate() {
            self.say(&format!("measuring tensor {} of {}: {name}", i + 1, names.len()));
            tensors.push((name.clone(), self.choices(file, name)?));
        }
        drop(model);
        let line = line(&tensors);
        let size = |chosen: &Chosen| {
            let bytes = tensors.iter().map(|(name, choices)| {
                let ty = chosen.type_of(name);
                choices.iter().find(|c| c.ty == ty).map_or(0, |c| c.bytes)
            });
            overhead + kept + bytes.sum::<u64>()
        };
        let mut measured: BTreeMap<usize, Point> = BTreeMap::new();
        let at = self.answer(limit, &line, &size, &mut measured)?;
        for shown in 0..SHOWN {
            let i = shown * (line.len() - 1) / (SHOWN - 1);
            self.measure(i, &line, &mut measured)?;
        }
        let mut points: Vec<Point> = Vec::new();
        for (i, mut point) in measured {
            point.chosen = i == at;
            points.push(point);
        }
        for file_type in COMPARED {
            self.say(&format!("measuring {file_type}"));
            points.push(self.compared(file_type)?);
        }
        points.sort_by_key(|point| std::cmp::Reverse(point.bytes));
        Ok((line[at].clone(), points))
    }

    /// The place on the line that meets the limit.
    fn answer(
        &self,
        limit: Limit,
        line: &[Chosen],
        size: &dyn Fn(&Chosen) -> u64,
        measured: &mut BTreeMap<usize, Point>,
    ) -> Result<usize> {
        match limit {
            Limit::TargetSize(bytes) => {
                let fits = (0..line.len()).rev().find(|&i| size(&line[i]) <= bytes);
                let at = fits.ok_or_else(|| {
                    Error::failed(format!(
                        "`target_size`: expected at least {} bytes, the size in the coarsest types, found {bytes}",
                        size(&line[0])
                    ))
                })?;
                self.measure(at, line, measured)?;
                Ok(at)
            }
            Limit::MaxKl(most) => {
                let (mut low, mut high) = (0, line.len() - 1);
                let finest = self.measure(high, line, measured)?;
                if finest > most {
                    return Err(Error::failed(format!(
                        "`max_kl`: expected at least {finest:.2e}, what the finest types reach, found {most:.2e}"
                    )));
                }
                while low < high {
                    let middle = (low + high) / 2;
                    if self.measure(middle, line, measured)? <= most {
                        high = middle;
                    } else {
                        low = middle + 1;
                    }
                }
                self.measure(high, line, measured)?;
                Ok(high)
            }
        }
    }

    /// The divergence of a point of the line.
    fn measure(
        &self,
        i: usize,
        line: &[Chosen],
        measured: &mut BTreeMap<usize, Point>,
    ) -> Result<f64> {
        if let Some(point) = measured.get(&i) {
            return Ok(point.mean_kl);
        }
        self.say(&format!("measuring mixture {} of {}", i + 1, line.len()));
        let model = self.load(&line[i])?;
        let point = self.point("mixed".to_owned(), &model, line[i].counts())?;
        let kl = point.mean_kl;
        measured.insert(i, point);
        Ok(kl)
    }

    fn point(&self, name: String, model: &Model, types: BTreeMap<String, usize>) -> Result<Point> {
        let found = logits(model, &self.ids)?;
        Ok(Point {
            name,
            bytes: model.gguf().bytes().len() as u64,
            mean_kl: compare::difference(&self.reference, &found, self.vocab).mean_kl,
            ppl: compare::perplexity(&found, &self.ids, self.vocab),
            types,
            chosen: false,
        })
    }

    fn compared(&self, file_type: FileType) -> Result<Point> {
        let config = &self.job.source.model.config;
        let importance = self.job.imatrix.is_some();
        let mut chosen = Chosen::default();
        for tensor in self.matrices() {
            let (name, shape) = tensor;
            let ty = blocks::recipe_with(file_type, config, &name, &shape, importance).0;
            chosen.types.insert(name, (ty, shape.iter().product()));
        }
        let model = self.load(&chosen)?;
        self.point(file_type.to_string(), &model, chosen.counts())
    }

    /// Names and shapes of the matrices that may be held in blocks.
    fn matrices(&self) -> Vec<(String, Vec<usize>)> {
        let table = &self.job.table;
        let publics =
            mmx_converters::arch::public_tensors(table, mmx_converters::arch::Layout::Gguf);
        let blocks = publics.into_iter().filter(|p| p.weights.iter().all(|&i| table[i].quantize()));
        blocks.map(|public| (public.name, public.shape)).collect()
    }

    fn is_matrix(&self, name: &str) -> bool {
        self.matrices().iter().any(|(matrix, _)| matrix == name)
    }

    /// Makes the model with these types, ready to run.
    fn load(&self, chosen: &Chosen) -> Result<Model> {
        let target = Target::Chosen(chosen);
        let get = &mut |w: &Weight| self.job.source.weight(w);
        let name = self.job.gguf_path(&target);
        let bytes =
            self.job.with_spec(&target, |spec: &ToGguf<'_>| Ok(spec.to_bytes(&name, get)?.0))?;
        let gguf = Gguf::from_bytes(bytes, &name)?;
        Ok(Model::from_gguf(gguf, LoadOptions::default())?)
    }

    /// The cost of a tensor in each type that it may get.
    fn choices(&self, file: &Gguf, name: &str) -> Result<Vec<Choice>> {
        let Some(info) = file.tensor(name) else { return Ok(Vec::new()) };
        let row = info.shape.last().copied().unwrap_or(1);
        let view = TensorView { dtype: Dtype::F32, shape: &info.shape, data: file.data(info) };
        let values: Cow<'_, [f32]> = match bytemuck::try_cast_slice(view.data) {
            Ok(values) => Cow::Borrowed(values),
            Err(_) => Cow::Owned(view.to_f32()),
        };
        let error = |ty: GgmlType| self.error(name, ty, &values, row);
        let coarse = probe(row);
        let mut alone = Chosen::default();
        alone.types.insert(name.to_owned(), (coarse, values.len()));
        let found = logits(&self.load(&alone)?, &self.ids)?;
        let kl = compare::difference(&self.reference, &found, self.vocab).mean_kl;
        let per_error = kl.max(1e-12) / error(coarse)?.max(f64::MIN_POSITIVE);
        let mut choices = Vec::new();
        for ty in candidates(row) {
            let bytes = ty.row_bytes(row).unwrap_or(0) * (values.len() / row.max(1));
            let kl = per_error * error(ty)?;
            choices.push(Choice { ty, bytes: padded(bytes as u64), kl });
        }
        Ok(choices)
    }

    /// Squared error of the values in a type, relative to their squares, weighted by column.
    fn error(&self, name: &str, ty: GgmlType, values: &[f32], row: usize) -> Result<f64> {
        let imatrix = self.job.imatrix.as_ref();
        let blocks = match imatrix {
            Some(imatrix) => blocks::quantize_weighted(imatrix, name, ty, values, row)?,
            None => blocks::quantize(name, ty, values, row)?,
        };
        let back = blocks::dequantize(ty, &blocks, row)?;
        let weights = imatrix.and_then(|imatrix| imatrix.entries.get(name)).map(|e| e.weights());
        // of a stack of experts each has its own part of the weights
        let experts = weights.as_ref().map_or(1, |w| (w.len() / row.max(1)).max(1));
        let expert = (values.len() / experts).max(1);
        let (mut lost, mut whole) = (0f64, f64::MIN_POSITIVE);
        for (i, (a, b)) in values.iter().zip(&back).enumerate() {
            let weight = match &weights {
                Some(weights) => f64::from(weights[i / expert * row + i % row]),
                None => 1.0,
            };
            let (a, d) = (f64::from(*a), f64::from(*a) - f64::from(*b));
            lost += weight * d * d;
            whole += weight * a * a;
        }
        Ok(lost / whole)
    }
}

/// Rounds up as the data of a GGUF is aligned.
fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(u64::from(mmx_converters::gguf::DEFAULT_ALIGNMENT))
}

fn logits(model: &Model, ids: &[u32]) -> Result<Vec<f32>> {
    let options = SessionOptions { n_ctx: Some(ids.len()), kv: KvType::F32, threads: None };
    Ok(Session::new(model, options)?.logits_all(ids)?)
}
