//! The report of a run: metrics and progress ([`log`]), continued samples ([`samples`]), files for
//! TensorBoard ([`tensorboard`]).

pub mod log;
pub mod samples;
pub mod tensorboard;
