//! What a run says of its optimizer before its first step, where that is not the references'.

use mmx_converters::arch::Role;
use mmx_converters::progress::Listener;
use mmx_converters::words::counted;
use mmx_data::stages;

use crate::config::FAST;
use crate::model::Variable;
use crate::optim;
use crate::trainer::Trainer;

/// The line about an optimizer that is not the references', and one about a step too small for it.
pub fn announce(trainer: &Trainer<'_>, trainable: &[Variable], listener: &dyn Listener) {
    /// Muon's own work against the matrices' forward and backward: hidden 512 with steps of 16,384
    /// tokens has 0.125.
    const SMALL: f64 = 0.13;
    let (config, rates) = (trainer.config(), trainer.config().rates());
    if config.recipe == FAST && config.stage != stages::PRETRAIN.name {
        listener.say(&format!(
            "recipe fast: stage {} is as in 2026; muon was measured in pretraining, which takes it",
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
    let (total, active) = trainer.model().config().parameters();
    let as_much = optim::muon_tokens(trainable, total - active);
    let share = as_much / tokens as f64;
    if share > SMALL {
        let enough = (as_much / SMALL / 1000.0).ceil() * 1000.0;
        listener.warn(&format!(
            "a step has at most {tokens} tokens: muon's own work is about {:.0} % of forward and backward; \
             that is little from {enough} tokens a step on (`batch_size`, `accum`)",
            100.0 * share
        ));
    }
}
