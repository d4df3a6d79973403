//! The means of training on this machine: libtorch and a device.

use std::path::Path;

use crate::model::device;

/// libtorch's version, and where it lies.
pub fn libtorch() -> String {
    // by now the library is loaded; where from, the system knows
    let maps = fs_err::read_to_string("/proc/self/maps").unwrap_or_default();
    let line = maps.lines().find(|line| line.contains("libtorch_cpu."));
    let file = line.and_then(|line| Some(line[line.find('/')?..].to_owned()));
    let folder =
        file.as_deref().and_then(|file| Some(Path::new(file).parent()?.parent()?.to_owned()));
    let version = folder
        .as_ref()
        .and_then(|folder| fs_err::read_to_string(folder.join("build-version")).ok())
        .map_or_else(|| "2.11".to_owned(), |text| text.trim().to_owned());
    let place = folder.map_or_else(String::new, |folder| format!(" in {}", folder.display()));
    format!("{version}{place}")
}

/// The best device, in words.
///
/// # Errors
/// See [`device::pick`].
pub fn device() -> crate::Result<String> {
    Ok(device::describe(device::pick(None)?))
}
