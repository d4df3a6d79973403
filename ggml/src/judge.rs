//! llama.cpp itself as judge: its logits, tokens and text of a GGUF that mmx runs.
//!
//! In: a GGUF and token ids or text. Out: its logits, tokens, text, speed, and its own quantized
//! files. Logits are computed with float32 keys and values and without flash attention, so that a
//! difference to another engine is the engine's; speed is measured with float16 keys and values, as
//! llama-bench does.
#![expect(unsafe_code, reason = "llama.cpp's interface is C")]

use std::ffi::{CString, c_void};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Once;

use llama_cpp_sys_2 as sys;
use mmx_converters::gguf::{self, Gguf};
use mmx_converters::quant::imatrix::Imatrix;

use crate::error::{Error, Result};
use crate::run::clock::{Clock, made_up_token};
use crate::wrap::cpu::kernels;
use crate::wrap::log;
use crate::wrap::pool::{MAX_THREADS, Pool, thread_count};
use mmx_converters::quant::file_type::FileType;

/// Tokens evaluated in one go, llama.cpp's own default of a physical batch.
const BATCH: usize = 512;
/// How long threads spin before they sleep, in ggml's unit: llama-bench's own default.
const LLAMA_BENCH_POLL: u32 = 50;

/// A path as a C string. llama.cpp takes the system's own bytes, on Windows UTF-8.
fn c_path(path: &Path) -> Result<CString> {
    #[cfg(unix)]
    let bytes = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str());
    #[cfg(not(unix))]
    let bytes = path
        .to_str()
        .ok_or_else(|| Error::Request {
            message: format!("{}: expected a path of characters, found others", path.display()),
        })?
        .as_bytes();
    CString::new(bytes).map_err(|_| Error::Request {
        message: format!("{}: a path with a zero byte", path.display()),
    })
}

/// Quantizes a file as llama-quantize does: `input` (f32, f16 or bf16) to `output` of the type
/// `file`, on `threads` threads; with the columns' importance where there is some.
///
/// # Errors
/// What llama.cpp says.
pub fn quantize_file(
    input: &Path,
    output: &Path,
    file: FileType,
    threads: usize,
    imatrix: Option<&Imatrix>,
) -> Result<()> {
    kernels()?;
    let (c_input, c_output) = (c_path(input)?, c_path(output)?);
    let mut weights: Vec<(CString, Vec<f32>)> = Vec::new();
    for (name, entry) in imatrix.iter().flat_map(|imatrix| &imatrix.entries) {
        let c = CString::new(name.as_str()).map_err(|_| Error::Request {
            message: format!("{name:?}: a name with a zero byte"),
        })?;
        weights.push((c, entry.weights()));
    }
    let mut list: Vec<sys::llama_model_imatrix_data> = weights
        .iter()
        .map(|(name, values)| sys::llama_model_imatrix_data {
            name: name.as_ptr(),
            data: values.as_ptr(),
            size: values.len(),
        })
        .collect();
    // a null name ends the list
    list.push(sys::llama_model_imatrix_data {
        name: std::ptr::null(),
        data: std::ptr::null(),
        size: 0,
    });
    let (code, said) = log::capture(|| {
        // SAFETY: strings and lists live during the call; the parameters are the library's defaults
        // but for two numbers and the list, so every other pointer in them is null.
        unsafe {
            let mut params = sys::llama_model_quantize_default_params();
            params.ftype = file.id() as sys::llama_ftype;
            params.nthread = threads.min(MAX_THREADS) as i32; // none: as many as there are cores
            if imatrix.is_some() {
                params.imatrix = list.as_ptr();
            }
            sys::llama_model_quantize(c_input.as_ptr(), c_output.as_ptr(), &params)
        }
    });
    if code == 0 {
        return Ok(());
    }
    Err(log::library_error(format!("{}: llama.cpp cannot quantize it", input.display()), said))
}

/// Tokens per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Speed of reading the prompt.
    pub prefill: f64,
    /// Speed of writing, one token at a time.
    pub decode: f64,
}

/// A GGUF opened by llama.cpp.
#[derive(Debug)]
pub struct LlamaModel {
    model: NonNull<sys::llama_model>,
    path: PathBuf,
}

// SAFETY: a llama_model is read only after loading; contexts made of it are independent of each
// other.
unsafe impl Send for LlamaModel {}
// SAFETY: as above.
unsafe impl Sync for LlamaModel {}

impl Drop for LlamaModel {
    fn drop(&mut self) {
        // SAFETY: the pointer came from llama_model_load_from_file and no context outlives its
        // model, since a Context borrows it.
        unsafe { sys::llama_model_free(self.model.as_ptr()) }
    }
}

/// A context: key and value cache and compute buffers; borrows its model.
struct Context<'m> {
    context: NonNull<sys::llama_context>,
    model: &'m LlamaModel,
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // SAFETY: the pointer came from llama_init_from_model and is freed once.
        unsafe { sys::llama_free(self.context.as_ptr()) }
    }
}

/// Settings of a context: how it computes.
struct Settings {
    n_ctx: usize,
    threads: usize,
    cache: sys::ggml_type,
    flash: bool,
}

impl LlamaModel {
    /// Opens a GGUF as llama.cpp's programs do: mapped, weights repacked for the CPU where it can.
    /// Of a split model it is given the first file, the only one that it takes.
    ///
    /// # Errors
    /// What llama.cpp says.
    pub fn open(path: &Path) -> Result<Self> {
        static STARTED: Once = Once::new();
        kernels()?;
        // SAFETY: called once, before anything else of the library.
        STARTED.call_once(|| unsafe { sys::llama_backend_init() });
        let first = match gguf::is_further_part(path) {
            true => Some(Gguf::open(path)?.path().to_owned()),
            false => None,
        };
        let c = c_path(first.as_deref().unwrap_or(path))?;
        let mut no_devices = [std::ptr::null_mut()]; // a list ends with null: the judge is the CPU
        let (model, said) = log::capture(|| {
            // SAFETY: the string lives during the call; the list of devices and it are all that is
            // ours among the parameters.
            unsafe {
                let mut params = sys::llama_model_default_params();
                params.n_gpu_layers = 0;
                params.devices = no_devices.as_mut_ptr();
                sys::llama_model_load_from_file(c.as_ptr(), params)
            }
        });
        match NonNull::new(model) {
            Some(model) => Ok(Self { model, path: path.to_owned() }),
            None => Err(log::library_error(
                format!("{}: llama.cpp cannot open it", path.display()),
                said,
            )),
        }
    }

    fn vocab(&self) -> *const sys::llama_vocab {
        // SAFETY: the model is alive; its vocabulary lives as long as it does.
        unsafe { sys::llama_model_get_vocab(self.model.as_ptr()) }
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        // SAFETY: a vocabulary of a live model.
        usize::try_from(unsafe { sys::llama_vocab_n_tokens(self.vocab()) }).unwrap_or(0)
    }

    fn context(&self, settings: &Settings) -> Result<Context<'_>> {
        // SAFETY: no callback.
        unsafe { self.context_with(settings, (None, std::ptr::null_mut())) }
    }

    /// A context whose nodes are shown to `callback` (with the pointer beside it) as they are
    /// computed.
    ///
    /// # Safety
    /// The callback may be called with that pointer as long as the context lives.
    unsafe fn context_with(
        &self,
        settings: &Settings,
        callback: (sys::ggml_backend_sched_eval_callback, *mut c_void),
    ) -> Result<Context<'_>> {
        let threads = thread_count(settings.threads.max(1))?;
        let (context, said) = log::capture(|| {
            // SAFETY: the model is alive; every pointer in the default parameters is null, and the
            // callback's is this function's own condition.
            unsafe {
                let mut params = sys::llama_context_default_params();
                params.n_ctx = settings.n_ctx as u32;
                params.n_batch = BATCH as u32;
                params.n_ubatch = BATCH as u32;
                params.n_outputs_max_per_seq = 0;
                params.n_threads = threads;
                params.n_threads_batch = threads;
                params.type_k = settings.cache;
                params.type_v = settings.cache;
                params.flash_attn_type = if settings.flash {
                    sys::LLAMA_FLASH_ATTN_TYPE_ENABLED
                } else {
                    sys::LLAMA_FLASH_ATTN_TYPE_DISABLED
                };
                (params.cb_eval, params.cb_eval_user_data) = callback;
                sys::llama_init_from_model(self.model.as_ptr(), params)
            }
        });
        match NonNull::new(context) {
            Some(context) => Ok(Context { context, model: self }),
            None => Err(log::library_error(
                format!("{}: llama.cpp cannot make a context", self.path.display()),
                said,
            )),
        }
    }

    /// Settings that make the numbers comparable: float32 cache, no flash attention.
    fn exact(n_ctx: usize, threads: usize) -> Settings {
        Settings { n_ctx, threads, cache: sys::GGML_TYPE_F32, flash: false }
    }

    /// The logits of every position: `[seq, vocab]`, row-major.
    ///
    /// # Errors
    /// An id outside the vocabulary, or what llama.cpp says.
    pub fn logits(&self, ids: &[u32], threads: usize) -> Result<Vec<f32>> {
        self.all_logits(self.context(&Self::exact(ids.len(), threads))?, ids)
    }

    /// The logits of every position with a GGUF adapter applied at full scale while it computes
    /// (llama.cpp's `--lora`).
    ///
    /// # Errors
    /// An adapter that llama.cpp refuses; else as [`LlamaModel::logits`].
    pub fn logits_adapted(
        &mut self,
        adapter: &Path,
        ids: &[u32],
        threads: usize,
    ) -> Result<Vec<f32>> {
        let c = c_path(adapter)?;
        let model = self.model.as_ptr();
        // SAFETY: the model is alive and held exclusively; the string lives during the call.
        let (lora, said) =
            log::capture(|| unsafe { sys::llama_adapter_lora_init(model, c.as_ptr()) });
        let Some(lora) = NonNull::new(lora) else {
            let doing = format!("{}: llama.cpp cannot load the adapter", adapter.display());
            return Err(log::library_error(doing, said));
        };
        let logits = self.context(&Self::exact(ids.len(), threads)).and_then(|context| {
            let (mut list, mut scale) = ([lora.as_ptr()], [1f32]);
            // SAFETY: a live context of the adapter's own model; two arrays of one element.
            let code = unsafe {
                sys::llama_set_adapters_lora(
                    context.context.as_ptr(),
                    list.as_mut_ptr(),
                    1,
                    scale.as_mut_ptr(),
                )
            };
            if code != 0 {
                let doing = format!("{}: llama.cpp cannot apply the adapter", adapter.display());
                return Err(log::library_error(doing, String::new()));
            }
            self.all_logits(context, ids)
        });
        // SAFETY: the context that used it is gone; it is freed once, before its model.
        unsafe { sys::llama_adapter_lora_free(lora.as_ptr()) }
        logits
    }

    fn all_logits(&self, mut context: Context<'_>, ids: &[u32]) -> Result<Vec<f32>> {
        let mut logits = Vec::with_capacity(ids.len() * self.vocab_size());
        for chunk in ids.chunks(BATCH) {
            context.evaluate(chunk, true)?;
            for row in 0..chunk.len() {
                logits.extend_from_slice(context.logits_of(row as i32)?);
            }
        }
        Ok(logits)
    }

    /// Reads pieces of text, each from its beginning, and shows every node to `callback`.
    /// `all_experts`: every expert computes for every token.
    ///
    /// # Safety
    /// The callback may be called with the pointer beside it until this returns.
    pub(crate) unsafe fn observe(
        &self,
        pieces: &[&[u32]],
        threads: usize,
        all_experts: bool,
        callback: (sys::ggml_backend_sched_eval_callback, *mut c_void),
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<()> {
        let longest = pieces.iter().map(|piece| piece.len()).max().unwrap_or(0);
        let settings = Self::exact(longest.max(1), threads);
        // SAFETY: the context is dropped before this returns; the rest is this function's own
        // condition.
        let mut context = unsafe { self.context_with(&settings, callback)? };
        // SAFETY: the context is alive.
        unsafe { sys::llama_set_warmup(context.context.as_ptr(), all_experts) }
        for (i, piece) in pieces.iter().enumerate() {
            context.clear();
            for chunk in piece.chunks(BATCH) {
                // all logits: else the last layer computes the last token alone
                context.evaluate(chunk, true)?;
            }
            context.synchronize();
            progress(i + 1, pieces.len());
        }
        Ok(())
    }

    /// `n` ids, each the most likely one (the lowest of equals), after the prompt `ids`. Never
    /// stops early.
    ///
    /// # Errors
    /// An empty prompt, an id outside the vocabulary, or what llama.cpp says.
    pub fn greedy(&self, ids: &[u32], n: usize, threads: usize) -> Result<Vec<u32>> {
        if ids.is_empty() {
            return Err(Error::Request { message: "an empty prompt has no next token".to_owned() });
        }
        let mut context = self.context(&Self::exact(ids.len() + n, threads))?;
        for chunk in ids.chunks(BATCH) {
            context.evaluate(chunk, false)?;
        }
        let mut out = Vec::with_capacity(n);
        while out.len() < n {
            let row = context.logits_of(-1)?;
            let best = (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
            out.push(best as u32);
            if out.len() < n {
                context.evaluate(&[best as u32], false)?;
            }
        }
        Ok(out)
    }

    /// Text to ids by llama.cpp's tokenizer, with the bos and eos that the file's `add_bos_token`
    /// and `add_eos_token` ask for; `parse_special` reads `<|im_end|>` as one id.
    ///
    /// # Errors
    /// A model without a tokenizer.
    pub fn tokenize(&self, text: &str, parse_special: bool) -> Result<Vec<u32>> {
        let length = c_length(text.len())?;
        // a token holds at least one byte, but for bos and eos
        let mut ids = vec![0; text.len() + 2];
        let room = c_length(ids.len())?;
        // SAFETY: text and its length, a buffer and its length; all alive during the call.
        let count = unsafe {
            sys::llama_tokenize(
                self.vocab(),
                text.as_ptr().cast(),
                length,
                ids.as_mut_ptr(),
                room,
                true,
                parse_special,
            )
        };
        match usize::try_from(count) {
            Ok(count) => Ok(ids[..count].iter().map(|&id| id as u32).collect()),
            Err(_) => Err(Error::Request {
                message: format!("{}: llama.cpp cannot tokenize the text", self.path.display()),
            }),
        }
    }

    /// Ids to bytes by llama.cpp, token by token (so without its clean-up of blanks), specials
    /// shown.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn detokenize(&self, ids: &[u32]) -> Result<Vec<u8>> {
        self.check(ids)?;
        let mut text = Vec::new();
        let mut piece = vec![0u8; 64];
        for &id in ids {
            loop {
                // SAFETY: the id is in the vocabulary; buffer and its length.
                let written = unsafe {
                    sys::llama_token_to_piece(
                        self.vocab(),
                        id as sys::llama_token,
                        piece.as_mut_ptr().cast(),
                        piece.len() as i32,
                        0,
                        true,
                    )
                };
                match usize::try_from(written) {
                    Ok(written) => {
                        text.extend_from_slice(&piece[..written]);
                        break;
                    }
                    // too small: the negative size that is needed
                    Err(_) => piece.resize(written.unsigned_abs() as usize, 0),
                }
            }
        }
        Ok(text)
    }

    /// The most likely token after `ids`, read into an empty float16 cache of `n_ctx` cells: what
    /// happens from an opened model to its first token. Gives what `then` makes of it, before the
    /// memory of keys and values is freed.
    ///
    /// # Errors
    /// An empty prompt, or what llama.cpp says.
    pub fn first_token<T>(
        &self,
        ids: &[u32],
        n_ctx: usize,
        threads: usize,
        flash: bool,
        then: impl FnOnce(u32) -> T,
    ) -> Result<T> {
        let settings = Settings { n_ctx, threads, cache: sys::GGML_TYPE_F16, flash };
        let mut context = self.context(&settings)?;
        for chunk in ids.chunks(BATCH) {
            context.evaluate(chunk, false)?;
        }
        let row = context.logits_of(-1)?;
        let best = (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
        Ok(then(best as u32))
    }

    /// Speed as llama-bench measures it: float16 cache; prefill of `n_prompt` made-up tokens, then,
    /// from an empty cache, `n_gen` tokens one by one without sampling. One warm-up before each.
    /// Threads are kept from step to step, as llama-bench keeps them.
    ///
    /// # Errors
    /// What llama.cpp says.
    pub fn bench(
        &self,
        n_prompt: usize,
        n_gen: usize,
        threads: usize,
        flash: bool,
        clock: Clock,
    ) -> Result<Speed> {
        let n_ctx = n_prompt.max(n_gen).max(1);
        let settings = Settings { n_ctx, threads, cache: sys::GGML_TYPE_F16, flash };
        let pool = Pool::with_poll(threads, LLAMA_BENCH_POLL)?;
        let mut context = self.context(&settings)?;
        // SAFETY: variables are dropped in reverse order, the pool after the context.
        unsafe { context.attach(&pool) };
        let vocab = self.vocab_size();
        let token = |i| made_up_token(i, vocab);
        let prompt: Vec<_> = (0..n_prompt).map(token).collect();

        let mut prefill = 0.0;
        for _warm_then_timed in 0..2 {
            context.clear();
            let start = clock.now();
            for chunk in prompt.chunks(BATCH) {
                context.evaluate(chunk, false)?;
            }
            context.synchronize();
            prefill = n_prompt as f64 / (clock.now() - start);
        }
        context.clear();
        context.evaluate(&[token(0)], false)?;
        context.clear();
        let start = clock.now();
        for i in 0..n_gen {
            context.evaluate(&[token(i)], false)?;
            context.synchronize();
        }
        let decode = n_gen as f64 / (clock.now() - start);
        Ok(Speed { prefill, decode })
    }

    /// Tokens per second of a text read in `steps` steps of `size` tokens, as [`LlamaModel::bench`]
    /// reads a prompt.
    ///
    /// # Errors
    /// What llama.cpp says.
    pub fn bench_steps(
        &self,
        size: usize,
        steps: usize,
        threads: usize,
        flash: bool,
        clock: Clock,
    ) -> Result<f64> {
        let n_ctx = (size * steps).max(1);
        let settings = Settings { n_ctx, threads, cache: sys::GGML_TYPE_F16, flash };
        let pool = Pool::with_poll(threads, LLAMA_BENCH_POLL)?;
        let mut context = self.context(&settings)?;
        // SAFETY: variables are dropped in reverse order, the pool after the context.
        unsafe { context.attach(&pool) };
        let vocab = self.vocab_size();
        let token = |i| made_up_token(i, vocab);
        let text: Vec<_> = (0..size * steps).map(token).collect();
        let mut rate = 0.0;
        for _warm_then_timed in 0..2 {
            context.clear();
            let start = clock.now();
            for step in text.chunks(size.clamp(1, BATCH)) {
                context.evaluate(step, false)?;
                context.synchronize();
            }
            rate = text.len() as f64 / (clock.now() - start);
        }
        Ok(rate)
    }

    fn check(&self, ids: &[u32]) -> Result<()> {
        let vocab = self.vocab_size();
        match ids.iter().find(|&&id| id as usize >= vocab) {
            None => Ok(()),
            Some(id) => Err(Error::Request {
                message: format!(
                    "{}: expected token ids below {vocab}, found {id}",
                    self.path.display()
                ),
            }),
        }
    }
}

/// A length as C takes it.
fn c_length(length: usize) -> Result<i32> {
    i32::try_from(length).map_err(|_| Error::Request {
        message: format!("expected a text of at most 2 GB, found {length} bytes"),
    })
}

impl Context<'_> {
    /// Appends at most [`BATCH`] tokens; logits are kept for all of them or for the last one.
    fn evaluate(&mut self, ids: &[u32], all_logits: bool) -> Result<()> {
        self.model.check(ids)?;
        let mut tokens: Vec<_> = ids.iter().map(|&id| id as sys::llama_token).collect();
        let mut wanted = vec![1i8; ids.len()];
        let (code, said) = log::capture(|| {
            // SAFETY: token and logits arrays of n_tokens elements that live during the call; null
            // for the rest means: next positions of sequence 0.
            unsafe {
                let mut batch = sys::llama_batch_get_one(tokens.as_mut_ptr(), tokens.len() as i32);
                if all_logits {
                    batch.logits = wanted.as_mut_ptr();
                }
                sys::llama_decode(self.context.as_ptr(), batch)
            }
        });
        if code == 0 {
            return Ok(());
        }
        Err(log::library_error(
            format!(
                "{}: llama.cpp cannot evaluate {} tokens",
                self.model.path.display(),
                ids.len()
            ),
            said,
        ))
    }

    /// `[vocab]`: the logits of row `row` of the last batch (-1: its last output).
    fn logits_of(&self, row: i32) -> Result<&[f32]> {
        // SAFETY: the context is alive.
        let row = unsafe { sys::llama_get_logits_ith(self.context.as_ptr(), row) };
        if row.is_null() {
            return Err(log::library_error("llama.cpp has no logits of that row", String::new()));
        }
        // SAFETY: not null means a row of vocab_size values, valid until the next evaluation, which
        // needs the context mutably.
        Ok(unsafe { std::slice::from_raw_parts(row, self.model.vocab_size()) })
    }

    /// Computes with the pool's threads from now on.
    ///
    /// # Safety
    /// The pool outlives the context.
    unsafe fn attach(&mut self, pool: &Pool) {
        // SAFETY: both are alive, the rest is this function's own condition; null means the first
        // for both.
        unsafe {
            sys::llama_attach_threadpool(self.context.as_ptr(), pool.raw(), std::ptr::null_mut());
        }
    }

    fn clear(&mut self) {
        // SAFETY: the memory belongs to the live context.
        unsafe { sys::llama_memory_clear(sys::llama_get_memory(self.context.as_ptr()), false) }
    }

    fn synchronize(&mut self) {
        // SAFETY: the context is alive.
        unsafe { sys::llama_synchronize(self.context.as_ptr()) }
    }
}
