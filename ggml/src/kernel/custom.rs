//! Operations of our own as nodes of a graph, and what their products
//! ([`crate::kernel::float_matmul`], [`crate::kernel::quant_matmul`]) share: which activations meet
//! which matrix, and who computes which rows.
//!
//! Work is handed out in turns: a thread that is done with its rows takes the next ones. A core that
//! is slower than the others, or that another process uses, so computes less, and holds the step up
//! by no more than the rows it has at the time.
#![expect(
    unsafe_code,
    reason = "a node with a callback from C, whose operands are read through pointers"
)]

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use llama_cpp_sys_2 as sys;
use mmx_converters::gguf::GgmlType;

use crate::error::Result;
use crate::wrap::context::Context;
use crate::wrap::tensor::{Tensor, to_ne};

/// Weights that are multiplied with all tokens before the next ones, bytes: they stay in the second
/// cache.
pub(crate) const CHUNK: usize = 256 << 10;

/// Turns that a thread gets of a node's work when all of them are equally fast: of more, a product
/// of a small model would be no more than the waiting for each other.
const TURNS: usize = 8;

/// A function that a thread runs for a node: the node, its part of the work, the node's user data.
pub(crate) type Compute = unsafe fn(*mut sys::ggml_tensor, Worker<'_>, *mut c_void);

/// A thread that computes a node together with others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Worker<'a> {
    threads: usize,
    turns: &'a Turns,
}

/// How much of a node's work has been taken.
#[derive(Debug, Default)]
struct Turns {
    next: AtomicUsize,
    /// Threads that found nothing more to do.
    done: AtomicUsize,
}

/// What a node of ours is computed by; kept by its context.
#[derive(Debug)]
struct Kernel {
    compute: Compute,
    user: *mut c_void,
    turns: Turns,
}

impl<'a> Worker<'a> {
    /// How many threads compute the node.
    pub(crate) fn threads(self) -> usize {
        self.threads
    }

    /// This thread's turns at `n` things, at least `least` of them at a time. Every thread of the
    /// node has to ask once, with the same numbers, and to take turns until there are none.
    pub(crate) fn turns(self, n: usize, least: usize) -> impl Iterator<Item = Range<usize>> + 'a {
        let Self { threads, turns } = self;
        let size = match threads {
            0 | 1 => n.max(1),
            _ => n.div_ceil(threads * TURNS).max(least).max(1),
        };
        std::iter::from_fn(move || {
            let first = turns.next.fetch_add(1, Ordering::Relaxed) * size;
            if first < n {
                return Some(first..(first + size).min(n));
            }
            // the last one leaves all as it was found: the node is computed again only when every
            // thread has returned
            if turns.done.fetch_add(1, Ordering::AcqRel) + 1 >= threads {
                turns.next.store(0, Ordering::Relaxed);
                turns.done.store(0, Ordering::Release);
            }
            None
        })
        .fuse()
    }
}

/// What ggml calls for every node of ours.
unsafe extern "C" fn run(
    target: *mut sys::ggml_tensor,
    _index: c_int,
    threads: c_int,
    kernel: *mut c_void,
) {
    // SAFETY: the kernel of the node, made by `custom`, lives as long as its context; whoever made
    // it has promised that it may compute this node.
    unsafe {
        let kernel = &*kernel.cast::<Kernel>();
        let worker = Worker { threads: (threads as usize).max(1), turns: &kernel.turns };
        (kernel.compute)(target, worker, kernel.user);
    }
}

impl Context {
    /// A node of float32 in a shape (outermost first) that all threads compute.
    ///
    /// # Errors
    /// No room.
    ///
    /// # Safety
    /// `compute` may be called with these operands and with `user`, which lives as long as this
    /// context.
    pub(crate) unsafe fn custom<'c>(
        &'c self,
        what: &str,
        shape: &[usize],
        operands: &[Tensor<'c>],
        compute: Compute,
        user: *mut c_void,
    ) -> Result<Tensor<'c>> {
        self.require_room(what)?;
        let [ne0, ne1, ne2, ne3] = to_ne(shape);
        let mut raw: Vec<_> = operands.iter().map(|tensor| tensor.raw()).collect();
        let kernel = self.keep(Kernel { compute, user, turns: Turns::default() });
        // SAFETY: the operands live as long as this context, the rest is this function's own
        // condition; -1 tasks means as many as there are threads.
        unsafe {
            let node = sys::ggml_custom_4d(
                self.raw(),
                sys::GGML_TYPE_F32,
                ne0,
                ne1,
                ne2,
                ne3,
                raw.as_mut_ptr(),
                raw.len() as c_int,
                Some(run),
                -1,
                kernel.cast_mut().cast(),
            );
            Tensor::from_raw(node, what)
        }
    }
}

/// Activations that are multiplied with a matrix, or with the experts that each token chose.
#[derive(Clone, Copy)]
pub(crate) struct Activations<'c> {
    /// `[n, cols]`; with experts `[n, 1 or k, cols]`.
    pub(crate) x: Tensor<'c>,
    /// i32 `[n, k]`.
    pub(crate) chosen: Option<Tensor<'c>>,
}

impl<'c> Activations<'c> {
    /// `x` `[n, cols]` for one matrix.
    pub(crate) fn all(x: Tensor<'c>) -> Self {
        Self { x, chosen: None }
    }

    /// `x` `[n, 1 or k, cols]` for the experts `chosen` `[n, k]`.
    pub(crate) fn of_experts(x: Tensor<'c>, chosen: Tensor<'c>) -> Self {
        Self { x, chosen: Some(chosen) }
    }

    /// The shape of these activations' products with a matrix (or a stack of `experts`) of `rows`
    /// and `cols`: `[n, rows]`, or `[n, k, rows]`. Nothing where they do not fit.
    pub(crate) fn products(&self, experts: usize, rows: usize, cols: usize) -> Option<Vec<usize>> {
        let (v, nb) = (self.x.ne(), self.x.nb());
        let plain = nb[0] == size_of::<f32>() && self.x.ty() == Some(GgmlType::F32);
        if !plain || v[0] != cols || v[3] != 1 {
            return None;
        }
        let Some(chosen) = self.chosen else {
            return (experts == 1 && v[2] == 1).then(|| vec![v[1], rows]);
        };
        let i = chosen.ne();
        let fits = i[2] * i[3] == 1
            && i[1] == v[2]
            && (v[1] == 1 || v[1] == i[0])
            && nb[2] == v[1] * nb[1]
            && chosen.nb()[0] == size_of::<i32>()
            && chosen.ty() == Some(GgmlType::I32);
        fits.then(|| vec![i[1], i[0], rows])
    }

    /// The operands of a node: `x`, then the chosen experts, `others` between.
    pub(crate) fn operands(&self, others: &[Tensor<'c>]) -> Vec<Tensor<'c>> {
        [self.x].iter().chain(others).chain(&self.chosen).copied().collect()
    }
}

/// The experts that were chosen, with the rows of activations and of results that belong to each.
#[derive(Debug, Default)]
pub(crate) struct Chosen {
    pairs: Vec<(u32, u32)>,
    /// An expert, and where its pairs end.
    ends: Vec<(usize, usize)>,
}

impl Chosen {
    /// Of `experts`, those that some token chose.
    ///
    /// # Safety
    /// As for [`add_pairs`].
    pub(crate) unsafe fn find(
        &mut self,
        x: &sys::ggml_tensor,
        chosen: *const sys::ggml_tensor,
        experts: usize,
    ) {
        self.pairs.clear();
        self.ends.clear();
        for expert in 0..experts {
            let before = self.pairs.len();
            // SAFETY: as the caller says.
            unsafe { add_pairs(x, chosen, expert, &mut self.pairs) };
            if self.pairs.len() > before {
                self.ends.push((expert, self.pairs.len()));
            }
        }
    }

    /// How many were chosen.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The `at`-th of them: its number, and its pairs.
    pub(crate) fn of(&self, at: usize) -> (usize, &[(u32, u32)]) {
        let first = at.checked_sub(1).map_or(0, |before| self.ends[before].1);
        (self.ends[at].0, &self.pairs[first..self.ends[at].1])
    }

    /// Parts of `n` things of each chosen expert, given a range of the `n` things of all of them:
    /// which of the chosen, and which of its things.
    pub(crate) fn parts(
        range: Range<usize>,
        n: usize,
    ) -> impl Iterator<Item = (usize, Range<usize>)> {
        let mut rest = range;
        std::iter::from_fn(move || {
            let (at, first) = (rest.start.checked_div(n)?, rest.start.checked_rem(n)?);
            let last = n.min(first + rest.len());
            (!rest.is_empty()).then(|| {
                rest.start += last - first;
                (at, first..last)
            })
        })
    }
}

/// Adds the rows of activations and of results that belong to an expert; without chosen experts,
/// each row to its own.
///
/// # Safety
/// `x` and `chosen` are computed operands of a node over [`Activations`]; `chosen` is null without
/// experts.
unsafe fn add_pairs(
    x: &sys::ggml_tensor,
    chosen: *const sys::ggml_tensor,
    expert: usize,
    pairs: &mut Vec<(u32, u32)>,
) {
    let per_token = x.ne[1] as usize;
    if chosen.is_null() {
        pairs.extend((0..per_token as u32).map(|row| (row, row)));
        return;
    }
    // SAFETY: a computed tensor i32 `[n, k]` with rows at its stride, as the caller says.
    unsafe {
        let chosen = &*chosen;
        let (k, n) = (chosen.ne[0] as usize, chosen.ne[1] as usize);
        for token in 0..n {
            let ids = chosen.data.cast::<u8>().add(token * chosen.nb[1]).cast::<i32>();
            for slot in 0..k {
                if ids.add(slot).read() as usize == expert {
                    let row = token * per_token + slot % per_token;
                    pairs.push((row as u32, (token * k + slot) as u32));
                }
            }
        }
    }
}

/// Operations on plain numbers, for the tests of their kernels.
#[cfg(test)]
pub(crate) mod trial {
    use super::*;
    use crate::kernel::fenced::{Fence, Fenced};
    use crate::wrap::plan::{Nodes, Plan, Slot};
    use crate::wrap::pool::Pool;

    /// Computes a node that no graph is made for, twice: each operand (`operands`: their bytes, those
    /// of a view: of what it is a view of) and the result lie in memory of their own, which ends and
    /// then begins at a page that `compute` may not touch; in a graph's one buffer nobody would see it
    /// touch what lies beside.
    pub(crate) fn compute_apart(
        node: Tensor<'_>,
        operands: &[&[u8]],
        how: (Compute, *mut c_void),
        threads: usize,
    ) -> Vec<f32> {
        let ends = compute_fenced(node, operands, how, threads, Fence::Behind);
        let begins = compute_fenced(node, operands, how, threads, Fence::Before);
        let bits = |result: &[f32]| result.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&ends), bits(&begins), "what lies beside is read");
        ends
    }

    fn compute_fenced(
        node: Tensor<'_>,
        operands: &[&[u8]],
        (compute, user): (Compute, *mut c_void),
        threads: usize,
        fence: Fence,
    ) -> Vec<f32> {
        // whole words, so at a page's end they are aligned for every operand
        assert!(operands.iter().all(|bytes| bytes.len().is_multiple_of(4)), "whole words");
        let mut memory: Vec<Fenced> =
            operands.iter().map(|bytes| Fenced::new(bytes, fence)).collect();
        let mut result = Fenced::new(&vec![0; node.elements() * size_of::<f32>()], fence);
        // SAFETY: the node and its operands are alive and nobody else's; their data are set to
        // memory of as many bytes as they have (asserted), and to null again before that is gone.
        // `compute` is the node's own.
        unsafe {
            let raw = node.raw();
            (*raw).data = result.as_mut_ptr().cast();
            for (i, memory) in memory.iter_mut().enumerate() {
                let operand = (*raw).src[i];
                let whole =
                    if (*operand).view_src.is_null() { operand } else { (*operand).view_src };
                assert_eq!(sys::ggml_nbytes(whole), memory.len(), "operand {i}");
                (*operand).data =
                    memory.as_mut_ptr().wrapping_byte_add((*operand).view_offs).cast();
            }
            assert!((*raw).src[operands.len()].is_null(), "more operands than {}", operands.len());
            let turns = Turns::default();
            for _ in 0..threads {
                compute(raw, Worker { threads, turns: &turns }, user);
            }
            (*raw).data = std::ptr::null_mut();
            for i in 0..operands.len() {
                (*(*raw).src[i]).data = std::ptr::null_mut();
            }
        }
        bytemuck::cast_slice(&result).to_vec() // whole words: aligned
    }

    /// Rows to be multiplied and, with experts, the chosen ones and how many each token chose.
    pub(crate) struct Numbers<'a> {
        pub(crate) x: &'a [f32],
        pub(crate) shape: &'a [usize],
        pub(crate) chosen: Option<(&'a [i32], usize)>,
    }

    impl Numbers<'_> {
        /// Inputs of a graph for them.
        pub(crate) fn inputs<'c>(&self, nodes: &Nodes<'c>) -> Activations<'c> {
            let x = nodes.input(GgmlType::F32, self.shape).unwrap();
            let of = |(ids, k): (&[i32], usize)| [ids.len() / k, k];
            let chosen = self.chosen.map(|chosen| nodes.input(GgmlType::I32, &of(chosen)).unwrap());
            Activations { x, chosen }
        }

        /// Where these inputs are in the finished plan.
        pub(crate) fn slots(inputs: Activations<'_>) -> (Slot, Option<Slot>) {
            (Slot::of(inputs.x), inputs.chosen.map(Slot::of))
        }

        /// Fills them in and computes the output.
        pub(crate) fn compute(
            &self,
            plan: &mut Plan,
            (x, chosen): (Slot, Option<Slot>),
            output: Slot,
            threads: usize,
        ) -> Vec<f32> {
            plan.data_mut::<f32>(x).copy_from_slice(self.x);
            if let (Some(slot), Some((ids, _))) = (chosen, self.chosen) {
                plan.data_mut::<i32>(slot).copy_from_slice(ids);
            }
            plan.compute(&mut Pool::new(threads).unwrap()).unwrap();
            plan.data_mut::<f32>(output).to_vec()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::wrap::plan::Plan;
    use crate::wrap::pool::Pool;

    const THINGS: usize = 320;

    /// Who computed what: the node's user data.
    struct Record {
        computed: [AtomicUsize; THINGS],
        /// True once one thread waits; things that the others have computed since the beginning.
        waits: AtomicBool,
        others: AtomicUsize,
        delayed: AtomicUsize,
    }

    /// The first thread to come waits in its first turn until the others have done the rest.
    unsafe fn delayed(_: *mut sys::ggml_tensor, worker: Worker<'_>, user: *mut c_void) {
        // SAFETY: the test's record, which lives until the graph has been computed.
        let record = unsafe { &*user.cast::<Record>() };
        let mut waited = false;
        for turn in worker.turns(THINGS, 1) {
            let first = !record.waits.swap(true, Ordering::SeqCst);
            for thing in turn.clone() {
                record.computed[thing].fetch_add(1, Ordering::SeqCst);
            }
            if first {
                waited = true;
                record.delayed.fetch_add(turn.len(), Ordering::SeqCst);
                let start = Instant::now(); // for a fault: no test is to wait for ever
                while record.others.load(Ordering::SeqCst) < THINGS - turn.len()
                    && start.elapsed() < Duration::from_secs(20)
                {
                    std::thread::yield_now();
                }
            } else if waited {
                record.delayed.fetch_add(turn.len(), Ordering::SeqCst);
            } else {
                record.others.fetch_add(turn.len(), Ordering::SeqCst);
            }
        }
    }

    #[test]
    fn a_delayed_thread_computes_the_turn_it_has_and_the_others_all_else() {
        for threads in [2, 3] {
            let record = Record {
                computed: std::array::from_fn(|_| AtomicUsize::new(0)),
                waits: AtomicBool::new(false),
                others: AtomicUsize::new(0),
                delayed: AtomicUsize::new(0),
            };
            let user = std::ptr::from_ref(&record).cast_mut().cast();
            let plan = Plan::new(8).unwrap();
            let nodes = plan.nodes();
            let x = nodes.input(GgmlType::F32, &[4]).unwrap();
            // SAFETY: the record outlives the plan's last computation.
            let node = unsafe { nodes.context.custom("a trial", &[4], &[x], delayed, user) };
            nodes.output(node.unwrap());
            let mut plan = plan.finish().unwrap();
            let mut pool = Pool::new(threads).unwrap();
            for round in 1..=3 {
                plan.compute(&mut pool).unwrap();
                let all = record.computed.iter().all(|n| n.load(Ordering::SeqCst) == round);
                assert!(all, "everything once a round");
                let turn = THINGS.div_ceil(threads * TURNS);
                assert_eq!(record.delayed.swap(0, Ordering::SeqCst), turn, "{threads} threads");
                assert_eq!(record.others.swap(0, Ordering::SeqCst), THINGS - turn);
                record.waits.store(false, Ordering::SeqCst);
            }
        }
    }

    #[test]
    fn a_range_of_all_experts_things_is_parts_of_each() {
        let parts = |range, n| Chosen::parts(range, n).collect::<Vec<_>>();
        assert_eq!(parts(0..7, 3), [(0, 0..3), (1, 0..3), (2, 0..1)]);
        assert_eq!(parts(4..5, 3), [(1, 1..2)]);
        assert_eq!(parts(2..4, 3), [(0, 2..3), (1, 0..1)]);
        assert_eq!(parts(3..3, 3), []);
        assert_eq!(parts(0..0, 0), []);
    }
}
