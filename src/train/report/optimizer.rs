//! What a run says of its optimizer before its first step, where that is not the references'.

use mmx_converters::arch::Role;
use mmx_converters::progress::Listener;
use mmx_converters::words::counted;

use crate::config::{FAST, OptimizerName};
use crate::model::Variable;
use crate::optim;
use crate::trainer::Trainer;

/// The line about an optimizer that is not the references', and one about a step too small for it.
pub fn announce(trainer: &Trainer<'_>, trainable: &[Variable], listener: &dyn Listener) {
    /// Muon's own work against the matrices' forward and backward: hidden 512 with steps of 16,384
    /// tokens has 0.125.
    const SMALL: f64 = 0.13;
    let (config, rates) = (trainer.config(), trainer.config().rates());
    if config.recipe == FAST && config.optimizer == OptimizerName::AdamW {
        listener.say(&format!(
            "optimizer: adamw; recipe fast takes muon for pretraining, where it was measured ({} is as \
             in 2026)",
            config.stage
        ));
    }
    let Some(muon) = config.optimizer().muon else { return };
    let hidden = trainable.iter().filter(|v| v.role.is_some_and(Role::is_hidden_matrix)).count();
    listener.say(&format!(
        "optimizer: muon for {hidden} hidden matrices (learning rate {}, weight decay {}), adamw for the \
         rest ({}); rising over {}",
        rates.muon,
        muon.weight_decay,
        rates.adamw,
        counted(trainer.schedule().warmup, "step"),
    ));
    let tokens = config.batch_size * config.accumulation * config.max_seq_len;
    let share = optim::muon_tokens(trainable) / tokens as f64;
    if share > SMALL {
        let enough = (optim::muon_tokens(trainable) / SMALL / 1000.0).ceil() * 1000.0;
        listener.warn(&format!(
            "a step has at most {tokens} tokens: muon's own work is about {:.0} % of forward and backward; \
             with `batch_size` times `accum` for {enough} tokens a step it is small",
            100.0 * share
        ));
    }
}
