//! The losses of trained tokens as pure functions of their log-probabilities. Tokens lie flat,
//! `[n]`, with [`Rows`] saying whose they are.
//!
//! A function is given log-probabilities twice: with a gradient, and `fixed`, where a formula takes
//! them without one. Both are the same numbers; finite differences move the first alone.

use tch::{Kind, TchError, Tensor};

use super::options::{Mean, Objective, PolicyOptions, PpoOptions, Span};
use super::rows::Rows;

/// How soft SAPO's gate is for advantages above 0 and for others. Source: SAPO's tau, TRL's
/// defaults.
const SAPO_TAU: (f64, f64) = (1.0, 1.05);

/// What is known of trained tokens besides the policy's log-probabilities, each `[n]`.
#[derive(Debug)]
pub struct Tokens<'a> {
    /// Whose they are.
    pub rows: &'a Rows,
    /// Log-probabilities of the policy that the ratio is to.
    pub old: &'a Tensor,
    /// Of the reference; nothing where no divergence counts.
    pub reference: Option<&'a Tensor>,
    /// Advantages.
    pub advantages: &'a Tensor,
    /// Weights that correct for the engine.
    pub weights: Option<&'a Tensor>,
    /// Entropies of the distributions that the tokens are from.
    pub entropies: Option<&'a Tensor>,
    /// Those of all tokens of the batch, `[all]`, where these are some of them.
    pub all_entropies: Option<&'a Tensor>,
    /// The longest completion that is allowed.
    pub max_length: usize,
}

/// The divergence from the reference by its unbiased estimate exp(d) - d - 1, d = reference -
/// policy. Source: Schulman, "Approximating KL Divergence", 2020, k3.
///
/// # Errors
/// libtorch's.
pub fn divergence(logps: &Tensor, reference: &Tensor) -> Result<Tensor, TchError> {
    let difference = reference.f_sub(logps)?;
    difference.f_exp()?.f_sub(&difference)?.f_sub_scalar(1.0)
}

/// The ratio to the policy that sampled, of tokens or of their rows, `[n]`.
///
/// # Errors
/// libtorch's.
pub fn ratio(logps: &Tensor, tokens: &Tokens<'_>, span: Span) -> Result<Tensor, TchError> {
    let difference = logps.f_sub(tokens.old)?;
    match span {
        Span::Token => difference.f_exp(),
        Span::Sequence => tokens.rows.spread(&tokens.rows.means(&difference)?)?.f_exp(),
    }
}

/// The loss of groups' advantages, a scalar: objective, divergence and mean as the options say.
///
/// # Errors
/// libtorch's.
pub fn of_groups(
    logps: &Tensor,
    fixed: &Tensor,
    tokens: &Tokens<'_>,
    options: &PolicyOptions,
) -> Result<Tensor, TchError> {
    let advantages = tokens.advantages;
    let mut loss = match options.objective {
        Objective::Grpo => {
            let ratio = ratio(logps, tokens, options.span)?;
            let clipped = ratio.f_clamp(1.0 - options.epsilon, 1.0 + options.epsilon_high)?;
            let bounded = match options.delta {
                Some(delta) => ratio.f_clamp_max(delta)?,
                None => ratio,
            };
            let clipped = clipped.f_mul(advantages)?;
            bounded.f_mul(advantages)?.f_minimum(&clipped)?.f_neg()?
        }
        Objective::Cispo => {
            let weight = ratio(fixed, tokens, options.span)?.f_clamp_max(options.epsilon_high)?;
            weight.f_mul(advantages)?.f_mul(logps)?.f_neg()?
        }
        Objective::Reinforce => advantages.f_mul(logps)?.f_neg()?,
        Objective::Sapo => {
            let ratio = ratio(logps, tokens, options.span)?;
            let (of_good, of_bad) = SAPO_TAU;
            let good = advantages.f_gt(0.0)?.f_to_kind(advantages.kind())?;
            let tau = good.f_mul_scalar(of_good - of_bad)?.f_add_scalar(of_bad)?;
            let gate = ratio.f_sub_scalar(1.0)?.f_mul(&tau)?.f_sigmoid()?;
            gate.f_mul_scalar(4.0)?.f_div(&tau)?.f_mul(advantages)?.f_neg()?
        }
    };
    if let Some(bound) = options.off_policy {
        let moved = tokens.rows.means(&tokens.old.f_sub(fixed)?)?;
        let near = tokens.rows.spread(&moved.f_le(bound)?.f_to_kind(loss.kind())?)?;
        let good = advantages.f_ge(0.0)?.f_to_kind(loss.kind())?;
        loss = loss.f_mul(&near.f_maximum(&good)?)?;
    }
    if let (Some(entropies), true) = (tokens.entropies, options.top_entropy < 1.0) {
        let all = tokens.all_entropies.unwrap_or(entropies);
        let least =
            all.f_quantile_scalar(1.0 - options.top_entropy, None::<i64>, false, "linear")?;
        loss = loss.f_mul(&entropies.f_ge_tensor(&least)?.f_to_kind(loss.kind())?)?;
    }
    if let Some(weights) = tokens.weights {
        loss = loss.f_mul(weights)?;
    }
    if let (Some(reference), true) = (tokens.reference, options.kl_in_loss()) {
        loss = loss.f_add(&divergence(logps, reference)?.f_mul_scalar(options.kl_coef)?)?;
    }
    let loss = mean(&loss, tokens, options.mean)?;
    match tokens.entropies {
        Some(entropies) if options.entropy_coef != 0.0 => {
            let mean = tokens.rows.mean(entropies)?;
            loss.f_sub(&mean.f_mul_scalar(options.entropy_coef)?)
        }
        _ => Ok(loss),
    }
}

/// Tokens' losses `[n]` to one number.
fn mean(loss: &Tensor, tokens: &Tokens<'_>, mean: Mean) -> Result<Tensor, TchError> {
    let (rows, sum) = (tokens.rows, |of: &Tensor| of.f_sum(of.kind()));
    match mean {
        Mean::Rows => sum(&rows.means(loss)?)?.f_div_scalar(rows.counted() as f64),
        Mean::Tokens => rows.mean(loss),
        Mean::MaxLength => sum(loss)?.f_div_scalar((rows.counted() * tokens.max_length) as f64),
        Mean::SumOfRows => sum(loss)?.f_div_scalar(rows.counted() as f64),
    }
}

/// The policy's loss of stage ppo, a scalar: max(-A r, -A clip(r)) plus the divergence, the mean
/// over tokens.
///
/// # Errors
/// libtorch's.
pub fn of_policy(
    logps: &Tensor,
    tokens: &Tokens<'_>,
    options: &PolicyOptions,
) -> Result<Tensor, TchError> {
    let ratio = ratio(logps, tokens, Span::Token)?;
    let clipped = ratio.f_clamp(1.0 - options.epsilon, 1.0 + options.epsilon_high)?;
    let gain = ratio.f_mul(tokens.advantages)?.f_minimum(&clipped.f_mul(tokens.advantages)?)?;
    let mut loss = gain.f_neg()?;
    if let Some(weights) = tokens.weights {
        loss = loss.f_mul(weights)?;
    }
    if let (Some(reference), true) = (tokens.reference, options.kl_in_loss()) {
        loss = loss.f_add(&divergence(logps, reference)?.f_mul_scalar(options.kl_coef)?)?;
    }
    tokens.rows.mean(&loss)
}

/// The critic's loss of stage ppo, a scalar: half the mean of the larger of two squared errors,
/// one of them of values that are held near the ones before the update.
///
/// # Errors
/// libtorch's.
pub fn of_values(
    values: &Tensor,
    before: &Tensor,
    returns: &Tensor,
    rows: &Rows,
    options: &PpoOptions,
) -> Result<Tensor, TchError> {
    let clip = options.value_clip;
    let held = before.f_add(&values.f_sub(before)?.f_clamp(-clip, clip)?)?;
    let error = |of: &Tensor| of.f_sub(returns)?.f_square();
    let larger = error(values)?.f_maximum(&error(&held)?)?;
    rows.mean(&larger)?.f_mul_scalar(0.5)
}

/// Shares of tokens whose ratio is below and above the clip; of cispo above its cap.
///
/// # Errors
/// libtorch's.
pub fn clipped(
    ratio: &Tensor,
    rows: &Rows,
    options: &PolicyOptions,
) -> Result<[Tensor; 2], TchError> {
    let share = |of: Tensor| rows.mean(&of.f_to_kind(Kind::Float)?);
    let high = match options.objective {
        Objective::Cispo => options.epsilon_high,
        Objective::Grpo | Objective::Sapo | Objective::Reinforce => 1.0 + options.epsilon_high,
    };
    Ok([share(ratio.f_lt(1.0 - options.epsilon)?)?, share(ratio.f_gt(high)?)?])
}
