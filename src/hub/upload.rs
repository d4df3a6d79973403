//! The upload of a folder to a repository of a hub, as one commit: large files outside git first,
//! then the commit, then a look at what the hub says it holds.
//!
//! Interrupted before the commit nothing is to be seen; run again, what is there already is not
//! sent again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use mmx_converters::Model;
use mmx_converters::file::Bytes;
use mmx_converters::gguf::Gguf;
use mmx_converters::model::adapter::{self, Adapters};
use mmx_converters::pth::Pth;
use mmx_converters::safetensors::SafeTensors;
use mmx_converters::safetensors::shards;
use serde::Serialize;
use serde_json::{Value, json};

use super::digest::{git_id, sha256};
use super::http::{Counted, escaped, expect_ok, json as json_of};
use super::hub::{Hub, Kind, RemoteFile};
use mmx_converters::{Error, Result};

/// Size in bytes above which files are kept outside git.
const LARGE: u64 = 10_000_000;
/// Number of bytes from a file's beginning by which the hub tells text from other files.
const SAMPLE: usize = 512;
/// The content type of the large-file protocol.
const LFS: &str = "application/vnd.git-lfs+json";

/// A request for an upload.
#[derive(Clone, Debug)]
pub struct Request {
    /// The folder.
    pub dir: PathBuf,
    /// `owner/name`.
    pub repo: String,
    /// The branch.
    pub revision: String,
    /// True where a repository that is made for it is private.
    pub private: bool,
    /// The commit's first line.
    pub message: String,
}

/// A file of the upload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Uploaded {
    /// Its path in the repository.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// True where the file is kept outside git.
    pub lfs: bool,
    /// True where its bytes were sent; false where the hub had them already.
    pub sent: bool,
}

/// The outcome of an upload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The repository.
    pub repo: String,
    /// The branch.
    pub revision: String,
    /// The commit that holds the files.
    pub commit: String,
    /// Address at which people can look at it.
    pub url: String,
    /// The files, by path.
    pub files: Vec<Uploaded>,
}

/// A file of the folder.
struct Local {
    path: String,
    file: PathBuf,
    bytes: u64,
    /// SHA-256 for files outside git, git's id for the others.
    id: String,
    lfs: bool,
}

/// Uploads a folder. `progress` hears of the bytes sent so far and in all.
///
/// # Errors
/// A folder that a user could not open (a pointer instead of weights, a missing shard); the
/// server's refusal; a file that the hub then reports otherwise than it is here.
pub fn upload(hub: &Hub, request: &Request, progress: &mut dyn FnMut(u64, u64)) -> Result<Report> {
    super::hub::check_name(&request.repo)?;
    super::hub::check_revision(&request.revision)?;
    check_folder(&request.dir)?;
    let repo = &request.repo;
    let mut local = list(&request.dir)?;
    hub.create_repository(repo, request.private)?;
    if request.revision != "main" {
        hub.create_branch(repo, &request.revision)?;
    }
    ask_modes(hub, request, &mut local)?;
    for file in &mut local {
        file.id = if file.lfs { sha256(&file.file)? } else { git_id(&file.file)? };
    }
    let before = match hub.commit_of(Kind::Model, repo, &request.revision)? {
        Some(_) => hub.files(Kind::Model, repo, &request.revision)?,
        None => Vec::new(),
    };
    let held: BTreeMap<&str, &RemoteFile> = before.iter().map(|f| (f.path.as_str(), f)).collect();
    let same = |file: &Local| held.get(file.path.as_str()).is_some_and(|r| is_same(file, r));
    let stale = stale(&before, &local);
    let changed: Vec<&Local> = local.iter().filter(|file| !same(file)).collect();

    let mut sent = Vec::new();
    let large: Vec<&Local> = changed.iter().copied().filter(|file| file.lfs).collect();
    if !large.is_empty() {
        sent = send_large(hub, request, &large, progress)?;
    }
    if !changed.is_empty() || !stale.is_empty() {
        commit(hub, request, &changed, &stale)?;
    }
    sent.extend(changed.iter().filter(|file| !file.lfs).map(|file| file.path.clone()));

    // what the hub now says it holds
    let doing = format!("{repo}: after the upload");
    let commit = hub.commit_of(Kind::Model, repo, &request.revision)?;
    let commit = commit.ok_or_else(|| {
        Error::failed(format!("{doing}: expected a commit in the answer, found none"))
    })?;
    let after = hub.files(Kind::Model, repo, &request.revision)?;
    for file in &local {
        let found = after.iter().find(|remote| remote.path == file.path);
        if !found.is_some_and(|remote| is_same(file, remote)) {
            let found = found.map_or_else(
                || "no such file".to_owned(),
                |r| format!("{} bytes, {}", r.bytes, r.sha256.as_ref().unwrap_or(&r.git_id)),
            );
            return Err(Error::failed(format!(
                "{doing}: {}: expected {} bytes, {}, found {found}",
                file.path, file.bytes, file.id
            )));
        }
    }
    Ok(Report {
        repo: repo.clone(),
        revision: request.revision.clone(),
        url: format!("{}/{repo}/tree/{}", hub.endpoint(), escaped(&request.revision, false)),
        commit,
        files: local
            .into_iter()
            .map(|file| Uploaded {
                sent: sent.contains(&file.path),
                path: file.path,
                bytes: file.bytes,
                lfs: file.lfs,
            })
            .collect(),
    })
}

/// Opens a folder as its users will: whatever is wrong with it is better found here.
fn check_folder(dir: &Path) -> Result<()> {
    if !dir.is_dir() {
        return Err(Error::failed(format!(
            "{}: expected a folder, found {}",
            dir.display(),
            if dir.exists() { "a file" } else { "none" }
        )));
    }
    let mut models = 0;
    if adapter::is_adapter_folder(dir) {
        Adapters::open(dir)?; // its base may be elsewhere
        models += 1;
    } else if dir.join("config.json").exists() {
        Model::open(dir)?;
        models += 1;
    }
    for (_, path) in walk(dir)? {
        check_index(&path)?;
        let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        match path.extension().and_then(|e| e.to_str()) {
            Some("gguf") => {
                Gguf::open(&path)?;
                models += 1;
            }
            // the weights beside config.json were checked when the model was opened above
            Some("safetensors") if path.parent() != Some(dir) || !shards::is_weights(&name) => {
                SafeTensors::open(&path)?;
            }
            Some("pth" | "pt") => {
                Pth::open(&path)?;
                models += 1;
            }
            _ if path.metadata().is_ok_and(|m| m.len() > 0) => {
                Bytes::map(&path)?; // a pointer instead of a file
            }
            _ => (),
        }
    }
    if models == 0 {
        return Err(Error::failed_with_hint(
            format!("{}: expected a model (config.json or a .gguf), found none", dir.display()),
            "`mmx export MODEL` makes such a folder",
        ));
    }
    Ok(())
}

/// Refuses an index of weights that names files which are not beside it. The model may open without
/// them: a whole file beside the index is read first, and a folder below is not opened at all.
fn check_index(path: &Path) -> Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !name.ends_with(".index.json") {
        return Ok(());
    }
    let text = fs_err::read(path).map_err(|e| Error::io(path, e))?;
    let index: Value = serde_json::from_slice(&text)
        .map_err(|e| Error::failed(format!("{}: expected JSON: {e}", path.display())))?;
    let Some(map) = index["weight_map"].as_object() else {
        return Err(Error::failed(format!(
            "{}: key weight_map: expected an object of tensors and files, found {}",
            path.display(),
            index["weight_map"]
        )));
    };
    let named: BTreeSet<&str> =
        map.values().map(|file| file.as_str().unwrap_or_default()).collect();
    let missing: Vec<&str> =
        named.iter().copied().filter(|file| !path.with_file_name(file).is_file()).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Error::failed_with_hint(
            format!(
                "{}: expected {} files of weights beside it, found no {}",
                path.display(),
                named.len(),
                missing.join(", ")
            ),
            "nothing was sent: write the folder again, or remove an index that is no longer right",
        )),
    }
}

/// The files below a folder, by their path in it; hidden ones and a checkpoint's training state
/// stay here.
fn walk(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    fn below(dir: &Path, prefix: &str, out: &mut Vec<(String, PathBuf)>) -> Result<()> {
        for entry in fs_err::read_dir(dir).map_err(|e| Error::io(dir, e))? {
            let entry = entry.map_err(|e| Error::io(dir, e))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if name.starts_with('.') || (prefix.is_empty() && name == "training" && path.is_dir()) {
                continue;
            }
            match path.is_dir() {
                true => below(&path, &format!("{prefix}{name}/"), out)?,
                false => out.push((format!("{prefix}{name}"), path)),
            }
        }
        Ok(())
    }
    let mut out = Vec::new();
    below(dir, "", &mut out)?;
    out.sort();
    Ok(out)
}

fn list(dir: &Path) -> Result<Vec<Local>> {
    walk(dir)?
        .into_iter()
        .map(|(path, file)| {
            let bytes = fs_err::metadata(&file).map_err(|e| Error::io(&file, e))?.len();
            let ending = file.extension().and_then(|e| e.to_str()).unwrap_or_default();
            let weights = ["safetensors", "gguf", "pth"].contains(&ending);
            let lfs = bytes > 0 && (bytes > LARGE || weights);
            Ok(Local { path, file, bytes, id: String::new(), lfs })
        })
        .collect()
}

/// Asks which further files the hub wants outside git.
fn ask_modes(hub: &Hub, request: &Request, local: &mut [Local]) -> Result<()> {
    let doing = format!("{}: announcing the files", request.repo);
    let mut files = Vec::new();
    for file in local.iter() {
        let mut sample = Vec::new();
        let open = fs_err::File::open(&file.file).map_err(|e| Error::io(&file.file, e))?;
        std::io::Read::read_to_end(&mut std::io::Read::take(open, SAMPLE as u64), &mut sample)
            .map_err(|e| Error::io(&file.file, e))?;
        let sample = base64::engine::general_purpose::STANDARD.encode(sample);
        files.push(json!({"path": file.path, "sample": sample, "size": file.bytes}));
    }
    let path = format!(
        "/api/models/{}/preupload/{}",
        escaped(&request.repo, true),
        escaped(&request.revision, false)
    );
    let answer = json_of(&doing, hub.client.post_json(&path, &[], &json!({"files": files}))?)?;
    for entry in answer["files"].as_array().into_iter().flatten() {
        let wanted = entry["uploadMode"] == "lfs";
        let file = local.iter_mut().find(|file| entry["path"] == file.path.as_str());
        if let Some(file) = file.filter(|file| wanted && file.bytes > 0) {
            file.lfs = true;
        }
    }
    Ok(())
}

fn is_same(local: &Local, remote: &RemoteFile) -> bool {
    let id = if local.lfs { remote.sha256.as_ref() } else { Some(&remote.git_id) };
    local.bytes == remote.bytes && id == Some(&local.id)
}

/// Weights in the repository's root that this model has under other names: readers would take them
/// for its own.
fn stale<'a>(before: &'a [RemoteFile], local: &[Local]) -> Vec<&'a str> {
    let has_weights = local.iter().any(|file| shards::is_weights(&file.path));
    let gone = before.iter().map(|remote| remote.path.as_str()).filter(|path| {
        has_weights && shards::is_weights(path) && local.iter().all(|file| file.path != *path)
    });
    gone.collect()
}

/// Sends what the hub does not have yet. Returns the paths of what was sent.
fn send_large(
    hub: &Hub,
    request: &Request,
    files: &[&Local],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<String>> {
    let repo = &request.repo;
    let doing = format!("{repo}: asking where large files go");
    let objects: Vec<Value> =
        files.iter().map(|file| json!({"oid": file.id, "size": file.bytes})).collect();
    let body = json!({
        "operation": "upload",
        "transfers": ["basic", "multipart"],
        "objects": objects,
        "hash_algo": "sha256",
        "ref": {"name": request.revision},
    });
    let path = format!("/{}.git/info/lfs/objects/batch", escaped(repo, true));
    let headers = [("Content-Type", LFS), ("Accept", LFS)];
    let answer = json_of(&doing, hub.client.post_json(&path, &headers, &body)?)?;
    if let Some(other) = answer["transfer"].as_str().filter(|t| !["basic", "multipart"].contains(t))
    {
        return Err(Error::failed(format!(
            "{doing}: expected the transfer basic or multipart, found {other}"
        )));
    }
    let answers = answer["objects"].as_array().cloned().unwrap_or_default();
    let action = |file: &Local| answers.iter().find(|object| object["oid"] == file.id.as_str());
    let mut wanted = Vec::new();
    for file in files {
        let object = action(file).ok_or_else(|| {
            Error::failed(format!("{doing}: expected an answer for {}, found none", file.path))
        })?;
        if let Some(message) = object["error"]["message"].as_str() {
            return Err(Error::failed(format!("{doing}: {}: {message}", file.path)));
        }
        let actions = &object["actions"];
        if !actions["upload"].is_null() {
            wanted.push((*file, actions.clone()));
        }
    }
    let all: u64 = wanted.iter().map(|(file, _)| file.bytes).sum();
    let mut before = 0u64;
    let mut sent = Vec::new();
    for (file, actions) in &wanted {
        send_one(hub, file, actions, &mut |done| progress(before + done, all))?;
        before += file.bytes;
        sent.push(file.path.clone());
    }
    Ok(sent)
}

fn send_one(hub: &Hub, file: &Local, actions: &Value, progress: &mut dyn FnMut(u64)) -> Result<()> {
    let doing = format!("{}: sending it", file.file.display());
    let upload = &actions["upload"];
    let address = |action: &Value| {
        let href = action["href"].as_str().map(str::to_owned);
        href.ok_or_else(|| Error::failed(format!("{doing}: expected an address, found none")))
    };
    let href = address(upload)?;
    let headers = upload["header"].as_object().cloned().unwrap_or_default();
    let mut done = 0u64;
    let mut count = |read: u64| {
        done += read;
        progress(done);
    };
    match headers.get("chunk_size").map(|v| v.as_u64().or_else(|| v.as_str()?.parse().ok())) {
        None => {
            let headers: Vec<(&str, &str)> =
                headers.iter().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?))).collect();
            let mut body = Counted::open(&file.file, &mut count)?;
            let answer = hub.client.send("PUT", &href, &headers, &mut body, file.bytes)?;
            expect_ok(&doing, answer)?;
        }
        Some(Some(size)) if size > 0 => {
            // numbered addresses, one for each part
            let mut parts: Vec<(u64, &str)> = headers
                .iter()
                .filter_map(|(key, value)| Some((key.parse().ok()?, value.as_str()?)))
                .collect();
            parts.sort_unstable();
            let expected = file.bytes.div_ceil(size);
            if parts.len() as u64 != expected {
                let found = parts.len();
                return Err(Error::failed(format!(
                    "{doing}: expected addresses for {expected} parts, found {found}"
                )));
            }
            let mut done = Vec::new();
            let mut body = Counted::open(&file.file, &mut count)?;
            for (i, (number, part)) in parts.into_iter().enumerate() {
                let begin = i as u64 * size;
                let length = size.min(file.bytes - begin);
                body.seek(begin).map_err(|e| Error::io(&file.file, e))?;
                let mut piece = std::io::Read::take(&mut body, length);
                let answer = hub.client.send("PUT", part, &[], &mut piece, length)?;
                let answer = expect_ok(&doing, answer)?;
                let etag = answer.headers().get("etag").and_then(|v| v.to_str().ok());
                let etag = etag.ok_or_else(|| {
                    Error::failed(format!("{doing}: part {number}: expected an etag, found none"))
                })?;
                done.push(json!({"partNumber": number, "etag": etag}));
            }
            let headers = [("Content-Type", LFS), ("Accept", LFS)];
            let body = json!({"oid": file.id, "parts": done});
            expect_ok(&doing, hub.client.post_json(&href, &headers, &body)?)?;
        }
        Some(_) => {
            return Err(Error::failed(format!("{doing}: expected a chunk_size above 0")));
        }
    }
    if !actions["verify"].is_null() {
        let href = address(&actions["verify"])?;
        let body = json!({"oid": file.id, "size": file.bytes});
        expect_ok(&doing, hub.client.post_json(&href, &[], &body)?)?;
    }
    Ok(())
}

fn commit(hub: &Hub, request: &Request, files: &[&Local], stale: &[&str]) -> Result<()> {
    let header = json!({"key": "header", "value": {"summary": request.message, "description": ""}});
    let mut lines = vec![header];
    for file in files {
        let value = if file.lfs {
            json!({"path": file.path, "algo": "sha256", "oid": file.id, "size": file.bytes})
        } else {
            let bytes = fs_err::read(&file.file).map_err(|e| Error::io(&file.file, e))?;
            let content = base64::engine::general_purpose::STANDARD.encode(bytes);
            json!({"path": file.path, "encoding": "base64", "content": content})
        };
        lines.push(json!({"key": if file.lfs { "lfsFile" } else { "file" }, "value": value}));
    }
    for path in stale {
        lines.push(json!({"key": "deletedFile", "value": {"path": path}}));
    }
    let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let path = format!(
        "/api/models/{}/commit/{}",
        escaped(&request.repo, true),
        escaped(&request.revision, false)
    );
    let headers = [("Content-Type", "application/x-ndjson")];
    let answer =
        hub.client.send("POST", &path, &headers, &mut body.as_bytes(), body.len() as u64)?;
    expect_ok(&format!("{}: committing", request.repo), answer).map(|_| ())
}
