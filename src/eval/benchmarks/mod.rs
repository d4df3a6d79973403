//! The benchmarks that are known: how each is asked, and which of its splits is.
//!
//! In: the keys of a record and the name of its subject. Out: a [`Benchmark`], with its words. All
//! of it is as the tasks of lm-evaluation-harness 0.4.13 have it ([`Benchmark::task`] names them with
//! their versions), which the reference evaluates with (its README, 2025 and 2026), so that numbers
//! can be compared.

mod subjects;

use serde_json::{Map, Value};

/// A way of asking: whose likelihoods are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum By {
    /// The options stand in the prompt, and the letters' likelihoods are compared
    Letter,
    /// The options do not stand in the prompt, and their whole texts' likelihoods are compared
    Answer,
}

/// A part of a benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// `train`: to learn from.
    Train,
    /// `dev`: examples; in benchmarks that have no `validation` it is that.
    Dev,
    /// `val`, `valid`, `validation`.
    Validation,
    /// `test`: to be scored; of some benchmarks it has no answers.
    Test,
}

impl Split {
    /// The split's name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Dev => "dev",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }

    /// The split that a word in a file's or folder's name stands for.
    pub fn of(word: &str) -> Option<Self> {
        match word.to_ascii_lowercase().as_str() {
            "train" | "trn" => Some(Self::Train),
            "dev" => Some(Self::Dev),
            "val" | "valid" | "validation" => Some(Self::Validation),
            "test" | "tests" | "tst" => Some(Self::Test),
            _ => None,
        }
    }
}

/// The keys that hold a question and its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `question`, `A`, `B`, ..., `answer`; the case of the names does not matter.
    Lettered,
    /// `question` or `question_stem`, `choices`, `answerKey`; `choices` may stand in `question`.
    Choices,
    /// `goal`, `sol1`, `sol2`, `label`.
    Piqa,
    /// `activity_label`, `ctx_a`, `ctx_b`, `endings`, `label`.
    HellaSwag,
    /// `context`, `question`, `answerA`, `answerB`, `answerC`, `label`.
    SocialIqa,
}

impl Layout {
    /// The layout of a record.
    pub fn of(object: &Map<String, Value>) -> Option<Self> {
        let has = |keys: &[&str]| keys.iter().all(|key| object.contains_key(*key));
        if has(&["goal", "sol1", "sol2"]) {
            return Some(Self::Piqa);
        }
        if has(&["activity_label", "ctx_a", "ctx_b", "endings"]) {
            return Some(Self::HellaSwag);
        }
        if has(&["context", "question", "answerA", "answerB", "answerC"]) {
            return Some(Self::SocialIqa);
        }
        let within = object.get("question").and_then(Value::as_object);
        let stem = object.contains_key("question") || object.contains_key("question_stem");
        if stem && object.contains_key("choices")
            || within.is_some_and(|question| question.contains_key("choices"))
        {
            return Some(Self::Choices);
        }
        let lettered = ["question", "A", "B"].iter().all(|key| find(object, key).is_some());
        lettered.then_some(Self::Lettered)
    }
}

/// The value at a key whose case does not matter.
pub(crate) fn find<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    object.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value)
}

/// A benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Benchmark {
    /// C-Eval: 52 subjects, Chinese.
    CEval,
    /// CMMLU: 67 subjects, Chinese.
    Cmmlu,
    /// A-CLUE: 15 tasks, ancient Chinese.
    Aclue,
    /// TMMLU+: from school to profession, traditional Chinese.
    TmmluPlus,
    /// ARC: school science, easy and challenging.
    Arc,
    /// OpenBookQA: elementary science.
    OpenBookQa,
    /// PIQA: everyday physics.
    Piqa,
    /// HellaSwag: how a scene goes on.
    HellaSwag,
    /// Social-IQa: what people feel and do.
    SocialIqa,
    /// Questions in one of the layouts that are none of these.
    Other,
}

/// The words around a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words {
    /// What comes right before the question.
    pub before: &'static str,
    /// What comes after question and options, on a line of its own; nothing where the answer goes
    /// on in the question's line.
    pub after: &'static str,
    /// True where blanks around the question are taken away.
    pub trims: bool,
}

impl Benchmark {
    /// The benchmark of a record: by its keys, and where several share them by the subject's name
    /// and the record's own. `chinese`: whether there are Chinese characters in the file.
    pub fn of(layout: Layout, object: &Map<String, Value>, subject: &str, chinese: bool) -> Self {
        match layout {
            Layout::Piqa => Self::Piqa,
            Layout::HellaSwag => Self::HellaSwag,
            Layout::SocialIqa => Self::SocialIqa,
            Layout::Choices => {
                // AllenAI's own files have one form for both; OpenBookQA numbers its questions
                // `8-376`, ARC names an exam: `Mercury_7175875`
                let id = object.get("id").and_then(Value::as_str).unwrap_or_default();
                let numbers = id.split_once('-').is_some_and(|(a, b)| {
                    [a, b].iter().all(|n| !n.is_empty() && n.bytes().all(|c| c.is_ascii_digit()))
                });
                let is_book = object.contains_key("question_stem") || numbers;
                if is_book { Self::OpenBookQa } else { Self::Arc }
            }
            Layout::Lettered if chinese => Self::lettered(object, subject),
            Layout::Lettered => Self::Other,
        }
    }

    /// `Question` is CMMLU's and A-CLUE's key, an `id` is C-Eval's, neither is TMMLU+'s; files that
    /// were converted may have lost these, so that the subject decides.
    fn lettered(object: &Map<String, Value>, subject: &str) -> Self {
        use Benchmark::{Aclue, CEval, Cmmlu, TmmluPlus};
        let order = match (object.contains_key("Question"), object.contains_key("id")) {
            (true, _) => [Cmmlu, Aclue, CEval, TmmluPlus],
            (false, true) => [CEval, TmmluPlus, Cmmlu, Aclue],
            (false, false) => [TmmluPlus, CEval, Cmmlu, Aclue],
        };
        let known = |benchmark: &Self| subjects::word(benchmark.subjects(), subject).is_some();
        order.into_iter().find(known).unwrap_or(Self::Other)
    }

    /// Names of files and words of the subjects, where the benchmark has a list of them.
    fn subjects(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::CEval => subjects::CEVAL,
            Self::Cmmlu => subjects::CMMLU,
            Self::Aclue => subjects::ACLUE,
            Self::TmmluPlus => subjects::TMMLU_PLUS,
            _ => &[],
        }
    }

    /// The benchmark's name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::CEval => "ceval",
            Self::Cmmlu => "cmmlu",
            Self::Aclue => "aclue",
            Self::TmmluPlus => "tmmluplus",
            Self::Arc => "arc",
            Self::OpenBookQa => "openbookqa",
            Self::Piqa => "piqa",
            Self::HellaSwag => "hellaswag",
            Self::SocialIqa => "social_iqa",
            Self::Other => "other",
        }
    }

    /// The benchmark's name in tables.
    pub fn title(self) -> &'static str {
        match self {
            Self::CEval => "C-Eval",
            Self::Cmmlu => "CMMLU",
            Self::Aclue => "A-CLUE",
            Self::TmmluPlus => "TMMLU+",
            Self::Arc => "ARC",
            Self::OpenBookQa => "OpenBookQA",
            Self::Piqa => "PIQA",
            Self::HellaSwag => "HellaSwag",
            Self::SocialIqa => "Social-IQa",
            Self::Other => "other questions",
        }
    }

    /// The task of lm-evaluation-harness 0.4.13 whose words are used, and its version.
    pub fn task(self) -> Option<&'static str> {
        match self {
            Self::CEval => Some("ceval-valid 2.0"),
            Self::Cmmlu => Some("cmmlu 1.0"),
            Self::Aclue => Some("aclue 1.0"),
            Self::TmmluPlus => Some("tmmluplus 2.0"),
            Self::Arc => Some("ai2_arc 1.0"),
            Self::OpenBookQa => Some("openbookqa 1.0"),
            Self::Piqa => Some("piqa 1.0"),
            Self::HellaSwag => Some("hellaswag 1.0"),
            Self::SocialIqa => Some("social_iqa 0.0"),
            Self::Other => None,
        }
    }

    /// The ways in which it is asked unless others are wanted.
    pub fn ways(self) -> &'static [By] {
        match self {
            Self::CEval | Self::Cmmlu | Self::Aclue | Self::TmmluPlus => &[By::Letter],
            Self::Arc | Self::OpenBookQa | Self::Piqa | Self::HellaSwag | Self::SocialIqa => {
                &[By::Answer]
            }
            Self::Other => &[By::Letter, By::Answer],
        }
    }

    /// The splits that are asked, the first that is there.
    pub fn asked(self) -> &'static [Split] {
        use Split::{Dev, Test, Validation};
        match self {
            // the test split is published without answers
            Self::CEval => &[Validation, Test],
            Self::Cmmlu | Self::Aclue | Self::TmmluPlus | Self::Other => &[Test, Validation],
            Self::Arc | Self::OpenBookQa => &[Test, Validation, Dev],
            Self::Piqa | Self::HellaSwag | Self::SocialIqa => &[Validation, Dev, Test],
        }
    }

    /// The splits that examples come from, the first that is there.
    pub fn shown(self) -> &'static [Split] {
        use Split::{Dev, Train, Validation};
        match self {
            Self::CEval | Self::Cmmlu | Self::Aclue => &[Dev],
            Self::TmmluPlus => &[Train, Dev],
            Self::Other => &[Dev, Train],
            Self::Arc | Self::OpenBookQa => &[Train, Validation, Dev],
            Self::Piqa | Self::HellaSwag | Self::SocialIqa => &[Train],
        }
    }

    /// The sentence before all questions of a subject; empty where the benchmark has none.
    pub fn description(self, subject: &str) -> String {
        let Some(word) = subjects::word(self.subjects(), subject) else { return String::new() };
        match self {
            Self::CEval => {
                format!("以下是中国关于{word}的单项选择题，请选出其中的正确答案。\n\n")
            }
            Self::TmmluPlus => format!("以下為{word}的單選題，請提供正確答案的選項。\n\n"),
            _ => format!("以下是关于{word}的单项选择题，请直接给出正确答案的选项。\n\n"),
        }
    }

    /// The words around a question. Where a benchmark is asked in the way that is not its own, they
    /// are those of ARC, or of C-Eval where `chinese`.
    pub fn words(self, by: By, chinese: bool) -> Words {
        let words = |before, after, trims| Words { before, after, trims };
        match (self, by) {
            (Self::CEval | Self::Cmmlu | Self::Aclue, _) => words("", "答案：", true),
            (Self::TmmluPlus, _) => words("", "Answer:", true),
            (Self::OpenBookQa | Self::HellaSwag, By::Answer) => words("", "", false),
            (Self::SocialIqa, By::Answer) => words("Q: ", "A:", false),
            (Self::Other, _) if chinese => words("", "答案：", true),
            (Self::Other, _) => words("Question: ", "Answer:", true),
            _ => words("Question: ", "Answer:", false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(record: Value, subject: &str) -> Option<Benchmark> {
        let object = record.as_object().expect("an object");
        Layout::of(object).map(|layout| Benchmark::of(layout, object, subject, true))
    }

    fn lettered(keys: &str) -> Value {
        keys.split(',').map(|key| (key.to_owned(), Value::from("x"))).collect()
    }

    #[test]
    fn benchmarks_are_told_by_their_keys_and_subjects() {
        let ceval = "id,question,A,B,C,D,answer,explanation";
        let cmmlu = "Question,A,B,C,D,Answer";
        let tmmlu = "question,A,B,C,D,answer";
        for (keys, subject, expected) in [
            (ceval, "accountant", Benchmark::CEval),
            (ceval, "chinese_language_and_literature", Benchmark::CEval),
            (tmmlu, "chinese_language_and_literature", Benchmark::TmmluPlus),
            (tmmlu, "accounting", Benchmark::TmmluPlus),
            (tmmlu, "accountant", Benchmark::CEval),
            (cmmlu, "agronomy", Benchmark::Cmmlu),
            (cmmlu, "high_school_physics", Benchmark::Cmmlu),
            (cmmlu, "ancient_phonetics", Benchmark::Aclue),
            (cmmlu, "古音学", Benchmark::Aclue),
            (ceval, "cooking", Benchmark::Other),
            ("question,A,B,answer", "cooking", Benchmark::Other),
        ] {
            assert_eq!(of(lettered(keys), subject), Some(expected), "{keys} {subject}");
        }
        let arc = serde_json::json!({"id": "MCAS_2000_4_6", "question": "?", "choices": {}});
        assert_eq!(of(arc, "ARC-Easy"), Some(Benchmark::Arc));
        let book = serde_json::json!({"id": "x", "question_stem": "?", "choices": {}});
        assert_eq!(of(book, "main"), Some(Benchmark::OpenBookQa));
        for (id, expected) in [("8-376", Benchmark::OpenBookQa), ("Mercury_1-2", Benchmark::Arc)] {
            let allen = serde_json::json!({"id": id, "question": {"stem": "?", "choices": []}});
            assert_eq!(of(allen, "test"), Some(expected), "{id}");
        }
        assert_eq!(of(lettered("goal,sol1,sol2"), "x"), Some(Benchmark::Piqa));
        let swag = lettered("ind,activity_label,ctx_a,ctx_b,ctx,endings,label");
        assert_eq!(of(swag, "x"), Some(Benchmark::HellaSwag));
        let social = lettered("context,question,answerA,answerB,answerC");
        assert_eq!(of(social, "x"), Some(Benchmark::SocialIqa));
        assert_eq!(of(lettered("text,label"), "x"), None);
        // a quiz in English by a subject's name is none of the Chinese benchmarks
        let quiz = lettered(tmmlu);
        let object = quiz.as_object().expect("an object");
        let found = Benchmark::of(Layout::Lettered, object, "physics", false);
        assert_eq!(found, Benchmark::Other);
    }

    #[test]
    fn descriptions_are_the_tasks_own() {
        assert_eq!(
            Benchmark::CEval.description("accountant"),
            "以下是中国关于注册会计师的单项选择题，请选出其中的正确答案。\n\n"
        );
        assert_eq!(
            Benchmark::Aclue.description("古音学"),
            "以下是关于古音学的单项选择题，请直接给出正确答案的选项。\n\n"
        );
        assert_eq!(
            Benchmark::TmmluPlus.description("accounting"),
            "以下為會計學的單選題，請提供正確答案的選項。\n\n"
        );
        assert_eq!(Benchmark::Arc.description("ARC-Easy"), "");
    }
}
