//! Writing a tokenizer's folder so that Transformers 4 and 5, vLLM and llama.cpp's tools all read
//! it.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::codec::Tokenizer;
use super::open::token_text;
use crate::error::{Error, Result};
use crate::file::write_bytes;

impl Tokenizer {
    /// Writes tokenizer.json (byte for byte as read), tokenizer_config.json and, where there is a
    /// one template, chat_template.jinja with the same text as in tokenizer_config.json.
    ///
    /// # Errors
    /// A folder or file that cannot be written; a tokenizer that is read from GGUFs alone.
    pub fn save(&self, dir: &Path) -> Result<()> {
        self.refuse_pieces("tokenizer.json")?;
        fs_err::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        write_bytes(&dir.join("tokenizer.json"), self.json())?;
        let mut text = serde_json::to_string_pretty(&self.config_json())
            .map_err(|e| self.fault(e.to_string()))?;
        text.push('\n');
        write_bytes(&dir.join("tokenizer_config.json"), text.as_bytes())?;
        self.save_template(dir)
    }

    /// tokenizer_config.json as every version reads it: the class that exists in Transformers 4 and
    /// 5, no `extra_special_tokens` list (which 4 cannot read), the template inside.
    pub fn config_json(&self) -> Value {
        let mut map = self.settings.clone();
        for gone in ["backend", "auto_map", "tokenizer_file", "name_or_path", "is_local"] {
            map.shift_remove(gone);
        }
        // Transformers 5 writes a list here; 4 calls the same list additional_special_tokens
        if let Some(Value::Array(list)) = map.shift_remove("extra_special_tokens")
            && !map.contains_key("additional_special_tokens")
        {
            map.insert("additional_special_tokens".into(), Value::Array(list));
        }
        // 1e30 stands for "none" and is no integer in JSON
        let sensible = |n: &Value| n.as_u64().is_some_and(|n| n < 1 << 53);
        if !map.get("model_max_length").is_some_and(sensible) {
            map.shift_remove("model_max_length");
        }
        let roles = [
            ("bos_token", self.specials.bos),
            ("eos_token", self.eos_id()),
            ("pad_token", self.specials.pad),
            ("unk_token", self.specials.unk),
        ];
        for (key, id) in roles {
            // a text that is no token would get an id beyond the vocabulary
            let stated =
                map.get(key).and_then(token_text).filter(|text| self.id_of(text).is_some());
            let stated = stated.map(str::to_owned);
            let text = stated.or_else(|| id.and_then(|id| self.token_text(id)).map(str::to_owned));
            map.insert(key.into(), text.map_or(Value::Null, Value::from));
        }
        for (key, added) in
            [("add_bos_token", self.before_text()), ("add_eos_token", self.after_text())]
        {
            map.insert(key.into(), (!added.is_empty()).into());
        }
        self.drop_unknown_specials(&mut map);
        // without it Transformers 4 adds token_type_ids, which generate() of these models refuses
        map.insert("model_input_names".into(), json!(["input_ids", "attention_mask"]));
        // a batch is padded where generation does not go on; whoever set a side keeps it
        if !map.contains_key("padding_side") {
            map.insert("padding_side".into(), "left".into());
        }
        map.insert("clean_up_tokenization_spaces".into(), Value::Bool(false));
        map.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        map.insert("added_tokens_decoder".into(), Value::Object(self.added_tokens_decoder()));
        map.shift_remove("chat_template");
        if let Some(templates) = self.template_json() {
            map.insert("chat_template".into(), templates);
        }
        Value::Object(map)
    }

    /// Takes out special tokens that are none of tokenizer.json: each would be added beyond the
    /// vocabulary.
    fn drop_unknown_specials(&self, map: &mut Map<String, Value>) {
        let known = |value: &Value| token_text(value).is_none_or(|text| self.id_of(text).is_some());
        map.retain(|key, value| !key.ends_with("_token") || known(value));
        if let Some(Value::Array(list)) = map.get_mut("additional_special_tokens") {
            list.retain(known);
        }
    }

    fn added_tokens_decoder(&self) -> Map<String, Value> {
        let value: Value = serde_json::from_slice(self.json()).unwrap_or_default();
        let mut decoder = Map::new();
        for token in value.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
            let flag = |key: &str| token.get(key).and_then(Value::as_bool).unwrap_or(false);
            if let Some(id) = token.get("id").and_then(Value::as_u64) {
                decoder.insert(
                    id.to_string(),
                    json!({
                        "content": token.get("content"),
                        "lstrip": flag("lstrip"),
                        "normalized": flag("normalized"),
                        "rstrip": flag("rstrip"),
                        "single_word": flag("single_word"),
                        "special": flag("special"),
                    }),
                );
            }
        }
        decoder
    }
}
