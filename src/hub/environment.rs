//! What the environment says: where the hub's folder is, who we are, whether the network may be used.
//!
//! Source: huggingface_hub 2.4, constants.py.

use std::path::PathBuf;

/// A variable of the environment that says something.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.trim().is_empty())
}

/// A token for the hub, and where it was found.
pub struct Token {
    pub(super) text: String,
    /// `HF_TOKEN`, or the file of the official client's login.
    pub place: String,
}

impl Token {
    /// The token of `HF_TOKEN`, else that of `hf auth login` (in `HF_TOKEN_PATH`, else in the
    /// hub's folder, `HF_HOME`).
    pub fn find() -> Option<Self> {
        if let Some(text) = variable("HF_TOKEN") {
            return Some(Self { text: text.trim().to_owned(), place: "HF_TOKEN".to_owned() });
        }
        let named = variable("HF_TOKEN_PATH").map(|path| expanded(&path));
        let path = named.or_else(|| Some(home()?.join("token")))?;
        let text = fs_err::read_to_string(&path).ok()?.trim().to_owned();
        (!text.is_empty()).then(|| Self { text, place: path.display().to_string() })
    }
}

/// A path with a leading `~` replaced.
pub(super) fn expanded(path: &str) -> PathBuf {
    match (path.strip_prefix('~'), user_folder()) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with(['/', '\\']) => {
            home.join(rest.trim_start_matches(['/', '\\']))
        }
        _ => PathBuf::from(path),
    }
}

/// The user's folder.
pub(super) fn user_folder() -> Option<PathBuf> {
    std::env::home_dir().filter(|home| !home.as_os_str().is_empty())
}

/// The hub's folder on this machine: `HF_HOME`, else `huggingface` among the user's caches.
pub(super) fn home() -> Option<PathBuf> {
    if let Some(home) = variable("HF_HOME") {
        return Some(expanded(&home));
    }
    let caches = variable("XDG_CACHE_HOME").map(|path| expanded(&path));
    Some(caches.or_else(|| Some(user_folder()?.join(".cache")))?.join("huggingface"))
}

/// True where the environment says that the network is not to be used.
pub(super) fn is_offline() -> bool {
    let set = variable("HF_HUB_OFFLINE").or_else(|| variable("TRANSFORMERS_OFFLINE"));
    set.is_some_and(|text| ["1", "ON", "YES", "TRUE"].contains(&text.to_ascii_uppercase().as_str()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_leading_tilde_is_the_users_folder() {
        let home = user_folder().expect("a user");
        assert_eq!(expanded("~/x"), home.join("x"));
        assert_eq!(expanded("/~/x"), Path::new("/~/x"));
        assert_eq!(expanded("~other"), Path::new("~other"));
    }
}
