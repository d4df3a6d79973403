//! The other program, `mmx-train`: the only one that links libtorch. It lies beside this one; what
//! needs libtorch is asked of it as a process of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mmx_converters::{Error, Result};
use serde::Deserialize;

/// The version of libtorch that `mmx-train` is built with, and needs.
pub const LIBTORCH: &str = "2.11.0";
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

/// The way in which these programs came here, which decides what brings a missing part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installation {
    /// The package `mmx-lm` of a Python: the programs lie in its module's folder `bin`.
    Wheel,
    /// An archive of a release: `bin` beside `lib/mmx`.
    Archive,
    /// Built from the sources.
    Sources,
}

impl Installation {
    /// The installation that this program belongs to.
    pub fn here() -> Self {
        let own = std::env::current_exe().unwrap_or_default();
        own.parent().and_then(Path::parent).map_or(Self::Sources, Self::of)
    }

    /// The installation whose programs lie in `home/bin`.
    fn of(home: &Path) -> Self {
        if home.join("_programs.py").is_file() {
            Self::Wheel
        } else if home.join("lib/mmx").is_dir() || home.join("licenses").is_dir() {
            Self::Archive
        } else {
            Self::Sources
        }
    }

    /// The command that brings `mmx-train` and the libraries it needs.
    pub fn fix(self) -> &'static str {
        match self {
            Self::Wheel => "pip install \"mmx-lm[train]\" in the same Python environment",
            Self::Archive => {
                "pip install torch==2.11.0, and its folder torch/lib in LD_LIBRARY_PATH"
            }
            Self::Sources => ". scripts/env.sh && cargo build --release in mmx's sources",
        }
    }
}

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
    let fix = Installation::here().fix();
    let Some(program) = program() else {
        return Err(Error::failed_with_hint(
            format!("{doing}: expected the program mmx-train beside mmx, found none"),
            fix.to_owned(),
        ));
    };
    let mut command = Command::new(&program);
    let libraries = libraries(&program);
    if let Some(refusal) = libraries.as_deref().and_then(refusal) {
        let message = format!("{doing}: {} needs {refusal}", program.display());
        return Err(Error::failed_with_hint(message, fix.to_owned()));
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

/// What is wrong with the libraries that the system's loader would load, as it lists them: one is
/// not found, or libtorch is of another version than `mmx-train` was built with.
fn refusal(libraries: &str) -> Option<String> {
    let missing = libraries.lines().find(|line| line.contains("=> not found"));
    if let Some(name) = missing.and_then(|line| line.split_whitespace().next()) {
        return Some(format!("{name}, which is not found"));
    }
    let folder = libtorch_folder(libraries)?;
    let found = version_of(&folder)?;
    let same = found.split('+').next() == Some(LIBTORCH);
    (!same).then(|| format!("libtorch {LIBTORCH}, found {found} in {}", folder.display()))
}

/// The folder of the libtorch in a loader's list; libraries lie in its folder `lib`.
fn libtorch_folder(libraries: &str) -> Option<PathBuf> {
    let line = libraries.lines().find(|line| line.contains("libtorch_cpu."))?;
    let file = line.split_once("=> ")?.1.split(" (").next()?;
    Some(Path::new(file.trim()).parent()?.parent()?.to_owned())
}

/// The version of the libtorch in a folder: libtorch's own packages say it in `build-version`,
/// Python's in `version.py`. Nothing where neither is there.
fn version_of(folder: &Path) -> Option<String> {
    if let Ok(text) = fs_err::read_to_string(folder.join("build-version")) {
        return Some(text.trim().to_owned());
    }
    let text = fs_err::read_to_string(folder.join("version.py")).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
    Some(value.trim_matches(['\'', '"', ' ']).to_owned())
}

/// The version of the libtorch that `mmx-train` finds, without starting it; nothing where there is
/// none.
pub fn libtorch() -> Option<String> {
    let folder = libtorch_folder(&libraries(&program()?)?)?;
    Some(version_of(&folder).unwrap_or_else(|| "2.11".to_owned()))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A loader's list with the libtorch of a folder.
    fn listed(folder: &Path) -> String {
        let file = folder.join("lib/libtorch_cpu.so");
        format!(
            "\tlibc.so.6 => /lib/libc.so.6 (0x1)\n\tlibtorch_cpu.so => {} (0x2)\n",
            file.display()
        )
    }

    #[test]
    fn another_libtorch_is_refused_with_its_version_and_folder() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs_err::write(folder.path().join(name), text).unwrap();
        let list = listed(folder.path());
        assert_eq!(refusal(&list), None, "one that says no version is taken");
        write("version.py", "from typing import Optional\n__version__ = '2.11.0+cu130'\n");
        assert_eq!(version_of(folder.path()).as_deref(), Some("2.11.0+cu130"));
        assert_eq!(refusal(&list), None);
        write("version.py", "__version__ = '2.9.1'\n");
        let said = refusal(&list).unwrap();
        let place = folder.path().display().to_string();
        assert_eq!(said, format!("libtorch 2.11.0, found 2.9.1 in {place}"));
        write("build-version", "2.11.0+cpu\n");
        assert_eq!(refusal(&list), None, "libtorch's own file is asked first");
    }

    #[test]
    fn a_missing_library_is_named() {
        let list = "\tlibtorch.so => not found\n\tlibc.so.6 => /lib/libc.so.6 (0x1)\n";
        assert_eq!(refusal(list).as_deref(), Some("libtorch.so, which is not found"));
    }

    #[test]
    fn the_version_of_libtorch_is_one_for_builds_wheels_and_programs() {
        let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for (file, words) in [
            ("scripts/env.sh", format!("TORCH_VERSION={LIBTORCH}\n")),
            ("python/pyproject.toml", format!("\"torch=={LIBTORCH}\"")),
            ("python/mmx/_programs.py", format!("TORCH_VERSION = \"{LIBTORCH}\"")),
            ("src/models/trainer.rs", format!("pip install torch=={LIBTORCH}")),
        ] {
            let text = fs_err::read_to_string(home.join(file)).unwrap();
            assert!(text.contains(&words), "{file}: expected {words}");
        }
    }

    #[test]
    fn an_installation_is_told_by_what_lies_beside_the_programs() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(Installation::of(home.path()), Installation::Sources);
        fs_err::create_dir_all(home.path().join("lib/mmx")).unwrap();
        assert_eq!(Installation::of(home.path()), Installation::Archive);
        fs_err::write(home.path().join("_programs.py"), "").unwrap();
        assert_eq!(Installation::of(home.path()), Installation::Wheel);
    }
}
