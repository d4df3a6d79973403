//! Faults of a line of a data file as errors.

use std::path::Path;

use mmx_converters::Error;
use mmx_data::jsonl::Fault;

/// A line's fault as an error that names the file.
pub(crate) fn fault_at(path: &Path, fault: Fault) -> Error {
    let message = format!("{}:{}: {}", path.display(), fault.line, fault.message);
    match fault.hint {
        Some(hint) => Error::failed_with_hint(message, hint),
        None => Error::failed(message),
    }
}
