//! The learning rate as a function of the micro-step: a cosine from the full rate to a tenth of it.

use std::f64::consts::PI;

use mmx_data::Recipe;

/// A run's learning rates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The reference whose formula holds.
    pub recipe: Recipe,
    /// Peak learning rate.
    pub lr: f64,
    /// Micro-steps of the whole run (T).
    pub total: usize,
    /// Micro-steps over which the rate rises in a straight line; the reference has none.
    pub warmup: usize,
}

impl Schedule {
    /// The rate of a micro-step, counted from 0.
    ///
    /// Source: docs/stages.md, what all stages share. 2025: lr/10 + lr/2 * (1 + cos(pi t/T)), t
    /// from 0, so that it begins at 1.1 lr. 2026: lr * (0.1 + 0.45 * (1 + cos(pi t/T))), t from 1.
    pub fn lr(&self, micro_step: usize) -> f64 {
        let total = self.total.max(1) as f64;
        let rate = match self.recipe {
            Recipe::R2025 => {
                let t = micro_step as f64;
                self.lr / 10.0 + 0.5 * self.lr * (1.0 + (PI * t / total).cos())
            }
            Recipe::R2026 => {
                let t = (micro_step + 1) as f64;
                self.lr * (0.1 + 0.45 * (1.0 + (PI * t / total).cos()))
            }
        };
        match micro_step + 1 {
            done if done < self.warmup => rate * done as f64 / self.warmup as f64,
            _ => rate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_equal_the_two_references() {
        let schedule = |recipe| Schedule { recipe, lr: 5e-4, total: 8, warmup: 0 };
        // golden/train/pretrain-minimind2.json and golden-2026/train/pretrain-minimind3.json
        let golden = [
            (Recipe::R2025, 0, 0.00055),
            (Recipe::R2025, 7, 6.903011687217831e-05),
            (Recipe::R2026, 0, 0.0004828728948150395),
            (Recipe::R2026, 7, 5e-05),
        ];
        for (recipe, step, expected) in golden {
            let found = schedule(recipe).lr(step);
            assert!((found / expected - 1.0).abs() < 1e-12, "{recipe:?} {step}: {found}");
        }
    }

    #[test]
    fn warmup_rises_in_a_straight_line_to_the_schedule() {
        let without = Schedule { recipe: Recipe::R2026, lr: 1.0, total: 100, warmup: 0 };
        let with = Schedule { warmup: 10, ..without };
        assert!((with.lr(0) - without.lr(0) / 10.0).abs() < 1e-15);
        assert!((with.lr(4) - without.lr(4) / 2.0).abs() < 1e-15);
        assert_eq!(with.lr(9), without.lr(9));
        assert_eq!(with.lr(50), without.lr(50));
    }
}
