//! The programs that open what mmx writes: [`table`] says what each carries, [`check`](mod@check)
//! asks those that are installed in a Python for greedy text and compares it with the runner's.
//!
//! In: a model's forms, and a Python. Out: a row for each program and form.

pub mod check;
mod judge;
mod python;
pub mod table;
