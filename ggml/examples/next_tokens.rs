//! What may follow a text: the likeliest tokens with their probabilities, and how likely the text
//! itself is.
//!
//! ```text
//! cargo run --release -p mmx-ggml --example next_tokens -- model.gguf "Once upon a"
//! ```

use mmx_ggml::Result;
use mmx_ggml::run::{LoadOptions, Model, Session, SessionOptions, log_probabilities};

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, text] = args.as_slice() else {
        eprintln!("usage: next_tokens MODEL.gguf TEXT");
        return 2.into();
    };
    let found = Model::load(path.as_ref(), LoadOptions::default())
        .and_then(|model| Ok((next_tokens(&model, text, 5)?, log_likelihood(&model, text)?)));
    match found {
        Ok((next, likelihood)) => {
            for (piece, probability) in next {
                eprintln!("{:>6.2} %  {piece:?}", 100.0 * probability);
            }
            eprintln!("log-likelihood of the text after its first token: {likelihood:.3} nats");
            0.into()
        }
        Err(error) => {
            eprintln!("error: {error}");
            1.into()
        }
    }
}

/// The `n` likeliest tokens after a text with their probabilities, likeliest first.
fn next_tokens(model: &Model, text: &str, n: usize) -> Result<Vec<(String, f64)>> {
    let tokenizer = model.tokenizer()?;
    let mut session = Session::new(model, SessionOptions::default())?;
    let logits = session.prefill(&tokenizer.encode(text)?)?; // [vocab]
    let (_, likeliest) = log_probabilities(logits, 0, n);
    let named = |(id, log): (u32, f32)| (tokenizer.decode(&[id], false), f64::from(log).exp());
    Ok(likeliest.into_iter().map(named).collect())
}

/// The sum of the log-probabilities of a text's tokens, each given those before it, nats.
fn log_likelihood(model: &Model, text: &str) -> Result<f64> {
    let ids = model.tokenizer()?.encode(text)?;
    let mut session = Session::new(model, SessionOptions::default())?;
    let logits = session.logits_all(&ids)?; // [seq, vocab]
    let rows = logits.chunks_exact(model.config().vocab_size);
    Ok(rows.zip(&ids[1..]).map(|(row, &id)| f64::from(log_probabilities(row, id, 0).0)).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_those_of_the_text() -> Result<()> {
        let bytes = mmx_ggml::run::random_model::tiny_gguf(1)?;
        let model = Model::from_bytes(bytes, "tiny.gguf", LoadOptions::default())?;
        let vocab = model.config().vocab_size;
        let all = next_tokens(&model, "a", vocab)?;
        let total: f64 = all.iter().map(|(_, p)| p).sum();
        // float32's rounding, once for each of some 260 tokens
        assert!((total - 1.0).abs() < 1e-4, "{total}");
        assert!(all.windows(2).all(|w| w[0].1 >= w[1].1));
        let (_, b) = all.iter().find(|(piece, _)| piece == "b").expect("a tokenizer of bytes");
        let found = log_likelihood(&model, "ab")?;
        // float16 keys and values: one token and two at once add in another order
        assert!((found - b.ln()).abs() < 1e-2, "{found} for {}", b.ln());
        Ok(())
    }
}
