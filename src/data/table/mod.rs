//! Tables: rows of Parquet and CSV files as the texts of JSON objects, so that whatever reads
//! records reads them as it reads lines.
//!
//! In: a file. Out: its rows, some megabytes at once; a row that is no record carries its fault.

mod csv;
mod parquet;
mod rows;

pub(super) use csv::CsvTable;
pub(super) use parquet::{ParquetTable, is_guarded};
pub(super) use rows::Table;
