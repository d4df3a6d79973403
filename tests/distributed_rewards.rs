//! Several processes learn from rewards as one does: the golden trajectories with their rows divided among
//! 2 and 3 ranks, groups in halves, ranks without rows, moments and gradients divided, and numbers of
//! the whole batch.
//! The ranks are this test program itself, started anew for each.

mod common;
#[path = "common/port.rs"]
mod port;
#[path = "common/ranks.rs"]
mod ranks;
mod trajectory;

use mmx_data::batches::Part;
use mmx_training::model::HostTensor;
use mmx_training::policy::options::{Baseline, PolicyOptions};
use mmx_training::ranks::{Ranks, Shard, Spread};
use ranks::run;
use trajectory::rewards::{Golden, Run};

/// A rank of the tests below; the environment says what it does.
#[test]
#[ignore = "a process of the other tests, which start it"]
fn rank() {
    let (does, ranks) = ranks::this();
    match does.as_str() {
        "groups" => goldens(&ranks, &GROUPS, &|golden, stage, spread| {
            golden.groups(stage, spread, &|_, _, _| ())
        }),
        "options" => options(&ranks),
        "pieces" => pieces(&ranks),
        "ppo" => goldens(&ranks, &CRITICS, &|golden, _, spread| golden.ppo(spread)),
        other => panic!("{other}: unknown"),
    }
    ranks.meet("the end of the test").expect("all ranks");
}

/// Golden runs and their stages: padding, cut-off rows, an empty row, turns of agents, accumulation, the
/// expected reward followed, mixtures of experts whose balancing loss is of the whole batch.
const GROUPS: [(&str, &str); 7] = [
    ("grpo-minimind3", "grpo"),
    ("grpo-onpolicy-minimind3", "grpo"),
    ("grpo-minimind3-moe", "grpo"),
    ("cispo-minimind3", "cispo"),
    ("agent-cispo-minimind3", "agent"),
    ("agent-grpo-minimind3", "agent"),
    ("spo-minimind3", "grpo"),
];

/// Whitening over the whole batch, minibatches of rows from all over it, an early stop.
const CRITICS: [(&str, &str); 3] =
    [("ppo-minimind3", "ppo"), ("ppo-earlystop-minimind3", "ppo"), ("ppo-minimind3-moe", "ppo")];

#[test]
fn rewards_are_compared_within_groups_over_all_ranks() {
    [2, 3].iter().for_each(|&size| run("groups", size));
}

#[test]
fn a_critic_and_its_policy_learn_the_same_on_all_ranks() {
    [2, 3].iter().for_each(|&size| run("ppo", size));
}

#[test]
fn options_that_look_at_the_whole_batch_see_the_rows_of_all_ranks() {
    [2, 3].iter().for_each(|&size| run("options", size));
}

#[test]
fn ranks_compute_their_rows_in_unequal_numbers_of_pieces() {
    [2, 3].iter().for_each(|&size| run("pieces", size));
}

type Train<'a> = &'a dyn Fn(&Golden, &str, &Spread) -> Run;

/// All golden runs: trajectory, how far weights moved, equal weights on all ranks; with divided moments
/// the same bits.
fn goldens(ranks: &Ranks, runs: &[(&'static str, &str)], train: Train<'_>) {
    for &(name, stage) in runs {
        let golden = Golden::open(name);
        let spread = Spread { ranks: ranks.clone(), ..Spread::default() };
        let found = train(&golden, stage, &spread);
        golden.assert_run(&found);
        let first = ranks.text_of_first(&bits(&found)).expect("rank 0's");
        assert_eq!(bits(&found), first, "{name}: other weights than rank 0's");
        assert_whole(name, &found, &train(&golden, stage, &Spread::default()));
        let sharded = Spread { shard: Shard::Optimizer, ..spread.clone() };
        let divided = train(&golden, stage, &sharded);
        assert_eq!(bits(&divided), bits(&found), "{name}: other weights with divided moments");
        assert!(divided.steps == found.steps, "{name}: other numbers with divided moments");
        // sums of several micro-steps are in another order then
        let sharded = Spread { shard: Shard::Gradients, ..spread };
        let divided = train(&golden, stage, &sharded);
        golden.assert_run(&divided);
        assert_whole(name, &divided, &found);
    }
}

type Change<'a> = &'a dyn Fn(&mut PolicyOptions);

/// Options for which a rank has to know what the others found: the divergence of their rows, the entropies
/// of their tokens, their rewards, how many tokens and rows there are.
fn options(ranks: &Ranks) {
    let spread = Spread { ranks: ranks.clone(), ..Spread::default() };
    let golden = Golden::open("grpo-minimind3");
    let usual = golden.groups("grpo", &Spread::default(), &|_, _, _| ());
    let changes: [(&str, Change<'_>); 5] = [
        ("the divergence in the reward", &|of| (of.kl_in_reward, of.kl_coef) = (true, 0.5)),
        ("the same, with what was expected", &|of| {
            of.choose("spo").expect("a loss");
            (of.kl_in_reward, of.kl_coef) = (true, 0.5);
        }),
        ("tokens of high entropy", &|of| of.top_entropy = 0.3),
        ("the batch's deviation", &|of| of.scale = Baseline::Batch),
        ("entropy, and the mean over tokens", &|of| {
            of.choose("dapo").expect("a loss");
            of.entropy_coef = 0.1;
        }),
    ];
    for (what, change) in changes {
        let run = |spread| golden.groups_with("grpo", spread, change, &|_, _, _| ());
        let (found, alone) = (run(&spread), run(&Spread::default()));
        assert_whole(what, &found, &alone);
        let first = ranks.text_of_first(&bits(&found)).expect("rank 0's");
        assert_eq!(bits(&found), first, "{what}: other weights than rank 0's");
        assert!(alone.steps != usual.steps, "{what}: changes nothing");
    }
}

/// Batches of so many positions that they come in pieces, more of them in the last processes than in the
/// first.
fn pieces(ranks: &Ranks) {
    let mut golden = Golden::open("grpo-minimind3");
    golden.grown = 36;
    let batch = golden.layout(golden.max_seq_len()).batch(&golden.rounds()[0], true);
    let of = |rank: usize| {
        let part = Part { rank, ranks: ranks.size() };
        let rows: Vec<usize> = part.of(batch.sequences()).collect();
        mmx_training::policy::pieces::pieces(&batch, &rows).len()
    };
    let (least, most) = (of(0), of(ranks.size() - 1));
    assert!(least < most, "{least} and {most} pieces of {} positions", batch.x.len());
    let run = |spread: Spread| golden.groups("grpo", &spread, &|_, _, _| ());
    let alone = run(Spread::default());
    for shard in [Shard::Nothing, Shard::Gradients] {
        let found = run(Spread { ranks: ranks.clone(), shard, ..Spread::default() });
        assert_whole(&format!("{shard:?}"), &found, &alone);
        let first = ranks.text_of_first(&bits(&found)).expect("rank 0's");
        assert_eq!(bits(&found), first, "{shard:?}: other weights than rank 0's");
    }
}

/// Every number is that of one process: shares are summed or meant over all tokens, and the largest is
/// that of all ranks.
fn assert_whole(name: &str, found: &Run, alone: &Run) {
    for (found, alone) in found.steps.iter().zip(&alone.steps) {
        let (found, alone) = (found.to_json(), alone.to_json());
        let keys = |of: &serde_json::Value| -> Vec<String> {
            of.as_object().expect("a step").keys().cloned().collect()
        };
        assert_eq!(keys(&found), keys(&alone), "{name}");
        for key in keys(&alone) {
            let (Some(found), Some(alone)) = (found[&key].as_f64(), alone[&key].as_f64()) else {
                assert_eq!(found[&key], alone[&key], "{name}: {key}");
                continue;
            };
            assert!(
                (found - alone).abs() <= 1e-5 + 1e-4 * alone.abs(),
                "{name}: {key}: expected {alone}, found {found}"
            );
        }
    }
}

fn bits(run: &Run) -> String {
    let of_critic = run.critic.iter().flat_map(|(_, end)| end);
    let values = run.policy.1.iter().chain(of_critic).flat_map(|of: &HostTensor| &of.values);
    let bytes: Vec<u8> = values.flat_map(|value| value.to_le_bytes()).collect();
    mmx_converters::digest::of_bytes(&bytes)
}
