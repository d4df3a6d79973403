//! Rewards to advantages, on the host: a few numbers per row.

use super::options::Baseline;

/// What is added to a standard deviation before it divides. Source: the reference's train_grpo, TRL.
const STD_EPS: f64 = 1e-4;
/// What is added to a variance before its root divides. Source: the reference's train_ppo.
const WHITENING_EPS: f64 = 1e-8;

/// Each reward minus its group's mean, over a standard deviation of 1/n. A group of equal rewards
/// gives 0: of such rewards a rounded mean would make noise.
#[must_use]
pub fn of_groups(rewards: &[f64], groups: &[u64], scale: Baseline) -> Vec<f64> {
    let of_batch = deviation(rewards);
    let advantage = |(&reward, &group): (&f64, &u64)| {
        let own: Vec<f64> =
            rewards.iter().zip(groups).filter(|(_, of)| **of == group).map(|(r, _)| *r).collect();
        if own.iter().all(|of| *of == own[0]) {
            return 0.0;
        }
        let mean = own.iter().sum::<f64>() / own.len() as f64;
        let scale = match scale {
            Baseline::Group => deviation(&own) + STD_EPS,
            Baseline::Batch => of_batch + STD_EPS,
            Baseline::None => 1.0,
        };
        (reward - mean) / scale
    };
    rewards.iter().zip(groups).map(advantage).collect()
}

/// The share of groups whose rewards are all equal: nothing is learned from them.
#[must_use]
pub fn without_signal(rewards: &[f64], groups: &[u64]) -> f64 {
    let mut seen: Vec<(u64, f64, bool)> = Vec::new();
    for (&reward, &group) in rewards.iter().zip(groups) {
        match seen.iter_mut().find(|(of, ..)| *of == group) {
            Some((_, first, equal)) => *equal &= *first == reward,
            None => seen.push((group, reward, true)),
        }
    }
    let equal = seen.iter().filter(|(.., equal)| *equal).count();
    equal as f64 / seen.len().max(1) as f64
}

/// The standard deviation, by 1/n.
#[must_use]
pub fn deviation(values: &[f64]) -> f64 {
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    (values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / count).sqrt()
}

/// Advantages and returns of one row from the rewards of its tokens and the values that a critic gave
/// before each. Past the end the value is 0, also of a row that was cut off.
///
/// Source: Schulman et al. 2016, eq. 16: delta_t = reward_t + gamma V_(t+1) - V_t, A_t = delta_t +
/// gamma lambda A_(t+1); a return is A + V.
#[must_use]
pub fn generalized(
    values: &[f64],
    rewards: &[f64],
    gamma: f64,
    lambda: f64,
) -> (Vec<f64>, Vec<f64>) {
    let mut advantages = vec![0.0; values.len()];
    let (mut later, mut next) = (0.0, 0.0);
    for (t, (&value, &here)) in values.iter().zip(rewards).enumerate().rev() {
        later = here + gamma * next - value + gamma * lambda * later;
        (advantages[t], next) = (later, value);
    }
    let returns = advantages.iter().zip(values).map(|(a, v)| a + v).collect();
    (advantages, returns)
}

/// The rewards of a row's tokens where its own comes with the last one, less `kl_coef` times what each
/// token shows of the divergence from the reference.
#[must_use]
pub fn of_tokens(reward: f64, logps: &[f32], reference: &[f32], kl_coef: f64) -> Vec<f64> {
    let divergence = |(policy, reference): (&f32, &f32)| f64::from(*policy) - f64::from(*reference);
    let mut rewards: Vec<f64> =
        logps.iter().zip(reference).map(|both| -kl_coef * divergence(both)).collect();
    if let Some(last) = rewards.last_mut() {
        *last += reward;
    }
    rewards
}

/// Makes the mean 0 and the variance, by 1/n, 1.
pub fn whiten(values: &mut [f64]) {
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    let variance = deviation(values).powi(2);
    values.iter_mut().for_each(|v| *v = (*v - mean) / (variance + WHITENING_EPS).sqrt());
}

/// The adaptive baseline of loss spo: what reward is expected, from how often it came, forgetting
/// faster the more the policy changed.
///
/// Source: Single-stream Policy Optimization, Xu and Ding 2025, as the reference had it from
/// 2025-10 to 2026-03.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tracker {
    /// Successes counted.
    pub alpha: f64,
    /// Failures counted.
    pub beta: f64,
    /// The mean log-probability of the step before.
    pub mean_logprob: Option<f64>,
}

impl Default for Tracker {
    fn default() -> Self {
        Self { alpha: 1.0, beta: 1.0, mean_logprob: None }
    }
}

impl Tracker {
    /// The largest size of a reward.
    const SCALE: f64 = 3.0;

    /// The reward that is expected, from 0 to 1.
    #[must_use]
    pub fn expected(&self) -> f64 {
        self.alpha / (self.alpha + self.beta)
    }

    /// The reward that is expected, as rewards are.
    #[must_use]
    pub fn baseline(&self) -> f64 {
        self.expected() * 2.0 * Self::SCALE - Self::SCALE
    }

    /// The advantage of each reward: its difference from the expected one, within 5.
    #[must_use]
    pub fn advantages(&self, rewards: &[f64]) -> Vec<f64> {
        let baseline = self.baseline();
        rewards.iter().map(|reward| (reward - baseline).clamp(-5.0, 5.0)).collect()
    }

    /// Counts a step's rewards, whose tokens had `mean_logprob`; returns what was kept of before.
    pub fn count(&mut self, rewards: &[f64], mean_logprob: f64) -> f64 {
        let keep = match self.mean_logprob {
            None => 0.9,
            Some(before) => 2f64.powf(-(mean_logprob - before).abs() / 0.06).clamp(0.5, 0.96),
        };
        let share = |reward: &f64| (reward + Self::SCALE) / (2.0 * Self::SCALE);
        let x = rewards.iter().map(share).sum::<f64>() / rewards.len().max(1) as f64;
        self.alpha = keep * self.alpha + x;
        self.beta = keep * self.beta + 1.0 - x;
        self.mean_logprob = Some(mean_logprob);
        keep
    }

    /// The state as whole numbers below 2^16, four to a number: float32 holds them, so that a
    /// checkpoint does.
    #[must_use]
    pub fn to_floats(&self) -> Vec<f32> {
        let parts = |value: f64| {
            let bits = value.to_bits();
            [48, 32, 16, 0].map(|shift| f32::from((bits >> shift) as u16))
        };
        let before = self.mean_logprob.unwrap_or(f64::NAN);
        [self.alpha, self.beta, before].map(parts).concat()
    }

    /// The state of [`Tracker::to_floats`]; nothing of other numbers.
    #[must_use]
    pub fn from_floats(floats: &[f32]) -> Option<Self> {
        let value = |parts: &[f32]| {
            f64::from_bits(parts.iter().fold(0, |bits, &part| bits << 16 | u64::from(part as u16)))
        };
        let values: Vec<f64> = floats.chunks_exact(4).map(value).collect();
        let [alpha, beta, before] = values[..] else { return None };
        let mean_logprob = Some(before).filter(|before| !before.is_nan());
        (alpha + beta > 0.0).then_some(Self { alpha, beta, mean_logprob })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_of_equal_rewards_gives_nothing_whatever_it_is_divided_by() {
        let rewards = [0.1, 0.1, 0.1, 1.0, 0.0];
        let groups = [4, 4, 4, 9, 9];
        for scale in [Baseline::Group, Baseline::Batch, Baseline::None] {
            let found = of_groups(&rewards, &groups, scale);
            assert_eq!(found[..3], [0.0; 3], "{scale:?}");
            assert!(found[3] > 0.0 && found[4] == -found[3], "{scale:?}: {found:?}");
        }
        let found = of_groups(&rewards, &groups, Baseline::Group);
        assert!((found[3] - 0.5 / (0.5 + 1e-4)).abs() < 1e-15, "{found:?}");
        assert_eq!(without_signal(&rewards, &groups), 0.5);
    }

    /// The sums written out: A_t = sum over k of (gamma lambda)^k delta_(t+k).
    #[test]
    fn generalized_advantages_are_the_sums_of_later_errors() {
        let (values, rewards) = ([0.3, -0.2, 0.9, 0.4], [0.0, 0.25, -0.5, 1.5]);
        let (gamma, lambda) = (0.9, 0.8);
        let (advantages, returns) = generalized(&values, &rewards, gamma, lambda);
        let value = |t: usize| values.get(t).copied().unwrap_or(0.0);
        for t in 0..4 {
            let errors = (t..4).map(|s| {
                let delta = rewards[s] + gamma * value(s + 1) - value(s);
                (gamma * lambda).powi((s - t) as i32) * delta
            });
            let expected: f64 = errors.sum();
            assert!((advantages[t] - expected).abs() < 1e-12, "{t}");
            assert!((returns[t] - expected - values[t]).abs() < 1e-12, "{t}");
        }
        assert_eq!(generalized(&[], &[], 1.0, 1.0), (vec![], vec![]));
    }

    #[test]
    fn a_rows_reward_comes_with_its_last_token_and_each_pays_for_its_divergence() {
        let found = of_tokens(2.0, &[-1.0, -0.5, -2.0], &[-1.5, -0.5, -1.0], 0.5);
        assert_eq!(found, [-0.25, 0.0, 2.5]);
        assert_eq!(of_tokens(2.0, &[-1.0, -3.0], &[-2.0, -1.0], 0.0), [0.0, 2.0]);
        assert_eq!(of_tokens(2.0, &[], &[], 0.5), Vec::<f64>::new());
    }

    #[test]
    fn the_adaptive_baseline_is_the_same_bit_for_bit_after_a_checkpoint() {
        let mut tracker = Tracker::default();
        for _ in 0..3 {
            let read = Tracker::from_floats(&tracker.to_floats());
            assert_eq!(read, Some(tracker));
            tracker.count(&[0.1, -2.3, 0.7], -1.0 / 3.0);
        }
        assert_eq!(Tracker::from_floats(&[1.0; 11]), None);
    }
}
