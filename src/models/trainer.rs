//! The other program, `mmx-train`: the only one that links libtorch. It lies beside this one; what
//! needs libtorch is asked of it as a process of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mmx_converters::{Error, Result};
use serde::Deserialize;

/// The command that builds `mmx-train` where it is missing.
pub const FIX: &str = ". scripts/env.sh && cargo build --release";
/// The variable in which a caller tells `mmx-train` its version: one of another version may speak
/// another language.
pub const VERSION_VARIABLE: &str = "MMX_VERSION";
/// The version of both programs.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The variable of how libgomp's threads wait at a barrier, with the loops before one sleeps: some
/// 10 microseconds. Its default is to spin for milliseconds: where another process has one of the
/// cores, the spinning takes the other one from the thread that is waited for (measured on 2 cores
/// with a compiler running beside, a training step took 6 s instead of 2.5 s). A short spin and
/// then sleep costs nothing measurable on an idle machine.
const SPINS: (&str, &str) = ("GOMP_SPINCOUNT", "1000");

/// The path of `mmx-train`: beside this program (programs that cargo builds for tests and examples
/// lie one folder below).
pub fn program() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let dir = own.parent()?;
    let name = format!("mmx-train{}", std::env::consts::EXE_SUFFIX);
    let below = matches!(dir.file_name()?.to_str(), Some("deps" | "examples"));
    let dirs = [Some(dir), dir.parent().filter(|_| below)];
    dirs.into_iter().flatten().map(|dir| dir.join(&name)).find(|path| path.is_file())
}

/// The command of `mmx-train`, to be given arguments and started.
///
/// # Errors
/// It is not there, or the system does not find a library that it needs.
pub fn command(doing: &str) -> Result<Command> {
    let Some(program) = program() else {
        return Err(Error::failed_with_hint(
            format!("{doing}: expected the program mmx-train beside mmx, found none"),
            format!("{FIX}   in mmx's sources builds both"),
        ));
    };
    let mut command = Command::new(&program);
    if let Some(library) = missing_library(&program) {
        return Err(Error::failed_with_hint(
            format!("{doing}: {} needs {library}, which is not found", program.display()),
            format!(
                "put libtorch's libraries into LD_LIBRARY_PATH, or {FIX} in mmx's sources builds it anew"
            ),
        ));
    }
    log::debug!("{doing}: starts {}", program.display());
    command.env(VERSION_VARIABLE, VERSION);
    let set = |name| std::env::var_os(name).is_some();
    if cfg!(target_os = "linux") && !set(SPINS.0) && !set("OMP_WAIT_POLICY") {
        command.env(SPINS.0, SPINS.1); // read when libgomp is loaded, before `main`
    }
    Ok(command)
}

/// The libraries that the system's loader would load. glibc's tells it without running the program;
/// others run `about`, which does nothing.
fn libraries(program: &Path) -> Option<String> {
    let mut asked = Command::new(program);
    asked.arg("about").env("LD_TRACE_LOADED_OBJECTS", "1");
    let output = asked.stdin(Stdio::null()).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A library that the system's loader would not find.
fn missing_library(program: &Path) -> Option<String> {
    let text = libraries(program)?;
    let line = text.lines().find(|line| line.contains("=> not found"))?;
    line.split_whitespace().next().map(str::to_owned)
}

/// The version of the libtorch that `mmx-train` finds, without starting it; nothing where there is
/// none.
pub fn libtorch() -> Option<String> {
    let text = libraries(&program()?)?;
    let line = text.lines().find(|line| line.contains("libtorch_cpu."))?;
    let file = line.split_once("=> ")?.1.split(" (").next()?;
    let folder = Path::new(file.trim()).parent()?.parent()?;
    let version = fs_err::read_to_string(folder.join("build-version")).ok();
    Some(version.map_or_else(|| "2.11".to_owned(), |text| text.trim().to_owned()))
}

/// The answer of `mmx-train about --json`.
#[derive(Clone, Debug, Deserialize)]
pub struct About {
    /// Its version.
    pub version: String,
    /// libtorch's version, and where it is.
    pub libtorch: String,
    /// The best device for training in words, or why there is none.
    pub device: std::result::Result<String, Refusal>,
}

/// The reason why there is no device.
#[derive(Clone, Debug, Deserialize)]
pub struct Refusal {
    /// The reason in a sentence.
    pub message: String,
    /// A hint on what to do about it.
    pub hint: Option<String>,
}

/// Asks `mmx-train` what it found.
///
/// # Errors
/// It is not there, does not start, or is of another version.
pub fn about() -> Result<About> {
    let mut command = command("about")?;
    let output = command.args(["about", "--json"]).stdin(Stdio::null()).output();
    let output = output.map_err(|e| Error::failed(format!("mmx-train: {e}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let first = said.lines().next().unwrap_or_default();
        return Err(Error::failed(format!("mmx-train: {first} ({})", output.status)));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|e| Error::failed(format!("mmx-train about: {e}")))
}
