//! Which type each tensor of a quantized file gets ([`file_type`]), and importance matrices
//! ([`imatrix`]).

pub mod file_type;
pub mod imatrix;
