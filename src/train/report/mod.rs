//! What a run says and writes about itself: metrics and progress ([`log`]), continued samples ([`samples`]), files for
//! TensorBoard ([`tensorboard`]).

pub mod log;
pub mod samples;
pub mod tensorboard;
