//! Models: open, free, tokenize, render chats.
#![expect(unsafe_code, reason = "functions are exported under their C names and take pointers")]

use std::ffi::c_char;

use mmx_converters::chat;
use mmx_converters::tokenizer::Tokenizer;
use mmx_ggml::run::{LoadOptions, Model};
use serde_json::Value;

use crate::pointers::{fill, fill_text, optional_text, reference, store, text, values};
use crate::status::{Failure, MmxStatus, guarded, guarded_value};

/// A model: weights, tokenizer, chat template.
#[derive(Debug)]
pub struct MmxModel {
    pub(crate) model: Model,
}

/// Options of loading a model. Null instead of a pointer to it: everything as
/// mmx_model_options_init says.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MmxModelOptions {
    /// Keep weights in the order the CPU likes best, which costs a copy; else they stay in the
    /// file's memory map where they can.
    pub repack: bool,
    /// Layers computed on a GPU, counted from the end, the output matrix being the last; 0: none,
    /// SIZE_MAX: all. For libraries built with a GPU's feature.
    pub gpu_layers: usize,
    /// That GPU, CUDA0 or Vulkan0 for instance; null: the first.
    pub device: *const c_char,
}

/// Fills in the usual options.
///
/// # Safety
/// `options` is null or points to memory for options.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_model_options_init(options: *mut MmxModelOptions) -> MmxStatus {
    let LoadOptions { repack, gpu_layers, .. } = LoadOptions::default();
    let usual = MmxModelOptions { repack, gpu_layers, device: std::ptr::null() };
    // SAFETY: this function's own condition.
    guarded(|| unsafe { store(options, usual, "options") })
}

/// # Safety
/// Null or valid options, with a device that is null or a string.
unsafe fn load_options(options: *const MmxModelOptions) -> Result<LoadOptions, Failure> {
    if options.is_null() {
        return Ok(LoadOptions::default());
    }
    // SAFETY: not null, so valid by this function's own condition.
    let options = unsafe { reference(options, "options")? };
    // SAFETY: the same condition.
    let device = unsafe { optional_text(options.device, "device")? };
    Ok(LoadOptions {
        repack: options.repack,
        gpu_layers: options.gpu_layers,
        device: device.map(str::to_owned),
        ..LoadOptions::default()
    })
}

/// Opens a GGUF and stores a handle, to be freed with mmx_model_free.
///
/// # Safety
/// Each pointer is null or valid: a string, options, memory for a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_model_open(
    path: *const c_char,
    options: *const MmxModelOptions,
    model: *mut *mut MmxModel,
) -> MmxStatus {
    // SAFETY: this function's own condition.
    guarded(|| unsafe {
        let path = text(path, "path")?;
        let opened = Model::load(path.as_ref(), load_options(options)?);
        hand_out(opened?, model)
    })
}

/// Opens a GGUF that is in memory, which is copied, and stores a handle.
///
/// # Safety
/// Each pointer is null or valid: `length` bytes, options, memory for a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_model_open_bytes(
    bytes: *const u8,
    length: usize,
    options: *const MmxModelOptions,
    model: *mut *mut MmxModel,
) -> MmxStatus {
    // SAFETY: this function's own condition.
    guarded(|| unsafe {
        let bytes = values(bytes, length, "bytes")?.to_vec();
        hand_out(Model::from_bytes(bytes, "model in memory", load_options(options)?)?, model)
    })
}

/// # Safety
/// Null or memory for a handle.
unsafe fn hand_out(model: Model, to: *mut *mut MmxModel) -> Result<(), Failure> {
    let handle = Box::into_raw(Box::new(MmxModel { model }));
    // SAFETY: this function's own condition.
    let stored = unsafe { store(to, handle, "where the model is to be stored") };
    if stored.is_err() {
        // SAFETY: the box made above, which nobody else has seen.
        drop(unsafe { Box::from_raw(handle) });
    }
    stored
}

/// Frees a model; its sessions live on. Null is fine.
///
/// # Safety
/// `model` is null or a handle that was not freed and that no other thread is using.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_model_free(model: *mut MmxModel) {
    if !model.is_null() {
        // SAFETY: this function's own condition; handles come from `hand_out`'s box.
        guarded_value((), || drop(unsafe { Box::from_raw(model) }));
    }
}

/// The number of tokens in the vocabulary: logits have this many values. 0 for null.
///
/// # Safety
/// `model` is null or a live handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_model_vocab_size(model: *const MmxModel) -> usize {
    // SAFETY: this function's own condition.
    let model = unsafe { reference(model, "model") };
    guarded_value(0, || model.map_or(0, |m| m.model.config().vocab_size))
}

/// The number of positions that the model was made for. 0 for null.
///
/// # Safety
/// `model` is null or a live handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_model_context_length(model: *const MmxModel) -> usize {
    // SAFETY: this function's own condition.
    let model = unsafe { reference(model, "model") };
    guarded_value(0, || model.map_or(0, |m| m.model.config().max_position_embeddings))
}

/// The number of values of a hidden state: embeddings have this many. 0 for null.
///
/// # Safety
/// `model` is null or a live handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_model_embedding_size(model: *const MmxModel) -> usize {
    // SAFETY: this function's own condition.
    let model = unsafe { reference(model, "model") };
    guarded_value(0, || model.map_or(0, |m| m.model.config().hidden_size))
}

/// The ids of a text; `control`: names of control tokens in it are these tokens.
fn encode(tokenizer: &Tokenizer, text: &str, control: bool) -> Result<Vec<u32>, Failure> {
    Ok(if control { tokenizer.encode(text)? } else { tokenizer.encode_plain(text)? })
}

/// The ids of a text. With `control`, the text of a control token, `<|im_end|>` for instance, gives
/// its id; without, nothing in the text does, which is right for text of strangers.
///
/// # Safety
/// Each pointer is null or valid: a live handle, a string, memory for `capacity` ids, memory for a
/// number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_tokenize(
    model: *const MmxModel,
    text: *const c_char,
    control: bool,
    ids: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> MmxStatus {
    // SAFETY: this function's own condition.
    guarded(|| unsafe {
        let tokenizer = reference(model, "model")?.model.tokenizer()?;
        let text = crate::pointers::text(text, "text")?;
        let found = encode(tokenizer, text, control)?;
        fill(&found, ids, capacity, count)
    })
}

/// The ids of a text of `length` bytes, which may contain zeros. `control` is as in mmx_tokenize;
/// `around` adds what the tokenizer puts around a text by itself, mostly nothing, in many models a
/// token for its beginning: what a text that is no chat is generated after.
///
/// # Safety
/// Each pointer is null or valid: a live handle, `length` bytes, memory for `capacity` ids, memory
/// for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_tokenize_text(
    model: *const MmxModel,
    text: *const c_char,
    length: usize,
    control: bool,
    around: bool,
    ids: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> MmxStatus {
    // SAFETY: this function's own condition; a char is a byte.
    guarded(|| unsafe {
        let tokenizer = reference(model, "model")?.model.tokenizer()?;
        let text = std::str::from_utf8(values(text.cast::<u8>(), length, "text")?)
            .map_err(|e| Failure::invalid(format!("text: expected UTF-8, {e}")))?;
        let found = encode(tokenizer, text, control)?;
        let found = match around {
            true => [tokenizer.before_text(), &found, tokenizer.after_text()].concat(),
            false => found,
        };
        fill(&found, ids, capacity, count)
    })
}

/// The text of ids: bytes that are no UTF-8 become U+FFFD, ids without a token nothing, control
/// tokens nothing unless `control`. `*length` is without the final zero; the text itself may
/// contain zeros.
///
/// # Safety
/// Each pointer is null or valid: a live handle, `count` ids, memory for `capacity` bytes, memory
/// for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_detokenize(
    model: *const MmxModel,
    ids: *const u32,
    count: usize,
    control: bool,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> MmxStatus {
    // SAFETY: this function's own condition.
    guarded(|| unsafe {
        let tokenizer = reference(model, "model")?.model.tokenizer()?;
        let found = tokenizer.decode(values(ids, count, "ids")?, !control);
        fill_text(&found, buffer, capacity, length)
    })
}

/// The text a chat becomes by the model's own template. `messages`: a JSON array of objects with
/// `role` and `content`, as OpenAI's API has them. `options`: null, or a JSON object whose `tools`
/// and `add_generation_prompt` (true unless it says otherwise) are Transformers' own; all else in
/// it are variables of the template.
///
/// # Safety
/// Each pointer is null or valid: a live handle, strings, memory for `capacity` bytes, memory for a
/// number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_chat_render(
    model: *const MmxModel,
    messages: *const c_char,
    options: *const c_char,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> MmxStatus {
    // SAFETY: this function's own condition.
    guarded(|| unsafe {
        let tokenizer = reference(model, "model")?.model.tokenizer()?;
        let (messages, options) = chat_arguments(tokenizer, messages, options)?;
        let prompt = tokenizer.encode_chat(&messages, &options)?;
        fill_text(&prompt.text, buffer, capacity, length)
    })
}

/// The ids of a chat, what a generation begins with. Control tokens come from the template only: a
/// message that contains `<|im_end|>` ends nothing. Arguments as in mmx_chat_render.
///
/// # Safety
/// Each pointer is null or valid: a live handle, strings, memory for `capacity` ids, memory for a
/// number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmx_chat_tokenize(
    model: *const MmxModel,
    messages: *const c_char,
    options: *const c_char,
    ids: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> MmxStatus {
    // SAFETY: this function's own condition.
    guarded(|| unsafe {
        let tokenizer = reference(model, "model")?.model.tokenizer()?;
        let (messages, options) = chat_arguments(tokenizer, messages, options)?;
        let prompt = tokenizer.encode_chat(&messages, &options)?;
        fill(&prompt.ids, ids, capacity, count)
    })
}

/// # Safety
/// Null or strings.
unsafe fn chat_arguments(
    tokenizer: &Tokenizer,
    messages: *const c_char,
    options: *const c_char,
) -> Result<(Vec<Value>, chat::Options), Failure> {
    // SAFETY: this function's own condition.
    let (messages, options) =
        unsafe { (text(messages, "messages")?, optional_text(options, "options")?) };
    let parse = |what: &str, json: &str| {
        serde_json::from_str::<Value>(json)
            .map_err(|e| Failure::invalid(format!("{what}: expected JSON, {e}")))
    };
    let Value::Array(messages) = parse("messages", messages)? else {
        return Err(Failure::invalid("messages: expected an array of objects"));
    };
    if let Some(other) = messages.iter().find(|m| !m.is_object()) {
        return Err(Failure::invalid(format!("messages: expected objects, found {other}")));
    }
    let mut wanted = chat::Options::generation();
    if let Some(json) = options {
        let Value::Object(mut object) = parse("options", json)? else {
            return Err(Failure::invalid("options: expected an object"));
        };
        wanted.tools = object.shift_remove("tools").filter(|tools| !tools.is_null());
        if wanted.tools.is_some() && !tokenizer.shows_tools() {
            return Err(Failure::invalid(
                "options: tools: the model's chat template renders nothing of them",
            ));
        }
        match object.shift_remove("add_generation_prompt") {
            None => {}
            Some(Value::Bool(add)) => wanted.add_generation_prompt = add,
            Some(other) => {
                return Err(Failure::invalid(format!(
                    "options: add_generation_prompt: expected true or false, found {other}"
                )));
            }
        }
        wanted.variables = object;
    }
    Ok((messages, wanted))
}
