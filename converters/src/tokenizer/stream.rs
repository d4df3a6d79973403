//! Streaming: ids in, complete characters out, each as soon as its last byte is there.

use super::codec::Tokenizer;

/// Decodes ids one after another; bytes of an unfinished character wait for the next id.
#[derive(Clone, Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_control: bool,
    waiting: Vec<u8>,
}

impl Tokenizer {
    /// Decodes ids one after another as they are generated.
    pub fn decode_stream(&self, skip_control: bool) -> DecodeStream<'_> {
        self.decode_stream_after(Vec::new(), skip_control)
    }

    /// Goes on with a stream that was put away as its [`DecodeStream::into_waiting`].
    pub fn decode_stream_after(&self, waiting: Vec<u8>, skip_control: bool) -> DecodeStream<'_> {
        DecodeStream { tokenizer: self, skip_control, waiting }
    }
}

impl<'a> DecodeStream<'a> {
    /// The text that this id completes; empty while a character is unfinished. Bytes that no
    /// further byte can turn into a character give U+FFFD.
    pub fn push(&mut self, id: u32) -> String {
        if self.skip_control && self.tokenizer.is_control(id) {
            return String::new();
        }
        self.waiting.extend_from_slice(self.tokenizer.token_bytes(id));
        let mut out = String::new();
        let mut done = 0;
        while let Some(rest) = self.waiting.get(done..) {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    done = self.waiting.len();
                    break;
                }
                Err(fault) => {
                    let (valid, broken) = rest.split_at(fault.valid_up_to());
                    out.push_str(&String::from_utf8_lossy(valid));
                    done += valid.len();
                    match fault.error_len() {
                        Some(length) => {
                            out.push(char::REPLACEMENT_CHARACTER);
                            done += length.min(broken.len());
                        }
                        None => break, // unfinished: wait
                    }
                }
            }
        }
        self.waiting.drain(..done);
        out
    }

    /// The text that is left at the end of generation: U+FFFD if a character stayed unfinished,
    /// mostly nothing.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.waiting)).into_owned()
    }

    /// The bytes of an unfinished character: all that a stream remembers.
    pub fn into_waiting(self) -> Vec<u8> {
        self.waiting
    }
}
