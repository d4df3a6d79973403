//! Options of loading a model, of sessions and of slots.

use mmx_converters::arch::Config;

use crate::kernel::cpu::CpuSet;
use crate::wrap::pool::MAX_THREADS;

/// The most positions of a context that nobody asked for: its memory is bounded.
const DEFAULT_N_CTX: usize = 4096;

/// Options of loading a model.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Keep weights in the order that the CPU's kernels like best, which costs a copy at load, or
    /// (q8_0) beside the steps after the first. Without, weights stay in the file's memory map
    /// wherever they can.
    pub repack: bool,
    /// Layers computed on a device instead of the CPU, counted from the end, the output matrix
    /// being the last: 0 none, `usize::MAX` all.
    pub gpu_layers: usize,
    /// That device, one of [`devices`](crate::devices); nothing means the first.
    pub device: Option<String>,
    /// The instruction set that our own kernels use, one that this CPU has; nothing means
    /// [`CpuSet::of_process`].
    pub cpu: Option<CpuSet>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { repack: true, gpu_layers: 0, device: None, cpu: None }
    }
}

/// The type of cached keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// Exact, for comparisons.
    F32,
    /// Half the memory, the usual choice.
    #[default]
    F16,
}

/// Options of a session.
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionOptions {
    /// Positions kept, tokens; by default the model's own length, at most 4096.
    pub n_ctx: Option<usize>,
    /// Type of keys and values.
    pub kv: KvType,
    /// Threads; by default as many as the model's size and the cores make sensible.
    pub threads: Option<usize>,
}

/// Options of slots.
#[derive(Clone, Copy, Debug)]
pub struct SlotsOptions {
    /// Texts at a time.
    pub slots: usize,
    /// Positions kept of each, tokens; by default the model's own length, at most 4096.
    pub n_ctx: Option<usize>,
    /// Type of keys and values.
    pub kv: KvType,
    /// Threads; by default as many as the model's size and the cores make sensible.
    pub threads: Option<usize>,
}

/// Positions kept where nobody says how many.
pub(super) fn default_n_ctx(config: &Config) -> usize {
    config.max_position_embeddings.min(DEFAULT_N_CTX)
}

/// One thread for each 4 MB of weights per token, at most as many as there are cores.
pub(super) fn default_threads(bytes_per_token: usize) -> usize {
    let cores = crate::cpus().min(MAX_THREADS);
    (bytes_per_token / 4_000_000).clamp(1, cores)
}
