//! What mmx does with models besides training them: any model opened ([`open`]), run by an engine ([`engines`]),
//! compared ([`compare`], [`mod@verify`]), exported ([`export`]), quantized ([`mod@quantize`], [`imatrix`]), and what each
//! runtime will make of it ([`doctor`]).

pub mod blocks;
pub mod compare;
pub mod doctor;
pub mod engines;
pub mod export;
pub mod imatrix;
pub mod open;
pub mod quantize;
mod sample_text;
pub mod trainer;
pub mod verify;
