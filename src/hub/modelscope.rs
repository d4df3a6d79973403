//! ModelScope: its repositories by their HTTP interface, its client's cache.
//!
//! ```text
//! models/owner--name/snapshots/REVISION/PATH    the files themselves
//! .lock/file_DIGEST.lock                        held while one is fetched
//! ```
//!
//! A revision is a branch that moves, so files are compared with the digests of the server's list;
//! what was verified once is not read again. Source: the Python packages modelscope 1.40 and
//! modelscope_hub 0.5 (`_legacy_api.py`, `_download.py`); the peers hold it to them both ways.

use std::path::{Path, PathBuf};

use mmx_converters::digest::of_bytes;
use mmx_converters::progress::{Listener, Progress};
use mmx_converters::{Error, Result};
use serde_json::Value;

use super::cache::locked;
use super::checked::{differs_now, remember};
use super::environment::{expanded, is_offline, user_folder, variable};
use super::http::{Client, escaped, expect_ok, json};
use super::hub::{Kind, RemoteFile};
use super::snapshot::{Choose, Request, Snapshot, walk};
use super::transfer::{fetch, place};

/// Address of the server unless `MODELSCOPE_ENDPOINT` names another.
const DEFAULT_ENDPOINT: &str = "https://modelscope.cn";
/// The branch of a repository that none is named of.
pub(super) const MAIN: &str = "master";
/// Files that the server lists at most. Source: modelscope_hub 0.5, constants.py.
const MOST_FILES: usize = 3000;

/// A ModelScope, at its address and with a token.
pub struct ModelScope {
    client: Client,
    token: Option<String>,
}

impl ModelScope {
    /// The server of `MODELSCOPE_ENDPOINT`, with the token of `MODELSCOPE_API_TOKEN`.
    pub fn from_environment() -> Self {
        let endpoint = variable("MODELSCOPE_ENDPOINT");
        let endpoint = endpoint.map_or_else(
            || DEFAULT_ENDPOINT.to_owned(),
            |text| match text.contains("://") {
                true => text,
                false => format!("https://{text}"),
            },
        );
        let token = variable("MODELSCOPE_API_TOKEN").map(|token| token.trim().to_owned());
        Self { client: Client::new(&endpoint, token.clone()), token }
    }

    /// The address at which a repository's files are asked for.
    fn address(kind: Kind, repo: &str, rest: &str) -> String {
        format!("/api/v1/{}/{}/repo{rest}", kind.plural(), escaped(repo, true))
    }

    /// The files of a revision, by path; without them why, where the server is out of reach.
    fn files(
        &self,
        kind: Kind,
        repo: &str,
        revision: &str,
        soon: bool,
    ) -> Result<std::result::Result<Vec<RemoteFile>, Error>> {
        let doing = format!("{repo}: listing its files");
        let (list, size) = match kind {
            Kind::Model => ("/files", String::new()),
            Kind::Dataset => ("/tree", format!("&PageNumber=1&PageSize={MOST_FILES}&Root=%2F")),
        };
        let query = format!("{list}?Revision={}&Recursive=True{size}", escaped(revision, false));
        let path = Self::address(kind, repo, &query);
        let cookie = self.token.as_ref().map(|token| format!("m_session_id={token}"));
        let headers: Vec<_> = cookie.iter().map(|cookie| ("Cookie", cookie.as_str())).collect();
        let answer = match soon {
            true => self.client.get_soon(&path, &headers),
            false => self.client.get("GET", &path, &headers),
        };
        let answer = match answer {
            Err(unreachable) => return Ok(Err(unreachable)),
            Ok(answer) if answer.status().as_u16() == 404 => {
                return Err(Error::failed_with_hint(
                    format!(
                        "{repo}: expected a repository with revision {revision} on {}, found none",
                        self.client.base()
                    ),
                    "for a private one MODELSCOPE_API_TOKEN must be set",
                ));
            }
            Ok(answer) if answer.status().is_server_error() => {
                return Ok(Err(expect_ok(&doing, answer).err().unwrap_or_else(|| {
                    Error::failed(format!("{doing}: the server does not work"))
                })));
            }
            Ok(answer) => answer,
        };
        let value = json(&doing, answer)?;
        let entries = value["Data"]["Files"].as_array().or(value["Data"].as_array());
        let Some(entries) = entries else {
            return Err(Error::failed(format!("{doing}: expected Data.Files, found {value}")));
        };
        if entries.len() >= MOST_FILES {
            return Err(Error::failed(format!(
                "{repo}: expected fewer than {MOST_FILES} files, which is what the server lists"
            )));
        }
        let files = entries.iter().filter(|entry| entry["Type"] != "tree").map(|entry| {
            remote_file(entry).ok_or_else(|| {
                Error::failed(format!("{doing}: expected Path, Size and Sha256, found {entry}"))
            })
        });
        let mut files = files.collect::<Result<Vec<_>>>()?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Ok(files))
    }
}

fn remote_file(entry: &Value) -> Option<RemoteFile> {
    Some(RemoteFile {
        path: entry["Path"].as_str()?.to_owned(),
        bytes: entry["Size"].as_u64()?,
        git_id: String::new(),
        sha256: entry["Sha256"].as_str().filter(|s| !s.is_empty()).map(str::to_ascii_lowercase),
    })
}

/// The folder of the client's copies: `MODELSCOPE_CACHE`, else `modelscope` among the user's caches.
fn cache() -> Result<PathBuf> {
    let named = variable("MODELSCOPE_CACHE").map(|path| expanded(&path));
    let folder = named.or_else(|| Some(user_folder()?.join(".cache").join("modelscope")));
    folder.ok_or_else(|| {
        Error::failed("MODELSCOPE_CACHE or HOME: expected a folder for copies, found neither set")
    })
}

/// The folder of a revision's files. Clients up to 1.37 kept them elsewhere, and a folder of
/// theirs is gone on with, as the client of today does.
fn folder_of(cache: &Path, kind: Kind, repo: &str, revision: &str) -> PathBuf {
    if let Some((owner, name)) = repo.split_once('/') {
        let name = name.replace('.', "___");
        for base in [cache.to_owned(), cache.join("hub")] {
            let old = base.join(kind.plural()).join(owner).join(&name);
            if fs_err::read_dir(&old).is_ok_and(|mut entries| entries.next().is_some()) {
                return old;
            }
        }
    }
    let own = cache.join(kind.plural()).join(repo.replace('/', "--"));
    own.join("snapshots").join(revision)
}

/// Fetches the chosen files of a repository, as far as they are not here; without the network the
/// files that are here are taken, and `listener` hears of it.
///
/// # Errors
/// As [`snapshot`](super::snapshot::snapshot).
pub fn snapshot(
    server: &ModelScope,
    request: &Request<'_>,
    choose: Choose<'_>,
    listener: &dyn Listener,
) -> Result<Snapshot> {
    let Request { kind, repo, revision, .. } = *request;
    super::hub::check_name(repo)?;
    super::hub::check_revision(revision)?;
    let cache = cache()?;
    let folder = folder_of(&cache, kind, repo, revision);
    let opened = |inside: &str| match inside {
        "" => Ok(folder.clone()),
        inside => place(&folder, inside),
    };
    let listed = match is_offline() {
        true => Err(Error::failed(format!(
            "{repo}: expected a copy in {}, found none",
            folder.display()
        ))
        .with_hint("HF_HUB_OFFLINE is set: without it the server is asked")),
        false => server.files(kind, repo, revision, folder.is_dir())?,
    };
    let here = listed.is_err();
    let files = match listed {
        Ok(files) => files,
        Err(why) if !folder.is_dir() => return Err(why),
        Err(_) => {
            if !is_offline() {
                let server = server.client.base();
                listener
                    .say(&format!("{repo}: {server} does not answer: using the copy that is here"));
            }
            walk(&folder)?
        }
    };
    let choice = choose(&files)?;
    let chosen: Vec<&RemoteFile> = choice.files.iter().map(|&i| &files[i]).collect();
    let total: u64 = chosen.iter().map(|file| file.bytes).sum();
    let (mut before, mut fetched) = (0, false);
    let mut paths = Vec::new();
    for file in chosen {
        let path = place(&folder, &file.path)?;
        let whole = || Ok::<bool, Error>(path.is_file() && differs_now(file, &path)?.is_none());
        if !here && !whole()? {
            let key = ["modelscope-hub-download-lock-v2", "file", kind.name(), repo, &file.path];
            let name = format!("file_{}.lock", of_bytes(key.join("\0").as_bytes()));
            let _lock = locked(&cache.join(".lock").join(name))?;
            if !whole()? {
                let parent = path.parent().unwrap_or(&folder);
                fs_err::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
                let digest = file.sha256.as_deref().unwrap_or("unknown");
                let part = path.with_file_name(format!(".mmx-{digest}.part"));
                let query = format!(
                    "?Revision={}&FilePath={}",
                    escaped(revision, false),
                    escaped(&file.path, false)
                );
                let address = ModelScope::address(kind, repo, &query);
                let mut progress = |here: u64| {
                    fetched = true;
                    let done = before + here;
                    listener.progress(Progress::Bytes { doing: "fetching", done, total });
                };
                fetch(&server.client, &address, file, &part, &path, &mut progress)?;
                remember(&path, file);
            }
        }
        before += file.bytes;
        paths.push(path);
    }
    if fetched {
        listener.progress(Progress::Finished);
    }
    if let Some(word) = &choice.word {
        listener.say(&format!("{repo}: {word}"));
    }
    let opened = opened(&choice.opened)?;
    Ok(Snapshot { commit: revision.to_owned(), folder, opened, files: paths })
}
