//! Prompts and conversations equal what the reference makes of the same data.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use mmx_converters::tokenizer::Tokenizer;
use mmx_rollout::tools::{Toolbox, Tools};
use mmx_rollout::{
    Completion, Conversation, Draw, Finish, Limits, PromptOptions, Prompts, Rollout, Written,
};
use serde_json::{Value, json};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");

fn tokenizer() -> Tokenizer {
    Tokenizer::open(format!("{FIXTURES}/golden-2026")).unwrap()
}

fn golden(name: &str) -> Value {
    let path = format!("{FIXTURES}/golden-rl/{name}.json");
    serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap()
}

fn prompts(name: &str, options: PromptOptions) -> Prompts {
    Prompts::load(&[format!("{FIXTURES}/golden-rl/{name}.jsonl").into()], options).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[test]
fn prompts_are_the_references_whatever_was_drawn() {
    let tokenizer = tokenizer();
    let golden = golden("prompts");
    for (name, least) in [("rlaif", 36), ("agent", 12)] {
        let file = if name == "rlaif" { "rlaif" } else { "agent_rl" };
        let prompts = prompts(file, PromptOptions::default());
        let cases = golden[name].as_array().unwrap();
        assert!(cases.len() >= least);
        for case in cases {
            let task = prompts.task(case["row"].as_u64().unwrap()).unwrap();
            let share = |key: &str| case[key].as_f64();
            let (system, thinking) = match share("random_draw") {
                Some(drawn) => (
                    drawn < share("system_ratio").unwrap(),
                    drawn < share("thinking_ratio").unwrap(),
                ),
                None => (false, case["open_thinking"].as_bool().unwrap()),
            };
            if let Some(truth) = case.get("gt") {
                assert_eq!(&task.record["gt"], truth);
            }
            let system = system.then_some("你是 mmx 的助手。");
            let draw = prompts.render(&tokenizer, task, system, thinking).unwrap();
            assert_eq!(draw.text, text(&case["prompt"]));
            assert_eq!(draw.prompt, ids(&case["ids"]));
            assert_eq!(draw.thinking, thinking);
        }
    }
}

#[test]
fn a_prompt_too_long_keeps_its_last_ids() {
    let tokenizer = tokenizer();
    let whole = prompts("rlaif", PromptOptions::default());
    let cut = prompts("rlaif", PromptOptions { max_prompt: 20, ..PromptOptions::default() });
    let [whole, cut] = [&whole, &cut].map(|prompts| prompts.draw(&tokenizer, 0).unwrap());
    assert_eq!(cut.prompt, whole.prompt[whole.prompt.len() - 20..]);
    assert_eq!((cut.full_len, cut.text), (whole.prompt.len(), whole.text));
}

#[test]
fn a_table_is_tasks_by_its_columns_and_faulty_records_are_named_or_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sums.csv");
    let table = "question,answer,reward\n1+1?,2,numeric\n,3,exact\n\"2+3?\",5,\"[{\"\"type\"\": \"\"exact\"\"}]\"\n";
    fs_err::write(&file, table).unwrap();
    let fields = mmx_data::Fields::parse(&["prompt=question"]).unwrap();
    let options = PromptOptions { fields, shuffle: false, ..PromptOptions::default() };
    let load = |options| Prompts::load(std::slice::from_ref(&file), options);
    let said = load(options.clone()).unwrap_err().to_string();
    assert!(said.contains("sums.csv:3"), "{said}");
    let on_bad = mmx_data::OnBad::Skip;
    let prompts = load(PromptOptions { on_bad, ..options }).unwrap();
    assert_eq!((prompts.len(), prompts.skipped()[0].1), (2, 2));
    assert_eq!(prompts.place(1).unwrap().1, 3);
    let rewards = mmx_rollout::reward::Rewards::of_records(
        folder.path(),
        Default::default(),
        Default::default(),
    );
    for (cursor, asked, answer) in [(0, "1+1?", "it is 2"), (1, "2+3?", "5")] {
        let draw = prompts.draw(&tokenizer(), cursor).unwrap();
        assert_eq!(draw.messages, [json!({"role": "user", "content": asked})]);
        let scores = [answer, "7"].map(Written::one_turn);
        let scores = mmx_rollout::Scorer::score(&rewards, &draw, &scores).unwrap();
        assert_eq!((scores[0].reward, scores[1].reward), (1.0, 0.0));
    }
}

#[test]
fn draws_depend_on_seed_and_number_alone_and_take_every_task_once_an_epoch() {
    let tokenizer = tokenizer();
    let options = PromptOptions {
        thinking_ratio: 0.5,
        system_ratio: 0.5,
        seed: 7,
        ..PromptOptions::default()
    };
    let all = prompts("rlaif", options.clone());
    let len = all.len() as u64;
    let epoch = |number: u64| -> Vec<u64> {
        (number * len..(number + 1) * len).map(|cursor| all.sample_at(cursor)).collect()
    };
    let (first, second) = (epoch(0), epoch(1));
    assert_ne!(first, second);
    for mut order in [first, second] {
        order.sort_unstable();
        assert_eq!(order, (0..len).collect::<Vec<_>>());
    }
    // another run, begun in the middle
    let again = prompts("rlaif", options);
    let mut seen = [0, 0];
    for cursor in (0..3 * len).rev() {
        let [a, b] = [&all, &again].map(|prompts| prompts.draw(&tokenizer, cursor).unwrap());
        assert_eq!((a.sample, &a.prompt), (b.sample, &b.prompt));
        seen[usize::from(a.thinking)] += 1;
    }
    assert!(seen.iter().all(|&count| count > 5), "{seen:?}");
    // the rows of a group may differ in their thoughts, and nothing else
    let rows = [0, 1, 2, 3, 4, 5, 6, 7].map(|row| all.draw_row(&tokenizer, 3, row).unwrap());
    assert!(rows.iter().any(|row| row.thinking) && rows.iter().any(|row| !row.thinking));
    assert!(rows.iter().all(|row| row.messages == rows[0].messages));
}

/// Plays a script of turns; the log-probability of a turn's n-th id is -n / 100, as in the
/// golden file.
fn play(
    tokenizer: &Tokenizer,
    draw: &Draw,
    limits: &Limits,
    tools: &dyn Toolbox,
    script: &[&str],
) -> (Rollout, Written, usize) {
    let eos = tokenizer.eos_id().unwrap();
    let mut row = Conversation::new(tokenizer, draw, limits, Some(tools), 5, 1);
    let mut request = row.request();
    let mut asked = 0;
    while let Some(now) = request {
        let so_far = [&now.prompt[..draw.prompt.len()], &now.prompt[draw.prompt.len()..]].concat();
        assert!(so_far.starts_with(&draw.prompt));
        let mut ids = tokenizer.encode(script[asked]).unwrap();
        ids.push(eos);
        let logps = (1..=ids.len()).map(|number| -(number as f32) / 100.0).collect();
        asked += 1;
        request = row.push(Completion { ids, logps, finish: Finish::Stop }).unwrap();
    }
    let (rollout, written) = row.finish();
    (rollout, written, asked)
}

#[test]
fn conversations_are_the_references_where_its_ids_are_the_sampled_ones() {
    let tokenizer = tokenizer();
    let golden = golden("trajectories");
    let turns = golden["max_turns"].as_u64().unwrap() as usize;
    let limits = Limits { max_turns: turns, learn_stop: false, ..Limits::default() };
    let prompts = prompts("agent_rl", PromptOptions::default());
    let tools = Tools::calculator();
    let (mut equal, mut shifted) = (0, 0);
    for case in golden["cases"].as_array().unwrap() {
        let thinking = case["open_thinking"].as_bool().unwrap();
        let draw = prompts.render(&tokenizer, prompts.task(0).unwrap(), None, thinking).unwrap();
        assert_eq!(draw.prompt, ids(&case["prompt_ids"]));
        let script: Vec<&str> = case["script"].as_array().unwrap().iter().map(text).collect();
        let (rollout, written, asked) = play(&tokenizer, &draw, &limits, &tools, &script);
        assert_eq!(asked, script.len());
        assert_eq!(written.turns, script);
        let unfinished = case["unfinished"].as_bool().unwrap();
        assert_eq!(rollout.finish == Finish::Unfinished, unfinished);
        let mask: Vec<u32> = rollout.sampled.iter().map(|s| u32::from(*s)).collect();
        if case["ids_equal_context"].as_bool().unwrap() {
            equal += 1;
            assert_eq!(rollout.ids, ids(&case["response_ids"]), "{}", case["name"]);
            assert_eq!(mask, ids(&case["action_mask"]), "{}", case["name"]);
            let old = case["old_logps"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap());
            assert_eq!(rollout.logps.len(), old.len());
            for (found, expected) in rollout.logps.iter().zip(old) {
                assert!((f64::from(*found) - expected).abs() < 1e-6, "{found} {expected}");
            }
            let whole = tokenizer.decode(&[&rollout.prompt[..], &rollout.ids].concat(), false);
            assert_eq!(whole, text(&case["final_context"]));
        } else {
            // the reference's masks have slipped there: the sampled ids stay what was sampled
            shifted += 1;
            let sampled: Vec<u32> = rollout
                .ids
                .iter()
                .zip(&rollout.sampled)
                .filter_map(|(id, sampled)| sampled.then_some(*id))
                .collect();
            let expected: Vec<u32> =
                script.iter().flat_map(|turn| tokenizer.encode(turn).unwrap()).collect();
            assert_eq!(sampled, expected);
            let after = tokenizer.decode(&rollout.ids, false);
            let between = "<|im_end|>\n<|im_start|>user\n<tool_response>\n{\"result\": \"84\"}\n</tool_response>\
                           <|im_end|>\n<|im_start|>assistant\n<think>\n";
            assert!(after.starts_with(&format!("{}{between}", script[0])), "{after}");
        }
    }
    assert_eq!((equal, shifted), (6, 2));
}

#[test]
fn the_end_of_a_turn_is_learned_where_that_is_asked_for() {
    let tokenizer = tokenizer();
    let prompts = prompts("agent_rl", PromptOptions::default());
    let draw = prompts.render(&tokenizer, prompts.task(0).unwrap(), None, false).unwrap();
    let call = "<tool_call>\n{\"name\": \"calculate_math\", \"arguments\": {\"expression\": \"12*7\"}}\n</tool_call>";
    let script = [call, "84"];
    let tools = Tools::calculator();
    let play = |learn_stop| {
        let limits = Limits { learn_stop, ..Limits::default() };
        play(&tokenizer, &draw, &limits, &tools, &script).0
    };
    let (without, with) = (play(false), play(true));
    let eos = tokenizer.eos_id().unwrap();
    // the last end comes in addition, the one between turns is there anyway
    assert_eq!(with.ids[..without.ids.len()], without.ids);
    assert_eq!(with.ids[without.ids.len()..], [eos]);
    let ends = |rollout: &Rollout| {
        let rows = rollout.ids.iter().zip(&rollout.sampled).zip(&rollout.logps);
        rows.filter(|((id, sampled), logp)| **id == eos && **sampled && **logp < 0.0).count()
    };
    assert_eq!((ends(&without), ends(&with)), (0, 2));
}

#[test]
fn calls_that_are_no_calls_are_counted_and_answered_and_never_crash() {
    let tokenizer = tokenizer();
    let prompts = prompts("agent_rl", PromptOptions::default());
    let draw = prompts.render(&tokenizer, prompts.task(0).unwrap(), None, false).unwrap();
    let tools = Tools::calculator();
    for (call, words) in [
        ("3", "expected a call"),
        ("[1]", "expected a call"),
        ("{}", "expected a call"),
        (r#"{"name": 3, "arguments": {}}"#, "expected a call"),
        (r#"{"name": "calculate_math", "arguments": [1]}"#, "expected a call"),
        (r#"{"name": "calculate_math", "arguments": {}}"#, "expected argument expression"),
        (r#"{"name": "nope", "arguments": {}}"#, "tool not found"),
        // known here, but not offered to this task
        (r#"{"name": "calculator", "arguments": {"expression": "1"}}"#, "tool not found"),
    ] {
        let script = [format!("<tool_call>{call}</tool_call>"), "done".to_owned()];
        let script = [script[0].as_str(), script[1].as_str()];
        let (rollout, written, _) = play(&tokenizer, &draw, &Limits::default(), &tools, &script);
        let [called] = &written.calls[..] else { panic!("{call}: {written:?}") };
        assert!(!called.is_valid && called.result.contains(words), "{call}: {called:?}");
        assert_eq!(rollout.finish, Finish::Stop);
    }
    // a call of no sense to a tool that is there
    let script = [
        r#"<tool_call>{"name": "calculate_math", "arguments": {"expression": "1/0"}}</tool_call>"#,
        "x",
    ];
    let (_, written, _) = play(&tokenizer, &draw, &Limits::default(), &tools, &script);
    assert!(written.calls[0].is_valid);
    assert_eq!(written.calls[0].result, r#"{"error": "division by zero"}"#);
}

#[test]
fn what_a_tool_answers_is_text_and_cut_to_its_limit() {
    let tokenizer = tokenizer();
    let prompts = prompts("agent_rl", PromptOptions::default());
    let mut task = prompts.task(0).unwrap();
    let tool = json!([{
        "type": "function", "function": {"name": "t"},
        "run": {"type": "clock", "now": format!("<|im_end|>{}", "好".repeat(3000))},
    }]);
    let at = std::path::Path::new("tools.json");
    let tools = Tools::from_json(&tool, at, at, Default::default()).unwrap();
    task.tools = Some(tools.shown());
    let draw = prompts.render(&tokenizer, task, None, false).unwrap();
    let script = [r#"<tool_call>{"name": "t"}</tool_call>"#, "x"];
    let (rollout, written, _) = play(&tokenizer, &draw, &Limits::default(), &tools, &script);
    assert_eq!(written.calls[0].result.chars().count(), 2048);
    // the turn's end and the result's: the text of a control token is no control token
    let eos = tokenizer.eos_id().unwrap();
    assert_eq!(rollout.ids.iter().filter(|id| **id == eos).count(), 3);
    assert!(tokenizer.decode(&rollout.ids, false).contains("{\"result\": \"<|im_end|>好"));
}

#[test]
fn a_full_context_ends_a_row_before_it_is_too_long() {
    let tokenizer = tokenizer();
    let prompts = prompts("agent_rl", PromptOptions::default());
    let draw = prompts.render(&tokenizer, prompts.task(0).unwrap(), None, false).unwrap();
    let limits = Limits { context: draw.prompt.len() + 60, ..Limits::default() };
    let tools = Tools::calculator();
    let row = Conversation::new(&tokenizer, &draw, &limits, Some(&tools), 0, 1);
    assert_eq!(row.request().unwrap().max_new, 60);
    let call = "<tool_call>\n{\"name\": \"calculate_math\", \"arguments\": {\"expression\": \"12*7\"}}\n</tool_call>";
    let (rollout, _, asked) = play(&tokenizer, &draw, &limits, &tools, &[call, "x"]);
    assert_eq!((rollout.finish, asked), (Finish::Unfinished, 1));
}

#[test]
fn turns_have_seeds_of_their_own_and_rows_without_tools_end_at_once() {
    let tokenizer = tokenizer();
    let prompts = prompts("agent_rl", PromptOptions::default());
    let draw = prompts.render(&tokenizer, prompts.task(0).unwrap(), None, false).unwrap();
    let (limits, tools) = (Limits::default(), Tools::calculator());
    let call = "<tool_call>\n{\"name\": \"calculate_math\", \"arguments\": {\"expression\": \"12*7\"}}\n</tool_call>";
    let completion = || {
        let ids = tokenizer.encode(call).unwrap();
        Completion { logps: vec![-1.0; ids.len()], ids, finish: Finish::Length }
    };
    let mut row = Conversation::new(&tokenizer, &draw, &limits, Some(&tools), 0, 1);
    let first = row.request().unwrap();
    let second = row.push(completion()).unwrap().unwrap();
    assert_ne!(first.seed, second.seed);
    let mut row = Conversation::new(&tokenizer, &draw, &limits, None, 0, 1);
    assert_eq!(row.push(completion()).unwrap(), None);
    let (rollout, written) = row.finish();
    assert_eq!((rollout.finish, written.finish), (Finish::Length, Finish::Length));
    assert!(rollout.sampled.iter().all(|sampled| *sampled));
    let mut row = Conversation::new(&tokenizer, &draw, &limits, None, 0, 1);
    let broken = Completion { ids: vec![1], logps: vec![], finish: Finish::Length };
    assert!(row.push(broken).is_err());
}
