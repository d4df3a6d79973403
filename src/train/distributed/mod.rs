//! Many processes that train one model: who they are, how they meet, sums over all of them.
//!
//! In: the variables of a launcher ([`Place`]). Out: a [`Group`], with which a rank adds up tensors
//! over all ranks. Tensors go over libtorch's own engine (c10d, gloo between CPUs); beside it every
//! rank keeps a connection to rank 0's `hub`, so that whoever is killed, hangs or fails is
//! named to all others at once.
//!
//! | file | what it holds |
//! |---|---|
//! | `place` | RANK and the like, of torchrun, mpirun, srun, to a [`Place`] |
//! | `group` | [`connect`], the [`Group`] and its operations |
//! | `hub`, `watch`, `line` | the connection beside the tensors: who is there, who failed, barriers |
//! | `bridge`, `c10d.cpp`, `gloo_types/` | calls into libtorch |

mod bridge;
mod group;
mod hub;
mod line;
mod place;
mod watch;

pub use group::{Group, Pending, TIMEOUT, connect};
pub use place::Place;
