//! The Modelfile that goes with a GGUF.

use std::path::Path;

use mmx_converters::chat::{self, Template};
use mmx_converters::modelfile::{self, Modelfile};
use mmx_converters::tokenizer::Tokenizer;

use super::request::Ollama;
use super::source::Source;
use mmx_converters::{Error, Result};

/// Makes the Modelfile of a GGUF that lies beside it.
pub(super) fn modelfile(
    source: &Source,
    ollama: &Ollama,
    gguf: &Path,
    license: Option<&str>,
) -> Result<modelfile::Written> {
    let template = source.tokenizer.as_ref().and_then(Tokenizer::template);
    let Some(template) = template else {
        return Err(Error::failed_with_hint(
            "`ollama`: expected a chat template, found none: Ollama would send bare text",
            "`tokenizer` DIR says where the tokenizer and its template are",
        ));
    };
    let name = gguf.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let mut file = Modelfile::chat(name, source.model.config.max_position_embeddings);
    let generation = &source.model.generation;
    file.parameters.retain(|(name, _)| name != "temperature" && name != "top_p");
    let settings = [
        ("temperature", generation.temperature.map(|x| x.to_string())),
        ("top_p", generation.top_p.map(|x| x.to_string())),
        ("top_k", generation.top_k.map(|k| k.to_string())),
        ("min_p", generation.min_p.map(|x| x.to_string())),
        ("repeat_penalty", generation.repetition_penalty.map(|x| x.to_string())),
    ];
    if !generation.do_sample {
        file.parameters.push(("temperature".to_owned(), "0".to_owned()));
    }
    // the penalty counts also where the most likely token is taken
    let given =
        settings.into_iter().filter(|(name, _)| generation.do_sample || *name == "repeat_penalty");
    file.parameters.extend(given.filter_map(|(name, x)| Some((name.to_owned(), x?))));
    if ollama.template {
        if !is_minimind2_chat(template) {
            return Err(Error::failed(
                "`ollama_template`: expected MiniMind2's chat template, found another one, which has no \
                 Go form here; Ollama renders the GGUF's own",
            ));
        }
        file.template = Some(modelfile::go_template::MINIMIND2.to_owned());
    }
    file.system.clone_from(&ollama.system);
    file.licenses = license.into_iter().map(str::to_owned).collect();
    file.write()
}

/// True for a template that renders what the Go template of MiniMind2 does, tried on two chats.
fn is_minimind2_chat(template: &Template) -> bool {
    let turn = chat::message;
    let opened = |system: &str| {
        format!(
            "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
        )
    };
    let long = format!(
        "{}b<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n",
        opened("s")
    );
    let chats = [
        (vec![turn("user", "a")], opened("You are a helpful assistant")),
        (
            vec![turn("system", "s"), turn("user", "a"), turn("assistant", "b"), turn("user", "c")],
            long,
        ),
    ];
    let same = |(messages, expected): &(Vec<serde_json::Value>, String)| {
        template.render(messages, &chat::Options::generation()).is_ok_and(|text| text == *expected)
    };
    chats.iter().all(same)
}
