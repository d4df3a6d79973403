//! A Hugging Face hub, or a server that speaks as one: where it is, who we are, what a repository
//! holds.
//!
//! Source: the hub's HTTP interface as its official Python client uses it; the tests' server is
//! held to that client by the peers.

use serde_json::Value;
use ureq::Body;
use ureq::http::Response;

use super::environment::{Token, variable};
use super::http::{Client, escaped, expect_ok, json};
use mmx_converters::{Error, Result};

/// Address of the hub unless `HF_ENDPOINT` names another.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// The kind of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Weights and what lies beside them.
    Model,
    /// Records.
    Dataset,
}

impl Kind {
    /// The kind's name in the hub's interface, and in the folders of its cache.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }

    /// The kind's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "dataset",
        }
    }

    /// The address of a repository's files begins with it.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
        }
    }
}

/// A hub, at its address and with a token.
pub struct Hub {
    pub(super) client: Client,
}

/// A file of a repository, as the hub lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Path in the repository, with `/` between its parts.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Its id in git.
    pub git_id: String,
    /// SHA-256, for files kept outside git.
    pub sha256: Option<String>,
}

impl RemoteFile {
    /// The digest that names its contents: SHA-256, or its id in git. Letters and digits alone.
    pub(super) fn digest(&self) -> String {
        let digest = self.sha256.as_ref().unwrap_or(&self.git_id);
        digest.chars().filter(char::is_ascii_alphanumeric).collect()
    }
}

impl Hub {
    /// The hub of `HF_ENDPOINT`, with the token of `HF_TOKEN` or of the official client's login.
    pub fn from_environment() -> Self {
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        Self::new(&endpoint, Token::find().map(|token| token.text))
    }

    /// A hub by its address.
    pub fn new(endpoint: &str, token: Option<String>) -> Self {
        Self { client: Client::new(endpoint, token) }
    }

    /// The hub's address.
    pub fn endpoint(&self) -> &str {
        self.client.base()
    }

    /// The commit a revision stands for; nothing where the repository or the revision is not there.
    ///
    /// # Errors
    /// The server's refusal.
    pub fn commit_of(&self, kind: Kind, repo: &str, revision: &str) -> Result<Option<String>> {
        let answer = self.client.get("GET", &lookup(kind, repo, revision), &[])?;
        Self::commit_in(repo, answer)
    }

    /// The answer to whether a revision is there; without one where the hub is out of reach or
    /// does not work, why.
    ///
    /// # Errors
    /// The server's refusal.
    pub(super) fn commit_soon(
        &self,
        kind: Kind,
        repo: &str,
        revision: &str,
    ) -> Result<std::result::Result<Option<String>, Error>> {
        match self.client.get_soon(&lookup(kind, repo, revision), &[]) {
            Err(unreachable) => Ok(Err(unreachable)),
            Ok(answer) if answer.status().is_server_error() => {
                match expect_ok(&format!("{repo}: looking it up"), answer) {
                    Err(broken) => Ok(Err(broken)),
                    Ok(_) => Ok(Ok(None)),
                }
            }
            Ok(answer) => Self::commit_in(repo, answer).map(Ok),
        }
    }

    fn commit_in(repo: &str, answer: Response<Body>) -> Result<Option<String>> {
        if answer.status().as_u16() == 404 {
            return Ok(None);
        }
        let found = json(&format!("{repo}: looking it up"), answer)?;
        match found["sha"].as_str() {
            Some(commit) => Ok(Some(commit.to_owned())),
            // a repository without a commit
            None => Ok(None),
        }
    }

    /// The files of a revision, by path.
    ///
    /// # Errors
    /// The server's refusal, or an answer of another form.
    pub fn files(&self, kind: Kind, repo: &str, revision: &str) -> Result<Vec<RemoteFile>> {
        let doing = format!("{repo}: listing its files");
        let mut next = Some(format!(
            "/api/{}/{}/tree/{}?recursive=true",
            kind.plural(),
            escaped(repo, true),
            escaped(revision, false)
        ));
        let mut files = Vec::new();
        while let Some(path) = next {
            let answer = self.client.get("GET", &path, &[])?;
            next = answer.headers().get("link").and_then(|v| v.to_str().ok()).and_then(next_page);
            let Value::Array(entries) = json(&doing, answer)? else {
                return Err(Error::failed(format!(
                    "{doing}: expected a list, found another answer"
                )));
            };
            for entry in entries.iter().filter(|entry| entry["type"] == "file") {
                let file = remote_file(entry).ok_or_else(|| {
                    Error::failed(format!("{doing}: expected path, size and oid, found {entry}"))
                })?;
                files.push(file);
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    /// The address of a file.
    pub(super) fn address_of(&self, kind: Kind, repo: &str, commit: &str, path: &str) -> String {
        let (repo, path) = (escaped(repo, true), escaped(path, true));
        format!("/{}{repo}/resolve/{}/{path}", kind.prefix(), escaped(commit, false))
    }

    /// The error for a repository or revision that is not there.
    pub(super) fn not_there(&self, repo: &str, revision: &str) -> Error {
        Error::failed_with_hint(
            format!(
                "{repo}: expected a repository with revision {revision} on {}, found none",
                self.endpoint()
            ),
            "for a private one HF_TOKEN must be set; HF_ENDPOINT names another hub",
        )
    }

    /// Makes a model repository unless it is there.
    ///
    /// # Errors
    /// The server's refusal.
    pub fn create_repository(&self, repo: &str, private: bool) -> Result<()> {
        let mut body = serde_json::json!({"type": "model", "private": private});
        match repo.split_once('/') {
            Some((owner, name)) => {
                body["name"] = name.into();
                body["organization"] = owner.into();
            }
            None => body["name"] = repo.into(),
        }
        let answer = self.client.post_json("/api/repos/create", &[], &body)?;
        if answer.status().as_u16() == 409 {
            return Ok(()); // it is there
        }
        expect_ok(&format!("{repo}: creating it"), answer).map(|_| ())
    }

    /// Makes a branch from the main one unless it is there.
    ///
    /// # Errors
    /// The server's refusal.
    pub fn create_branch(&self, repo: &str, branch: &str) -> Result<()> {
        let path = format!("/api/models/{}/branch/{}", escaped(repo, true), escaped(branch, false));
        let answer = self.client.post_json(&path, &[], &serde_json::json!({}))?;
        if answer.status().as_u16() == 409 {
            return Ok(());
        }
        expect_ok(&format!("{repo}: creating branch {branch}"), answer).map(|_| ())
    }
}

/// The address at which a revision is looked up.
fn lookup(kind: Kind, repo: &str, revision: &str) -> String {
    let (repo, revision) = (escaped(repo, true), escaped(revision, false));
    format!("/api/{}/{repo}/revision/{revision}", kind.plural())
}

fn remote_file(entry: &Value) -> Option<RemoteFile> {
    let lfs = &entry["lfs"];
    Some(RemoteFile {
        path: entry["path"].as_str()?.to_owned(),
        bytes: lfs["size"].as_u64().or(entry["size"].as_u64())?,
        git_id: entry["oid"].as_str()?.to_owned(),
        sha256: lfs["oid"].as_str().or(lfs["sha256"].as_str()).map(str::to_owned),
    })
}

/// The address of `rel="next"` in a Link header.
fn next_page(link: &str) -> Option<String> {
    let part = link.split(',').find(|part| part.contains("rel=\"next\""))?;
    let (_, rest) = part.split_once('<')?;
    rest.split_once('>').map(|(address, _)| address.to_owned())
}

/// Refuses a text that is no repository's name.
///
/// # Errors
/// Anything but `owner/name` or `name` of letters, digits and `-_.`.
pub fn check_name(repo: &str) -> Result<()> {
    let parts: Vec<&str> = repo.split('/').collect();
    let plain = |part: &&str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    match parts.len() <= 2 && parts.iter().all(plain) {
        true => Ok(()),
        false => Err(Error::misuse(format!(
            "repository: expected owner/name of letters, digits, - _ and ., found {repo}"
        ))),
    }
}

/// Refuses a text that is no revision's name: it becomes a part of an address, and of a folder's
/// name.
///
/// # Errors
/// Nothing, a part of dots alone, spaces, backslashes, colons or control characters.
pub(super) fn check_revision(revision: &str) -> Result<()> {
    let inside = revision.split('/').all(|part| part.chars().any(|c| c != '.'));
    let fit = inside
        && !revision.contains(|c: char| c.is_whitespace() || c.is_control() || "\\:".contains(c));
    match fit {
        true => Ok(()),
        false => Err(Error::misuse(format!(
            "revision: expected a branch, tag or commit, found {revision:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_that_are_no_names_are_refused() {
        for good in ["main", "v2.0", "refs/pr/1", "0123abc"] {
            check_revision(good).expect(good);
        }
        for bad in ["", ".", "..", "a b", "a\n", "a/../b", "/a", "a\\b", "C:x"] {
            assert!(check_revision(bad).expect_err(bad).is_misuse(), "{bad}");
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for good in ["me/my-model", "gpt2", "a/b.c_d"] {
            check_name(good).expect(good);
        }
        for bad in ["", "a/", "/a", "a/b/c", "../x", "a/..", "a b", "a/b?c"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn further_pages_are_found() {
        let link = "<https://h/api?cursor=x>; rel=\"next\"";
        assert_eq!(next_page(link).as_deref(), Some("https://h/api?cursor=x"));
        assert_eq!(next_page("<https://h>; rel=\"prev\""), None);
    }
}
