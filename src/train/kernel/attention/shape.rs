//! What a call of attention is cut into: a task for each key and value head of each sample.

use std::ops::Range;

use tch::Tensor;

use crate::kernel::parallel::parallel;

/// Queries whose scores are there at a time.
pub(super) const BLOCK: usize = 64;

/// The sizes of a call, and the tasks it is cut into.
pub(super) struct Shape {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) tasks: Vec<Task>,
    /// What others go on from, and where the gradients of its keys are gathered.
    pub(super) families: Vec<Family>,
    /// Rows of all that is gathered.
    pub(super) shared_rows: usize,
}

/// One key and value head of one sample: with all query heads that share it, one thread's work.
#[derive(Clone)]
pub(super) struct Task {
    /// Positions of the sample that this one goes on from, in the flattened `batch * seq`.
    pub(super) before: Range<usize>,
    /// Its own.
    pub(super) tokens: Range<usize>,
    pub(super) kv_head: usize,
    /// Of a sample in a family: where what it gives to the shared keys and values is gathered, first
    /// a row for each key, then for each value.
    pub(super) gathered: usize,
}

impl Task {
    /// Positions whose keys and values are seen.
    pub(super) fn keys(&self) -> impl Iterator<Item = usize> {
        self.before.clone().chain(self.tokens.clone())
    }

    pub(super) fn key_count(&self) -> usize {
        self.before.len() + self.tokens.len()
    }
}

/// One key and value head of a sample that others go on from.
pub(super) struct Family {
    pub(super) tokens: Range<usize>,
    pub(super) kv_head: usize,
    /// Where its own gradients and those of the others are gathered, in the samples' order.
    pub(super) gathered: Vec<usize>,
}

pub(super) fn tasks(
    lengths: &[i64],
    parents: &[Option<usize>],
    kv_heads: usize,
) -> (Vec<Task>, Vec<Family>, usize) {
    let mut start = 0;
    let range = |&length: &i64| {
        start += length as usize;
        start - length as usize..start
    };
    let ranges: Vec<Range<usize>> = lengths.iter().map(range).collect();
    let parent = |i: usize| parents.get(i).copied().flatten();
    let (mut tasks, mut families, mut rows) = (Vec::new(), Vec::<Family>::new(), 0);
    let mut family = vec![None; lengths.len()];
    for i in (0..lengths.len()).filter_map(parent) {
        if family[i].is_none() {
            family[i] = Some(families.len());
            let of = |kv_head| Family { tokens: ranges[i].clone(), kv_head, gathered: Vec::new() };
            families.extend((0..kv_heads).map(of));
        }
    }
    for (i, tokens) in ranges.iter().enumerate() {
        let (before, shared) = match parent(i) {
            Some(of) => (ranges[of].clone(), of),
            None => (0..0, i),
        };
        for kv_head in 0..kv_heads {
            let gathered = rows;
            if let Some(first) = family[shared] {
                families[first + kv_head].gathered.push(gathered);
                rows += 2 * ranges[shared].len();
            }
            let (before, tokens) = (before.clone(), tokens.clone());
            tasks.push(Task { before, tokens, kv_head, gathered });
        }
    }
    (tasks, families, rows)
}

impl Shape {
    /// Query heads that share a key and value head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads.max(1)
    }

    pub(super) fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Calls `run` for every task, on all threads: each gets a run of tasks of about the same work, and
    /// buffers of its own.
    pub(super) fn on_all_threads<B>(
        &self,
        buffers: impl Fn() -> B + Sync,
        run: impl Fn(&Task, &mut B) + Sync,
    ) {
        let work = |task: &Task| {
            task.tokens.len() * (2 * task.before.len() + task.tokens.len() + 2 * BLOCK)
        };
        let total: usize = self.tasks.iter().map(work).sum();
        let threads = tch::get_num_threads().max(1) as usize;
        let mut parts = vec![Vec::new(); threads];
        let mut done = 0;
        for task in &self.tasks {
            // by the middle of its work
            let part = (done + work(task) / 2) * threads / total.max(1);
            parts[part.min(threads - 1)].push(task);
            done += work(task);
        }
        parallel(threads, 1, |range| {
            let mut buffers = buffers();
            for task in parts[range].iter().flatten() {
                run(task, &mut buffers);
            }
        });
    }

    /// Positions that a token sees at most.
    pub(super) fn longest(&self) -> usize {
        self.tasks.iter().map(Task::key_count).max().unwrap_or(0)
    }

    /// Whether others go on from a task's sample, which does not go on from another one.
    pub(super) fn is_shared(&self, task: &Task) -> bool {
        self.families.iter().any(|of| of.tokens == task.tokens && of.kv_head == task.kv_head)
    }

    /// The row of `[tokens, heads]` that a token's head is.
    pub(super) fn row(&self, token: usize, kv_head: usize, member: usize) -> usize {
        token * self.heads + kv_head * self.group() + member
    }
}

/// The values of the forward pass that the backward pass needs.
pub(super) struct Saved<'a> {
    pub(super) q: &'a Tensor,
    pub(super) k: &'a Tensor,
    pub(super) v: &'a Tensor,
    pub(super) out: &'a Tensor,
    pub(super) sums: &'a Tensor,
}
