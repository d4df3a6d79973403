//! The model card: README.md with the front matter that hubs read, and for people what the model
//! is, how it was trained, how far each file is from the checkpoint, and how to load it.
//!
//! In: an open model, words of the user's, and the training state beside a checkpoint if there is
//! one. Out: Markdown. No clock and no path goes into it: the same model gives the same card.

use std::path::{Path, PathBuf};

use mmx_converters::tensor::Dtype;
use mmx_converters::words::counted;
use serde_json::{Map, Value};

use super::report::{Exported, dtype_name};
pub use super::request::Words;
use super::source::Source;
use crate::consumers::check::{self, Outcome};
use crate::verify;

/// The card's file name.
pub const FILE_NAME: &str = "README.md";

/// The parts from which cards are made.
pub(super) struct Card<'a> {
    pub(super) name: &'a str,
    pub(super) license: Option<&'a str>,
    pub(super) words: &'a Words,
    pub(super) source: &'a Source,
    pub(super) verified: Option<&'a verify::Report>,
    /// What programs made of the files, and the digests of each file's weights.
    pub(super) checks: Option<(&'a check::Report, &'a [(PathBuf, String)])>,
}

/// Quotes a string for YAML where it needs it: JSON's strings are YAML's.
fn yaml(text: &str) -> String {
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b))
        && text.bytes().any(|b| b.is_ascii_alphabetic())
        // words that YAML reads as something else
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
            .contains(&text.to_ascii_lowercase().as_str());
    if plain { text.to_owned() } else { Value::from(text).to_string() }
}

impl Card<'_> {
    /// The card of a Transformers folder.
    pub(super) fn of_folder(&self, dtype: Dtype) -> String {
        let family = self.source.model.config.family;
        let mut text = self.front("transformers", &[family.transformers_model_type()]);
        text.push_str(&self.about(&format!(
            "Weights are {} under the stock class `{}`; no code of its own is needed.",
            dtype.torch_name(),
            family.transformers_class()
        )));
        text.push_str(&format!(
            "## Use\n\n\
             Transformers:\n\n```python\n\
             from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
             tokenizer = AutoTokenizer.from_pretrained(\".\")\n\
             model = AutoModelForCausalLM.from_pretrained(\".\")\n\
             chat = [{{\"role\": \"user\", \"content\": \"Hello\"}}]\n\
             ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors=\"pt\", return_dict=True)\n\
             print(tokenizer.decode(model.generate(**ids, max_new_tokens=64)[0]))\n```\n\n\
             vLLM: `vllm serve . --served-model-name {name}`\n\n\
             mmx: `mmx chat .`\n\n",
            name = self.name
        ));
        text.push_str(&self.training());
        text.push_str(&self.parity(Some(dtype)));
        text.push_str(&self.checked(Some(dtype)));
        text
    }

    /// The card of the GGUFs of an export.
    pub(super) fn of_ggufs(&self, files: &[&Exported], ollama: bool) -> String {
        let mut text = self.front("gguf", &["gguf", self.source.model.config.family.gguf_arch()]);
        let mut about = String::from("| file | type | bytes |\n|---|---|---|\n");
        let name = |path: &Path| {
            path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
        };
        for file in files {
            about.push_str(&format!("| `{}` | {} | {} |\n", name(&file.path), file.ty, file.bytes));
        }
        text.push_str(&self.about(about.trim_end()));
        let first = files.first().map_or_else(String::new, |file| name(&file.path));
        text.push_str(&format!("## Use\n\nllama.cpp: `llama-cli -m {first}`\n\n"));
        if ollama {
            let name = self.name.to_ascii_lowercase();
            text.push_str(&format!(
                "Ollama: `ollama create {name} -f Modelfile && ollama run {name}`\n\n"
            ));
        }
        text.push_str(&format!("mmx: `mmx chat {first}`\n\n"));
        text.push_str(&self.training());
        text.push_str(&self.parity(None));
        text.push_str(&self.checked(None));
        text
    }

    /// The card of a PEFT folder.
    pub(super) fn of_adapters(&self) -> String {
        let mut text = self.front("peft", &["lora"]);
        let rank = self.source.model.adapters().map_or(0, |adapters| adapters.rank);
        text.push_str(&self.about(&format!("Adapters (LoRA, rank {rank}) for the base model.")));
        text.push_str(
            "## Use\n\n```python\n\
             from peft import AutoPeftModelForCausalLM\n\n\
             model = AutoPeftModelForCausalLM.from_pretrained(\".\")\n```\n\n",
        );
        text.push_str(&self.training());
        text
    }

    /// The front matter.
    fn front(&self, library: &str, tags: &[&str]) -> String {
        let mut text = String::from("---\n");
        let mut list = |key: &str, items: &[String]| {
            if !items.is_empty() {
                text.push_str(&format!("{key}:\n"));
                items.iter().for_each(|item| text.push_str(&format!("- {}\n", yaml(item))));
            }
        };
        list("language", &self.words.languages);
        list("datasets", &self.words.datasets);
        let base: Vec<String> = self.words.base_model.iter().cloned().collect();
        list("base_model", &base);
        if let Some(license) = self.license {
            text.push_str(&format!("license: {}\n", yaml(license)));
        }
        text.push_str(&format!("library_name: {library}\npipeline_tag: text-generation\ntags:\n"));
        for tag in ["minimind", self.source.model.config.family.name()].iter().chain(tags) {
            text.push_str(&format!("- {tag}\n"));
        }
        text.push_str("---\n\n");
        text
    }

    fn about(&self, more: &str) -> String {
        let config = &self.source.model.config;
        let (total, active) = config.parameters();
        let active =
            if active == total { String::new() } else { format!(" ({active} used for a token)") };
        format!(
            "# {}\n\nA {} language model of {total} parameters{active}: {}, hidden size {}, {} of {} \
             ({} for keys and values), {} of vocabulary, a context of {}.\n\n{more}\n\n",
            self.name,
            config.family.name(),
            counted(config.num_hidden_layers, "layer"),
            config.hidden_size,
            counted(config.num_attention_heads, "head"),
            config.head_dim,
            config.num_key_value_heads,
            counted(config.vocab_size, "token"),
            config.max_position_embeddings
        )
    }

    /// The section on the training, where a checkpoint tells it.
    fn training(&self) -> String {
        let path = self.source.model.path.join("training/state.json");
        let state = fs_err::read_to_string(path).ok();
        let state: Option<Value> = state.and_then(|text| serde_json::from_str(&text).ok());
        let Some(Value::Object(state)) = state else { return String::new() };
        let mut text = String::from("## Training\n\n| setting | value |\n|---|---|\n");
        rows("", state.get("config").and_then(Value::as_object), &mut text);
        rows("", state.get("position").and_then(Value::as_object), &mut text);
        let sources = state.get("sources").and_then(Value::as_array);
        for source in sources.into_iter().flatten() {
            if let [Value::String(name), Value::String(digest)] =
                source.as_array().map_or(&[][..], Vec::as_slice)
            {
                // a name, not where it lay
                let name = Path::new(name).file_name().map(|n| n.to_string_lossy().into_owned());
                let name = name.unwrap_or_default();
                text.push_str(&format!("| data | `{name}`, SHA-256 `{digest}` |\n"));
            }
        }
        text.push('\n');
        text
    }

    /// The section on the programs that were asked for a text, of the folder of one element type or
    /// of the GGUFs. A row counts for a file of the same bytes, whatever its name.
    fn checked(&self, dtype: Option<Dtype>) -> String {
        let Some((report, digests)) = self.checks else { return String::new() };
        let folder = dtype.map(|dtype| format!("hf-{}", dtype_name(dtype)));
        let mut rows = String::new();
        for (path, sha256) in digests {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
            let name = name.unwrap_or_default();
            if folder.as_ref().map_or(name.ends_with(".gguf"), |folder| name == *folder) {
                for row in report.rows.iter().filter(|row| row.sha256 == *sha256) {
                    let why = match (row.outcome, row.note.lines().last()) {
                        (Outcome::NearTie | Outcome::NotCarried, Some(why)) => format!(": {why}"),
                        _ => String::new(),
                    };
                    let result = row.outcome.words().to_ascii_lowercase();
                    let cells = [&row.consumer, &row.version].map(|cell| cell.replace('|', "\\|"));
                    let why = why.replace('|', "\\|");
                    rows.push_str(&format!(
                        "| `{name}` | {} | {} | {result}{why} |\n",
                        cells[0], cells[1]
                    ));
                }
            }
        }
        if rows.is_empty() {
            return rows;
        }
        let chat = if report.chat.is_some() { "a chat and " } else { "" };
        format!(
            "## Checked in\n\nGreedy text of {} after {chat}a text, against mmx's runner on the same \
             file:\n\n| file | program | version | result |\n|---|---|---|---|\n{rows}\n",
            counted(report.tokens, "token")
        )
    }

    /// The section on the comparison, of the folder of one element type or of the GGUFs.
    fn parity(&self, dtype: Option<Dtype>) -> String {
        let Some(report) = self.verified else { return String::new() };
        let folder = dtype.map(|dtype| format!("hf-{}", dtype_name(dtype)));
        let mut text = format!(
            "## Parity\n\nLogits of {} against the checkpoint's ({}):\n\n\
             | file | engine | largest difference | mean KL, nats | same top token |\n\
             |---|---|---|---|---|\n",
            counted(report.tokens, "token"),
            report.reference.1.name()
        );
        for row in &report.rows {
            let name = row.path.file_name().map(|n| n.to_string_lossy().into_owned());
            let name = name.unwrap_or_default();
            let wanted = match &folder {
                Some(folder) => name == *folder,
                None => name.ends_with(".gguf"),
            };
            if wanted {
                text.push_str(&format!(
                    "| `{name}` | {} | {:.1e} | {:.1e} | {:.1} % |\n",
                    row.engine.name(),
                    row.difference.max_abs_diff,
                    row.difference.mean_kl,
                    100.0 * row.difference.top1_agreement
                ));
            }
        }
        text.push('\n');
        text
    }
}

/// Writes the numbers and words of an object, one row each.
fn rows(prefix: &str, object: Option<&Map<String, Value>>, text: &mut String) {
    for (key, value) in object.into_iter().flatten() {
        match value {
            Value::Object(inner) => rows(&format!("{prefix}{key}."), Some(inner), text),
            Value::Null | Value::Array(_) => (),
            Value::String(word) => text.push_str(&format!("| {prefix}{key} | {word} |\n")),
            other => text.push_str(&format!("| {prefix}{key} | {other} |\n")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_yaml_are_quoted() {
        assert_eq!(yaml("apache-2.0"), "apache-2.0");
        assert_eq!(yaml("no"), "\"no\""); // Norwegian
        assert_eq!(yaml("a: b"), "\"a: b\"");
        assert_eq!(yaml("1.0"), "\"1.0\"");
        assert_eq!(yaml("x\"\n"), "\"x\\\"\\n\"");
    }
}
