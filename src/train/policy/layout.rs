//! Rollouts to a batch: rows that follow one another without padding, or full rectangles.

use mmx_data::{Batch, Rewarded};
use mmx_rollout::{Finish, Rollout};

/// How rollouts become rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Ids of a row at most: of a longer one the last are kept.
    pub max_seq_len: usize,
    /// Rows are filled to the longest one with this id, which no loss learns but a balancing loss
    /// counts; nothing for rows one after the other.
    pub filler: Option<u32>,
    /// Rows that a limit cut off are not learned.
    pub mask_cut_off: bool,
}

impl Layout {
    /// The batch of some rollouts. `stale`: an older policy wrote them.
    ///
    /// # Shapes
    /// `[1, positions of all rows]`, one position per target; filled `[rows, longest]`, where the
    /// last position has no target.
    #[must_use]
    pub fn batch(&self, rollouts: &[Rollout], stale: bool) -> Batch {
        let mut batch = Batch::default();
        let mut rewarded = Rewarded { stale, ..Rewarded::default() };
        let longest = rollouts.iter().map(|of| self.kept(of)).max().unwrap_or_default();
        for rollout in rollouts {
            let all = rollout.prompt.len() + rollout.ids.len();
            let cut = all - self.kept(rollout);
            let cut_off = rollout.finish != Finish::Stop;
            let learned = !(cut_off && self.mask_cut_off);
            let id = |i: usize| match i.checked_sub(rollout.prompt.len()) {
                None => Some(rollout.prompt[i]),
                Some(i) => rollout.ids.get(i).copied(),
            };
            // a row without a target has a position all the same: every row has its place
            let positions = match self.filler {
                Some(_) => longest,
                None => (all - cut).saturating_sub(1).max(1),
            };
            let filler = self.filler.unwrap_or_default();
            for i in (cut..).take(positions) {
                batch.x.push(i64::from(id(i).unwrap_or(filler)));
                batch.y.push(i64::from(id(i + 1).unwrap_or(filler)));
                let at = (i + 1).checked_sub(rollout.prompt.len());
                let sampled = at.and_then(|at| rollout.sampled.get(at)).copied();
                let trained = learned && sampled.unwrap_or(false);
                batch.mask.push(if trained { 1.0 } else { 0.0 });
                let logp = at.and_then(|at| rollout.logps.get(at)).copied();
                rewarded.sampled.push(logp.unwrap_or(0.0));
            }
            if self.filler.is_none() {
                batch.packed.push(positions);
            }
            batch.lines.push((0, u32::try_from(rollout.sample + 1).unwrap_or(u32::MAX)));
            rewarded.rewards.push(rollout.reward);
            rewarded.groups.push(rollout.group);
            rewarded.cut_off.push(cut_off);
        }
        (batch.batch, batch.seq) = match self.filler {
            Some(_) => (rollouts.len(), longest),
            None => (usize::from(!batch.x.is_empty()), batch.x.len()),
        };
        rewarded.numbers = numbers(rollouts);
        Batch { rewarded: Some(rewarded), ..batch }
    }

    /// Ids of a rollout that are kept.
    fn kept(&self, rollout: &Rollout) -> usize {
        (rollout.prompt.len() + rollout.ids.len()).min(self.max_seq_len.max(2))
    }
}

/// Means over rollouts for the log: each part of the reward, and lengths.
fn numbers(rollouts: &[Rollout]) -> Vec<(String, f64)> {
    let rows = rollouts.len().max(1) as f64;
    let written = |of: &Rollout| of.sampled.iter().filter(|&&by| by).count() as f64;
    let lengths: Vec<f64> = rollouts.iter().map(written).collect();
    let longest = lengths.iter().copied().fold(0.0, f64::max);
    let mut numbers = vec![
        ("length".to_owned(), lengths.iter().sum::<f64>() / rows),
        ("length_max".to_owned(), longest),
    ];
    let mut parts: Vec<(String, f64)> = Vec::new();
    for (name, value) in rollouts.iter().flat_map(|of| &of.parts) {
        let name = format!("reward_{name}");
        match parts.iter_mut().find(|(of, _)| *of == name) {
            Some((_, sum)) => *sum += value / rows,
            None => parts.push((name, value / rows)),
        }
    }
    numbers.extend(parts);
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout() -> Rollout {
        Rollout {
            prompt: vec![10, 11, 12],
            ids: vec![20, 21, 22],
            sampled: vec![true, false, true],
            logps: vec![-1.0, 0.0, -2.0],
            finish: Finish::Stop,
            reward: 0.5,
            ..Rollout::default()
        }
    }

    #[test]
    fn a_row_has_a_position_per_target_and_what_was_sampled_is_learned() {
        let layout = Layout { max_seq_len: 100, filler: None, mask_cut_off: false };
        let batch = layout.batch(&[rollout(), rollout()], true);
        assert_eq!((batch.batch, batch.seq, &batch.packed[..]), (1, 10, &[5, 5][..]));
        assert_eq!(batch.x[..5], [10, 11, 12, 20, 21]);
        assert_eq!(batch.y[..5], [11, 12, 20, 21, 22]);
        assert_eq!(batch.mask[..5], [0.0, 0.0, 1.0, 0.0, 1.0]);
        let rewarded = batch.rewarded.as_ref().expect("rewards");
        assert_eq!(rewarded.sampled[..5], [0.0, 0.0, -1.0, 0.0, -2.0]);
        assert_eq!(batch.select(&[1]).x, batch.x[5..]);
    }

    #[test]
    fn of_a_long_row_the_last_ids_are_kept_and_rectangles_are_filled() {
        let layout = Layout { max_seq_len: 4, filler: Some(2), mask_cut_off: false };
        let short = Rollout { prompt: vec![10], ids: vec![20], sampled: vec![true], ..rollout() };
        let short = Rollout { logps: vec![-1.0], finish: Finish::Length, ..short };
        let batch = layout.batch(&[rollout(), short.clone()], false);
        assert_eq!((batch.batch, batch.seq), (2, 4));
        assert_eq!(batch.x, [12, 20, 21, 22, 10, 20, 2, 2]);
        assert_eq!(batch.mask, [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
        let masked = Layout { mask_cut_off: true, ..layout }.batch(&[short], false);
        assert_eq!(masked.trained_tokens(), 0);
    }
}
