//! `mmx eval --choice` on benchmarks in the layouts that they are published in. All questions are made up; what is
//! expected of each stands beside it, and a naive twin computes the likelihoods.

mod common;

use std::path::{Path, PathBuf};

use common::{mmx_error, mmx_json, shared, text};
use mmx_converters::tokenizer::Tokenizer;
use mmx_models::engines::{self, Engine, Kind};
use mmx_models::open::Form;
use serde_json::{Value, json};

/// A question as it is to be asked.
struct Expected {
    benchmark: &'static str,
    subject: &'static str,
    prompt: &'static str,
    answers: &'static [&'static str],
    right: usize,
}

const LETTERS: &[&str] = &["A", "B", "C", "D"];

fn write(root: &Path, path: &str, content: &str) -> PathBuf {
    let path = root.join(path);
    fs_err::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs_err::write(&path, content).expect("a file");
    path
}

fn lines(records: &[Value]) -> String {
    records.iter().map(|record| format!("{record}\n")).collect()
}

/// A model of the reference's with its tokenizer beside it.
fn golden(dir: &Path) -> PathBuf {
    let (from, to) = (shared("golden"), dir.join("model"));
    fs_err::create_dir_all(&to).expect("a folder");
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "minimind2/config.json",
        "minimind2/model.safetensors",
    ] {
        let file = Path::new(name).file_name().expect("a name");
        fs_err::copy(from.join(name), to.join(file)).expect("a fixture");
    }
    to
}

/// Every benchmark as its authors publish it: folders, splits, twins in other layouts, labels apart.
fn published(root: &Path) -> Vec<Expected> {
    write(
        root,
        "ceval/val/law_val.csv",
        "\u{feff}id,question,A,B,C,D,answer\r\n0,\"下列“法”,\n指？\",\"甲, 乙\",\"\"\"丙\"\"\",丁,戊,B\r\n1, 谁写？ ,一,二,三,四, d \r\n",
    );
    write(
        root,
        "ceval/dev/law_dev.csv",
        "id,question,A,B,C,D,answer,explanation\n0,例一？,子,丑,寅,卯,C,\"因为, 是\"\n1,例二？,子,丑,寅,卯,A,\n",
    );
    write(root, "ceval/test/law_test.csv", "id,question,A,B,C,D\n0,问？,甲,乙,丙,丁\n");
    write(root, "ceval/subject_mapping.json", "{\"law\": [\"Law\", \"法学\", \"Social\"]}\n");
    let cmmlu = |question: &str| format!(",Question,A,B,C,D,Answer\n0,{question},a,b,c,d,A\n");
    write(root, "cmmlu/test/agronomy.csv", &cmmlu("水稻？"));
    write(root, "cmmlu/dev/agronomy.csv", &cmmlu("小麦？"));
    let aclue = |question: &str| format!("Question,A,B,C,D,Answer\n{question},平,上,去,入,D\n");
    write(root, "aclue/data/test/古音学.csv", &aclue("声调？"));
    write(root, "aclue/data/dev/古音学.csv", &aclue("韵？"));
    let tmmlu = |question: &str| format!("question,A,B,C,D,answer\n{question},1,2,3,4,C\n");
    write(root, "tmmluplus/data/accounting_test.csv", &tmmlu("會計？"));
    write(root, "tmmluplus/data/accounting_train.csv", &tmmlu("審計？"));
    write(root, "tmmluplus/data/accounting_val.csv", &tmmlu("稅？"));
    let nested = |id: &str, stem: &str, labels: &[&str], key: &str| {
        let choices: Vec<Value> =
            labels.iter().map(|l| json!({"text": format!("text {l}"), "label": l})).collect();
        json!({"id": id, "question": {"stem": stem, "choices": choices}, "answerKey": key})
    };
    let easy = [
        nested("Mercury_1", "Why? ", &["1", "2", "3"], "3"),
        nested("NYSEDREGENTS_2", "How?", &["A", "B"], "A"),
    ];
    write(root, "ARC/ARC-Easy/ARC-Easy-Test.jsonl", &lines(&easy));
    write(
        root,
        "ARC/ARC-Easy/ARC-Easy-Test.csv",
        "questionID,AnswerKey,question\nMercury_1,C,Why? (A) x\n",
    );
    write(
        root,
        "ARC/ARC-Easy/ARC-Easy-Dev.jsonl",
        &lines(&[nested("A_3", "Dev?", &["A", "B"], "B")]),
    );
    write(
        root,
        "ARC/ARC-Easy/ARC-Easy-Train.jsonl",
        &lines(&[nested("A_4", "Train?", &["A", "B"], "B")]),
    );
    let book = lines(&[nested("8-376", "The sun", &["A", "B"], "B")]);
    write(root, "OpenBookQA/Data/Main/test.jsonl", &book);
    write(root, "OpenBookQA/Data/Additional/test_complete.jsonl", &book);
    write(
        root,
        "OpenBookQA/Data/Main/train.jsonl",
        &lines(&[nested("7-1", "The moon", &["A", "B"], "A")]),
    );
    let goal = |goal: &str| json!({"id": "x", "goal": goal, "sol1": "push", "sol2": "pull it"});
    write(root, "physicaliqa-train-dev/dev.jsonl", &lines(&[goal("open"), goal("shut")]));
    write(root, "physicaliqa-train-dev/dev-labels.lst", "1\n0\n");
    write(root, "physicaliqa-train-dev/train.jsonl", &lines(&[goal("lift")]));
    write(root, "physicaliqa-train-dev/train-labels.lst", "0\n");
    write(root, "piqa/tests.jsonl", &lines(&[goal("unanswered")]));
    let scene = |label: Value| {
        json!({"ind": 4, "activity_label": "Tea", "ctx_a": "A cup. [header] How to pour [title] Wait.",
            "ctx_b": "then He", "ctx": "unused", "endings": ["sits [step] down.", "goes  home."], "label": label})
    };
    write(root, "hellaswag/hellaswag_val.jsonl", &lines(&[scene(json!(1))]));
    write(root, "hellaswag/hellaswag_train.jsonl", &lines(&[scene(json!("0"))]));
    let social = |label: Option<&str>| {
        let mut record = json!({"context": "Al ran.", "question": "Why?", "answerA": "fun", "answerB": "fear", "answerC": "tea"});
        if let Some(label) = label {
            record["label"] = label.into();
        }
        record
    };
    write(root, "socialiqa-train-dev/dev.jsonl", &lines(&[social(None)]));
    write(root, "socialiqa-train-dev/dev-labels.lst", "3\n");
    write(root, "socialiqa-train-dev/train.jsonl", &lines(&[social(Some("1"))]));
    let of = |benchmark, subject, prompt, answers, right| Expected {
        benchmark,
        subject,
        prompt,
        answers,
        right,
    };
    let law = "以下是中国关于法学的单项选择题，请选出其中的正确答案。\n\n下列“法”,\n指？\nA. 甲, 乙\nB. \"丙\"\nC. 丁\nD. 戊\n答案：";
    let law_2 = "以下是中国关于法学的单项选择题，请选出其中的正确答案。\n\n谁写？\nA. 一\nB. 二\nC. 三\nD. 四\n答案：";
    let rice = "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\n水稻？\nA. a\nB. b\nC. c\nD. d\n答案：";
    let tone = "以下是关于古音学的单项选择题，请直接给出正确答案的选项。\n\n声调？\nA. 平\nB. 上\nC. 去\nD. 入\n答案：";
    let books =
        "以下為會計學的單選題，請提供正確答案的選項。\n\n會計？\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:";
    vec![
        of("arc", "ARC-Easy", "Question: Why? \nAnswer:", &["text 1", "text 2", "text 3"], 2),
        of("arc", "ARC-Easy", "Question: How?\nAnswer:", &["text A", "text B"], 0),
        of("openbookqa", "OpenBookQA", "The sun", &["text A", "text B"], 1),
        of("aclue", "古音学", tone, LETTERS, 3),
        of("ceval", "law", law, LETTERS, 1),
        of("ceval", "law", law_2, LETTERS, 3),
        of("cmmlu", "agronomy", rice, LETTERS, 0),
        of(
            "hellaswag",
            "hellaswag",
            "Tea: A cup. How to pour. Wait. Then he",
            &["sits down.", "goes home."],
            1,
        ),
        of("piqa", "PIQA", "Question: open\nAnswer:", &["push", "pull it"], 1),
        of("piqa", "PIQA", "Question: shut\nAnswer:", &["push", "pull it"], 0),
        of("social_iqa", "Social-IQa", "Q: Al ran. Why?\nA:", &["fun", "fear", "tea"], 2),
        of("tmmluplus", "accounting", books, LETTERS, 2),
    ]
}

/// Log-likelihood of a continuation, the slow way: all logits of the whole text, token by token.
fn naive(engine: &mut dyn Engine, tokenizer: &Tokenizer, context: &str, answer: &str) -> f64 {
    let before = tokenizer.encode_plain(context.trim_end()).expect("ids").len();
    let ids = tokenizer.encode_plain(&format!("{context} {answer}")).expect("ids");
    let (logits, vocab) = (engine.logits(&ids).expect("logits"), engine.vocab());
    let logp = |at: usize| {
        let row: Vec<f64> =
            logits[(at - 1) * vocab..at * vocab].iter().map(|&x| x.into()).collect();
        row[ids[at] as usize] - row.iter().map(|x| x.exp()).sum::<f64>().ln()
    };
    (before..ids.len()).map(logp).sum()
}

/// Asks, and gives the report and a line for each question.
fn eval(model: &Path, questions: &[&Path], more: &[&str]) -> (Value, Vec<Value>) {
    let answers = model.with_file_name("answers.jsonl");
    let mut args = vec!["eval", text(model), "--answers", text(&answers), "--choice"];
    args.extend(questions.iter().map(|path| text(path)));
    args.extend(more);
    let report = mmx_json(&args);
    let read = fs_err::read_to_string(&answers).expect("answers");
    (report, read.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect())
}

fn best(scores: &[f64]) -> usize {
    (1..scores.len()).fold(0, |best, i| if scores[i] > scores[best] { i } else { best })
}

/// Prompts, log-likelihoods, right answers and all shares of a folder with every benchmark in it.
#[test]
fn every_benchmark_is_asked_in_its_own_words_and_scored_as_a_naive_twin_does() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path());
    let expected = published(&dir.path().join("set"));
    let (report, lines) = eval(&model, &[&dir.path().join("set")], &[]);
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    let form = Form::open(&model).expect("a model");
    let tokenizer = form.expect_tokenizer().expect("a tokenizer");
    let mut engine = engines::open(Kind::Ggml, &form, 1).expect("an engine");
    // benchmark, measure -> right and all
    let mut counts = std::collections::BTreeMap::<(&str, &str), (u64, u64)>::new();
    for (line, expected) in lines.iter().zip(&expected) {
        let place = format!("{} {:?}", expected.benchmark, expected.prompt);
        assert_eq!(line["benchmark"], expected.benchmark, "{place}");
        assert_eq!(line["subject"], expected.subject, "{place}");
        assert_eq!(line["prompt"], expected.prompt, "{place}");
        assert_eq!(line["answers"], json!(expected.answers), "{place}");
        assert_eq!(line["right"], expected.right, "{place}");
        let found: Vec<f64> =
            serde_json::from_value(line["log_likelihoods"].clone()).expect("numbers");
        let of = |answer: &&str| naive(engine.as_mut(), &tokenizer, expected.prompt, answer);
        let naive: Vec<f64> = expected.answers.iter().map(of).collect();
        for (found, naive) in found.iter().zip(&naive) {
            // f32 sums of another length of batch
            assert!((found - naive).abs() < 1e-4, "{place}: {found} {naive}");
        }
        let per = |length: fn(&str) -> usize| {
            let pairs = naive.iter().zip(expected.answers);
            best(&pairs.map(|(sum, answer)| sum / length(answer) as f64).collect::<Vec<_>>())
        };
        let measures: &[(&str, usize)] = match expected.answers == LETTERS {
            true => &[("letter", per(|_| 1))],
            false => &[
                ("answer", per(|_| 1)),
                ("answer_norm", per(|a| a.chars().count())),
                ("answer_bytes", per(str::len)),
            ],
        };
        assert_eq!(line["chosen"].as_object().map(serde_json::Map::len), Some(measures.len()));
        for (measure, chosen) in measures {
            assert_eq!(line["chosen"][measure], *chosen, "{place} {measure}");
            let count = counts.entry((expected.benchmark, measure)).or_default();
            *count = (count.0 + u64::from(*chosen == expected.right), count.1 + 1);
        }
    }
    let choice = &report["rows"][0]["choice"];
    let benchmarks = choice["benchmarks"].as_array().expect("benchmarks");
    assert_eq!(benchmarks.len(), 9);
    for (&(name, measure), (right, all)) in &counts {
        let of_it = benchmarks.iter().find(|b| b["benchmark"] == name).expect(name);
        let share = &of_it[measure];
        assert_eq!((&share["right"], &share["questions"]), (&json!(right), &json!(all)), "{of_it}");
        let mean = of_it["mean_of_subjects"][measure]["accuracy"].as_f64().expect("a number");
        assert!((mean - *right as f64 / *all as f64).abs() < 1e-12, "one subject: {of_it}");
    }
    let letters = counts.iter().filter(|((_, m), _)| *m == "letter");
    let (right, all) = letters.fold((0, 0), |sum, (_, n)| (sum.0 + n.0, sum.1 + n.1));
    let overall = &choice["overall"]["letter"];
    assert_eq!((&overall["right"], &overall["questions"]), (&json!(right), &json!(all)));
    let told = &report["questions"]["benchmarks"];
    let ceval = told.as_array().expect("benchmarks").iter().find(|b| b["benchmark"] == "ceval");
    let ceval = ceval.expect("C-Eval");
    assert_eq!(
        (&ceval["task"], &ceval["splits"]),
        (&json!("ceval-valid 2.0"), &json!(["validation"]))
    );
    assert_eq!((&ceval["measures"], &ceval["chance"]), (&json!(["letter"]), &json!(0.25)));
    // the same twice
    assert_eq!(eval(&model, &[&dir.path().join("set")], &[]), (report, lines));
}

#[test]
fn what_was_recognized_and_what_was_left_out_is_said() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, set) = (golden(dir.path()), dir.path().join("set"));
    published(&set);
    let out = common::mmx(&["eval", text(&model), "--choice", text(&set)]);
    let said = String::from_utf8_lossy(&out.stderr);
    for words in [
        "C-Eval (validation): 1 subject, 2 questions, asked as ceval-valid 2.0 of lm-evaluation-harness",
        "Social-IQa (dev): 1 subject, 1 question, asked as social_iqa 0.0",
        "left out, no questions of a known layout: ",
        "subject_mapping.json",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let shown = String::from_utf8_lossy(&out.stdout);
    for words in ["12 questions of 9 subjects", "C-Eval", "TMMLU+", "blindly 25.0 %"] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
}

/// The first examples of the split that a benchmark keeps for them, by whichever path the questions are named.
#[test]
fn shots_come_from_the_split_beside_the_questions() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, set) = (golden(dir.path()), dir.path().join("set"));
    published(&set);
    let (_, lines) = eval(&model, &[&set], &["--shots", "1"]);
    let prompt = |lines: &[Value], benchmark: &str| -> String {
        let line = lines.iter().find(|line| line["benchmark"] == benchmark).expect(benchmark);
        line["prompt"].as_str().expect("a prompt").to_owned()
    };
    for (benchmark, example) in [
        ("ceval", "请选出其中的正确答案。\n\n例一？\nA. 子\nB. 丑\nC. 寅\nD. 卯\n答案： C\n\n下列"),
        ("cmmlu", "正确答案的选项。\n\n小麦？\nA. a\nB. b\nC. c\nD. d\n答案： A\n\n水稻"),
        ("aclue", "\n\n韵？\nA. 平\nB. 上\nC. 去\nD. 入\n答案： D\n\n声调"),
        ("tmmluplus", "\n\n審計？\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: C\n\n會計"),
        ("arc", "Question: Train?\nAnswer: text B\n\nQuestion: Why? \nAnswer:"),
        ("openbookqa", "The moon text A\n\nThe sun"),
        ("piqa", "Question: lift\nAnswer: push\n\nQuestion: open\nAnswer:"),
        ("hellaswag", "Then he sits down.\n\nTea: A cup."),
        ("social_iqa", "Q: Al ran. Why?\nA: fun\n\nQ: Al ran. Why?\nA:"),
    ] {
        let found = prompt(&lines, benchmark);
        assert!(found.contains(example), "{benchmark}: {found}");
    }
    // a split's folder, a file in it, and examples that are named
    let two = ["--shots", "2"];
    let (_, of_set) = eval(&model, &[&set.join("ceval")], &two);
    assert!(
        prompt(&of_set, "ceval").contains("例二？\nA. 子\nB. 丑\nC. 寅\nD. 卯\n答案： A\n\n下列")
    );
    let val = set.join("ceval/val");
    let dev = set.join("ceval/dev");
    let named = ["--examples", text(&dev), "--shots", "2"];
    for (questions, more) in
        [(&val, &two[..]), (&val.join("law_val.csv"), &two), (&val.join("law_val.csv"), &named)]
    {
        assert_eq!(eval(&model, &[questions], more).1, of_set, "{}", questions.display());
    }
    let refused = |questions: &Path, more: &[&str]| {
        mmx_error(&[&["eval", text(&model), "--choice", text(questions)], more].concat())
    };
    let error = refused(&val, &["--shots", "3"]);
    assert!(error.contains("subject law: expected 3 examples, found 2"), "{error}");
    let error = refused(&dev, &["--shots", "1"]);
    assert!(error.contains("subject law: expected examples in a split dev beside it"), "{error}");
}

/// The words of the benchmark give way to those that are asked for.
#[test]
fn other_words_and_ways_can_be_asked_for() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, set) = (golden(dir.path()), dir.path().join("set"));
    published(&set);
    let law = set.join("ceval");
    let (_, lines) = eval(&model, &[&law], &["--preamble", "{subject}: "]);
    assert!(lines[1]["prompt"].as_str().expect("a prompt").starts_with("law: 谁写？\nA. 一"));
    let (report, lines) = eval(&model, &[&law], &["--by", "both"]);
    assert_eq!(lines.len(), 4);
    assert!(lines[3]["prompt"].as_str().expect("a prompt").ends_with("\n\n谁写？\n答案："));
    let measures = json!(["letter", "answer", "answer_norm", "answer_bytes"]);
    assert_eq!(report["questions"]["measures"], measures);
    // questions of no benchmark: both ways, no words before them
    let quiz = write(dir.path(), "quiz/cooking.csv", "id,question,A,B,answer\n0,鱼？,蒸,煮,A\n");
    let (report, lines) = eval(&model, &[&quiz], &[]);
    assert_eq!((lines.len(), &lines[0]["benchmark"]), (2, &json!("other")));
    assert_eq!(lines[0]["prompt"], "鱼？\nA. 蒸\nB. 煮\n答案：");
    assert_eq!(report["questions"]["benchmarks"][0]["task"], Value::Null);
    // in a chat the benchmark's sentence is the system's and examples are turns
    let (_, lines) = eval(&model, &[&law], &["--chat", "--shots", "1"]);
    let prompt = lines[0]["prompt"].as_str().expect("a prompt");
    assert!(
        prompt.contains("<|im_start|>assistant\nC<|im_end|>\n<|im_start|>user\n下列"),
        "{prompt}"
    );
}

#[test]
fn what_is_wrong_with_a_benchmark_is_said_with_file_and_row() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, root) = (golden(dir.path()), dir.path());
    let refused = |path: &Path| mmx_error(&["eval", text(&model), "--choice", text(path)]);
    let head = "id,question,A,B,C,D,answer\n";
    let csv = write(
        root,
        "ceval/val/law_val.csv",
        &format!("{head}0,\"两\n行？\",a,b,c,d,A\n1,谁？,a,b,c,d,E\n"),
    );
    for path in [csv.as_path(), &root.join("ceval")] {
        let error = refused(path);
        assert!(
            error.contains("law_val.csv:4: expected an answer among A, B, C, D, found \"E\""),
            "{error}"
        );
    }
    let test = write(root, "t/law_test.csv", "id,question,A,B,C,D\n0,谁？,a,b,c,d\n");
    assert!(refused(&test).contains("law_test.csv:2: expected key answer, found id, question, A"));
    let goal = |label: Value| json!({"goal": "g", "sol1": "a", "sol2": "b", "label": label});
    let piqa = write(root, "p/valid.jsonl", &lines(&[goal(json!(0)), goal(json!(2))]));
    let error = refused(&piqa);
    assert!(error.contains("valid.jsonl:2: expected a label from 0 to 1, found \"2\""), "{error}");
    let bare = json!({"goal": "g", "sol1": "a", "sol2": "b"});
    let piqa = write(root, "q/dev.jsonl", &lines(&[bare.clone(), bare.clone()]));
    assert!(refused(&piqa).contains("dev.jsonl:1: expected key label, or a file of labels"));
    for labels in ["1\n", "1\n0\n1\n"] {
        write(root, "q/dev-labels.lst", labels);
        let error = refused(&piqa);
        assert!(error.contains("dev-labels.lst: expected as many labels as"), "{error}");
    }
    write(root, "q/dev-labels.lst", "1\nx\n");
    let error = refused(&piqa);
    assert!(error.contains("dev.jsonl:2: expected a label from 0 to 1, found \"x\""), "{error}");
    let none = write(root, "none/chats.jsonl", "{\"conversations\": []}\n");
    for path in [none.as_path(), &root.join("none")] {
        let error = refused(path);
        assert!(
            error.contains("chats.jsonl:1: expected the keys of a benchmark's questions"),
            "{error}"
        );
    }
    let swag = json!({"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["x", ""], "label": "1"});
    let swag = write(root, "h/hellaswag_val.jsonl", &lines(&[swag]));
    assert!(refused(&swag).contains("hellaswag_val.jsonl:1: option endings[1]: expected text"));
}

/// Questions of the layouts of hubs, in Parquet, are the same as in lines; a fault is said with its row.
mod parquet_files {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;

    /// A column of strings, or of lists of them: values, and how many each row has.
    struct Column {
        values: Vec<String>,
        lists: Option<Vec<usize>>,
        /// Definition level of a value that is there.
        level: i16,
    }

    fn strings(values: &[&str]) -> Column {
        Column { values: values.iter().map(|&v| v.to_owned()).collect(), lists: None, level: 1 }
    }

    fn of_lists(rows: &[&[&str]], level: i16) -> Column {
        Column {
            values: rows.concat().iter().map(|&v| v.to_owned()).collect(),
            lists: Some(rows.iter().map(|row| row.len()).collect()),
            level,
        }
    }

    fn table(path: &Path, schema: &str, columns: &[Column]) {
        fs_err::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        let schema = parse_message_type(schema).expect("a schema");
        let file = fs_err::File::create(path).expect("a file").into_parts().0;
        let mut writer =
            SerializedFileWriter::new(file, schema.into(), Default::default()).expect("a writer");
        let mut group = writer.next_row_group().expect("a group");
        for column in columns {
            let mut to = group.next_column().expect("a column").expect("a column");
            let values: Vec<ByteArray> =
                column.values.iter().map(|v| ByteArray::from(v.clone().into_bytes())).collect();
            let defined = vec![column.level; values.len()];
            let repeated: Option<Vec<i16>> = column.lists.as_ref().map(|lists| {
                lists.iter().flat_map(|&n| (0..n).map(|i| i16::from(i > 0))).collect()
            });
            to.typed::<ByteArrayType>()
                .write_batch(&values, Some(&defined), repeated.as_deref())
                .expect("written");
            to.close().expect("closed");
        }
        group.close().expect("closed");
        writer.close().expect("closed");
    }

    const LIST: &str = "(LIST) { repeated group list { optional binary element (UTF8); } }";

    #[test]
    fn hubs_parquet_files_are_asked_as_lines_are() {
        let dir = tempfile::tempdir().expect("a folder");
        let (model, hub, flat) =
            (golden(dir.path()), dir.path().join("hub"), dir.path().join("flat"));
        let names = ["id", "question", "A", "B", "C", "D", "answer", "explanation"];
        let fields: String =
            names.iter().map(|name| format!("optional binary {name} (UTF8); ")).collect();
        let ceval = format!("message schema {{ {fields} }}");
        let columns = |question: &str, answer: &str| {
            ["0", question, "甲", "乙", "丙", "丁", answer, ""].map(|cell| strings(&[cell]))
        };
        table(
            &hub.join("ceval-exam/law/val-00000-of-00001.parquet"),
            &ceval,
            &columns("谁？", "B"),
        );
        table(
            &hub.join("ceval-exam/law/dev-00000-of-00001.parquet"),
            &ceval,
            &columns("例？", "C"),
        );
        table(
            &hub.join("ceval-exam/law/test-00000-of-00001.parquet"),
            &ceval,
            &columns("问？", ""),
        );
        let row = |question, answer| {
            format!("id,question,A,B,C,D,answer,explanation\n0,{question},甲,乙,丙,丁,{answer},\n")
        };
        write(&flat, "val/law_val.csv", &row("谁？", "B"));
        write(&flat, "dev/law_dev.csv", &row("例？", "C"));
        let arc = format!(
            "message schema {{ optional binary id (UTF8); optional binary question (UTF8); \
             optional group choices {{ optional group text {LIST} optional group label {LIST} }} \
             optional binary answerKey (UTF8); }}"
        );
        let challenge = |key: &str| {
            [
                strings(&["MCAS_1", "MCAS_2"]),
                strings(&["Why?", "How?"]),
                of_lists(&[&["x", "y y", "z"], &["p", "q"]], 4),
                of_lists(&[&["1", "2", "3"], &["A", "B"]], 4),
                strings(&["2", key]),
            ]
        };
        table(
            &hub.join("ai2_arc/ARC-Challenge/test-00000-of-00001.parquet"),
            &arc,
            &challenge("A"),
        );
        let choices = |texts: &[&str], labels: &[&str]| json!({"text": texts, "label": labels});
        let lines = lines(&[
            json!({"id": "MCAS_1", "question": "Why?", "choices": choices(&["x", "y y", "z"], &["1", "2", "3"]), "answerKey": "2"}),
            json!({"id": "MCAS_2", "question": "How?", "choices": choices(&["p", "q"], &["A", "B"]), "answerKey": "A"}),
        ]);
        write(&flat, "ARC-Challenge-Test.jsonl", &lines);
        let swag = format!(
            "message schema {{ optional binary activity_label (UTF8); optional binary ctx_a (UTF8); \
             optional binary ctx_b (UTF8); optional group endings {LIST} optional binary label (UTF8); }}"
        );
        let endings = [
            strings(&["Tea"]),
            strings(&["A cup."]),
            strings(&["he"]),
            of_lists(&[&["sits.", "goes home."]], 3),
            strings(&["1"]),
        ];
        table(&hub.join("hellaswag/data/validation-00000-of-00001.parquet"), &swag, &endings);
        let record = json!({"activity_label": "Tea", "ctx_a": "A cup.", "ctx_b": "he", "endings": ["sits.", "goes home."], "label": 1});
        write(&flat, "validation.jsonl", &format!("{record}\n"));
        for (paths, more) in [
            ([hub.join("ceval-exam"), flat.join("val")], &["--shots", "1"][..]),
            ([hub.join("ai2_arc"), flat.join("ARC-Challenge-Test.jsonl")], &[]),
            ([hub.join("hellaswag"), flat.join("validation.jsonl")], &[]),
        ] {
            let [tables, texts] = paths.map(|path| {
                let (report, mut lines) = eval(&model, &[&path], more);
                for line in &mut lines {
                    let line = line.as_object_mut().expect("an object");
                    line.remove("file");
                    line.remove("line");
                }
                (report["rows"][0]["choice"].clone(), lines)
            });
            assert_eq!(tables, texts);
        }
        let bad = hub.join("bad/ARC-Challenge/test.parquet");
        table(&bad, &arc, &challenge("C"));
        let error = mmx_error(&["eval", text(&model), "--choice", text(&bad)]);
        assert!(
            error.contains("test.parquet:row 2: expected an answer among A, B, found \"C\""),
            "{error}"
        );
    }
}
