//! Has the threads of a pool begin together, each on a core of its own.
//!
//! ggml's threads wait for each other at every operation and do not let go of their cores meanwhile.
//! A thread that slept may be woken on the core of the one that woke it, though another is idle
//! (Linux looks for an idle one only where few were busy of late: SIS_UTIL, kernel/sched/fair.c);
//! then both share it until the system next balances its cores: 1 to 14 ms, measured at the first
//! step of small models, whose work takes 4. So before a step that follows upon sleep the threads
//! meet at a node where who waits lets others run, and who finds itself on a core that another has
//! taken leaves it.
#![expect(unsafe_code, reason = "a node with a callback from C")]

use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use llama_cpp_sys_2 as sys;
use mmx_converters::gguf::GgmlType;

use crate::error::Result;
use crate::kernel::custom::Worker;
use crate::wrap::cores;
use crate::wrap::plan::Plan;
use crate::wrap::pool::Pool;

/// A graph in which threads do nothing but come together.
#[derive(Debug)]
pub(crate) struct Meeting {
    plan: Plan,
    #[cfg(test)]
    place: Arc<Place>,
}

/// Where they meet.
#[derive(Debug, Default)]
struct Place {
    /// The cores of those who came, of this time.
    cores: Mutex<Vec<usize>>,
    /// How many came, all times together.
    arrived: AtomicUsize,
}

impl Meeting {
    /// # Errors
    /// No memory.
    pub(crate) fn new() -> Result<Self> {
        let plan = Plan::new(4)?;
        let nodes = plan.nodes();
        let here = nodes.input(GgmlType::F32, &[1])?;
        let place = Arc::<Place>::default();
        let user = Arc::as_ptr(&place).cast_mut().cast();
        nodes.context.keep(place.clone());
        // SAFETY: the node's context keeps the place, and `meet` asks nothing of operands.
        let node = unsafe { nodes.context.custom("a meeting", &[1], &[here], meet, user)? };
        nodes.output(node);
        Ok(Self {
            plan: plan.finish_on(None)?,
            #[cfg(test)]
            place,
        })
    }

    /// Wakes the pool's threads and returns once all run.
    ///
    /// # Errors
    /// None that is known.
    pub(crate) fn hold(&mut self, pool: &mut Pool) -> Result<()> {
        self.plan.compute(pool)
    }
}

/// Waits for the others.
unsafe fn meet(_: *mut sys::ggml_tensor, worker: Worker<'_>, place: *mut c_void) {
    // SAFETY: a place, as whoever made the node said.
    let place = unsafe { &*place.cast::<Place>() };
    let threads = worker.threads();
    if let Some(core) = cores::current() {
        let mut taken = place.cores.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.len() >= threads {
            taken.clear(); // of the time before
        }
        let core = if taken.contains(&core) { cores::leave(&taken) } else { Some(core) };
        taken.push(core.unwrap_or(usize::MAX));
    }
    let before = place.arrived.fetch_add(1, Ordering::AcqRel);
    let all = before - before % threads + threads;
    while place.arrived.load(Ordering::Acquire) < all {
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_meet_each_on_a_core_of_its_own() {
        let cores = std::thread::available_parallelism().unwrap().get();
        for threads in [1, 2, 3, cores] {
            let mut pool = Pool::new(threads).unwrap();
            let mut meeting = Meeting::new().unwrap();
            for time in 1..20 {
                meeting.hold(&mut pool).unwrap();
                let place = &meeting.place;
                assert_eq!(place.arrived.load(Ordering::Acquire), time * threads);
                let mut found = place.cores.lock().unwrap().clone();
                if cfg!(target_os = "linux") {
                    assert_eq!(found.len(), threads);
                    found.sort_unstable();
                    found.dedup();
                    assert!(found.len() >= threads.min(cores), "{found:?} of {threads} threads");
                }
            }
        }
    }
}
