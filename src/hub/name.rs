//! The names of models that lie elsewhere: `hf:owner/name/PATH:TYPE@REVISION` and their like.

use super::hub::{check_name, check_revision};
use mmx_converters::{Error, Result};

/// What of a repository is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// A file or folder in it.
    pub(super) path: Option<String>,
    /// The type of a GGUF in it, in small letters.
    pub(super) ty: Option<String>,
}

/// A model in a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// `owner/name`, or the name of a repository without an owner.
    pub(super) repo: String,
    /// A branch, tag or commit, where it is named.
    pub(super) revision: Option<String>,
    /// What of it.
    pub(super) wanted: Wanted,
}

impl Name {
    /// Reads what stands after `hf:` or `ms:`.
    ///
    /// # Errors
    /// A name, revision or type that is none.
    pub(super) fn read(text: &str) -> Result<Self> {
        let (mut rest, mut revision, mut ty) = (text, None, None);
        // `:TYPE@REVISION` or `@REVISION:TYPE`; neither holds the other's sign
        while let Some(at) = rest.rfind(['@', ':']) {
            let (before, value) = (&rest[..at], &rest[at + 1..]);
            let place = if rest.as_bytes()[at] == b'@' { &mut revision } else { &mut ty };
            if place.replace(value.to_owned()).is_some() {
                return Err(Error::misuse(format!(
                    "{text}: expected owner/name[/FILE][:TYPE][@REVISION], found a part twice"
                )));
            }
            rest = before;
        }
        let mut parts = rest.splitn(3, '/');
        let (owner, name, path) = (parts.next(), parts.next(), parts.next());
        let repo = match (owner, name) {
            (Some(owner), Some(name)) => format!("{owner}/{name}"),
            (owner, _) => owner.unwrap_or_default().to_owned(),
        };
        check_name(&repo)?;
        if owner == Some("datasets") && path.is_some() {
            return Err(Error::misuse(format!(
                "{text}: expected a model, found the name of a data set"
            )));
        }
        revision.as_deref().map(check_revision).transpose()?;
        if ty.as_deref().is_some_and(|ty| ty.is_empty() || ty.contains(['/', '\\'])) {
            return Err(Error::misuse(format!("{text}: expected a type such as q4_k_m after :")));
        }
        let path = path.filter(|path| !path.is_empty()).map(str::to_owned);
        let wanted = Wanted { path, ty: ty.map(|ty| ty.to_ascii_lowercase()) };
        Ok(Self { repo, revision, wanted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let read = |text: &str| {
            let name = Name::read(text).expect(text);
            (name.repo, name.wanted.path, name.wanted.ty, name.revision)
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(read("me/x"), ("me/x".into(), None, None, None));
        assert_eq!(read("gpt2"), ("gpt2".into(), None, None, None));
        assert_eq!(read("me/x:Q4_K_M"), ("me/x".into(), None, some("q4_k_m"), None));
        assert_eq!(read("me/x@refs/pr/1").3, some("refs/pr/1"));
        for both in ["me/x:q8_0@v2", "me/x@v2:q8_0"] {
            assert_eq!(read(both), ("me/x".into(), None, some("q8_0"), some("v2")));
        }
        assert_eq!(read("me/x/a/b.gguf@v2"), ("me/x".into(), some("a/b.gguf"), None, some("v2")));
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for bad in
            ["", "/x", "me/", "../x", "me/x@", "me/x@..", "me/x:", "me/x@a@b", "datasets/a/b"]
        {
            assert!(Name::read(bad).expect_err(bad).is_misuse(), "{bad}");
        }
    }
}
