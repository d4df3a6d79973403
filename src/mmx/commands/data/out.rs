//! Files that the data commands write: whole or not at all, never over their input, and over another
//! file only where mmx wrote it or was told.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use mmx_converters::file;
use mmx_converters::manifest::Manifest;
use mmx_corpus::{Output, Reading, Report};
use mmx_data::{Fields, OnBad};

use crate::error::{Error, Result};
use crate::format;
use crate::talk::note;
use crate::terminal::Terminal;

/// How records are read.
#[derive(Args, Debug)]
pub(crate) struct HowArgs {
    /// The files' key for one of the known names (text=content, output=answer.best); repeatable
    #[arg(long, value_name = "NAME=KEY")]
    pub(crate) field: Vec<String>,
    /// What to do with a faulty record: stop, or leave it out and count it
    #[arg(long, value_name = "WHAT", default_value = "error")]
    pub(crate) on_bad: OnBadName,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum OnBadName {
    Error,
    Skip,
}

impl HowArgs {
    /// The reading of files, those of a hub fetched.
    pub(crate) fn reading(&self, files: &[PathBuf]) -> Result<Reading> {
        Ok(Reading {
            files: mmx_hub::resolve_data(files)?,
            fields: Fields::parse(&self.field)?,
            on_bad: match self.on_bad {
                OnBadName::Error => OnBad::Error,
                OnBadName::Skip => OnBad::Skip,
            },
            listener: Arc::new(Terminal::default()),
        })
    }
}

/// A place that may be written, and the manifest of its folder.
pub(crate) struct Claim {
    path: PathBuf,
    manifest: Option<Manifest>,
}

/// Refuses a place that is an input, or a file of others.
pub(crate) fn claim(path: &Path, inputs: &[PathBuf], overwrite: bool) -> Result<Claim> {
    let path = path.to_owned();
    file::refuse_input(&path, inputs.iter().map(PathBuf::as_path))?;
    let special = fs_err::metadata(&path).is_ok_and(|meta| !meta.is_file() && !meta.is_dir());
    if special {
        return Ok(Claim { path, manifest: None });
    }
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    // a file without a folder lies in this one: both names must be made alike
    let (folder, path) = match folder {
        Some(folder) => (folder.to_owned(), path.clone()),
        None => (PathBuf::from("."), Path::new(".").join(&path)),
    };
    fs_err::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    let mut manifest = Manifest::open(&folder)?;
    if !overwrite && !manifest.is_free(&path)? {
        return Err(Error::failed_with_hint(
            format!(
                "{}: expected nothing, or what mmx wrote there, found a file that is not its own or was changed",
                path.display()
            ),
            "--overwrite replaces it, another --out writes elsewhere",
        ));
    }
    Ok(Claim { path, manifest: Some(manifest) })
}

impl Claim {
    /// The file's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// False for a device or a pipe.
    pub(crate) fn is_file(&self) -> bool {
        self.manifest.is_some()
    }

    /// The same place, its folder's manifest read again: another file of it was written meanwhile.
    pub(crate) fn reopened(self) -> Result<Self> {
        let folder = self.path.parent().unwrap_or(Path::new(".")).to_owned();
        let manifest = self.manifest.map(|_| Manifest::open(&folder)).transpose()?;
        Ok(Self { manifest, ..self })
    }

    /// Takes note of a file that was written whole by others.
    pub(crate) fn done(mut self) -> Result<()> {
        if let Some(manifest) = &mut self.manifest {
            manifest.add(&self.path)?;
            manifest.save()?;
        }
        Ok(())
    }

    /// Writes records; the file appears when all are written.
    pub(crate) fn write<T>(
        self,
        fill: impl FnOnce(&mut Output<'_>) -> mmx_converters::Result<T>,
    ) -> Result<T> {
        let mut made = None;
        let path = self.path.clone();
        self.write_bytes(|out| {
            let mut output = Output::named(&path, out)?;
            made = Some(fill(&mut output)?);
            output.finish()
        })?;
        made.ok_or_else(|| Error::failed("expected the records to be written"))
    }

    /// Writes bytes; the file appears when all are written.
    pub(crate) fn write_bytes(
        self,
        fill: impl FnOnce(&mut dyn std::io::Write) -> mmx_converters::Result<()>,
    ) -> Result<()> {
        file::write_whole(&self.path, fill)?;
        self.done()
    }
}

/// Shows a report: one JSON object on stdout, or lines on stderr.
pub(crate) fn show(report: &Report, out: &Path, more: serde_json::Value, json: bool) -> Result<()> {
    if json {
        let mut value = serde_json::to_value(report)
            .map_err(|e| Error::failed(format!("the report as JSON: {e}")))?;
        value["out"] = out.to_string_lossy().into();
        if let serde_json::Value::Object(more) = more {
            more.into_iter().for_each(|(key, part)| value[key.as_str()] = part);
        }
        return format::print_json(&value);
    }
    report.in_words().iter().for_each(|line| note!("{line}"));
    Ok(())
}
