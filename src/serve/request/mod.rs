//! A request in the form that every protocol shares, before it becomes jobs of an engine.

pub(crate) mod chat;
pub(crate) mod embed;
pub(crate) mod input;
pub(crate) mod messages;
pub(crate) mod sampling;
pub(crate) mod tools;
