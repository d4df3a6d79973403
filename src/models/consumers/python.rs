//! A Python of the user's, asked with `ask.py`: a job goes in as JSON on stdin, the answer comes
//! back in a file, since what packages print on stdout is theirs.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use mmx_converters::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The script. It is handed over with `-c`: a file would be imported again by packages that start
/// processes of their own.
const SCRIPT: &str = include_str!("ask.py");
/// Time between two looks at a process.
const PAUSE: Duration = Duration::from_millis(20);
/// Lines of stderr that are kept of a process that failed: the reason stands at the end.
const KEPT_LINES: usize = 8;
/// Characters of such a line.
const KEPT_CHARS: usize = 300;

/// A Python, and a folder for what it writes.
pub(super) struct Python {
    program: PathBuf,
    work: tempfile::TempDir,
    timeout: Duration,
}

/// The end of a job without an answer.
pub(super) enum Fault {
    /// It took longer than it may.
    TimedOut,
    /// It ended by itself: the last lines of its stderr, or its status where there are none.
    Failed(String),
}

impl Python {
    pub(super) fn new(program: &Path, timeout: Duration) -> Result<Self> {
        let work = tempfile::Builder::new().prefix("mmx-consumers-").tempdir();
        let work = work.map_err(|e| Error::io(std::env::temp_dir(), e))?;
        // it runs in another folder
        let bare = program.components().count() == 1;
        let program = match bare {
            true => program.to_owned(),
            false => std::path::absolute(program).map_err(|e| Error::io(program, e))?,
        };
        Ok(Self { program, work, timeout })
    }

    /// Asks for one thing.
    ///
    /// # Errors
    /// The program cannot be started, or its files not be made or read.
    pub(super) fn ask<T: DeserializeOwned>(
        &self,
        job: &impl Serialize,
    ) -> Result<std::result::Result<T, Fault>> {
        let job_dir = tempfile::tempdir_in(self.work.path());
        let job_dir = job_dir.map_err(|e| Error::io(self.work.path(), e))?;
        let at = |name: &str| job_dir.path().join(name);
        let answer = at("answer.json");
        let mut value =
            serde_json::to_value(job).map_err(|e| Error::failed(format!("a job as JSON: {e}")))?;
        value["answer"] = answer.to_string_lossy().into();
        value["work"] = job_dir.path().to_string_lossy().into();
        fs_err::write(at("job.json"), value.to_string())
            .map_err(|e| Error::io(at("job.json"), e))?;
        // files rather than pipes: a process left over would keep a pipe open
        let file = |name: &str| fs_err::File::create(at(name)).map_err(|e| Error::io(at(name), e));
        let (stdout, stderr) = (file("stdout")?, file("stderr")?);
        let stdin = fs_err::File::open(at("job.json")).map_err(|e| Error::io(at("job.json"), e))?;
        let status = self.run(
            [stdin, stdout, stderr].map(fs_err::File::into_file).map(Stdio::from),
            job_dir.path(),
        )?;
        let Some(status) = status else { return Ok(Err(Fault::TimedOut)) };
        let found = fs_err::read(&answer).ok().filter(|_| status.success());
        Ok(match found.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            Some(found) => Ok(found),
            None => {
                let said = fs_err::read(at("stderr")).unwrap_or_default();
                Err(Fault::Failed(shortened(&String::from_utf8_lossy(&said), status)))
            }
        })
    }

    /// Runs the script; nothing where it took too long and was ended.
    fn run(&self, [stdin, stdout, stderr]: [Stdio; 3], dir: &Path) -> Result<Option<ExitStatus>> {
        let mut command = Command::new(&self.program);
        command.args(["-c", SCRIPT]).current_dir(dir).env("PYTHONIOENCODING", "utf-8");
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        let start = Instant::now();
        let mut child = command.spawn().map_err(|e| {
            Error::failed_with_hint(
                format!("{}: expected a Python, found {e}", self.program.display()),
                "`python` PYTHON names the one in which the programs are installed",
            )
        })?;
        let failed = |e| Error::io(&self.program, e);
        loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                return Ok(Some(status));
            }
            if start.elapsed() >= self.timeout {
                // it may have ended in between
                let _ = child.kill();
                child.wait().map_err(failed)?;
                return Ok(None);
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// The last lines that a process said, or how it ended where it said nothing.
fn shortened(said: &str, status: ExitStatus) -> String {
    let lines: Vec<&str> = said.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
    if lines.is_empty() {
        return match status.success() {
            true => "it ended without an answer".to_owned(),
            false => status.to_string(),
        };
    }
    let kept = &lines[lines.len().saturating_sub(KEPT_LINES)..];
    let cut = |line: &&str| line.chars().take(KEPT_CHARS).collect::<String>();
    kept.iter().map(cut).collect::<Vec<_>>().join("\n")
}
