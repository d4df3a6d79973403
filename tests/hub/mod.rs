//! A small Hugging Face hub for tests: repositories, branches, commits, large files, ranges; and the same repositories
//! as ModelScope shows them. What it answers is held to the truth by the official Python clients (scripts/peers.sh).
#![allow(dead_code, unreachable_pub, reason = "each user takes a part")]

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine as _;
use serde_json::{Value, json};
use sha2::Digest as _;

/// A file of a branch: its git id, and its bytes or those it stands for.
#[derive(Clone)]
struct File {
    git_id: String,
    bytes: Arc<Vec<u8>>,
    sha256: Option<String>,
}

#[derive(Clone, Default)]
struct Branch {
    commit: String,
    files: BTreeMap<String, File>,
}

#[derive(Default)]
struct Repository {
    private: bool,
    branches: BTreeMap<String, Branch>,
    /// Every commit stays readable.
    commits: HashMap<String, BTreeMap<String, File>>,
}

/// What the server holds and how it misbehaves.
#[derive(Default)]
pub struct State {
    repositories: BTreeMap<String, Repository>,
    objects: HashMap<String, Arc<Vec<u8>>>,
    /// The token that is asked for, if one is.
    pub token: Option<String>,
    /// Bytes of the next large upload after which the connection ends.
    pub cut_upload: Option<usize>,
    /// Bytes of the next download after which the connection ends.
    pub cut_download: Option<usize>,
    /// One byte of the next download is another one.
    pub spoil_download: bool,
    /// Large files are sent in parts of this size.
    pub part_size: Option<usize>,
    /// Parts of multipart uploads, by object and number.
    parts: BTreeMap<(String, u64), Vec<u8>>,
    /// `PUT` bodies that came whole.
    pub uploads: usize,
    /// Files that were asked for.
    pub downloads: Vec<String>,
    /// Every request, `METHOD path`.
    pub requests: Vec<String>,
    /// `Range` headers seen.
    pub ranges: Vec<String>,
    /// Commits made.
    pub commits: usize,
}

impl State {
    /// Paths of a branch.
    pub fn paths(&self, repo: &str, branch: &str) -> Vec<String> {
        let branch = self.repositories.get(repo).and_then(|r| r.branches.get(branch));
        branch.map_or_else(Vec::new, |b| b.files.keys().cloned().collect())
    }

    /// A file's bytes, and whether it is kept outside git.
    pub fn file(&self, repo: &str, branch: &str, path: &str) -> Option<(Vec<u8>, bool)> {
        let file = self.repositories.get(repo)?.branches.get(branch)?.files.get(path)?;
        Some((file.bytes.to_vec(), file.sha256.is_some()))
    }

    /// Makes a data set of these files, all of them kept outside git.
    pub fn put_dataset(&mut self, name: &str, files: &[(&str, Vec<u8>)]) {
        let file = |(path, bytes): &(&str, Vec<u8>)| {
            let file = File {
                git_id: git_id(bytes),
                bytes: Arc::new(bytes.clone()),
                sha256: Some(sha256(bytes)),
            };
            ((*path).to_owned(), file)
        };
        let files: BTreeMap<String, File> = files.iter().map(file).collect();
        let commit = hex(&sha1::Sha1::digest(name.as_bytes()));
        let mut repository = Repository::default();
        repository.commits.insert(commit.clone(), files.clone());
        repository.branches.insert("main".into(), Branch { commit, files });
        self.repositories.insert(format!("datasets/{name}"), repository);
    }

    /// True for a repository that was made private.
    pub fn is_private(&self, repo: &str) -> bool {
        self.repositories.get(repo).is_some_and(|r| r.private)
    }
}

/// A running server; it ends with the process.
pub struct Server {
    /// `http://127.0.0.1:PORT`
    pub address: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    /// Listens on a port (0: any free one).
    pub fn start(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let state = Arc::new(Mutex::new(State::default()));
        let (shared, base) = (state.clone(), address.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, base) = (shared.clone(), base.clone());
                std::thread::spawn(move || serve(stream, &state, &base));
            }
        });
        Self { address, state }
    }

    /// What it holds.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panicked")
    }
}

struct Request {
    method: String,
    /// Without the query, decoded by segments.
    path: Vec<String>,
    /// What stands after the question mark.
    query: HashMap<String, String>,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// The length a HEAD speaks of, or of a body that is cut off.
    length: Option<usize>,
}

impl Answer {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), length: None }
    }

    fn json(value: &Value) -> Self {
        let mut answer = Self::new(200, value.to_string());
        answer.headers.push(("Content-Type".into(), "application/json".into()));
        answer
    }

    fn error(status: u16, code: &str, message: &str) -> Self {
        let mut answer = Self::json(&json!({"error": message}));
        answer.status = status;
        answer.headers.push(("X-Error-Code".into(), code.into()));
        answer.headers.push(("X-Error-Message".into(), message.into()));
        answer
    }
}

/// One connection, request after request.
fn serve(stream: TcpStream, state: &Mutex<State>, base: &str) -> Option<()> {
    let mut out = stream.try_clone().ok()?;
    let mut input = BufReader::new(stream);
    loop {
        let request = read_request(&mut input, &mut out, state)?;
        let answer = answer(&request, &mut *state.lock().ok()?, base);
        let reason = if answer.status < 400 { "OK" } else { "Refused" };
        let mut head = format!("HTTP/1.1 {} {reason}\r\n", answer.status);
        for (name, value) in &answer.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let length = answer.length.unwrap_or(answer.body.len());
        head.push_str(&format!("Content-Length: {length}\r\n\r\n"));
        out.write_all(head.as_bytes()).ok()?;
        if request.method != "HEAD" {
            out.write_all(&answer.body).ok()?;
            if answer.body.len() < length {
                return None; // cut off
            }
        }
        out.flush().ok()?;
    }
}

fn read_request(
    input: &mut BufReader<TcpStream>,
    out: &mut TcpStream,
    state: &Mutex<State>,
) -> Option<Request> {
    let mut line = String::new();
    input.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        input.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    if headers.get("expect").is_some_and(|v| v.eq_ignore_ascii_case("100-continue")) {
        out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let decode =
        |part: &str| percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned();
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(&value.replace('+', " ")))
    };
    let query = query.split('&').map(pair).collect();
    state.lock().ok()?.requests.push(format!("{method} {path}"));
    let path: Vec<String> = path.split('/').skip(1).map(decode).collect();
    let large = method == "PUT";
    let cut = if large { state.lock().ok()?.cut_upload.take() } else { None };
    let mut body = Vec::new();
    if headers.get("transfer-encoding").is_some_and(|v| v.contains("chunked")) {
        loop {
            let mut line = String::new();
            input.read_line(&mut line).ok()?;
            let size = usize::from_str_radix(line.trim(), 16).ok()?;
            let mut chunk = vec![0; size + 2];
            input.read_exact(&mut chunk).ok()?;
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = headers.get("content-length") {
        let length = length.parse::<usize>().ok()?;
        body = vec![0; cut.unwrap_or(length).min(length)];
        input.read_exact(&mut body).ok()?;
        if cut.is_some() {
            return None; // the connection ends here
        }
    }
    Some(Request { method, path, query, headers, body })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

fn git_id(bytes: &[u8]) -> String {
    let mut hash = sha1::Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex(&hash.finalize())
}

fn answer(request: &Request, state: &mut State, base: &str) -> Answer {
    let parts: Vec<&str> = request.path.iter().map(String::as_str).collect();
    let own = format!("Bearer {}", state.token.as_deref().unwrap_or_default());
    let allowed = request.headers.get("authorization").is_some_and(|v| *v == own);
    let known = state.token.is_none() || allowed;
    match parts.as_slice() {
        // large files are addressed by signed links, which need no token
        ["_objects", rest @ ..] => object(request, rest, state),
        ["api", "repos", "create"] | ["api", "models" | "datasets", ..] if !known => {
            Answer::error(401, "Unauthorized", "expected a token, found none that is known")
        }
        // how many files were asked for
        ["_downloads"] => Answer::new(200, state.downloads.len().to_string()),
        ["api", "whoami-v2"] => Answer::json(&json!({"name": "me", "type": "user", "orgs": []})),
        ["api", "validate-yaml"] => Answer::json(&json!({"errors": [], "warnings": []})),
        ["api", "repos", "create"] => create(request, state, base),
        ["api", "models", owner, name, rest @ ..] => {
            api(request, &format!("{owner}/{name}"), rest, state, base)
        }
        ["api", "datasets", owner, name, rest @ ..] => {
            api(request, &format!("datasets/{owner}/{name}"), rest, state, base)
        }
        ["datasets", owner, name, "resolve", revision, path @ ..] => {
            let repo = format!("datasets/{owner}/{name}");
            resolve(request, &repo, revision, &path.join("/"), state)
        }
        ["datasets", owner, git, "info", "lfs", "objects", "batch"] if git.ends_with(".git") => {
            let _ = (owner, git);
            batch(request, state, base)
        }
        ["api", "v1", "datasets", owner, name, rest @ ..] => {
            modelscope(request, &format!("datasets/{owner}/{name}"), rest, state)
        }
        ["api", "v1", "models", owner, name, rest @ ..] => {
            modelscope(request, &format!("{owner}/{name}"), rest, state)
        }
        [owner, git, "info", "lfs", "objects", "batch"] if git.ends_with(".git") => {
            let _ = (owner, git);
            batch(request, state, base)
        }
        [owner, name, "resolve", revision, path @ ..] => {
            resolve(request, &format!("{owner}/{name}"), revision, &path.join("/"), state)
        }
        _ => Answer::error(404, "NotFound", &format!("no such address: {}", parts.join("/"))),
    }
}

fn create(request: &Request, state: &mut State, base: &str) -> Answer {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let owner = body["organization"].as_str().unwrap_or("me");
    let folder = if body["type"] == "dataset" { "datasets/" } else { "" };
    let name = match body["name"].as_str() {
        Some(name) => format!("{folder}{owner}/{name}"),
        None => return Answer::error(400, "BadRequest", "expected a name"),
    };
    let private = body["private"].as_bool().or(body["visibility"].as_str().map(|v| v == "private"));
    let url = json!({"url": format!("{base}/{name}"), "name": name, "id": name});
    if state.repositories.contains_key(&name) {
        let mut answer = Answer::json(&json!({
            "error": "You already created this model repo", "url": format!("{base}/{name}")
        }));
        answer.status = 409;
        return answer;
    }
    let mut repository = Repository { private: private.unwrap_or(false), ..Repository::default() };
    let bytes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n".to_vec();
    let attributes = File { git_id: git_id(&bytes), bytes: Arc::new(bytes), sha256: None };
    let files = BTreeMap::from([(".gitattributes".to_owned(), attributes)]);
    let commit = hex(&sha1::Sha1::digest(name.as_bytes()));
    repository.commits.insert(commit.clone(), files.clone());
    repository.branches.insert("main".into(), Branch { commit, files });
    state.repositories.insert(name, repository);
    Answer::json(&url)
}

fn api(request: &Request, repo: &str, rest: &[&str], state: &mut State, base: &str) -> Answer {
    let missing = || Answer::error(404, "RepoNotFound", &format!("no repository {repo}"));
    let Some(repository) = state.repositories.get_mut(repo) else { return missing() };
    let no_revision = |revision: &str| {
        Answer::error(404, "RevisionNotFound", &format!("{repo}: no revision {revision}"))
    };
    match rest {
        [] | ["revision", _] => {
            let revision = rest.get(1).copied().unwrap_or("main");
            let Some((commit, files)) = find(repository, revision) else {
                return no_revision(revision);
            };
            let siblings: Vec<Value> = files
                .iter()
                .map(|(path, file)| {
                    let mut entry =
                        json!({"rfilename": path, "size": file.bytes.len(), "blobId": file.git_id});
                    if let Some(sha256) = &file.sha256 {
                        entry["lfs"] =
                            json!({"sha256": sha256, "size": file.bytes.len(), "pointerSize": 130});
                    }
                    entry
                })
                .collect();
            Answer::json(&json!({
                "id": repo, "modelId": repo, "_id": "0", "sha": commit, "private": repository.private,
                "siblings": siblings, "tags": [], "downloads": 0, "likes": 0, "gated": false,
                "disabled": false, "lastModified": "2026-11-01T00:00:00.000Z",
                "createdAt": "2026-11-01T00:00:00.000Z",
            }))
        }
        ["tree", revision, ..] => {
            let Some((_, files)) = find(repository, revision) else { return no_revision(revision) };
            let entries: Vec<Value> = files
                .iter()
                .map(|(path, file)| {
                    let mut entry = json!({
                        "type": "file", "path": path, "oid": file.git_id, "size": file.bytes.len(),
                    });
                    if let Some(sha256) = &file.sha256 {
                        entry["lfs"] =
                            json!({"oid": sha256, "size": file.bytes.len(), "pointerSize": 130});
                    }
                    entry
                })
                .collect();
            Answer::json(&Value::from(entries))
        }
        ["branch", name] => {
            if repository.branches.contains_key(*name) {
                return Answer::error(409, "Conflict", "the branch is there");
            }
            let main = repository.branches.get("main").cloned().unwrap_or_default();
            repository.branches.insert((*name).to_owned(), main);
            Answer::json(&json!({}))
        }
        ["refs"] => {
            let branches: Vec<Value> = repository
                .branches
                .iter()
                .map(|(name, branch)| {
                    let full = format!("refs/heads/{name}");
                    json!({"name": name, "ref": full, "targetCommit": branch.commit})
                })
                .collect();
            Answer::json(&json!({"branches": branches, "converts": [], "tags": []}))
        }
        ["preupload", revision] => {
            let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
            let held = find(repository, revision).map(|(_, files)| files).unwrap_or_default();
            let files: Vec<Value> = body["files"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|file| {
                    let path = file["path"].as_str().unwrap_or_default();
                    let weights = [".safetensors", ".gguf", ".bin"].iter().any(|e| path.ends_with(e));
                    let large = file["size"].as_u64().unwrap_or(0) > 10_000_000;
                    let mode = if weights || large { "lfs" } else { "regular" };
                    json!({"path": path, "uploadMode": mode, "shouldIgnore": false,
                           "oid": held.get(path).map(|f| f.sha256.clone().unwrap_or(f.git_id.clone()))})
                })
                .collect();
            Answer::json(&json!({"files": files}))
        }
        ["commit", revision] => {
            let Some(branch) = repository.branches.get(*revision) else {
                return no_revision(revision);
            };
            let mut files = branch.files.clone();
            if let Err(fault) = apply(&request.body, &state.objects, &mut files) {
                return Answer::error(400, "BadRequest", &fault);
            }
            let seed = format!("{}{}", branch.commit, sha256(&request.body));
            let commit = hex(&sha1::Sha1::digest(seed.as_bytes()));
            repository.commits.insert(commit.clone(), files.clone());
            let new = Branch { commit: commit.clone(), files };
            repository.branches.insert((*revision).to_owned(), new);
            state.commits += 1;
            Answer::json(&json!({
                "success": true, "commitOid": commit, "hookOutput": "",
                "commitUrl": format!("{base}/{repo}/commit/{commit}"),
            }))
        }
        _ => Answer::error(404, "NotFound", &format!("no such address: {}", rest.join("/"))),
    }
}

/// The operations of a commit, one JSON object a line.
fn apply(
    body: &[u8],
    objects: &HashMap<String, Arc<Vec<u8>>>,
    files: &mut BTreeMap<String, File>,
) -> Result<(), String> {
    for line in body.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let line: Value = serde_json::from_slice(line).map_err(|e| e.to_string())?;
        let value = &line["value"];
        let path = value["path"].as_str().unwrap_or_default().to_owned();
        match line["key"].as_str() {
            Some("header") => (),
            Some("file") => {
                let text = value["content"].as_str().ok_or("a file without content")?;
                let bytes = base64::engine::general_purpose::STANDARD
                    .decode(text)
                    .map_err(|e| e.to_string())?;
                let (git_id, bytes) = (git_id(&bytes), Arc::new(bytes));
                files.insert(path, File { git_id, bytes, sha256: None });
            }
            Some("lfsFile") => {
                let oid = value["oid"].as_str().unwrap_or_default();
                let bytes = objects.get(oid).ok_or(format!("{path}: no object {oid}"))?;
                let pointer = format!(
                    "version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {}\n",
                    bytes.len()
                );
                let git_id = git_id(pointer.as_bytes());
                let file = File { git_id, bytes: bytes.clone(), sha256: Some(oid.to_owned()) };
                files.insert(path, file);
            }
            Some("deletedFile") => drop(files.remove(&path)),
            other => return Err(format!("an operation {other:?}")),
        }
    }
    Ok(())
}

fn find(repository: &Repository, revision: &str) -> Option<(String, BTreeMap<String, File>)> {
    if let Some(branch) = repository.branches.get(revision) {
        return Some((branch.commit.clone(), branch.files.clone()));
    }
    let files = repository.commits.get(revision)?;
    Some((revision.to_owned(), files.clone()))
}

fn batch(request: &Request, state: &State, base: &str) -> Answer {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let objects: Vec<Value> = body["objects"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|object| {
            let oid = object["oid"].as_str().unwrap_or_default();
            let size = object["size"].as_u64().unwrap_or(0) as usize;
            let mut answer = json!({"oid": oid, "size": size, "authenticated": true});
            if state.objects.contains_key(oid) {
                return answer; // it is there: nothing to do
            }
            let mut upload = json!({"href": format!("{base}/_objects/{oid}")});
            if let Some(part) = state.part_size {
                let mut header = json!({"chunk_size": part.to_string()});
                for n in 1..=size.div_ceil(part) {
                    header[format!("{n:05}")] =
                        json!(format!("{base}/_objects/{oid}/{n}?signed=1"));
                }
                upload["header"] = header;
                upload["href"] = json!(format!("{base}/_objects/{oid}/complete"));
            }
            let verify = json!({"href": format!("{base}/_objects/{oid}/verify")});
            answer["actions"] = json!({"upload": upload, "verify": verify});
            answer
        })
        .collect();
    let transfer = if state.part_size.is_some() { "multipart" } else { "basic" };
    let mut answer = Answer::json(&json!({"transfer": transfer, "objects": objects}));
    answer.headers = vec![("Content-Type".into(), "application/vnd.git-lfs+json".into())];
    answer
}

/// Large files: put whole, or in parts and completed; verified.
fn object(request: &Request, rest: &[&str], state: &mut State) -> Answer {
    let store = |state: &mut State, oid: &str, bytes: Vec<u8>| {
        let found = sha256(&bytes);
        if found != oid {
            return Answer::error(400, "BadRequest", &format!("expected {oid}, found {found}"));
        }
        state.objects.insert(oid.to_owned(), Arc::new(bytes));
        Answer::new(200, "")
    };
    match (request.method.as_str(), rest) {
        ("PUT", [oid]) => {
            state.uploads += 1;
            store(state, oid, request.body.clone())
        }
        ("PUT", [oid, part]) => {
            state.uploads += 1;
            let number = part.parse().unwrap_or(0);
            state.parts.insert(((*oid).to_owned(), number), request.body.clone());
            let mut answer = Answer::new(200, "");
            answer.headers.push(("ETag".into(), format!("\"{}\"", git_id(&request.body))));
            answer
        }
        ("POST", [oid, "complete"]) => {
            let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
            let mut whole = Vec::new();
            for part in body["parts"].as_array().into_iter().flatten() {
                let number = part["partNumber"].as_u64().unwrap_or(0);
                whole.extend(state.parts.remove(&((*oid).to_owned(), number)).unwrap_or_default());
            }
            store(state, oid, whole)
        }
        ("POST", [oid, "verify"]) => {
            let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
            match state.objects.get(*oid) {
                Some(bytes) if body["size"] == bytes.len() => Answer::json(&json!({})),
                _ => Answer::error(404, "NotFound", "the object is not here"),
            }
        }
        _ => Answer::error(404, "NotFound", "no such object"),
    }
}

/// The same repositories by ModelScope's interface; `master` is the main branch there.
fn modelscope(request: &Request, repo: &str, rest: &[&str], state: &mut State) -> Answer {
    let refused = |status: u16, message: &str| {
        let mut answer =
            Answer::json(&json!({"Code": status, "Message": message, "Success": false}));
        answer.status = status;
        answer
    };
    let ok = |data: Value| {
        Answer::json(&json!({"Code": 200, "Data": data, "Message": "success", "Success": true}))
    };
    let revision = request.query.get("Revision").map_or("master", String::as_str).to_owned();
    let branch = if revision == "master" { "main" } else { &revision };
    let Some(repository) = state.repositories.get(repo) else {
        return refused(404, &format!("no repository {repo}"));
    };
    match rest {
        [] => ok(json!({"Name": repo, "Path": repo, "Id": 1})),
        ["revisions"] => {
            let branches = json!([{"Revision": "master"}]);
            ok(json!({"RevisionMap": {"Branches": branches, "Tags": []}}))
        }
        ["repo", "files" | "tree"] => {
            let Some((_, files)) = find(repository, branch) else {
                return refused(404, &format!("no revision {revision}"));
            };
            let entry = |(path, file): (&String, &File)| {
                let name = path.rsplit('/').next().unwrap_or(path);
                json!({"Path": path, "Name": name, "Type": "blob", "Size": file.bytes.len(),
                       "Sha256": sha256(&file.bytes), "IsLFS": file.sha256.is_some(),
                       "Revision": "0123456789abcdef", "CommittedDate": 1})
            };
            let files: Vec<Value> = files.iter().map(entry).collect();
            ok(json!({"Files": files}))
        }
        ["repo"] => {
            let path = request.query.get("FilePath").cloned().unwrap_or_default();
            let branch = branch.to_owned();
            resolve(request, repo, &branch, &path, state)
        }
        _ => refused(404, "no such address"),
    }
}

fn resolve(request: &Request, repo: &str, revision: &str, path: &str, state: &mut State) -> Answer {
    let Some(repository) = state.repositories.get(repo) else {
        return Answer::error(404, "RepoNotFound", &format!("no repository {repo}"));
    };
    let Some((commit, files)) = find(repository, revision) else {
        return Answer::error(404, "RevisionNotFound", &format!("no revision {revision}"));
    };
    let Some(file) = files.get(path) else {
        let mut answer = Answer::error(404, "EntryNotFound", &format!("no file {path}"));
        answer.headers.push(("X-Repo-Commit".into(), commit));
        return answer;
    };
    let mut bytes = file.bytes.to_vec();
    let mut status = 200;
    let mut headers = vec![
        ("X-Repo-Commit".to_owned(), commit),
        ("ETag".to_owned(), format!("\"{}\"", file.sha256.as_ref().unwrap_or(&file.git_id))),
        ("Accept-Ranges".to_owned(), "bytes".to_owned()),
    ];
    if file.sha256.is_some() {
        headers.push(("X-Linked-Size".to_owned(), bytes.len().to_string()));
        headers.push((
            "X-Linked-ETag".to_owned(),
            format!("\"{}\"", file.sha256.clone().unwrap_or_default()),
        ));
    }
    if let Some(range) = request.headers.get("range") {
        state.ranges.push(range.clone());
        let bounds = range.trim_start_matches("bytes=").split_once('-');
        let whole = bytes.len();
        let begin = bounds.and_then(|(begin, _)| begin.parse::<usize>().ok()).unwrap_or(0);
        let end =
            bounds.and_then(|(_, end)| end.parse::<usize>().ok()).map_or(whole, |end| end + 1);
        let end = end.min(whole);
        if begin >= end {
            return Answer::error(416, "RangeNotSatisfiable", "nothing there");
        }
        headers.push(("Content-Range".to_owned(), format!("bytes {begin}-{}/{whole}", end - 1)));
        bytes = bytes[begin..end].to_vec();
        status = 206;
    }
    let length = bytes.len();
    if request.method == "GET" {
        state.downloads.push(path.to_owned());
    }
    if request.method == "GET" && file.sha256.is_some() {
        if std::mem::take(&mut state.spoil_download) {
            bytes[length / 2] ^= 1;
        }
        if let Some(cut) = state.cut_download.take() {
            bytes.truncate(cut);
        }
    }
    Answer { status, headers, body: bytes, length: Some(length) }
}
