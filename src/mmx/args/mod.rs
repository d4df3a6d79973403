//! Arguments that several commands share.

pub(crate) mod asking;
pub(crate) mod device;
pub(crate) mod ids;
pub(crate) mod kinds;
pub(crate) mod stages;
pub(crate) mod tools;
pub(crate) mod values;
