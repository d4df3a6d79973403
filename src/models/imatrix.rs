//! The importance matrix of a model on a text: the text in pieces through llama.cpp, which shows
//! what comes into each matrix.

use std::io::Write;
use std::path::{Path, PathBuf};

use mmx_converters::file;
use mmx_converters::quant::imatrix::Imatrix;
use mmx_ggml::judge::LlamaModel;

use crate::open::Form;
use mmx_converters::{Error, Result};

/// A request to collect an importance matrix.
#[derive(Clone, Debug)]
pub struct Request {
    /// The model.
    pub model: PathBuf,
    /// The text.
    pub data: PathBuf,
    /// The file written.
    pub out: PathBuf,
    /// Tokens of a piece; fewer where the model's context is shorter.
    pub chunk: usize,
    /// Most pieces that are read; nothing for all.
    pub chunks: Option<usize>,
    /// Threads of the CPU.
    pub threads: usize,
}

/// Collects an importance matrix and writes it. Returns the matrix and the file's size. `progress`
/// hears of each piece done, of how many.
///
/// # Errors
/// An output that is an input, a model without a tokenizer, a text that is shorter than two tokens,
/// what llama.cpp says, the system's refusal.
pub fn collect(
    request: &Request,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Imatrix, u64)> {
    let form = Form::open(&request.model)?;
    file::refuse_input(&request.out, [form.path(), &request.data])?;
    let text = fs_err::read_to_string(&request.data).map_err(|e| Error::io(&request.data, e))?;
    let ids = form.expect_tokenizer()?.encode_text(&text)?;
    let config = &form.model.config;
    let size = request.chunk.clamp(2, config.max_position_embeddings.max(2));
    // a last piece of a few tokens says little of what comes late in a text
    let mut pieces: Vec<&[u32]> = ids.chunks(size).collect();
    if pieces.len() > 1 && pieces.last().is_some_and(|last| last.len() < size) {
        pieces.pop();
    }
    pieces.truncate(request.chunks.unwrap_or(usize::MAX));
    if pieces.first().is_none_or(|piece| piece.len() < 2) {
        return Err(Error::failed(format!(
            "{}: expected a text of at least two tokens, found {}",
            request.data.display(),
            ids.len()
        )));
    }
    // llama.cpp opens files: a folder's weights go into one that is gone afterwards
    let temporary;
    let path: &Path = match form.is_gguf() {
        true => form.path(),
        false => {
            let folder = request.out.parent().filter(|p| !p.as_os_str().is_empty());
            temporary = file::temporary_file(folder.unwrap_or(Path::new(".")))?;
            let gguf = form.to_gguf()?;
            temporary
                .as_file()
                .write_all(gguf.bytes())
                .map_err(|e| Error::io(temporary.path(), e))?;
            // elsewhere what is locked is not read by others, and llama.cpp opens it anew
            #[cfg(not(unix))]
            let _ = temporary.as_file().unlock();
            temporary.path()
        }
    };
    let model = LlamaModel::open(path)?;
    let entries = model.importance(&pieces, request.threads, progress)?;
    let name = request.data.file_name();
    let imatrix = Imatrix {
        datasets: vec![name.map_or_else(String::new, |n| n.to_string_lossy().into_owned())],
        chunk_count: u32::try_from(pieces.len()).unwrap_or(u32::MAX),
        chunk_size: u32::try_from(size).unwrap_or(u32::MAX),
        entries,
    };
    let bytes = imatrix.write(&request.out)?;
    Ok((imatrix, bytes))
}
