//! Sessions: one text in progress with its keys and values; logits of what follows.
#![expect(unsafe_code, reason = "functions are exported under their C names and take pointers")]

use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use mmx_ggml::run::{KvType, Session, SessionOptions, reusable};

use crate::model::MmxModel;
use crate::pointers::{fill, reference, store, values};
use crate::status::{Failure, MmxStatus, guarded, guarded_value};

/// A text in progress.
#[derive(Debug)]
pub struct MmxSession {
    text: Arc<Mutex<Text>>,
}

/// Functions take a handle from any thread, and free it on another than it was made on.
const _: () = {
    const fn may_be_shared<T: Send + Sync>() {}
    may_be_shared::<MmxModel>();
    may_be_shared::<MmxSession>();
};

/// A session's text: what it has read.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) session: Session,
    /// The ids in it, as many as it has positions in use.
    pub(crate) held: Vec<u32>,
    /// Calls that may have changed it.
    pub(crate) changes: u64,
}

impl MmxSession {
    /// The text, for this call alone.
    pub(crate) fn lock(&self) -> Result<MutexGuard<'_, Text>, Failure> {
        locked(&self.text)
    }

    /// The text, for a generation that outlives this call.
    pub(crate) fn share(&self) -> Arc<Mutex<Text>> {
        self.text.clone()
    }
}

/// A session's text, for one call alone.
pub(crate) fn locked(text: &Mutex<Text>) -> Result<MutexGuard<'_, Text>, Failure> {
    text.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => {
            Failure::new(MmxStatus::Busy, "another thread is using the session")
        }
        TryLockError::Poisoned(_) => Failure::new(
            MmxStatus::Panic,
            "the session ended in a fault before and can only be freed",
        ),
    })
}

impl Text {
    /// After a failure: the session holds what it held before, or less.
    pub(crate) fn forget_partial(&mut self) {
        self.session.truncate(self.held.len());
        self.held.truncate(self.session.n_past());
    }
}

/// Options of a session. Null instead of a pointer to it: everything as mmx_session_options_init
/// says.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MmxSessionOptions {
    /// Positions kept, tokens; 0: the model's own length, at most 4096.
    pub n_ctx: usize,
    /// Threads, 512 at most; 0: what suits the model's size.
    pub threads: usize,
    /// Keep keys and values in float32, which rounds nothing, instead of float16.
    pub exact: bool,
}

/// Fills in the usual options.
///
/// # Safety
/// `options` is null or points to memory for options.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_session_options_init(options: *mut MmxSessionOptions) -> MmxStatus {
    let usual = MmxSessionOptions { n_ctx: 0, threads: 0, exact: false };
    // SAFETY: this function's own condition.
    guarded(|| unsafe { store(options, usual, "options") })
}

/// Begins an empty text and stores a handle, to be freed with mmx_session_free.
///
/// # Safety
/// Each pointer is null or valid: a live handle, options, memory for a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_session_new(
    model: *const MmxModel,
    options: *const MmxSessionOptions,
    session: *mut *mut MmxSession,
) -> MmxStatus {
    guarded(|| {
        let mut wanted = SessionOptions::default();
        if !options.is_null() {
            // SAFETY: not null, so valid by this function's own condition.
            let options = unsafe { reference(options, "options")? };
            wanted.n_ctx = (options.n_ctx > 0).then_some(options.n_ctx);
            wanted.threads = (options.threads > 0).then_some(options.threads);
            wanted.kv = if options.exact { KvType::F32 } else { KvType::F16 };
        }
        // SAFETY: this function's own condition.
        let model = unsafe { reference(model, "model")? };
        let text =
            Text { session: Session::new(&model.model, wanted)?, held: Vec::new(), changes: 0 };
        let text = Arc::new(Mutex::new(text));
        let handle = Box::into_raw(Box::new(MmxSession { text }));
        // SAFETY: this function's own condition.
        let stored = unsafe { store(session, handle, "where the session is to be stored") };
        if stored.is_err() {
            // SAFETY: the box made above, which nobody else has seen.
            drop(unsafe { Box::from_raw(handle) });
        }
        stored
    })
}

/// Frees a session. Null is fine.
///
/// # Safety
/// `session` is null or a handle that was not freed and that no other thread is using.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_session_free(session: *mut MmxSession) {
    if !session.is_null() {
        // SAFETY: this function's own condition; handles come from mmx_session_new's box.
        guarded_value((), || drop(unsafe { Box::from_raw(session) }));
    }
}

/// The number of tokens in the session. 0 for null, or while another thread is using it.
///
/// # Safety
/// `session` is null or a live handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_session_length(session: *const MmxSession) -> usize {
    // SAFETY: this function's own condition.
    let session = unsafe { reference(session, "session") };
    guarded_value(0, || session.and_then(MmxSession::lock).map_or(0, |text| text.held.len()))
}

/// The number of positions in the session. 0 for null, or while another thread is using the
/// session.
///
/// # Safety
/// `session` is null or a live handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_session_capacity(session: *const MmxSession) -> usize {
    // SAFETY: this function's own condition.
    let session = unsafe { reference(session, "session") };
    guarded_value(0, || session.and_then(MmxSession::lock).map_or(0, |text| text.session.n_ctx()))
}

/// Keeps the longest beginning of a text that the session holds already, forgets the rest, and
/// stores how many ids that are: what is left to read is `ids + *kept`, at least one id. For a
/// chat, pass the ids of all of it at each turn. With a count of 0 everything is forgotten.
///
/// # Safety
/// Each pointer is null or valid: a live handle, `count` ids, memory for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_session_reuse(
    session: *mut MmxSession,
    ids: *const u32,
    count: usize,
    kept: *mut usize,
) -> MmxStatus {
    // SAFETY: this function's own condition.
    guarded(|| unsafe {
        let ids = values(ids, count, "ids")?;
        let mut text = reference(session, "session")?.lock()?;
        let same = reusable(&text.held, ids);
        text.changes += 1;
        text.session.truncate(same);
        text.held.truncate(same);
        store(kept, same, "where the number is to be stored")
    })
}

/// Reads ids after those in the session and stores the logits of what follows the last, as many as
/// mmx_model_vocab_size says; with null and a capacity of 0 they are only read.
///
/// # Safety
/// Each pointer is null or valid: a live handle, `count` ids, memory for `capacity` values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_eval(
    session: *mut MmxSession,
    ids: *const u32,
    count: usize,
    logits: *mut f32,
    capacity: usize,
) -> MmxStatus {
    // SAFETY: this function's own condition.
    guarded(|| unsafe {
        let ids = values(ids, count, "ids")?;
        let mut text = reference(session, "session")?.lock()?;
        let vocab = text.session.model().config().vocab_size;
        require("logits", capacity, vocab, logits.is_null())?;
        text.changes += 1;
        let Text { session, held, .. } = &mut *text;
        let read = session.prefill(ids);
        let result = match read {
            Ok(found) => {
                held.extend_from_slice(ids);
                if logits.is_null() { Ok(()) } else { fill(found, logits, capacity, &mut 0) }
            }
            Err(error) => Err(error.into()),
        };
        text.forget_partial();
        result
    })
}

/// Reads ids as mmx_eval does and stores the logits after every one of them: `[count, vocabulary]`,
/// row by row.
///
/// # Safety
/// Each pointer is null or valid: a live handle, `count` ids, memory for `capacity` values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_eval_all(
    session: *mut MmxSession,
    ids: *const u32,
    count: usize,
    logits: *mut f32,
    capacity: usize,
) -> MmxStatus {
    // SAFETY: this function's own condition.
    guarded(|| unsafe {
        let ids = values(ids, count, "ids")?;
        let mut text = reference(session, "session")?.lock()?;
        let vocab = text.session.model().config().vocab_size;
        require("logits", capacity, vocab.saturating_mul(count), false)?;
        text.changes += 1;
        let read = text.session.logits_all(ids);
        let result = match read {
            Ok(found) => {
                text.held.extend_from_slice(ids);
                fill(&found, logits, capacity, &mut 0)
            }
            Err(error) => Err(error.into()),
        };
        text.forget_partial();
        result
    })
}

/// Reads ids as mmx_eval does and stores the mean of their final hidden states, as many values as
/// mmx_model_embedding_size says: an embedding of the text, as far as a model of language has one;
/// it is that of `mmx serve`. With an empty session before, that of these ids alone.
///
/// # Safety
/// Each pointer is null or valid: a live handle, `count` ids, memory for `capacity` values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_embed(
    session: *mut MmxSession,
    ids: *const u32,
    count: usize,
    embedding: *mut f32,
    capacity: usize,
) -> MmxStatus {
    // SAFETY: this function's own condition.
    guarded(|| unsafe {
        let ids = values(ids, count, "ids")?;
        let mut text = reference(session, "session")?.lock()?;
        let hidden = text.session.model().config().hidden_size;
        require("embedding", capacity, hidden, false)?;
        text.changes += 1;
        let read = text.session.mean_hidden(ids);
        let result = match read {
            Ok(found) => {
                text.held.extend_from_slice(ids);
                fill(&found, embedding, capacity, &mut 0)
            }
            Err(error) => Err(error.into()),
        };
        text.forget_partial();
        result
    })
}

/// Refuses a buffer before anything is read.
fn require(what: &str, capacity: usize, needed: usize, unwanted: bool) -> Result<(), Failure> {
    if (unwanted && capacity == 0) || capacity >= needed {
        return Ok(());
    }
    Err(Failure::new(
        MmxStatus::TooSmall,
        format!("{what}: expected a buffer of at least {needed}, found {capacity}"),
    ))
}
