//! The one list of training stages: what the programs offer, and what data each stage reads.
//!
//! Adding a stage takes a constant here with its row in [`STAGES`], and its file in the training
//! crate.

use mmx_converters::Result;
use mmx_converters::tokenizer::Tokenizer;

use crate::record::Kind;

/// One stage of training: its name, its data, and a sentence of help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageInfo {
    /// The name on the command line and in a run's configuration.
    pub name: &'static str,
    /// What its data files hold.
    pub kind: Kind,
    /// Samples are cut to this many tokens where nothing else is said. Source: the reference's
    /// training scripts, see docs/stages.md.
    pub max_seq_len: usize,
    /// What a model learns in it, as the help says it.
    pub help: &'static str,
}

/// Pretraining.
pub static PRETRAIN: StageInfo = StageInfo {
    name: "pretrain",
    kind: Kind::Text,
    max_seq_len: 512,
    help: "Next token of plain text, from scratch",
};

/// Supervised fine-tuning.
pub static SFT: StageInfo = StageInfo {
    name: "sft",
    kind: Kind::Chat,
    max_seq_len: 512,
    help: "The assistant's turns of chats",
};

/// Low-rank adaptation.
pub static LORA: StageInfo = StageInfo {
    name: "lora",
    kind: Kind::Chat,
    max_seq_len: 512,
    help: "The assistant's turns of chats, in low-rank adapters beside fixed weights",
};

/// Direct preference optimization.
pub static DPO: StageInfo = StageInfo {
    name: "dpo",
    kind: Kind::Preference,
    max_seq_len: 1024,
    help: "Chosen answers against rejected ones",
};

/// White-box distillation.
pub static DISTILL: StageInfo = StageInfo {
    name: "distill",
    kind: Kind::Chat,
    max_seq_len: 512,
    help: "A teacher's distribution as well as the answers",
};

/// Fine-tuning on answers that think first.
pub static REASON: StageInfo = StageInfo {
    name: "reason",
    kind: Kind::Chat,
    max_seq_len: 1024,
    help: "Answers that think first, their tags weighing tenfold",
};

/// Learning from rewards that are compared within groups.
pub static GRPO: StageInfo = StageInfo {
    name: "grpo",
    kind: Kind::Chat,
    max_seq_len: 1792,
    help: "Rewards of sampled answers, compared within groups of one prompt",
};

/// The same with weights that are cut instead of ratios that are clipped.
pub static CISPO: StageInfo = StageInfo {
    name: "cispo",
    kind: Kind::Chat,
    max_seq_len: 1792,
    help: "As grpo, with cut weights instead of clipped ratios",
};

/// Proximal policy optimization with a critic.
pub static PPO: StageInfo = StageInfo {
    name: "ppo",
    kind: Kind::Chat,
    max_seq_len: 1792,
    help: "Rewards of sampled answers, measured from what a critic expects",
};

/// Learning from rewards over several turns with tools.
pub static AGENT: StageInfo = StageInfo {
    name: "agent",
    kind: Kind::Chat,
    max_seq_len: 2500,
    help: "Rewards of whole conversations in which tools are called",
};

/// Every stage, in the order in which the help shows them.
pub static STAGES: [&StageInfo; 10] =
    [&PRETRAIN, &SFT, &LORA, &DPO, &DISTILL, &REASON, &GRPO, &CISPO, &PPO, &AGENT];

/// Whether a stage learns from rewards of what the model itself samples.
#[must_use]
pub fn learns_from_rewards(name: &str) -> bool {
    [&GRPO, &CISPO, &PPO, &AGENT].into_iter().any(|stage| stage.name == name)
}

/// The stage of a name, if there is one.
#[must_use]
pub fn stage(name: &str) -> Option<&'static StageInfo> {
    STAGES.into_iter().find(|stage| stage.name == name)
}

/// The ids that the reasoning stage weighs tenfold: those of `<think>`, `</think>`, `<answer>` and
/// `</answer>`, sorted, each once.
///
/// # Errors
/// The tokenizer's own.
pub fn reason_tag_ids(tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for tag in ["<think>", "</think>", "<answer>", "</answer>"] {
        ids.extend(tokenizer.encode(tag)?);
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_is_found_by_its_name() {
        for info in STAGES {
            assert_eq!(stage(info.name), Some(info));
        }
        assert_eq!(stage("a2c"), None);
    }
}
