//! Decides where each weight of a GGUF lies, and brings it there.
//!
//! In: an open GGUF, its configuration, how it is to be loaded. Out: [`Weights`]. Tensors are
//! checked against the family's table first.
#![expect(unsafe_code, reason = "weights are tensors of contexts kept beside them")]

use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mmx_converters::arch::rope_freqs::ROPE_FREQS;
use mmx_converters::arch::{Config, Layout, public_tensors, weights};
use mmx_converters::error::TensorReport;
use mmx_converters::gguf::{GgmlType, Gguf, TensorInfo};

use super::options::LoadOptions;
use super::weights::{Ffn, Fused, Layer, Matrix, Target, Weight, Weights};
use crate::error::Result;
use crate::kernel::arena::{Arena, LINE};
use crate::kernel::cpu::CpuSet;
use crate::kernel::float_matmul::{self, FloatMatrix};
use crate::kernel::quant_matmul::{self, GROUP, QuantMatrix};
use crate::quant::dequantize_rows;
use crate::wrap::buffer::{ALIGNMENT, Buffer, BufferType, fill};
use crate::wrap::context::Context;
use crate::wrap::cpu::kernels;
use crate::wrap::device::DeviceRef;
use crate::wrap::placement::Split;
use crate::wrap::tensor::Tensor;

impl Weights {
    /// Checks the file's tensors against the family's table and takes them up.
    pub(super) fn load(gguf: Gguf, config: &Config, options: &LoadOptions) -> Result<Self> {
        Self::lay_out(gguf, config, options, false)
    }

    /// [`Weights::load`] without the data: the file describes weights that lie in memory of their
    /// own and are written afterwards, by [`Weights::targets`].
    pub(super) fn in_memory(gguf: Gguf, config: &Config, options: &LoadOptions) -> Result<Self> {
        Self::lay_out(gguf, config, options, true)
    }

    fn lay_out(
        gguf: Gguf,
        config: &Config,
        options: &LoadOptions,
        in_memory: bool,
    ) -> Result<Self> {
        check_tensors(&gguf, config)?;
        let cpu = options.cpu.map_or_else(CpuSet::of_process, CpuSet::checked)?;
        let count = gguf.tensors().len();
        let split = match options.gpu_layers {
            0 => None,
            layers => Some(Split {
                device: DeviceRef::find(options.device.as_deref())?,
                first_layer: (config.num_hidden_layers + 1).saturating_sub(layers),
            }),
        };
        let mut kinds = Vec::new();
        if options.repack && !in_memory {
            for kind in kernels()?.extra_types() {
                kinds.push((kind, Context::new(count, 0)?));
            }
        }
        let quant = options.repack && quant_matmul::set(cpu).is_some();
        let float = options.repack && float_matmul::set(cpu).is_some();
        // more than enough for each, joined or not: what is not used costs nothing
        let takes = |t: &&TensorInfo| {
            (quant && quant_matmul::takes(t.ty)) || (float && float_matmul::fits(t.ty, &t.shape))
        };
        let taken = gguf.tensors().iter().filter(takes);
        let room = taken.map(|t| 2 * t.bytes + 2 * LINE).sum();
        let parts = 0..if in_memory { 0 } else { gguf.files().count() };
        // SAFETY: weights only lie there, and they are kept together with the file, which is
        // dropped last.
        let files = parts.map(|part| unsafe { Buffer::of_file(&gguf, part) });
        let files = files.collect::<Result<Vec<_>>>()?;
        let mut loader = Loader {
            gguf: &gguf,
            files,
            mapped: Context::new(count, 0)?,
            plain: Context::new(2 * count, 0)?,
            kinds,
            device: Context::new(2 * count, 0)?,
            split,
            on_device: false,
            arena: Arena::new(room)?,
            quant,
            float,
            cpu,
            copies: Vec::new(),
            later: Vec::new(),
            targets: in_memory.then(HashMap::new),
            columns: config.moe.as_ref().is_some_and(|moe| moe.shared_experts > 1),
        };
        let embedding = loader.table("token_embd.weight")?;
        let rope_divisors = loader.rope_divisors(config)?;
        let layers = (0..config.num_hidden_layers)
            .map(|i| loader.layer(config, i))
            .collect::<Result<_>>()?;
        loader.turn_to(config.num_hidden_layers);
        let output_norm = loader.norm("output_norm.weight")?;
        let head = if config.tie_word_embeddings { "token_embd.weight" } else { "output.weight" };
        let output = loader.matrix(&[head])?;

        let Loader { files, mapped, plain, mut kinds, device, copies, later, targets, .. } = loader;
        let mut buffers: Vec<_> = files.into_iter().flatten().collect();
        buffers.extend(Buffer::for_all(&plain, BufferType::cpu())?);
        let mut contexts = vec![mapped, plain];
        kinds.extend(split.map(|split| (split.device.memory(), device)));
        for (kind, context) in kinds {
            buffers.extend(Buffer::for_all(&context, kind)?);
            contexts.push(context);
        }
        buffers.iter().for_each(Buffer::holds_weights);
        // of a model in memory only what is no weight is there to copy
        let ready = |data: &Source| !in_memory || matches!(data, Source::Values(_));
        for (weight, data) in copies.into_iter().filter(|(_, data)| ready(data)) {
            // SAFETY: made by the loader in one of the contexts above.
            let tensor = unsafe { Tensor::from_raw(weight.0.as_ptr(), "a weight")? };
            fill(tensor, &data.bytes(&gguf))?;
        }
        gguf.give_back(); // what is computed where it lies comes back when it is read
        let bytes_per_token = bytes_per_token(&gguf, config);
        Ok(Self {
            embedding,
            rope_divisors,
            layers,
            output_norm,
            output,
            bytes_per_token,
            split,
            cpu,
            later,
            targets: targets.unwrap_or_default(),
            names: None,
            whole: !in_memory,
            stopped: AtomicBool::new(false),
            _buffers: buffers,
            _contexts: contexts,
            gguf,
        })
    }
}

/// Refuses, in one error, everything that is missing, unknown or of another shape.
fn check_tensors(gguf: &Gguf, config: &Config) -> Result<()> {
    use GgmlType as T;
    let mut report = TensorReport::default();
    let expected = public_tensors(&weights(config), Layout::Gguf);
    for public in &expected {
        match gguf.tensor(&public.name) {
            None => report.missing.push(public.name.clone()),
            Some(found) if found.shape != public.shape => report.mismatched.push((
                public.name.clone(),
                format!("shape {:?}", public.shape),
                format!("{:?}", found.shape),
            )),
            Some(found) if matches!(found.ty, T::I8 | T::I16 | T::I32 | T::I64 | T::F64) => {
                report.mismatched.push((
                    public.name.clone(),
                    "a type of weights".to_owned(),
                    found.ty.name().to_owned(),
                ));
            }
            Some(_) => {}
        }
    }
    let known: std::collections::HashSet<_> = expected.iter().map(|p| p.name.as_str()).collect();
    report.unexpected = gguf
        .tensors()
        .iter()
        .filter(|t| !known.contains(t.name.as_str()) && t.name != ROPE_FREQS)
        .map(|t| t.name.clone())
        .collect();
    if report.is_empty() {
        return Ok(());
    }
    Err(mmx_converters::Error::Tensors { path: gguf.path().to_owned(), report }.into())
}

/// Bytes of weights read for one token: everything, but of the experts the chosen ones and of an
/// untied embedding one row.
fn bytes_per_token(gguf: &Gguf, config: &Config) -> usize {
    let share = |tensor: &TensorInfo| match &config.moe {
        Some(moe) if tensor.name.contains("_exps.") => {
            tensor.bytes / moe.num_experts * moe.num_experts_per_tok
        }
        _ if tensor.name == "token_embd.weight" && !config.tie_word_embeddings => {
            tensor.bytes / config.vocab_size.max(1)
        }
        _ => tensor.bytes,
    };
    gguf.tensors().iter().map(share).sum()
}

/// The source of a copied weight's data.
enum Source {
    /// Tensors of the file, joined along their rows; with experts, per expert.
    Joined { tensors: Vec<TensorInfo>, experts: usize },
    /// Values of our own making.
    Values(Vec<f32>),
}

impl Source {
    /// The bytes, in as many pieces as they lie in.
    fn pieces<'a>(&'a self, gguf: &'a Gguf) -> Vec<&'a [u8]> {
        match self {
            Self::Values(values) => vec![bytemuck::cast_slice(values)],
            Self::Joined { tensors, experts } => {
                let of = |expert: usize, tensor: &TensorInfo| {
                    let size = tensor.bytes / experts;
                    &gguf.data(tensor)[expert * size..][..size]
                };
                let of_expert = |expert| tensors.iter().map(move |tensor| of(expert, tensor));
                (0..*experts).flat_map(of_expert).collect()
            }
        }
    }

    fn bytes<'a>(&'a self, gguf: &'a Gguf) -> std::borrow::Cow<'a, [u8]> {
        match self.pieces(gguf).as_slice() {
            [one] => (*one).into(),
            several => several.concat().into(),
        }
    }
}

/// The loader: decides where each weight lies.
struct Loader<'g> {
    gguf: &'g Gguf,
    /// One for each file of a split model; nothing where its bytes begin at an odd address.
    files: Vec<Option<Buffer>>,
    mapped: Context,
    plain: Context,
    kinds: Vec<(BufferType, Context)>,
    /// The descriptions of tensors that lie on a device.
    device: Context,
    split: Option<Split>,
    /// True while the weights that come next are to lie there.
    on_device: bool,
    /// Our own kernels are preferred where they apply: memory for their weights, and whether
    /// blocks and floats are taken.
    arena: Arena,
    quant: bool,
    float: bool,
    cpu: CpuSet,
    copies: Vec<(Weight, Source)>,
    /// To be packed later.
    later: Vec<Matrix>,
    /// Where each tensor lies, of a model in memory: nothing of the file is copied then.
    targets: Option<HashMap<String, Vec<Target>>>,
    /// Several shared experts, each of which has columns of one matrix of the file.
    columns: bool,
}

impl Loader<'_> {
    fn info(&self, name: &str) -> Result<TensorInfo> {
        self.gguf.tensor(name).cloned().ok_or_else(|| {
            mmx_converters::Error::format(self.gguf.path(), format!("tensor {name} is missing"))
                .into()
        })
    }

    /// Has what comes next lie where the layer does; the output matrix is the one after the last.
    fn turn_to(&mut self, layer: usize) {
        self.on_device = self.split.is_some_and(|split| layer >= split.first_layer);
    }

    fn layer(&mut self, config: &Config, layer: usize) -> Result<Layer> {
        self.turn_to(layer);
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let qk_norm = config.family.qk_norm();
        let (router, ffn, shared) = match &config.moe {
            None => (None, self.ffn([name("ffn_gate"), name("ffn_up"), name("ffn_down")])?, None),
            Some(moe) => {
                let router = self.matrix(&[&name("ffn_gate_inp")])?;
                let routed = [name("ffn_gate_exps"), name("ffn_up_exps"), name("ffn_down_exps")];
                let shared = [name("ffn_gate_shexp"), name("ffn_up_shexp"), name("ffn_down_shexp")];
                let shared = if moe.shared_experts > 0 { Some(self.ffn(shared)?) } else { None };
                (Some(router), self.ffn(routed)?, shared)
            }
        };
        Ok(Layer {
            attn_norm: self.norm(&name("attn_norm"))?,
            qkv: self.fused(&[&name("attn_q"), &name("attn_k"), &name("attn_v")])?,
            attn_output: self.matrix(&[&name("attn_output")])?,
            q_norm: if qk_norm { Some(self.norm(&name("attn_q_norm"))?) } else { None },
            k_norm: if qk_norm { Some(self.norm(&name("attn_k_norm"))?) } else { None },
            ffn_norm: self.norm(&name("ffn_norm"))?,
            router,
            ffn,
            shared,
        })
    }

    /// The number that each rotary frequency is divided by, of Llama 3's scaling.
    fn rope_divisors(&mut self, config: &Config) -> Result<Option<Weight>> {
        let Some(divisors) = config.rope_divisors() else { return Ok(None) };
        let tensor = self.plain.tensor(GgmlType::F32, &[divisors.len()])?;
        let weight = weight_of(tensor, ROPE_FREQS);
        self.copies.push((weight, Source::Values(divisors)));
        Ok(Some(weight))
    }

    fn ffn(&mut self, [gate, up, down]: [String; 3]) -> Result<Ffn> {
        Ok(Ffn { gate_up: self.fused(&[&gate, &up])?, down: self.matrix(&[&down])? })
    }

    /// Joins neighbours of equal type.
    fn fused(&mut self, names: &[&str]) -> Result<Fused> {
        let mut groups: Vec<(GgmlType, Vec<&str>, usize)> = Vec::new();
        let mut outputs = Vec::new();
        for &name in names {
            let info = self.info(name)?;
            let rows = info.shape[info.shape.len().saturating_sub(2)];
            let at = groups.len();
            match groups.last_mut() {
                Some((ty, members, total)) if *ty == info.ty => {
                    outputs.push((at - 1, *total, rows));
                    members.push(name);
                    *total += rows;
                }
                _ => {
                    outputs.push((at, 0, rows));
                    groups.push((info.ty, vec![name], rows));
                }
            }
        }
        let products = groups
            .iter()
            .map(|(_, members, _)| self.matrix(members))
            .collect::<Result<Vec<_>>>()?;
        Ok(Fused { products, outputs })
    }

    /// A matrix, or several of one type joined along their rows.
    fn matrix(&mut self, names: &[&str]) -> Result<Matrix> {
        let matrix = self.placed(names)?;
        if self.targets.is_some() {
            let infos = names.iter().map(|name| self.info(name)).collect::<Result<Vec<_>>>()?;
            let of = |info: &TensorInfo| info.shape[info.shape.len() - 2];
            let rows = infos.iter().map(of).sum();
            let mut first = 0;
            for info in &infos {
                self.note(&info.name, Target { matrix: matrix.clone(), first, rows });
                first += of(info);
            }
        }
        Ok(matrix)
    }

    /// Keeps where a tensor lies, if that is asked for.
    fn note(&mut self, name: &str, target: Target) {
        if let Some(targets) = &mut self.targets {
            targets.entry(name.to_owned()).or_default().push(target);
        }
    }

    /// [`Loader::matrix`] that notes nothing.
    fn placed(&mut self, names: &[&str]) -> Result<Matrix> {
        let tensors: Vec<_> = names.iter().map(|name| self.info(name)).collect::<Result<_>>()?;
        let ty = tensors[0].ty;
        let mut shape = tensors[0].shape.clone();
        let rows_at = shape.len() - 2;
        shape[rows_at] = tensors.iter().map(|t| t.shape[rows_at]).sum();
        let experts = if shape.len() == 3 { shape[0] } else { 1 };
        if self.on_device
            && let Some(split) = self.split
            && is_supported(split.device, split.device.memory(), ty, &shape)?
        {
            let weight = weight_of(self.device.tensor(ty, &shape)?, names[0]);
            self.copies.push((weight, Source::Joined { tensors, experts }));
            return Ok(Matrix::Plain(weight));
        }
        let (cpu, arena) = (self.cpu, &mut self.arena);
        if self.float && self.targets.is_some() && float_matmul::fits(ty, &shape) {
            let matrix = FloatMatrix::zeros(cpu, arena, ty, &shape)?;
            return Ok(Matrix::Float(Arc::new(matrix)));
        }
        if self.targets.is_some() {
            // rows are overwritten by groups; blocks that no group takes by themselves
            let grouped = tensors.iter().all(|t| t.shape[rows_at].is_multiple_of(GROUP))
                && !(self.columns && names[0].ends_with("ffn_down_shexp.weight"));
            if self.quant && grouped && quant_matmul::arena_bytes(ty, &shape).is_some() {
                let matrix = QuantMatrix::zeros(cpu, arena, ty, &shape)?;
                return Ok(Matrix::Quant(Arc::new(matrix)));
            }
            let weight = weight_of(self.plain.tensor(ty, &shape)?, names[0]);
            return Ok(Matrix::Plain(weight));
        }
        if self.float && float_matmul::fits(ty, &shape) {
            let data = Source::Joined { tensors, experts };
            let pieces = data.pieces(self.gguf);
            // SAFETY: the pieces are the file's, which `Weights` drops last.
            let matrix = unsafe { FloatMatrix::new(cpu, arena, ty, &shape, &pieces)? };
            let matrix = Matrix::Float(Arc::new(matrix));
            self.later.push(matrix.clone());
            return Ok(matrix);
        }
        if self.quant && quant_matmul::arena_bytes(ty, &shape).is_some() {
            let data = Source::Joined { tensors, experts };
            let pieces = data.pieces(self.gguf);
            // SAFETY: the pieces are the file's, which `Weights` drops last.
            if let Some(later) = unsafe { QuantMatrix::in_file(cpu, arena, ty, &shape, &pieces)? } {
                let later = Matrix::Quant(Arc::new(later));
                self.later.push(later.clone());
                return Ok(later);
            }
            // packed, they are not read again
            let read = || self.gguf.give_back();
            let packed = QuantMatrix::new(cpu, arena, ty, &shape, &pieces, &read)?;
            return Ok(Matrix::Quant(Arc::new(packed)));
        }
        for (kind, context) in &self.kinds {
            if is_supported(kernels()?.device, *kind, ty, &shape)? {
                let weight = weight_of(context.tensor(ty, &shape)?, names[0]);
                self.copies.push((weight, Source::Joined { tensors, experts }));
                return Ok(Matrix::Plain(weight));
            }
        }
        let neighbours = tensors
            .windows(2)
            .all(|pair| pair[0].part == pair[1].part && pair[0].range().end == pair[1].offset);
        let joins = tensors.len() == 1 || (neighbours && experts == 1);
        if joins && let Some(weight) = self.in_place(&tensors[0], &shape)? {
            return Ok(Matrix::Plain(weight));
        }
        let weight = weight_of(self.plain.tensor(ty, &shape)?, names[0]);
        self.copies.push((weight, Source::Joined { tensors, experts }));
        Ok(Matrix::Plain(weight))
    }

    /// A table of rows that are looked up: in the file's order.
    fn table(&mut self, name: &str) -> Result<Weight> {
        let info = self.info(name)?;
        if let Some(weight) = self.in_place(&info, &info.shape)? {
            return Ok(weight);
        }
        let weight = weight_of(self.plain.tensor(info.ty, &info.shape)?, name);
        let rows = info.shape[0];
        self.note(name, Target { matrix: Matrix::Plain(weight), first: 0, rows });
        self.copies.push((weight, Source::Joined { tensors: vec![info], experts: 1 }));
        Ok(weight)
    }

    /// A norm's gain, float32 whatever the file holds.
    fn norm(&mut self, name: &str) -> Result<Weight> {
        let info = self.info(name)?;
        let row = info.shape.last().copied().unwrap_or(0);
        let context = if self.on_device { &self.device } else { &self.plain };
        let weight = weight_of(context.tensor(GgmlType::F32, &info.shape)?, name);
        if self.targets.is_some() {
            self.note(name, Target { matrix: Matrix::Plain(weight), first: 0, rows: 1 });
            return Ok(weight);
        }
        let values = dequantize_rows(info.ty, self.gguf.data(&info), row)?;
        self.copies.push((weight, Source::Values(values)));
        Ok(weight)
    }

    /// A weight of `shape` that begins where `first` does in the file, if it may lie there. Small
    /// ones are better copied: a system that maps files by large pages would keep megabytes of what
    /// was packed for each of them.
    fn in_place(&self, first: &TensorInfo, shape: &[usize]) -> Result<Option<Weight>> {
        const SMALL: usize = 64 << 10;
        let file = self.files.get(first.part).and_then(Option::as_ref);
        let Some(file) = file.filter(|_| first.bytes > SMALL) else {
            return Ok(None);
        };
        if self.gguf.data(first).as_ptr().align_offset(ALIGNMENT) != 0 {
            return Ok(None);
        }
        let tensor = self.mapped.tensor(first.ty, shape)?;
        file.place(self.gguf, first.part, tensor, first.offset)?;
        Ok(Some(weight_of(tensor, &first.name)))
    }
}

/// The weight that a tensor is; `name` is that in the file, of the first where several are joined.
fn weight_of(tensor: Tensor<'_>, name: &str) -> Weight {
    tensor.set_name(name);
    // SAFETY: a Tensor is never null.
    Weight(unsafe { NonNull::new_unchecked(tensor.raw()) })
}

/// True when the device can compute products with a weight of this type and shape from memory of
/// this kind.
fn is_supported(
    device: DeviceRef,
    kind: BufferType,
    ty: GgmlType,
    shape: &[usize],
) -> Result<bool> {
    let trial = Context::new(8, 0)?;
    let weight = trial.tensor(ty, shape)?;
    let row = shape[shape.len() - 1];
    let op = if shape.len() == 3 {
        let x = trial.tensor(GgmlType::F32, &[2, 1, row])?;
        let ids = trial.tensor(GgmlType::I32, &[2, 1])?;
        trial.mul_mat_id(weight, x, ids)?
    } else {
        trial.mul_mat(weight, trial.tensor(GgmlType::F32, &[2, row])?)?
    };
    Ok(device.supports(op, 0, kind))
}
