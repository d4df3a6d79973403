//! A source of batches that puts them together on a thread of their own while the step before runs.
//!
//! In: any source of batches. Out: the same batches at the same positions; errors, and a panic,
//! arrive with the batch they belong to. At most `AHEAD` batches wait, so memory does not grow.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;

use crate::Batch;
use crate::batches::Batches;
use mmx_converters::{Error, Result};

/// Batches that wait in the queue; one more is in the thread's hands.
const AHEAD: usize = 1;

/// A source that the thread and the loop share.
type Shared<'env> = Arc<Mutex<Box<dyn Batches + Send + 'env>>>;

/// A place: epoch and index.
type Place = (usize, usize);

/// A wish: the place to go on from. The number is the loop's, so that batches of an earlier wish
/// are known.
#[derive(Clone, Copy)]
struct Wish {
    number: u64,
    place: Place,
}

/// The thread's answer: a batch and its place, or nothing past the last epoch.
struct Made {
    wish: u64,
    batch: Option<(Place, Result<Batch>)>,
}

/// A source of batches that is one ahead.
pub struct Prefetcher<'env> {
    source: Shared<'env>,
    wishes: Sender<Wish>,
    made: Receiver<Made>,
    /// The last wish.
    number: u64,
    /// The thread waits for a wish.
    idle: bool,
}

impl<'env> Prefetcher<'env> {
    /// Begins the thread, which ends when this is dropped. It runs through `epochs` epochs.
    pub fn new<'scope>(
        scope: &'scope Scope<'scope, 'env>,
        source: Box<dyn Batches + Send + 'env>,
        epochs: usize,
    ) -> Self {
        let source = Arc::new(Mutex::new(source));
        let (wishes, wished) = channel();
        let (give, made) = sync_channel(AHEAD);
        let of_thread = source.clone();
        scope.spawn(move || run(&of_thread, epochs, &wished, &give));
        Self { source, wishes, made, number: 0, idle: true }
    }

    /// The next batch made for the last wish; nothing where the thread waits for another.
    fn next(&mut self) -> Result<Option<(Place, Result<Batch>)>> {
        loop {
            let made = self.made.recv().map_err(|_| ended())?;
            if made.wish == self.number {
                self.idle = made.batch.is_none();
                return Ok(made.batch);
            }
        }
    }
}

fn ended() -> Error {
    Error::failed("batches: expected the thread that makes them to run, found it ended")
}

/// A source is only ever used by one at a time; one that panicked is asked again at the caller's
/// risk.
fn locked<'a, 'env>(source: &'a Shared<'env>) -> MutexGuard<'a, Box<dyn Batches + Send + 'env>> {
    source.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread: goes on from each wish until there is another.
fn run(source: &Shared<'_>, epochs: usize, wished: &Receiver<Wish>, give: &SyncSender<Made>) {
    while let Ok(mut wish) = wished.recv() {
        loop {
            if let Some(newer) = wished.try_iter().last() {
                wish = newer;
            }
            let make = || {
                let mut source = locked(source);
                let (mut epoch, mut index) = wish.place;
                while epoch < epochs && index >= source.micro_steps(epoch) {
                    (epoch, index) = (epoch + 1, 0);
                }
                (epoch < epochs).then(|| ((epoch, index), source.batch(epoch, index)))
            };
            let batch = catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|_| {
                let message = "batches: expected a batch, found a panic (a bug in mmx)";
                Some((wish.place, Err(Error::failed(message))))
            });
            let end = batch.is_none();
            if let Some(((epoch, index), _)) = &batch {
                wish.place = (*epoch, index + 1);
            }
            if give.send(Made { wish: wish.number, batch }).is_err() {
                return; // nobody wants batches any more
            }
            if end {
                break;
            }
        }
    }
}

impl Batches for Prefetcher<'_> {
    fn micro_steps(&mut self, epoch: usize) -> usize {
        locked(&self.source).micro_steps(epoch)
    }

    fn batch(&mut self, epoch: usize, index: usize) -> Result<Batch> {
        if !self.idle
            && let Some((place, batch)) = self.next()?
            && place == (epoch, index)
        {
            return batch;
        }
        self.number += 1;
        let wish = Wish { number: self.number, place: (epoch, index) };
        self.wishes.send(wish).map_err(|_| ended())?;
        self.idle = false;
        match self.next()? {
            Some((place, batch)) if place == (epoch, index) => batch,
            _ => Err(Error::failed(format!(
                "batches: expected one at epoch {epoch}, index {index}, found none"
            ))),
        }
    }

    fn file(&self, index: u32) -> String {
        locked(&self.source).file(index)
    }

    fn largest(&mut self, micro_steps: usize) -> Result<(usize, usize)> {
        locked(&self.source).largest(micro_steps)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    /// Epochs of 3 and 2 micro-steps; each batch is its place.
    struct Counted<'a>(&'a AtomicUsize);

    impl Batches for Counted<'_> {
        fn micro_steps(&mut self, epoch: usize) -> usize {
            [3, 2].get(epoch).copied().unwrap_or(0)
        }

        fn batch(&mut self, epoch: usize, index: usize) -> Result<Batch> {
            self.0.fetch_add(1, Ordering::SeqCst);
            match (epoch, index) {
                (1, 1) => Err(Error::failed("no such file")),
                (0, 1) => panic!("expected by the test"),
                _ => Ok(place(epoch, index)),
            }
        }

        fn file(&self, index: u32) -> String {
            format!("file {index}")
        }
    }

    fn place(epoch: usize, index: usize) -> Batch {
        Batch { x: vec![epoch as i64, index as i64], batch: 1, seq: 2, ..Batch::default() }
    }

    #[test]
    fn batches_come_from_any_place_on_and_errors_with_the_batch_they_belong_to() {
        let count = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let mut ahead = Prefetcher::new(scope, Box::new(Counted(&count)), 2);
            assert_eq!((ahead.micro_steps(1), ahead.file(7)), (2, "file 7".into()));
            let mut at = |epoch, index| ahead.batch(epoch, index).map_err(|e| e.to_string());
            assert_eq!(at(0, 0), Ok(place(0, 0)));
            assert!(at(0, 1).unwrap_err().contains("panic"));
            assert_eq!(at(0, 2), Ok(place(0, 2)));
            assert_eq!(at(1, 0), Ok(place(1, 0)));
            assert_eq!(at(1, 1), Err("no such file".into()));
            assert!(at(2, 0).unwrap_err().contains("expected one at epoch 2"));
            // back, as after an error, and to a place in the middle, as a resumed run begins
            assert_eq!(at(0, 2), Ok(place(0, 2)));
            assert_eq!(at(0, 0), Ok(place(0, 0)));
            assert_eq!(at(1, 0), Ok(place(1, 0)));
        });
    }

    #[test]
    fn the_next_batch_is_made_meanwhile_and_no_more_than_wait() {
        struct Endless<'a>(&'a AtomicUsize);
        impl Batches for Endless<'_> {
            fn micro_steps(&mut self, _epoch: usize) -> usize {
                usize::MAX
            }

            fn batch(&mut self, epoch: usize, index: usize) -> Result<Batch> {
                self.0.fetch_add(1, Ordering::SeqCst);
                Ok(place(epoch, index))
            }

            fn file(&self, _index: u32) -> String {
                String::new()
            }
        }
        let count = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let mut ahead = Prefetcher::new(scope, Box::new(Endless(&count)), 1);
            for index in 0..3 {
                assert_eq!(ahead.batch(0, index).expect("a batch"), place(0, index));
                let begun = Instant::now();
                while count.load(Ordering::SeqCst) < index + 2 {
                    assert!(begun.elapsed() < Duration::from_secs(60), "the next in a minute");
                    std::thread::yield_now();
                }
            }
        });
        // three taken, AHEAD in the queue, one in hand
        assert!(count.load(Ordering::SeqCst) <= 3 + AHEAD + 1, "{count:?}");
    }
}
