//! The part of `mmx chat` that shows answers.

use std::io::Write;

use mmx_converters::chat::answer::Piece;

/// The place that answers go to.
pub(super) struct Screen {
    pub(super) quiet: bool,
    pub(super) dim: bool,
}

impl Screen {
    /// Shows pieces; false when nobody reads any more.
    pub(super) fn show(&self, pieces: &[Piece], thinking: &mut bool) -> bool {
        if self.quiet {
            return true;
        }
        let mut text = String::new();
        let (open, close) =
            if self.dim { ("\x1b[2m", "\x1b[0m") } else { ("<think>\n", "\n</think>") };
        for piece in pieces {
            let thought = matches!(piece, Piece::Thought(_));
            match (*thinking, thought) {
                (false, true) => text.push_str(open),
                (true, false) => text.push_str(&format!("{close}\n\n")),
                _ => {}
            }
            *thinking = thought;
            match piece {
                Piece::Content(t) | Piece::Thought(t) => text.push_str(t),
                Piece::Call(_) => {}
            }
        }
        write(&text)
    }

    /// Says what a tool gave; as talk, for it is no text of the model.
    pub(super) fn note(&self, text: &str) {
        if !self.quiet {
            let (open, close) = if self.dim { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
            eprintln!("{open}{text}{close}");
        }
    }

    /// The end of an answer.
    pub(super) fn end(&self, thinking: bool) {
        if self.quiet {
            return;
        }
        let close = match (thinking, self.dim) {
            (true, true) => "\x1b[0m",
            (true, false) => "\n</think>",
            _ => "",
        };
        write(&format!("{close}\n"));
    }
}

fn write(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}
