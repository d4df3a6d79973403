//! A prompt to streamed text, as `mmx run` does it, in a screenful.
//!
//! ```text
//! cargo run --release -p mmx-ggml --example generate_text -- model.gguf "What is 7 + 5?"
//! ```

use std::io::Write;

use mmx_ggml::Result;
use mmx_ggml::converters::chat;
use mmx_ggml::run::{Generated, Generation, LoadOptions, Model, Session, SessionOptions, generate};

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, question] = args.as_slice() else {
        eprintln!("usage: generate_text MODEL.gguf QUESTION");
        return 2.into();
    };
    let answered = Model::load(path.as_ref(), LoadOptions::default()).and_then(|model| {
        answer(&model, question, |piece| {
            let mut out = std::io::stdout();
            // a reader that has gone away ends the generation
            out.write_all(piece.as_bytes()).and_then(|()| out.flush()).is_ok()
        })
    });
    match answered {
        Ok(answer) => {
            eprintln!("\n{} tokens, {:.0}/s", answer.ids.len(), answer.decode_tokens_per_s());
            0.into()
        }
        Err(error) => {
            eprintln!("error: {error}");
            1.into()
        }
    }
}

/// Asks the model by its own chat template, sampled as its file says; `on_text` gets each piece of
/// text and says whether to go on.
fn answer(model: &Model, question: &str, on_text: impl FnMut(&str) -> bool) -> Result<Generated> {
    let messages = [chat::message("user", question)];
    let prompt = model.tokenizer()?.encode_chat(&messages, &chat::Options::generation())?;
    let request = Generation {
        max_tokens: 256,
        sampling: model.sampling(1),
        stop: Vec::new(),
        ignore_end: false,
        speculate: 0,
    };
    let mut session = Session::new(model, SessionOptions::default())?;
    generate(&mut session, &prompt.ids, &request, on_text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_add_up_and_the_caller_may_stop() -> Result<()> {
        let bytes = mmx_ggml::run::random_model::tiny_gguf(1)?;
        let model = Model::from_bytes(bytes, "tiny.gguf", LoadOptions::default())?;
        let mut streamed = String::new();
        let whole = answer(&model, "What is 7 + 5?", |piece| {
            streamed.push_str(piece);
            true
        })?;
        assert_eq!(streamed, whole.text);
        assert!(whole.ids.len() > 1);
        let cut = answer(&model, "What is 7 + 5?", |_| false)?;
        assert!(cut.ids.len() < whole.ids.len());
        assert!(whole.text.starts_with(&cut.text), "the same seed gives the same text");
        Ok(())
    }
}
