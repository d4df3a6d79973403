//! The training stages: each says what is learned from a batch. Everything else (order,
//! accumulation, clipping, the optimizer, logs, checkpoints) is the one loop in [`crate::trainer`].
//!
//! In: a [`Batch`](mmx_data::Batch). Out: a [`Loss`]: the scalar whose gradient is taken, and its
//! parts by name.

mod distill;
mod dpo;
#[cfg(test)]
mod gradients;
mod interface;
mod language_model;
mod lora;
mod policy;
mod ppo;
mod pretrain;
mod reason;
mod sft;
mod sums;

pub use distill::Distill;
pub use dpo::Dpo;
pub(crate) use interface::TIMES;
pub use interface::{Learn, Loss, Part, Setup, Stage};
pub use lora::Lora;
pub use policy::Policy;
pub use ppo::Ppo;
pub use pretrain::Pretrain;
pub use reason::Reason;
pub use sft::Sft;

use mmx_data::stages;

pub use crate::config::Defaults;
use crate::error::{Error, Result};

/// The stage of a name.
///
/// # Errors
/// An unknown name.
pub fn by_name(name: &str) -> Result<Box<dyn Stage>> {
    match name {
        "distill" => Ok(Box::new(Distill::default())),
        "dpo" => Ok(Box::new(Dpo::default())),
        "lora" => Ok(Box::new(Lora)),
        "pretrain" => Ok(Box::new(Pretrain)),
        "reason" => Ok(Box::new(Reason::default())),
        "sft" => Ok(Box::new(Sft)),
        "grpo" => Ok(Box::new(Policy::new(&stages::GRPO))),
        "cispo" => Ok(Box::new(Policy::new(&stages::CISPO))),
        "agent" => Ok(Box::new(Policy::new(&stages::AGENT))),
        "ppo" => Ok(Box::new(Ppo::default())),
        other => {
            let names = stages::STAGES.map(|stage| stage.name);
            let expected = match names.split_last() {
                Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
                None => String::new(),
            };
            Err(Error::setting("stage", expected, other))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_of_the_list_is_there_and_an_unknown_one_is_refused_with_all_names() {
        for info in stages::STAGES {
            assert_eq!(by_name(info.name).expect("a stage").info(), info);
        }
        let error = by_name("a2c").err().expect("an error").to_string();
        assert!(
            error.contains("pretrain, sft, lora, dpo, distill, reason, grpo, cispo, ppo or agent"),
            "{error}"
        );
    }
}
