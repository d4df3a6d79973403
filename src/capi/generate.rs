//! Generation at once: ids in, text out piece by piece.
#![expect(unsafe_code, reason = "functions are exported under their C names and take pointers")]

use std::ffi::{c_char, c_void};

use mmx_ggml::run::{Finish, Generation, Sampling, generate_after};

use crate::model::MmxModel;
use crate::pointers::{reference, store, text, values};
use crate::session::{MmxSession, Text};
use crate::status::{Failure, MmxStatus, guarded};

/// A callback that gets each piece of text that is certain: whole characters, `length` bytes and a
/// zero after them, valid during the call. `user` is what mmx_generate was given. Returns whether
/// to go on. It must not use the session, jump out (longjmp) or throw.
pub type MmxText =
    Option<unsafe extern "C" fn(text: *const c_char, length: usize, user: *mut c_void) -> bool>;

/// Options of a generation. To be filled in by mmx_generate_options_init first, so that later
/// fields are right.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MmxGenerateOptions {
    /// Tokens at most.
    pub max_tokens: usize,
    /// Divides the logits; 0: always the likeliest token.
    pub temperature: f64,
    /// Only this many of the likeliest tokens; 0: all.
    pub top_k: usize,
    /// Only the likeliest tokens that reach this probability together; 1: all.
    pub top_p: f64,
    /// Only tokens of at least this share of the likeliest one's probability; 0: all.
    pub min_p: f64,
    /// Makes tokens that were there already less likely; 1: off.
    pub repeat_penalty: f64,
    /// Taken from the logit of each token that was drawn already; 0: off.
    pub presence_penalty: f64,
    /// Taken from the logit of each token once for each time it was drawn; 0: off.
    pub frequency_penalty: f64,
    /// The same seed gives the same text.
    pub seed: u64,
    /// Texts that end the generation and are not part of it: `stop_count` strings.
    pub stop: *const *const c_char,
    /// The number of stop texts.
    pub stop_count: usize,
    /// Go on after an end token.
    pub ignore_end: bool,
}

/// The reason that a generation ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmxFinish {
    /// An end token or a stop text.
    Stop = 0,
    /// As many tokens as were allowed.
    Length = 1,
    /// The session is full.
    Context = 2,
    /// The callback had enough.
    Cancelled = 3,
}

impl MmxFinish {
    pub(crate) fn of(finish: Finish) -> Self {
        match finish {
            Finish::Stop => Self::Stop,
            Finish::Length => Self::Length,
            Finish::Context => Self::Context,
            Finish::Cancelled => Self::Cancelled,
        }
    }
}

/// The result of a generation.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MmxGenerated {
    /// Why it ended.
    pub finish: MmxFinish,
    /// Tokens generated, without the end token.
    pub tokens: usize,
    /// Tokens read before.
    pub prompt_tokens: usize,
    /// Seconds for reading.
    pub prefill_seconds: f64,
    /// Seconds for generating.
    pub decode_seconds: f64,
}

/// Fills in the likeliest token always, at most 512 of them, nothing else. With a model, sampling
/// is as its file says it is meant to be; null is fine.
///
/// # Safety
/// `options` is null or memory for options; `model` is null or a live handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_generate_options_init(
    options: *mut MmxGenerateOptions,
    model: *const MmxModel,
) -> MmxStatus {
    guarded(|| {
        let sampling = if model.is_null() {
            Sampling::default()
        } else {
            // SAFETY: not null, so a live handle by this function's own condition.
            unsafe { reference(model, "model")? }.model.sampling(0)
        };
        let filled = MmxGenerateOptions {
            max_tokens: 512,
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repeat_penalty: sampling.repeat_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            seed: sampling.seed,
            stop: std::ptr::null(),
            stop_count: 0,
            ignore_end: false,
        };
        // SAFETY: this function's own condition.
        unsafe { store(options, filled, "options") }
    })
}

/// Reads ids after those in the session, then generates. `on_text` gets the text piece by piece
/// (null: nobody does), `generated` what it came to (null is fine). The session then holds the ids
/// read and generated that were computed; mmx_session_reuse makes it ready for the next turn.
///
/// # Safety
/// Each pointer is null or valid: a live handle, `count` ids, options whose `stop` is `stop_count`
/// strings, memory for a result; the callback is what MmxText says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_generate(
    session: *mut MmxSession,
    ids: *const u32,
    count: usize,
    options: *const MmxGenerateOptions,
    on_text: MmxText,
    user: *mut c_void,
    generated: *mut MmxGenerated,
) -> MmxStatus {
    // SAFETY: this function's own condition.
    guarded(|| unsafe {
        let ids = values(ids, count, "ids")?;
        let request = request(reference(options, "options")?)?;
        let mut text = reference(session, "session")?.lock()?;
        text.changes += 1;
        let Text { session, held, .. } = &mut *text;
        let result = generate_after(session, held, ids, &request, |piece| {
            let Some(on_text) = on_text else { return true };
            let length = piece.len();
            // zeros within the text are kept; the one after it is not counted
            let mut bytes = piece.as_bytes().to_vec();
            bytes.push(0);
            on_text(bytes.as_ptr().cast(), length, user)
        });
        let result = match result {
            Ok(result) => result,
            Err(error) => {
                text.forget_partial();
                return Err(error.into());
            }
        };
        held.extend_from_slice(ids);
        let computed = session.n_past().saturating_sub(held.len());
        held.extend(result.ids.iter().take(computed));
        text.forget_partial();
        if generated.is_null() {
            return Ok(());
        }
        let told = MmxGenerated {
            finish: MmxFinish::of(result.finish),
            tokens: result.ids.len(),
            prompt_tokens: result.prompt_tokens,
            prefill_seconds: result.prefill.as_secs_f64(),
            decode_seconds: result.decode.as_secs_f64(),
        };
        store(generated, told, "where the result is to be stored")
    })
}

/// What options ask for.
///
/// # Safety
/// `options.stop` is `stop_count` strings.
pub(crate) unsafe fn request(options: &MmxGenerateOptions) -> Result<Generation, Failure> {
    let mut stop = Vec::new();
    // SAFETY: this function's own condition.
    for &string in unsafe { values(options.stop, options.stop_count, "stop")? } {
        // SAFETY: the same.
        stop.push(unsafe { text(string, "stop")? }.to_owned());
    }
    Ok(Generation {
        max_tokens: options.max_tokens,
        sampling: Sampling {
            temperature: options.temperature,
            top_k: options.top_k,
            top_p: options.top_p,
            min_p: options.min_p,
            repeat_penalty: options.repeat_penalty,
            presence_penalty: options.presence_penalty,
            frequency_penalty: options.frequency_penalty,
            bias: Vec::new(),
            seed: options.seed,
        },
        stop,
        ignore_end: options.ignore_end,
        speculate: 0,
    })
}
