//! Outcomes of pairs to a ranking, a matrix of wins, and how much the judge went by places.

use mmx_data::asking::Verdict;

use super::bradley_terry::{self, Comparison, Score};
use super::judging::{Outcome, Pair};
use super::questions::Question;

/// A model's place among others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    /// Index of the model.
    pub model: usize,
    /// Its score on Elo's scale.
    pub score: Score,
    /// Comparisons that it won.
    pub won: usize,
    /// Those without a winner.
    pub tied: usize,
    /// Those that it lost.
    pub lost: usize,
}

impl Standing {
    /// The share of points that it got, a tie being half a point; 0.5 without a comparison.
    #[must_use]
    pub fn share(&self) -> f64 {
        match self.won + self.tied + self.lost {
            0 => 0.5,
            all => (self.won as f64 + self.tied as f64 / 2.0) / all as f64,
        }
    }
}

/// The places of all models by some pairs, the best first.
fn ranking(models: usize, questions: usize, pairs: &[&Pair]) -> Vec<Standing> {
    let mut comparisons: Vec<Vec<Comparison>> = vec![Vec::new(); questions];
    let mut counts = vec![(0, 0, 0); models];
    for pair in pairs {
        let (i, j) = pair.models;
        let points = match pair.outcome() {
            Outcome::Won(model) => {
                let loser = if model == i { j } else { i };
                counts[model].0 += 1;
                counts[loser].2 += 1;
                f64::from(u8::from(model == i))
            }
            Outcome::Tie => {
                counts[i].1 += 1;
                counts[j].1 += 1;
                0.5
            }
            Outcome::Unparsed | Outcome::Unasked => continue,
        };
        comparisons[pair.question].push((i, j, points));
    }
    // questions without a comparison tell nothing: they are not drawn for intervals
    comparisons.retain(|comparisons| !comparisons.is_empty());
    let scores = bradley_terry::scores(models, &comparisons).into_iter();
    let standing = |(model, (score, (won, tied, lost)))| Standing { model, score, won, tied, lost };
    let mut all: Vec<Standing> = scores.zip(counts).enumerate().map(standing).collect();
    all.sort_by(|a, b| b.score.value.total_cmp(&a.score.value));
    all
}

/// How a judge's verdicts depend on the places of answers. Source: the measures of Zheng et al.
/// (2023), table 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Verdicts for the answer shown first.
    pub first: usize,
    /// Verdicts for the answer shown second.
    pub second: usize,
    /// Verdicts for neither.
    pub tie: usize,
    /// Words that hold no verdict.
    pub unparsed: usize,
    /// Pairs with a verdict in both orders.
    pub pairs: usize,
    /// Those of them where both orders say the same of the answers.
    pub consistent: usize,
    /// Those where the answer shown first is preferred in both orders.
    pub favours_first: usize,
    /// Those where the answer shown second is preferred in both orders.
    pub favours_second: usize,
}

impl Places {
    fn of(pairs: &[Pair]) -> Self {
        let mut places = Self::default();
        for said in pairs.iter().flat_map(|pair| pair.said.iter().flatten()) {
            match said.verdict {
                Some(Verdict::First) => places.first += 1,
                Some(Verdict::Second) => places.second += 1,
                Some(Verdict::Tie) => places.tie += 1,
                None => places.unparsed += 1,
            }
        }
        for pair in pairs {
            let [Some(one), Some(other)] = &pair.said else { continue };
            let (Some(one), Some(other)) = (one.verdict, other.verdict) else { continue };
            places.pairs += 1;
            match (one, other) {
                (Verdict::First, Verdict::First) => places.favours_first += 1,
                (Verdict::Second, Verdict::Second) => places.favours_second += 1,
                (Verdict::First, Verdict::Second)
                | (Verdict::Second, Verdict::First)
                | (Verdict::Tie, Verdict::Tie) => places.consistent += 1,
                _ => (), // a tie in one order alone
            }
        }
        places
    }
}

/// All that the verdicts say.
#[derive(Clone, Debug, PartialEq)]
pub struct Tally {
    /// The models, the best first.
    pub ranking: Vec<Standing>,
    /// The rankings at the questions of each category, in the order in which categories come; none
    /// where there is but one.
    pub categories: Vec<(String, usize, Vec<Standing>)>,
    /// Points of row against column, ties as halves, and comparisons of the two:
    /// `[models][models]`.
    pub matrix: Vec<Vec<(f64, usize)>>,
    /// How much the judge went by places.
    pub places: Places,
    /// Pairs that were compared: with a winner or a tie.
    pub compared: usize,
    /// Pairs whose answers are the same text, which count as ties.
    pub same: usize,
    /// Pairs left out because the judge's words hold no verdict.
    pub unparsed: usize,
    /// Pairs left out because the judge was not asked in both orders.
    pub unasked: usize,
}

/// What pairs of `models` models say.
#[must_use]
pub fn tally(models: usize, questions: &[Question], pairs: &[Pair]) -> Tally {
    let all: Vec<&Pair> = pairs.iter().collect();
    let mut names: Vec<String> = Vec::new();
    for question in questions {
        let name = category(question);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let of_category = |name: String| {
        let inside = |question: &Question| category(question) == name;
        let own: Vec<&Pair> =
            pairs.iter().filter(|pair| inside(&questions[pair.question])).collect();
        let count = questions.iter().filter(|question| inside(question)).count();
        let ranked = ranking(models, questions.len(), &own);
        (name, count, ranked)
    };
    let categories = match names.len() {
        0 | 1 => Vec::new(),
        _ => names.into_iter().map(of_category).collect(),
    };
    let mut matrix = vec![vec![(0.0, 0); models]; models];
    let count =
        |outcome: fn(Outcome) -> bool| pairs.iter().filter(|p| outcome(p.outcome())).count();
    for pair in pairs {
        let (i, j) = pair.models;
        let points = match pair.outcome() {
            Outcome::Won(model) => f64::from(u8::from(model == i)),
            Outcome::Tie => 0.5,
            Outcome::Unparsed | Outcome::Unasked => continue,
        };
        for (row, column, points) in [(i, j, points), (j, i, 1.0 - points)] {
            matrix[row][column].0 += points;
            matrix[row][column].1 += 1;
        }
    }
    Tally {
        ranking: ranking(models, questions.len(), &all),
        categories,
        matrix,
        places: Places::of(pairs),
        compared: count(|outcome| matches!(outcome, Outcome::Won(_) | Outcome::Tie)),
        same: pairs.iter().filter(|pair| pair.is_same).count(),
        unparsed: count(|outcome| outcome == Outcome::Unparsed),
        unasked: count(|outcome| outcome == Outcome::Unasked),
    }
}

/// The category of a question; of one that names none a name of its own.
fn category(question: &Question) -> String {
    question.category.clone().unwrap_or_else(|| "other".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judged::judging::Said;
    use mmx_data::asking::{user, verdict};

    fn question(category: Option<&str>) -> Question {
        Question {
            name: "1".into(),
            category: category.map(str::to_owned),
            reference: None,
            turns: vec![user("q")],
            tools: None,
            later: Vec::new(),
        }
    }

    fn pair(question: usize, models: (usize, usize), words: [&str; 2]) -> Pair {
        let said = words.map(|words| {
            Some(Said { words: words.into(), verdict: verdict(words), tokens: None, seconds: 0.0 })
        });
        Pair { question, models, is_same: false, said }
    }

    #[test]
    fn wins_ties_and_words_without_a_verdict_are_counted_apart() {
        let questions = [question(Some("数学")), question(None)];
        let mut pairs = vec![
            pair(0, (0, 1), ["[[B]]", "[[A]]"]),
            pair(1, (0, 1), ["[[B]]", "[[A]]"]),
            pair(0, (0, 2), ["[[A]]", "[[A]]"]),
            pair(1, (0, 2), ["[[C]]", "[[C]]"]),
            pair(0, (1, 2), ["[[A]]", "no"]),
            pair(1, (1, 2), ["[[A]]", "[[C]]"]),
        ];
        pairs.push(Pair { is_same: true, said: [None, None], ..pairs[0].clone() });
        let tally = tally(3, &questions, &pairs);
        assert_eq!((tally.compared, tally.same, tally.unparsed, tally.unasked), (6, 1, 1, 0));
        let best = tally.ranking[0];
        assert_eq!((best.model, best.won, best.tied, best.lost), (1, 2, 2, 0));
        assert!((best.share() - 0.75).abs() < 1e-12);
        assert_eq!(tally.matrix[1][0], (2.5, 3));
        assert_eq!(tally.matrix[0][1], (0.5, 3));
        assert_eq!(tally.matrix[1][2], (0.5, 1));
        let expected = Places {
            first: 6,
            second: 2,
            tie: 3,
            unparsed: 1,
            pairs: 5,
            consistent: 3,
            favours_first: 1,
            favours_second: 0,
        };
        assert_eq!(tally.places, expected);
        let names: Vec<_> =
            tally.categories.iter().map(|(name, n, _)| (name.as_str(), *n)).collect();
        assert_eq!(names, [("数学", 1), ("other", 1)]);
    }
}
