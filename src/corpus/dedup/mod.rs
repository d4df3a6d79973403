//! Duplicates: exact ones, near ones by MinHash with locality-sensitive hashing, and records that
//! share sequences of words with evaluation files.
//!
//! Three steps, which one run does one after the other and which shards do apart: each record
//! becomes a signature ([`sign()`]), signatures become clusters ([`cluster()`]), records that are not the
//! first of their cluster are left out ([`Dedup::run`]). One run and N shards merged therefore give
//! the same records.
//!
//! Memory: 9 bytes for each record (its cluster), and at most [`SORTED_BYTES`] for sorting.
//! Signatures lie on disk, 16 bytes and 8 for each band for a record.
//!
//! Source: Broder, "On the resemblance and containment of documents" (1997); the banding of Leskovec,
//! Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4.

mod against;
mod clusters;
mod run;
mod sign;
mod store;

pub use against::{Against, SHORTEST};
pub use clusters::{Clusters, SORTED_BYTES, cluster};
pub use run::Dedup;
pub use sign::{Settings, Signature, Signer};
pub use store::{Signatures, sign};
