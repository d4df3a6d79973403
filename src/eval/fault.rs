//! Faults of a line of a data file as errors.

use std::path::Path;

use mmx_converters::Error;
use mmx_data::jsonl::Fault;

/// A line's fault as an error that names the file.
pub(crate) fn fault_at(path: &Path, fault: Fault) -> Error {
    let place = if fault.line == 0 { fault.place() } else { fault.line.to_string() };
    let message = format!("{}:{place}: {}", path.display(), fault.message);
    match fault.hint {
        Some(hint) => Error::failed_with_hint(message, hint),
        None => Error::failed(message),
    }
}
