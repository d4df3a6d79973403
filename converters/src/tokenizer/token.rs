//! One entry of a vocabulary, and its kind.

/// One entry of the vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// As spelled in the file: the byte-level alphabet, or plain text of an added token.
    pub(super) text: String,
    /// The bytes that it stands for in decoded text.
    pub(super) bytes: Vec<u8>,
    pub(super) kind: TokenKind,
}

/// The kind of a token: text, a mark of the template, or text of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A piece of text.
    Normal,
    /// A mark of the template: never text, left out when decoding with `skip_control`.
    Control,
    /// An added token that stands for its own text, `<think>` for instance.
    UserDefined,
}
