//! The model families, a file each: its [`FamilySpec`](super::config::FamilySpec) and the functions
//! that it names.
//!
//! A new family is a file here and two lines below.

pub(super) mod minimind2;
pub(super) mod minimind2_moe;
pub(super) mod minimind3;
pub(super) mod minimind3_moe;

use super::config::Family;

impl Family {
    /// All families, in a fixed order.
    pub const ALL: [Self; 4] = [
        Self(&minimind2::SPEC),
        Self(&minimind2_moe::SPEC),
        Self(&minimind3::SPEC),
        Self(&minimind3_moe::SPEC),
    ];

    /// The family that `name` gives `found`, or what the names are, as `a, b, c or d`.
    pub(super) fn by(name: impl Fn(Self) -> &'static str, found: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|&family| name(family) == found).ok_or_else(|| {
            let names = Self::ALL.map(name);
            let (last, others) = names.split_last().unwrap_or((&"", &[]));
            format!("{} or {last}", others.join(", "))
        })
    }
}
