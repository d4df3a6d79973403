//! Generation step by step, for programs that would rather ask for text than be called with it.
#![expect(unsafe_code, reason = "functions are exported under their C names and take pointers")]

use std::ffi::c_char;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use mmx_ggml::run::{BATCH, Finish, Writer};

use crate::generate::{MmxFinish, MmxGenerateOptions, MmxGenerated, request};
use crate::pointers::{fill, fill_text, reference, store, values};
use crate::session::{MmxSession, Text, locked};
use crate::status::{Failure, MmxStatus, guarded, guarded_value};

/// A generation in progress. It keeps its session alive.
#[derive(Debug)]
pub struct MmxGeneration {
    progress: Mutex<Progress>,
}

/// Functions take a handle from any thread, and free it on another than it was made on.
const _: () = {
    const fn may_be_shared<T: Send + Sync>() {}
    may_be_shared::<MmxGeneration>();
};

/// How far a generation is.
#[derive(Debug)]
struct Progress {
    text: Arc<Mutex<Text>>,
    /// The text's number of changes after this generation's last step.
    changes: u64,
    /// The ids to be read, and how many have been.
    prompt: Vec<u32>,
    read: usize,
    /// The id drawn last, whose keys and values are not computed yet.
    next: Option<u32>,
    writer: Writer,
    /// The text of the last step, and whether it is still to be told.
    piece: String,
    untold: bool,
    finish: Option<Finish>,
    prefill: Duration,
    decode: Duration,
}

impl MmxGeneration {
    fn lock(&self) -> Result<MutexGuard<'_, Progress>, Failure> {
        self.progress.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                Failure::new(MmxStatus::Busy, "another thread is using the generation")
            }
            TryLockError::Poisoned(_) => Failure::new(
                MmxStatus::Panic,
                "the generation ended in a fault before and can only be freed",
            ),
        })
    }
}

impl Progress {
    /// Reads up to [`BATCH`] ids of the prompt, or computes the id drawn last; draws the next one
    /// where the prompt is read.
    fn step(&mut self) -> Result<(), Failure> {
        self.piece.clear();
        if self.finish.is_none() {
            let shared = self.text.clone();
            let mut text = locked(&shared)?;
            if text.changes != self.changes {
                return Err(Failure::new(
                    MmxStatus::Failed,
                    "the session was used otherwise since the generation's last step",
                ));
            }
            let result = self.step_within(&mut text);
            text.forget_partial();
            text.changes += 1;
            self.changes = text.changes;
            result?;
        }
        Ok(())
    }

    fn step_within(&mut self, text: &mut Text) -> Result<(), Failure> {
        let Text { session, held, .. } = text;
        let start = Instant::now();
        let reads = self.read < self.prompt.len();
        let ids: Vec<u32> = if reads {
            let rest = self.prompt.iter().skip(self.read).copied();
            rest.take(BATCH).collect()
        } else {
            Vec::from_iter(self.next)
        };
        if !reads && session.n_past() >= session.n_ctx() {
            self.end(Finish::Context);
            return Ok(());
        }
        let logits = session.prefill(&ids)?;
        held.extend_from_slice(&ids);
        if reads {
            self.read += ids.len();
        }
        let mut taken = None;
        if self.read == self.prompt.len() {
            self.next = None;
            if self.writer.finish().is_none() {
                taken = Some(self.writer.take(logits)?);
            }
            match taken {
                Some(None) => self.end(Finish::Stop),
                Some(Some((id, certain))) => {
                    self.next = Some(id);
                    self.piece.push_str(&certain);
                    if let Some(finish) = self.writer.finish() {
                        self.end(finish);
                    }
                }
                // no token was wanted at all
                None => self.end(Finish::Length),
            }
        }
        *(if reads { &mut self.prefill } else { &mut self.decode }) += start.elapsed();
        Ok(())
    }

    fn end(&mut self, finish: Finish) {
        self.finish = Some(finish);
        self.piece.push_str(&self.writer.rest());
    }
}

/// Begins a generation, of which mmx_generation_next computes a step each time, and stores a
/// handle, to be freed with mmx_generation_free. Nothing is read yet. The text is that of
/// mmx_generate with the same arguments. The options are not used after this call.
///
/// # Safety
/// Each pointer is null or valid: a live handle, `count` ids, options whose `stop` is `stop_count`
/// strings, memory for a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_generation_new(
    session: *mut MmxSession,
    ids: *const u32,
    count: usize,
    options: *const MmxGenerateOptions,
    generation: *mut *mut MmxGeneration,
) -> MmxStatus {
    // SAFETY: this function's own condition.
    guarded(|| unsafe {
        let ids = values(ids, count, "ids")?;
        let request = request(reference(options, "options")?)?;
        let session = reference(session, "session")?;
        let text = session.lock()?;
        text.session.check(ids)?;
        let seen = text.held.iter().chain(ids).copied();
        let progress = Progress {
            text: session.share(),
            changes: text.changes,
            prompt: ids.to_vec(),
            read: 0,
            next: None,
            writer: Writer::new(text.session.model(), seen, &request)?,
            piece: String::new(),
            untold: false,
            finish: None,
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
        };
        let handle = Box::into_raw(Box::new(MmxGeneration { progress: Mutex::new(progress) }));
        let stored = store(generation, handle, "where the generation is to be stored");
        if stored.is_err() {
            // the box made above, which nobody else has seen
            drop(Box::from_raw(handle));
        }
        stored
    })
}

/// Computes a step: reads at most 512 of the ids, or writes a token. Stores the text that is
/// certain now, whole characters, often none, and in `more` whether there is more to ask for. Where
/// the buffer is too small, nothing is lost: the next call stores the same text. A generation whose
/// session was used otherwise in between cannot go on.
///
/// # Safety
/// Each pointer is null or valid: a live handle, memory for `capacity` bytes, a number and a bool.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_generation_next(
    generation: *mut MmxGeneration,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
    more: *mut bool,
) -> MmxStatus {
    // SAFETY: this function's own condition.
    guarded(|| unsafe {
        let mut progress = reference(generation, "generation")?.lock()?;
        // before anything is computed
        store(length, 0, "where the length is to be stored")?;
        store(more, true, "where it is to be stored whether there is more")?;
        if !progress.untold {
            progress.step()?;
        }
        progress.untold = true;
        fill_text(&progress.piece, buffer, capacity, length)?;
        progress.untold = false;
        store(more, progress.finish.is_none(), "more")
    })
}

/// The ids written so far, without the end token.
///
/// # Safety
/// Each pointer is null or valid: a live handle, memory for `capacity` ids, memory for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_generation_ids(
    generation: *const MmxGeneration,
    ids: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> MmxStatus {
    // SAFETY: this function's own condition.
    guarded(|| unsafe {
        fill(reference(generation, "generation")?.lock()?.writer.ids(), ids, capacity, count)
    })
}

/// What a generation came to: MMX_FINISH_CANCELLED where it has not ended.
///
/// # Safety
/// Each pointer is null or valid: a live handle, memory for a result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_generation_result(
    generation: *const MmxGeneration,
    generated: *mut MmxGenerated,
) -> MmxStatus {
    // SAFETY: this function's own condition.
    guarded(|| unsafe {
        let progress = reference(generation, "generation")?.lock()?;
        let told = MmxGenerated {
            finish: MmxFinish::of(progress.finish.unwrap_or(Finish::Cancelled)),
            tokens: progress.writer.ids().len(),
            prompt_tokens: progress.read,
            prefill_seconds: progress.prefill.as_secs_f64(),
            decode_seconds: progress.decode.as_secs_f64(),
        };
        store(generated, told, "where the result is to be stored")
    })
}

/// Frees a generation, whether it has ended or not; its session then holds the ids that were
/// computed. Null is fine.
///
/// # Safety
/// `generation` is null or a handle that was not freed and that no other thread is using.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_generation_free(generation: *mut MmxGeneration) {
    if !generation.is_null() {
        // SAFETY: this function's own condition; handles come from mmx_generation_new's box.
        guarded_value((), || drop(unsafe { Box::from_raw(generation) }));
    }
}
