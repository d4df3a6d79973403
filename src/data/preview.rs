//! A look at the beginning of a data file: what kind of file it is, in which form its records are,
//! and what the first of them become.

use std::path::{Path, PathBuf};

use mmx_converters::Result;

use super::blocks::Blocks;
use super::fields::Fields;
use super::forms::{self, Form};
use super::record::{Kind, Record};

/// What a file's beginning holds.
#[derive(Debug)]
pub struct Preview {
    /// The file.
    pub path: PathBuf,
    /// What kind of file it is: JSON Lines, a JSON array, CSV, Parquet.
    pub file: &'static str,
    /// The forms of the records in its first block, each once.
    pub forms: Vec<&'static Form>,
    /// The first records that are without a fault, by the number each is known by.
    pub samples: Vec<(usize, Record)>,
}

impl Preview {
    /// Looks at the first block of a file, some 8 MB; keeps so many samples.
    ///
    /// # Errors
    /// The file cannot be read, or is a table whose columns hold no record.
    pub fn of(path: &Path, kind: Kind, fields: &Fields, samples: usize) -> Result<Self> {
        let mut blocks = Blocks::open_for(path, fields)?;
        if let Some(columns) = blocks.columns() {
            forms::check_columns(path, columns, kind, fields)?;
        }
        let mut preview = Self {
            path: path.to_owned(),
            file: blocks.name(),
            forms: Vec::new(),
            samples: Vec::new(),
        };
        let Some(block) = blocks.next_block()? else { return Ok(preview) };
        for line in block.lines() {
            let Ok((record, form)) = forms::parse_with_form(&line, kind, fields) else { continue };
            if !preview.forms.iter().any(|known| std::ptr::eq(*known, form)) {
                preview.forms.push(form);
            }
            if preview.samples.len() < samples {
                preview.samples.push((line.label(), record));
            }
        }
        Ok(preview)
    }

    /// The kind of file and the forms in it: `Parquet: ShareGPT (conversations)`.
    #[must_use]
    pub fn in_words(&self) -> String {
        let forms: Vec<String> = self.forms.iter().map(|form| form.in_words()).collect();
        match forms.is_empty() {
            true => format!("{}, no record without a fault", self.file),
            false => format!("{}: {}", self.file, forms.join("; ")),
        }
    }
}
