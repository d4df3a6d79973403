//! The learning rate as a function of the step: a rise, then a cosine to a tenth of the full rate or
//! a straight line to 0.

use std::f64::consts::PI;

use mmx_data::Recipe;

use crate::config::Decline;

/// A run's learning rates, in shares of their peaks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// How the rate falls.
    pub decline: Decline,
    /// The reference whose cosine it is.
    pub recipe: Recipe,
    /// Micro-steps of the whole run (T).
    pub micro_steps: usize,
    /// Optimizer steps of the whole run.
    pub steps: usize,
    /// Micro-steps of an optimizer step.
    pub accumulation: usize,
    /// Optimizer steps over which the rate rises in a straight line; the reference has none.
    pub warmup: usize,
}

impl Schedule {
    /// The rate of a micro-step that belongs to an optimizer step, both counted from 0, for a
    /// `peak`.
    ///
    /// Source: docs/stages.md, what all stages share. 2025: lr/10 + lr/2 * (1 + cos(pi t/T)), t
    /// from 0, so that it begins at 1.1 lr. 2026: lr * (0.1 + 0.45 * (1 + cos(pi t/T))), t from 1.
    /// Linear: lr * (S - s) / (S - warmup) for step s of S, so that the first step after the rise
    /// has the whole rate and the last one is not lost.
    pub fn lr(&self, peak: f64, micro_step: usize, step: usize) -> f64 {
        match self.decline {
            Decline::Cosine => self.cosine(peak, micro_step),
            Decline::CosineSteps => self.cosine_of_steps(peak, step),
            Decline::Linear if step < self.warmup => peak * (step + 1) as f64 / self.warmup as f64,
            Decline::Linear => {
                let falling = self.steps.saturating_sub(self.warmup).max(1) as f64;
                peak * self.steps.saturating_sub(step) as f64 / falling
            }
        }
    }

    /// The rate of the reference's stages that learn from rewards, which falls with every optimizer
    /// step: lr/10 + 0.45 lr (1 + cos(pi s/S)), s from 0, and as torch's beyond the last one.
    fn cosine_of_steps(&self, peak: f64, step: usize) -> f64 {
        let rate =
            |s: f64| peak / 10.0 + 0.45 * peak * (1.0 + (PI * s / self.steps.max(1) as f64).cos());
        match step + 1 {
            done if done < self.warmup => rate(step as f64) * done as f64 / self.warmup as f64,
            _ => rate(step as f64),
        }
    }

    /// The references' rate, which falls with every micro-step.
    fn cosine(&self, peak: f64, micro_step: usize) -> f64 {
        let total = self.micro_steps.max(1) as f64;
        let rate = match self.recipe {
            Recipe::R2025 => {
                let t = micro_step as f64;
                peak / 10.0 + 0.5 * peak * (1.0 + (PI * t / total).cos())
            }
            Recipe::R2026 => {
                let t = (micro_step + 1) as f64;
                peak * (0.1 + 0.45 * (1.0 + (PI * t / total).cos()))
            }
        };
        let warmup = self.warmup * self.accumulation;
        match micro_step + 1 {
            done if done < warmup => rate * done as f64 / warmup as f64,
            _ => rate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_equal_the_two_references() {
        let schedule = |recipe| Schedule {
            decline: Decline::Cosine,
            recipe,
            micro_steps: 8,
            steps: 8,
            accumulation: 1,
            warmup: 0,
        };
        // golden/train/pretrain-minimind2.json and golden-2026/train/pretrain-minimind3.json
        let golden = [
            (Recipe::R2025, 0, 0.00055),
            (Recipe::R2025, 7, 6.903011687217831e-05),
            (Recipe::R2026, 0, 0.0004828728948150395),
            (Recipe::R2026, 7, 5e-05),
        ];
        for (recipe, step, expected) in golden {
            let found = schedule(recipe).lr(5e-4, step, step);
            assert!((found / expected - 1.0).abs() < 1e-12, "{recipe:?} {step}: {found}");
        }
    }

    #[test]
    fn warmup_rises_in_a_straight_line_to_the_schedule() {
        let without = Schedule {
            decline: Decline::Cosine,
            recipe: Recipe::R2026,
            micro_steps: 100,
            steps: 50,
            accumulation: 2,
            warmup: 0,
        };
        let with = Schedule { warmup: 5, ..without };
        let lr = |schedule: Schedule, micro_step| schedule.lr(1.0, micro_step, micro_step / 2);
        assert!((lr(with, 0) - lr(without, 0) / 10.0).abs() < 1e-15);
        assert!((lr(with, 4) - lr(without, 4) / 2.0).abs() < 1e-15);
        assert_eq!(lr(with, 9), lr(without, 9));
        assert_eq!(lr(with, 50), lr(without, 50));
    }

    /// The rates of golden-muon, whatever the accumulation.
    #[test]
    fn the_straight_line_reaches_the_peak_after_the_rise_and_ends_before_zero() {
        for accumulation in [1, 3] {
            let schedule = Schedule {
                decline: Decline::Linear,
                recipe: Recipe::R2026,
                micro_steps: 8 * accumulation,
                steps: 8,
                accumulation,
                warmup: 2,
            };
            let rates: Vec<f64> =
                (0..8).map(|step| schedule.lr(6.0, step * accumulation, step)).collect();
            assert_eq!(rates, [3.0, 6.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]);
        }
        let all = Schedule {
            decline: Decline::Linear,
            recipe: Recipe::R2026,
            micro_steps: 4,
            steps: 4,
            accumulation: 1,
            warmup: 9,
        };
        assert_eq!(all.lr(9.0, 3, 3), 4.0, "a rise that is longer than the run");
    }
}
