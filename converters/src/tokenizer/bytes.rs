//! GPT-2's alphabet: each byte as one printable character, so that a vocabulary is a list of words.

/// The character that stands for a byte. Printable Latin-1 stands for itself, the other 68 bytes
/// for U+0100 and on, in order. Source: the GPT-2 encoder, as tokenizers and llama.cpp have it.
pub(super) fn char_of(byte: u8) -> char {
    if stands_for_itself(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&b| !stands_for_itself(b)).count() as u32;
    char::from_u32(0x100 + rank).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn stands_for_itself(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// The byte that a character stands for, by the character's number; they are all below U+0144.
pub(super) struct Alphabet([Option<u8>; 0x144]);

impl Alphabet {
    pub(super) fn new() -> Self {
        let mut bytes = [None; 0x144];
        for byte in 0..=u8::MAX {
            if let Some(place) = bytes.get_mut(char_of(byte) as usize) {
                *place = Some(byte);
            }
        }
        Self(bytes)
    }

    /// The bytes of a token's spelling; None when a character is outside the alphabet.
    pub(super) fn bytes(&self, text: &str) -> Option<Vec<u8>> {
        text.chars().map(|c| self.0.get(c as usize).copied().flatten()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphabet_is_a_bijection_with_the_known_letters() {
        let alphabet = Alphabet::new();
        for byte in 0..=u8::MAX {
            assert_eq!(alphabet.bytes(&char_of(byte).to_string()), Some(vec![byte]));
        }
        assert_eq!((char_of(b' '), char_of(b'\n'), char_of(0xad)), ('Ġ', 'Ċ', 'Ń'));
        assert_eq!(alphabet.bytes("京"), None);
    }
}
