//! Texts that lost their slot: ids with a copy of their keys and values, so that a conversation
//! that comes back after others had its slot is not read again.
//!
//! In: what a slot holds before another text takes it over. Out: the copy that begins as a prompt
//! does. The copy that was not used for longest makes room.

use std::collections::VecDeque;

use mmx_ggml::run::{Held, reusable};

/// A text and its copy.
struct Text {
    ids: Vec<u32>,
    held: Held,
}

/// Copies of texts, of `most` bytes together at most.
pub(crate) struct PromptCache {
    most: usize,
    bytes: usize,
    /// The one that was not used for longest is first.
    texts: VecDeque<Text>,
}

impl PromptCache {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, bytes: 0, texts: VecDeque::new() }
    }

    /// Bytes of all copies.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a copy of these ids, `bytes` large, would be kept: there is none yet, and room.
    pub(crate) fn wants(&self, ids: &[u32], bytes: usize) -> bool {
        bytes <= self.most && !self.texts.iter().any(|text| text.ids.starts_with(ids))
    }

    /// Keeps a copy, in the place of those of its own beginnings.
    pub(crate) fn keep(&mut self, ids: Vec<u32>, held: Held) {
        self.texts.retain(|text| !ids.starts_with(&text.ids));
        self.texts.push_back(Text { ids, held });
        let sum = |texts: &VecDeque<Text>| texts.iter().map(|text| text.held.bytes()).sum();
        self.bytes = sum(&self.texts);
        while self.bytes > self.most {
            self.texts.pop_front();
            self.bytes = sum(&self.texts);
        }
    }

    /// The copy that shares most with the beginning of a prompt, and how many tokens; nothing where
    /// that is not more than `than`. It counts as used.
    pub(crate) fn longest(&mut self, prompt: &[u32], than: usize) -> Option<(&Held, usize)> {
        let shared = self.texts.iter().map(|text| reusable(&text.ids, prompt));
        let (best, length) = shared.enumerate().max_by_key(|&(_, length)| length)?;
        if length <= than {
            return None;
        }
        let text = self.texts.remove(best)?;
        self.texts.push_back(text);
        self.texts.back().map(|text| (&text.held, length))
    }
}
