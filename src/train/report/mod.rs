//! The report of a run: its optimizer ([`optimizer`]), metrics and progress ([`log`]), continued
//! samples ([`samples`]), files for TensorBoard ([`tensorboard`]).

pub mod log;
pub mod optimizer;
pub mod samples;
pub mod tensorboard;
