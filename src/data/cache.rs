//! The token cache: a data file is checked and tokenized once (`make`) into a
//! `TokenFile` that is found again by what its samples depend on.
//!
//! The key holds the digests of the file and the tokenizer with its template, the options that
//! change samples, mmx's version and [`TEXT_VERSION`]. Whoever makes one writes a file of its own
//! and renames it, so several processes may make the same one. Files grow old unused: where all of
//! them take more than a limit, the least recently used are removed. None that a process reads is:
//! readers hold a lock.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use mmx_converters::tokenizer::Tokenizer;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::make::{Failure, Job, Place};
use super::record::Kind;
use super::sample::Encoder;
use super::sample::SampleOptions;
use super::tokens::{Key, TokenFile};
use mmx_converters::digest;
use mmx_converters::progress::{Listener, Silent};
use mmx_converters::{Error, Result};

/// The number of the rules by which lines become samples: reading, rendering, tokenizing, cutting.
///
/// It is part of a token file's key: raise it with every change by which the same line gives other
/// ids or other spans. tests/text_version.rs fails where that was forgotten.
pub const TEXT_VERSION: u32 = 2;

/// Bytes that the kept files may take: the tokens of some 50 GB of text.
const LIMIT: u64 = 20_000_000_000;

/// The place where token files are kept.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: Option<PathBuf>,
    limit: u64,
    /// Sees how far tokenizing is.
    listener: Arc<dyn Listener>,
    /// Digests of files, with the size and time at which each was taken.
    digests: Arc<Mutex<HashMap<PathBuf, (State, String)>>>,
}

/// Size and time of a file.
type State = (u64, Option<SystemTime>);

impl Cache {
    fn new(folder: Option<PathBuf>) -> Self {
        Self { folder, limit: LIMIT, listener: Arc::new(Silent), digests: Arc::default() }
    }

    /// This cache with a listener, which sees how far the tokenizing of large files is.
    pub fn heard_by(self, listener: Arc<dyn Listener>) -> Self {
        Self { listener, ..self }
    }

    /// A cache that keeps nothing: each data set is tokenized into a temporary file.
    pub fn none() -> Self {
        Self::new(None)
    }

    /// A cache in a folder, which is made when it is first needed.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self::new(Some(folder.into()))
    }

    /// This cache with another limit on the bytes that files may take (20 GB). The one made last
    /// stays whatever its size.
    pub fn with_limit(self, limit: u64) -> Self {
        Self { limit, ..self }
    }

    /// The user's cache: `$MMX_CACHE/tokens`, else `$XDG_CACHE_HOME/mmx/tokens`, else
    /// `~/.cache/mmx/tokens`. Files there may take `$MMX_TOKENS_GB` gigabytes, 20 where that is no
    /// number.
    pub fn user() -> Self {
        let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let folder = variable("MMX_CACHE")
            .or_else(|| variable("XDG_CACHE_HOME").map(|dir| dir.join("mmx")))
            .or_else(|| std::env::home_dir().map(|dir| dir.join(".cache/mmx")));
        let cache = Self::new(folder.map(|dir| dir.join("tokens")));
        let limit = std::env::var("MMX_TOKENS_GB").ok().and_then(|text| text.parse::<f64>().ok());
        match limit.filter(|limit| *limit >= 0.0) {
            Some(limit) => cache.with_limit((limit * 1e9) as u64),
            None => cache,
        }
    }

    /// A file's SHA-256 in hexadecimal; computed once while the file stays as it is.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn digest(&self, path: &Path) -> Result<String> {
        let now = state(path)?;
        let known = || self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, digest)) = known().get(path).filter(|(then, _)| *then == now) {
            return Ok(digest.clone());
        }
        let digest = digest::of_file(path).map_err(|e| Error::io(path, e))?;
        known().insert(path.to_owned(), (now, digest.clone()));
        Ok(digest)
    }

    /// The samples of a file: those kept, or made now. Sentences for the user go to `warnings`.
    pub(super) fn tokens(
        &self,
        path: &Path,
        file: u32,
        tokenizer: &Tokenizer,
        encoder: &Encoder<'_>,
        options: &SampleOptions,
        warnings: &mut Vec<String>,
    ) -> Result<TokenFile> {
        let wide = tokenizer.vocab_size() > 1 << 16;
        let listener = self.listener.as_ref();
        let Some(folder) = &self.folder else {
            let job = Job { path, file, encoder, key: [0; 32], wide, listener };
            return passing(&job, warnings);
        };
        let before = state(path)?;
        let key = self.key(path, file, tokenizer, options)?;
        let job = Job { path, file, encoder, key, wide, listener };
        let kept = folder.join(format!("{}.tokens", digest::hexadecimal(&key[..16])));
        if kept.exists() {
            match TokenFile::open(&kept, &key) {
                Ok(tokens) => {
                    log::debug!("{}: tokens found in {}", path.display(), kept.display());
                    return Ok(tokens);
                }
                Err(why) => warnings.push(format!(
                    "{}: damaged ({why}): the tokens of {} are made again",
                    kept.display(),
                    path.display()
                )),
            }
        }
        let started = Instant::now();
        let made = fs_err::create_dir_all(folder).map_err(Failure::Write);
        let tokens = match made.and_then(|()| job.run(Place::Kept(&kept))) {
            Ok(tokens) => tokens,
            Err(Failure::Source(error)) => return Err(*error),
            Err(Failure::Write(error)) => {
                warnings.push(format!(
                    "{}: {error}: the tokens of {} are not kept",
                    kept.display(),
                    path.display()
                ));
                return passing(&job, warnings);
            }
        };
        if state(path)? != before {
            let _ = fs_err::remove_file(&kept); // perhaps of the new content under the old key
            return Err(Error::failed(format!(
                "{}: expected a file that stays as it is, found it changed while it was read",
                path.display()
            )));
        }
        let seconds = started.elapsed().as_secs_f64();
        log::debug!("{}: tokenized in {seconds:.2} s into {}", path.display(), kept.display());
        trim(folder, &kept, self.limit);
        Ok(tokens)
    }

    /// Digest of everything that samples depend on.
    fn key(
        &self,
        path: &Path,
        file: u32,
        tokenizer: &Tokenizer,
        options: &SampleOptions,
    ) -> Result<Key> {
        // what only chats depend on: augmentation draws for the file's index and the line
        let chat = json!({
            "system_ratio": options.system_ratio.to_bits(),
            "empty_think_ratio": options.empty_think_ratio.to_bits(),
            "seed": options.seed,
            "file": file,
        });
        let parts = json!({
            "mmx": env!("CARGO_PKG_VERSION"),
            "text": TEXT_VERSION,
            "content": self.digest(path)?,
            "tokenizer": digest::of_bytes(tokenizer.json()),
            // with the chat template
            "tokenizer_config": tokenizer.config_json(),
            "special": [tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()],
            "recipe": format!("{:?}", options.recipe),
            "kind": format!("{:?}", options.kind),
            "max_seq_len": options.max_seq_len,
            "fields": options.fields,
            "chat": if options.kind == Kind::Text { json!(null) } else { chat },
        });
        Ok(Sha256::digest(parts.to_string()).into())
    }
}

/// Tokens that are gone when they are closed: in a temporary file, or in memory where there is no
/// place for one.
fn passing(job: &Job<'_>, warnings: &mut Vec<String>) -> Result<TokenFile> {
    let folder = std::env::temp_dir();
    match job.run(Place::Temporary(&folder)) {
        Ok(tokens) => return Ok(tokens),
        Err(Failure::Source(error)) => return Err(*error),
        Err(Failure::Write(error)) => warnings.push(format!(
            "{}: {error}: the tokens of {} are held in memory",
            folder.display(),
            job.path.display()
        )),
    }
    job.run(Place::Memory).map_err(|failure| match failure {
        Failure::Source(error) => *error,
        Failure::Write(error) => Error::io(job.path, error),
    })
}

/// Removes what was used least recently until the files take `limit` bytes at most, and what killed
/// processes left half written. `made` stays, and so does what a process reads. Nothing is said
/// where a file cannot be removed: the next one to make tokens tries again.
fn trim(folder: &Path, made: &Path, limit: u64) {
    /// A file half written whose writer has not touched it for so long.
    const ABANDONED: Duration = Duration::from_secs(3600);
    let Ok(entries) = fs_err::read_dir(folder) else { return };
    let mut files = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        let Ok(meta) = fs_err::metadata(&path) else { continue };
        let (size, Ok(written)) = (meta.len(), meta.modified()) else { continue };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("tokens") => {
                // readers set the time of access themselves: many systems do not
                let used = meta.accessed().map_or(written, |read| read.max(written));
                files.push((used, size, path));
            }
            Some("part") if written.elapsed().is_ok_and(|age| age > ABANDONED) => {
                remove_unused(&path)
            }
            _ => {}
        }
    }
    files.sort();
    let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
    for (_, size, path) in files {
        if total <= limit {
            break;
        }
        if path != made {
            remove_unused(&path);
        }
        if !path.exists() {
            total -= size;
        }
    }
}

/// Removes a file that nobody holds a lock on.
fn remove_unused(path: &Path) {
    let Ok(file) = fs_err::File::open(path) else { return };
    if file.file().try_lock().is_ok() {
        let _ = fs_err::remove_file(path);
    }
}

fn state(path: &Path) -> Result<State> {
    let meta = fs_err::metadata(path).map_err(|e| Error::io(path, e))?;
    Ok((meta.len(), meta.modified().ok()))
}
