//! The mixture of experts: router, tokens grouped by expert, and the balancing losses.
//!
//! Every assignment (token, expert) is one row. Rows are sorted by expert, each expert sees its own
//! rows only, and the results are put back: work grows with the experts chosen, not with those
//! there are. On the CPU one expert is computed after the other; on a device, where that would be a
//! wait in every layer to learn how many rows each has, all at once (`grouped.rs`).

use mmx_converters::arch::{AuxLoss, Family, Moe};
use tch::{Device, Kind, Tensor};

use super::ffn::Dense;
use super::grouped::{Form, Groups, Way, occurrences};
use super::linear::Parts;
use super::samples::Samples;
use super::variable::{Torch, wide};
use crate::error::Result;

/// What a layer has to say about the balance of its experts, in training.
#[derive(Debug)]
pub(super) enum Balance {
    /// Its balancing loss, a float32 scalar: the mean over the sequences that were seen.
    Loss(Tensor),
    /// Where tokens of other processes count too: how often each expert was chosen and the sum of
    /// its scores, `[2, experts]`, from which [`loss_of_statistics`] makes the loss.
    Statistics(Tensor),
}

/// True of a balancing loss whose value is no mean over sequences, so that it cannot be computed
/// from parts of a batch one by one.
pub(super) fn is_of_whole_batch(aux_loss: AuxLoss) -> bool {
    match aux_loss {
        AuxLoss::PerSequence { .. } => false,
        AuxLoss::PerBatch { .. } | AuxLoss::Switch { .. } => true,
    }
}

/// The balancing loss of all layers, from `counts` of the whole batch and the `sums` of scores of
/// some of its tokens, `[layers, experts]` each: over the processes it adds up to the whole batch's.
/// `positions`: tokens of the whole batch.
pub(super) fn loss_of_statistics(
    moe: &Moe,
    counts: &Tensor,
    sums: &Tensor,
    positions: usize,
) -> Torch<Tensor> {
    let coefficient = match moe.aux_loss {
        AuxLoss::PerSequence { alpha } | AuxLoss::PerBatch { alpha } => {
            alpha / moe.num_experts_per_tok as f64
        }
        AuxLoss::Switch { coefficient } => coefficient,
    };
    let scale = coefficient * moe.num_experts as f64 / (positions.max(1) as f64).powi(2);
    counts.f_mul(sums)?.f_sum(sums.kind())?.f_mul_scalar(scale)
}

/// One layer's mixture of experts.
#[derive(Debug)]
pub(super) struct MoeLayer {
    /// `[experts, hidden]`
    router: Tensor,
    experts: Vec<Dense>,
    /// Experts that see every token, their outputs added unweighted (MiniMind2).
    shared: Vec<Dense>,
    top_k: i64,
    /// The chosen weights are divided by their sum.
    normalize: bool,
    aux_loss: AuxLoss,
}

impl MoeLayer {
    pub(super) fn new(family: Family, moe: &Moe, parts: &Parts<'_>, base: &str) -> Result<Self> {
        let expert = |kind: &str, i: usize| Dense::new(parts, &format!("{base}.{kind}.{i}"));
        Ok(Self {
            router: parts.tensor(&format!("{base}.gate"))?,
            experts: (0..moe.num_experts).map(|i| expert("experts", i)).collect::<Result<_>>()?,
            shared: (0..moe.shared_experts)
                .map(|i| expert("shared_experts", i))
                .collect::<Result<_>>()?,
            top_k: moe.num_experts_per_tok as i64,
            normalize: family.normalizes(moe),
            aux_loss: moe.aux_loss,
        })
    }

    /// `[batch, seq, hidden]` to the same; in training also the balance. `share`: the batch is a
    /// share of a larger one.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        train: bool,
        samples: Option<&Samples>,
        share: bool,
    ) -> Torch<(Tensor, Option<Balance>)> {
        let (batch, seq, hidden) = x.size3()?;
        let wide = wide(x.kind());
        let tokens = x.f_reshape([batch * seq, hidden])?;
        // [tokens, hidden] -> [tokens, experts]; float32 also when the rest is bfloat16: a router's
        // ties are decided by its last bits
        let scores =
            tokens.f_to_kind(wide)?.f_linear(&self.router, None::<Tensor>)?.f_softmax(-1, wide)?;
        // [tokens, experts] -> [tokens, k] twice
        let (mut weights, chosen) = scores.f_topk(self.top_k, -1, true, true)?;
        if self.normalize {
            let sum = weights.f_sum_dim_intlist(-1, true, wide)?.f_add_scalar(1e-20)?;
            weights = weights.f_div(&sum)?;
        }
        let mut out = match self.way(tokens.device(), tokens.kind())? {
            Way::OneByOne => self.one_by_one(&tokens, &weights, &chosen)?,
            Way::Grouped(form) => self.grouped(&tokens, &weights, &chosen, form)?,
        };
        for shared in &self.shared {
            out = out.f_add(&shared.forward(&tokens)?)?;
        }
        let balance = match (train, samples) {
            (false, _) => None,
            (true, _) if share && is_of_whole_batch(self.aux_loss) => {
                Some(Balance::Statistics(self.statistics(&scores, &chosen)?))
            }
            (true, None) => Some(Balance::Loss(self.aux(&scores, &chosen, batch, seq)?)),
            (true, Some(samples)) => {
                Some(Balance::Loss(self.aux_of_samples(&scores, &chosen, samples)?))
            }
        };
        Ok((out.f_view([batch, seq, hidden])?, balance))
    }

    fn way(&self, device: Device, kind: Kind) -> Torch<Way> {
        let Some(first) = self.experts.first() else { return Ok(Way::OneByOne) };
        let adapted = first.adapted();
        if self.experts.iter().any(|expert| expert.adapted() != adapted) {
            return Ok(Way::OneByOne); // adapters of a file may be beside some experts only
        }
        let any = adapted.contains(&true);
        Ok(Way::of(device, kind, first.sizes()?, any))
    }

    /// The same as [`MoeLayer::one_by_one`], without a shape that depends on `chosen`.
    fn grouped(
        &self,
        tokens: &Tensor,
        weights: &Tensor,
        chosen: &Tensor,
        form: Form,
    ) -> Torch<Tensor> {
        let groups = Groups::new(chosen, self.experts.len() as i64, form, tokens.kind())?;
        let outputs = Dense::grouped(&groups.gather(tokens)?, &self.experts, &groups)?;
        let outputs = groups.give_back(&outputs)?; // [tokens, k, hidden]
        outputs.f_mul(&weights.f_unsqueeze(-1)?)?.f_sum_dim_intlist(1, false, weights.kind())
    }

    /// `tokens [tokens, hidden]`, `weights` and `chosen [tokens, k]` to `[tokens, hidden]`,
    /// float32.
    fn one_by_one(&self, tokens: &Tensor, weights: &Tensor, chosen: &Tensor) -> Torch<Tensor> {
        let (count, hidden) = tokens.size2()?;
        let assigned = chosen.f_reshape([-1])?; // [tokens * k]
        // stable: rows of one expert stay in token order, so sums come out the same every time
        let order = assigned.f_argsort_stable(true, 0, false)?;
        let rows_per_expert: Vec<i64> =
            Vec::try_from(occurrences(&assigned, self.experts.len() as i64)?)?;
        let of_token = if self.top_k == 1 {
            order.shallow_clone()
        } else {
            order.f_floor_divide_scalar(self.top_k)?
        };
        let rows = tokens.f_index_select(0, &of_token)?; // [tokens * k, hidden]
        let mut outputs = Vec::with_capacity(self.experts.len());
        let mut start = 0;
        for (expert, &rows_here) in self.experts.iter().zip(&rows_per_expert) {
            if rows_here > 0 {
                outputs.push(expert.forward(&rows.f_narrow(0, start, rows_here)?)?);
            }
            start += rows_here;
        }
        let back = order.f_argsort(0, false)?;
        // [tokens * k, hidden], sorted by expert -> [tokens, k, hidden]
        let outputs = Tensor::f_cat(&outputs, 0)?
            .f_index_select(0, &back)?
            .f_view([count, self.top_k, hidden])?;
        outputs.f_mul(&weights.f_unsqueeze(-1)?)?.f_sum_dim_intlist(1, false, weights.kind())
    }

    /// See [`Balance::Statistics`]. `scores [tokens, experts]`, `chosen [tokens, k]`.
    fn statistics(&self, scores: &Tensor, chosen: &Tensor) -> Torch<Tensor> {
        let counts = occurrences(&chosen.f_reshape([-1])?, self.experts.len() as i64)?
            .f_to_kind(scores.kind())?;
        let sums = scores.f_sum_dim_intlist(0, false, scores.kind())?;
        Tensor::f_stack(&[counts, sums], 0) // [2, experts]
    }

    /// The balancing loss, a float32 scalar. Source: docs/models.md, mixture of experts.
    ///
    /// `scores [tokens, experts]`, `chosen [tokens, k]`.
    fn aux(&self, scores: &Tensor, chosen: &Tensor, batch: i64, seq: i64) -> Torch<Tensor> {
        let experts = self.experts.len() as i64;
        // how often each expert was chosen, `[groups, experts]`
        let counts = |groups: i64| -> Torch<Tensor> {
            let chosen = chosen.f_view([groups, -1])?;
            let ones = chosen.f_ones_like()?.f_to_kind(scores.kind())?;
            Tensor::f_zeros([groups, experts], (scores.kind(), scores.device()))?
                .f_scatter_add(1, &chosen, &ones)
        };
        let mean_scores =
            |groups: i64| scores.f_view([groups, -1, experts])?.f_mean_dim(1, false, scores.kind());
        let (groups, coefficient) = match self.aux_loss {
            // f_e = times chosen / (tokens * k / experts), per sequence
            AuxLoss::PerSequence { alpha } => {
                (batch, alpha * experts as f64 / (seq * self.top_k) as f64)
            }
            // the same over the whole batch
            AuxLoss::PerBatch { alpha } => {
                (1, alpha * experts as f64 / (batch * seq * self.top_k) as f64)
            }
            // load_e = times chosen / tokens: with top-k it sums to k
            AuxLoss::Switch { coefficient } => {
                (1, coefficient * experts as f64 / (batch * seq) as f64)
            }
        };
        counts(groups)?
            .f_mul(&mean_scores(groups)?)?
            .f_sum(scores.kind())?
            .f_mul_scalar(coefficient / groups as f64)
    }

    /// The balancing loss where samples share a row: each sample counts as a sequence.
    fn aux_of_samples(&self, scores: &Tensor, chosen: &Tensor, samples: &Samples) -> Torch<Tensor> {
        let (experts, kind) = (self.experts.len() as i64, scores.kind());
        // group of each token: its sample, or one for all
        let all: i64 = samples.lengths().iter().sum();
        let filled = |size: [i64; 1], value: i64| {
            Tensor::f_full(size, value, (Kind::Int64, scores.device()))
        };
        let (groups, of_token, tokens) = match self.aux_loss {
            AuxLoss::PerSequence { .. } => {
                let (owners, lengths) = samples.owners()?;
                (samples.lengths().len() as i64, owners.shallow_clone(), lengths.shallow_clone())
            }
            AuxLoss::PerBatch { .. } | AuxLoss::Switch { .. } => {
                (1, filled([all], 0)?, filled([1], all)?)
            }
        };
        let tokens = tokens.f_to_kind(kind)?.f_unsqueeze(1)?; // [groups, 1]
        let cell = of_token.f_unsqueeze(1)?.f_mul_scalar(experts)?.f_add(chosen)?; // [tokens, k]
        let counts = occurrences(&cell.f_reshape([-1])?, groups * experts)?
            .f_view([groups, experts])?
            .f_to_kind(kind)?;
        let sums = Tensor::f_zeros([groups, experts], (kind, scores.device()))?
            .f_index_add(0, &of_token, scores)?;
        // f_e or load_e, and mean scores: as in `aux`
        let coefficient = match self.aux_loss {
            AuxLoss::PerSequence { alpha } | AuxLoss::PerBatch { alpha } => {
                alpha * experts as f64 / self.top_k as f64
            }
            AuxLoss::Switch { coefficient } => coefficient * experts as f64,
        };
        counts
            .f_mul(&sums)?
            .f_div(&tokens.f_square()?)?
            .f_sum(kind)?
            .f_mul_scalar(coefficient / groups.max(1) as f64)
    }
}

#[cfg(test)]
mod tests {
    use mmx_converters::arch::{Config, presets};

    use super::*;
    use crate::kernel::testing::{close, random};
    use crate::model::{Lora, Model, Target, Variable};

    const EXPERTS: i64 = 4;

    /// A preset's mixture at hidden 16 and a feed-forward width of 24, and what of it is trained.
    fn mixture(preset: &str, kind: Kind, rank: Option<usize>) -> (MoeLayer, Vec<Variable>, i64) {
        let mut config: Config = presets::preset(preset).expect("a preset");
        (config.hidden_size, config.num_hidden_layers, config.vocab_size) = (16, 1, 40);
        (config.num_attention_heads, config.num_key_value_heads, config.head_dim) = (4, 2, 4);
        let moe = config.moe.as_mut().expect("a mixture");
        (moe.intermediate_size, moe.num_experts) = (24, EXPERTS as usize);
        let model = Model::random(&config, 1, Device::Cpu, kind).expect("a model");
        let lora = rank.map(|rank| {
            Lora::random(&config, &Target::All, (rank, 2.0 * rank as f64), 2, Device::Cpu)
                .expect("adapters")
        });
        if let Some(lora) = &lora {
            for (i, variable) in lora.variables().iter().enumerate() {
                let values = random(&variable.tensor.size(), i as i64);
                tch::no_grad(|| variable.tensor.shallow_clone().copy_(&values));
            }
        }
        let all = lora.as_ref().map_or(model.variables(), Lora::variables);
        let trained = all.iter().filter(|v| v.name.contains(".mlp.experts.")).map(Variable::share);
        let (family, parts) = (config.family, Parts(model.variables(), lora.as_ref()));
        let moe = config.moe.as_ref().expect("a mixture");
        let base = "model.layers.0.mlp";
        let layer = MoeLayer::new(family, moe, &parts, base).expect("a layer");
        (layer, trained.collect(), moe.num_experts_per_tok as i64)
    }

    /// The output, and the gradients of tokens, weights and experts: zero where there are none.
    fn outcome(
        layer: &MoeLayer,
        trained: &[Variable],
        (tokens, weights, chosen): (&Tensor, &Tensor, &Tensor),
        way: Way,
    ) -> Vec<Tensor> {
        let leaf = |t: &Tensor| t.detach().copy().set_requires_grad(true);
        let (tokens, weights) = (leaf(tokens), leaf(weights));
        let out = match way {
            Way::OneByOne => layer.one_by_one(&tokens, &weights, chosen),
            Way::Grouped(form) => layer.grouped(&tokens, &weights, chosen, form),
        };
        let out = out.expect("an output");
        let loss = (&out * random(&out.size(), 9).to_kind(out.kind())).sum(out.kind());
        let mut leaves = vec![&tokens, &weights];
        leaves.extend(trained.iter().map(|variable| &variable.tensor));
        let gradients = Tensor::run_backward(&[loss], &leaves, false, false);
        let mut all = vec![out.detach()];
        all.extend(gradients.into_iter().zip(leaves).map(|(gradient, leaf)| {
            if gradient.defined() { gradient } else { leaf.zeros_like().detach() }
        }));
        all
    }

    #[test]
    fn grouped_experts_give_what_one_after_the_other_gives() {
        // largest differences: float64 and float32 sum in another order; in bfloat16 each sum is
        // rounded to 8 bits, and a tile's before they are added up
        let kinds = [(Kind::Double, 1e-13), (Kind::Float, 2e-6), (Kind::BFloat16, 3e-2)];
        let presets = ["minimind2-moe", "minimind3-moe"];
        for (preset, rank) in
            presets.into_iter().flat_map(|preset| [(preset, None), (preset, Some(3))])
        {
            for (kind, tolerance) in kinds {
                let (layer, trained, top_k) = mixture(preset, kind, rank);
                assert!(trained.len() >= 3 * EXPERTS as usize, "{preset}");
                for (tokens, spread) in [(37, EXPERTS), (37, 1), (64, 2), (1, EXPERTS)] {
                    // with a spread of 1 all tokens choose the same experts, the others have none
                    let chosen: Vec<i64> = (0..tokens * top_k)
                        .map(|i| ((i / top_k * i / top_k) % spread + i % top_k + 1) % EXPERTS)
                        .collect();
                    let chosen = Tensor::from_slice(&chosen).view([tokens, top_k]);
                    let x = random(&[tokens, 16], 3).to_kind(kind);
                    let weights = random(&[tokens, top_k], 4).to_kind(super::wide(kind));
                    let given = (&x, &weights, &chosen);
                    let expected = outcome(&layer, &trained, given, Way::OneByOne);
                    let mut forms = vec![Form::Tiles];
                    // libtorch's kernel has no float64, and rows of a multiple of 16 bytes only
                    if kind != Kind::Double && rank.is_none() {
                        forms.push(Form::Kernel);
                    }
                    for form in forms {
                        let found = outcome(&layer, &trained, given, Way::Grouped(form));
                        close(&found, &expected, tolerance);
                    }
                }
            }
        }
    }

    #[test]
    fn adapters_beside_some_experts_only_are_computed_one_by_one() {
        let (mut layer, ..) = mixture("minimind3-moe", Kind::Float, None);
        let way = |layer: &MoeLayer| layer.way(Device::Cuda(0), Kind::Float).expect("a way");
        assert_eq!(way(&layer), Way::Grouped(Form::Tiles));
        let (adapted, ..) = mixture("minimind3-moe", Kind::Float, Some(2));
        layer.experts.truncate(2);
        layer.experts.extend(adapted.experts.into_iter().take(2));
        assert_ne!(layer.experts[0].adapted(), layer.experts[3].adapted());
        assert_eq!(way(&layer), Way::OneByOne);
    }
}
