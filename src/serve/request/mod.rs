//! A request as every protocol has it.

pub(crate) mod messages;
pub(crate) mod sampling;
