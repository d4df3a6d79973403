//! Wins and ties to strengths, by the model of Bradley and Terry.
//!
//! Model i is preferred to model j with probability `p_i / (p_i + p_j)`. The strengths p are those
//! of the greatest likelihood, a tie counting as half a win for each. Each pair of models is given
//! one tie beforehand, so that a model that won everything, or two that were never compared, have
//! finite strengths; for two models that is Haldane's and Anscombe's half in the logarithm of the
//! odds. Source: Bradley and Terry (1952); Newman, "Efficient computation of rankings from pairwise
//! comparisons" (2023); Anscombe (1956).

use mmx_converters::random::Random;

/// Ties that each pair of models is given beforehand.
pub const PRIOR: f64 = 1.0;
/// The mean of all scores, and the points between odds of 1 and 10. Source: Elo's scale.
pub const ANCHOR: f64 = 1000.0;
const SCALE: f64 = 400.0;
/// Times that the questions are drawn anew for an interval.
pub const RESAMPLES: usize = 1000;
/// The seed of these draws: the same results have the same intervals.
const SEED: u64 = 1337;

/// A comparison of two models: indices, and what the first got of the one point, 1, 0.5 or 0.
pub(super) type Comparison = (usize, usize, f64);

/// Wins of row against column, ties as halves: `[models][models]`.
fn wins(models: usize, comparisons: impl Iterator<Item = Comparison>) -> Vec<Vec<f64>> {
    let mut wins = vec![vec![0.0; models]; models];
    for (i, j, points) in comparisons {
        wins[i][j] += points;
        wins[j][i] += 1.0 - points;
    }
    wins
}

/// Natural logarithms of the strengths `[models]`, their mean 0; `prior` ties are added to each
/// pair.
fn strengths(wins: &[Vec<f64>], prior: f64) -> Vec<f64> {
    let models = wins.len();
    let mut log = vec![0.0f64; models];
    let won = |i: usize, j: usize| wins[i][j] + prior / 2.0;
    for _ in 0..10_000 {
        let mut change = 0.0f64;
        for i in 0..models {
            let (mut above, mut below) = (0.0, 0.0);
            for j in (0..models).filter(|&j| j != i) {
                // p_j / (p_i + p_j), and 1 / (p_i + p_j) in units of 1 / p_i
                let other = 1.0 / (1.0 + (log[i] - log[j]).exp());
                above += won(i, j) * other;
                below += won(j, i) * (1.0 - other);
            }
            if above > 0.0 && below > 0.0 {
                let step = (above / below).ln();
                log[i] += step;
                change = change.max(step.abs());
            }
        }
        let mean = log.iter().sum::<f64>() / models.max(1) as f64;
        log.iter_mut().for_each(|value| *value -= mean);
        if change < 1e-10 {
            break;
        }
    }
    log
}

/// A model's score and its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// On Elo's scale; the mean of all models is [`ANCHOR`].
    pub value: f64,
    /// The lower end of the interval at 95 %.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// Scores of all models by the comparisons at each question. The intervals are the bootstrap's: of
/// all scores that questions drawn with replacement give, the middle 95 %.
#[must_use]
pub(super) fn scores(models: usize, questions: &[Vec<Comparison>]) -> Vec<Score> {
    let score = |comparisons: &mut dyn Iterator<Item = Comparison>| -> Vec<f64> {
        let log = strengths(&wins(models, comparisons), PRIOR);
        log.iter().map(|value| ANCHOR + SCALE * value / std::f64::consts::LN_10).collect()
    };
    let values = score(&mut questions.iter().flatten().copied());
    let mut drawn: Vec<Vec<f64>> = vec![Vec::with_capacity(RESAMPLES); models];
    for sample in 0..RESAMPLES {
        let mut random = Random::new(SEED, sample as u64);
        let some = (0..questions.len()).flat_map(|_| &questions[random.below(questions.len())]);
        let values = score(&mut some.copied());
        drawn.iter_mut().zip(values).for_each(|(list, value)| list.push(value));
    }
    drawn.iter_mut().for_each(|list| list.sort_by(f64::total_cmp));
    let ends = |list: &[f64]| (quantile(list, 0.025), quantile(list, 0.975));
    let with_ends = |(value, list): (f64, &Vec<f64>)| {
        let (low, high) = ends(list);
        Score { value, low: low.min(value), high: high.max(value) }
    };
    values.into_iter().zip(&drawn).map(with_ends).collect()
}

/// The value below which a share of a sorted list lies, between two of them by the share.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The gradient of the log-likelihood, climbed in small steps.
    fn naive(wins: &[Vec<f64>], prior: f64) -> Vec<f64> {
        let n = wins.len();
        let mut log = vec![0.0f64; n];
        for _ in 0..20_000 {
            let mut gradient = vec![0.0; n];
            for (i, slope) in gradient.iter_mut().enumerate() {
                for j in (0..n).filter(|&j| j != i) {
                    let p = log[i].exp() / (log[i].exp() + log[j].exp());
                    let (own, other) = (wins[i][j] + prior / 2.0, wins[j][i] + prior / 2.0);
                    *slope += own - (own + other) * p;
                }
            }
            log.iter_mut().zip(&gradient).for_each(|(x, g)| *x += 0.01 * g);
        }
        let mean = log.iter().sum::<f64>() / n as f64;
        log.iter().map(|x| x - mean).collect()
    }

    #[test]
    fn two_models_have_the_logarithm_of_their_odds() {
        let wins = vec![vec![0.0, 30.0], vec![10.0, 0.0]];
        let log = strengths(&wins, 0.0);
        assert!((log[0] - log[1] - 3f64.ln()).abs() < 1e-9, "{log:?}");
        let log = strengths(&wins, PRIOR);
        assert!((log[0] - log[1] - (30.5f64 / 10.5).ln()).abs() < 1e-9, "{log:?}");
        // on Elo's scale: odds of 10 are 400 points
        let questions: Vec<Vec<Comparison>> =
            (0..99).map(|i| vec![(0, 1, f64::from(u8::from(i < 90)))]).collect();
        let found = scores(2, &questions);
        let expected = 400.0 * (90.5f64 / 9.5).log10();
        assert!((found[0].value - found[1].value - expected).abs() < 1e-6, "{found:?}");
        assert!((found[0].value + found[1].value - 2.0 * ANCHOR).abs() < 1e-6);
    }

    #[test]
    fn the_likeliest_strengths_are_those_of_a_naive_climb() {
        let mut random = Random::new(7, 0);
        for models in 2..6 {
            let mut wins = vec![vec![0.0; models]; models];
            for (i, row) in wins.iter_mut().enumerate() {
                for (j, value) in row.iter_mut().enumerate() {
                    *value = if i == j { 0.0 } else { random.below(13) as f64 / 2.0 };
                }
            }
            let (fast, slow) = (strengths(&wins, PRIOR), naive(&wins, PRIOR));
            let far = fast.iter().zip(&slow).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(far < 1e-6, "{models} models: {far}, {fast:?}, {slow:?}");
        }
    }

    #[test]
    fn a_model_that_won_everything_and_one_never_compared_have_finite_scores() {
        let questions: Vec<Vec<Comparison>> = vec![vec![(0, 1, 1.0)]; 50];
        let found = scores(3, &questions);
        assert!(found.iter().all(|s| s.value.is_finite() && s.low <= s.value && s.value <= s.high));
        let log = (50.5f64 / 0.5).log10() * 400.0;
        // the third one's ties with both pull them together a little
        assert!(
            found[0].value - found[1].value < log && found[0].value - found[1].value > 0.8 * log,
            "{found:?}"
        );
        assert!((found[2].value - ANCHOR).abs() < 1e-6);
        let none = scores(2, &[]);
        assert!(none.iter().all(|s| s.value == ANCHOR && s.low == ANCHOR && s.high == ANCHOR));
    }

    #[test]
    fn intervals_are_the_same_twice_and_narrow_with_more_questions() {
        let questions = |n: usize| -> Vec<Vec<Comparison>> {
            (0..n).map(|i| vec![(0, 1, [1.0, 0.5, 0.0, 1.0][i % 4])]).collect()
        };
        let width = |n| {
            let found = scores(2, &questions(n));
            assert_eq!(found, scores(2, &questions(n)));
            found[0].high - found[0].low
        };
        let (few, many) = (width(40), width(640));
        // by the square root of their number
        assert!((few / many - 4.0).abs() < 1.0, "{few} {many}");
    }

    #[test]
    fn intervals_hold_the_true_scores_about_as_often_as_they_say() {
        let truth = [1150.0, 1000.0, 850.0f64];
        let mut random = Random::new(3, 1);
        let (tournaments, mut held) = (100, 0);
        for _ in 0..tournaments {
            let mut question = || -> Vec<Comparison> {
                let pairs = [(0, 1), (0, 2), (1, 2)].into_iter();
                pairs
                    .map(|(i, j)| {
                        let odds = 10f64.powf((truth[i] - truth[j]) / SCALE);
                        let wins = random.unit() < odds / (1.0 + odds);
                        (i, j, f64::from(u8::from(wins)))
                    })
                    .collect()
            };
            let questions: Vec<Vec<Comparison>> = (0..60).map(|_| question()).collect();
            let found = scores(3, &questions);
            held += found.iter().zip(truth).filter(|(s, t)| s.low <= *t && *t <= s.high).count();
        }
        let share = held as f64 / (3.0 * f64::from(tournaments));
        assert!((0.90..=0.99).contains(&share), "{share}");
    }

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        assert_eq!((quantile(&[1.0, 2.0, 3.0], 0.5), quantile(&[1.0, 2.0], 0.25)), (2.0, 1.25));
        assert_eq!(quantile(&[4.0], 0.975), 4.0);
    }
}
