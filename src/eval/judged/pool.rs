//! Several requests at once, until all are answered or it is in vain.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use mmx_converters::{Error, Result};

/// The requests that were not answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// What was asked, and the reason, in order.
    pub failed: Vec<(String, String)>,
    /// So many failed in a row that the rest was not asked.
    pub given_up: bool,
}

impl Failures {
    /// An error that tells the first, unless they may be skipped.
    ///
    /// # Errors
    /// Failures that may not be skipped; those that made the rest be given up may never.
    pub fn check(&self, skip: bool) -> Result<()> {
        match self.failed.first().filter(|_| !skip || self.given_up) {
            None => Ok(()),
            Some((first, why)) => Err(Error::failed_with_hint(
                format!(
                    "{} requests were not answered, the first {first}: {why}",
                    self.failed.len()
                ),
                "what was answered is kept: the same command goes on with the rest",
            )),
        }
    }
}

/// Calls `work` for every unit, `parallel` at once; it is told whether all is over meanwhile. An
/// inner error is the reason of a failure, an outer one ends everything.
pub(super) fn each<T: Sync>(
    units: &[T],
    parallel: usize,
    name: impl Fn(&T) -> String + Sync,
    work: impl Fn(&T, &dyn Fn() -> bool) -> Result<Result<(), String>> + Sync,
) -> Result<Failures> {
    let parallel = parallel.max(1);
    let (next, in_a_row) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let over = AtomicBool::new(false);
    let (fault, failed) = (Mutex::new(None), Mutex::new(Vec::new()));
    let given_up = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..parallel.min(units.len()) {
            scope.spawn(|| {
                let is_over = || over.load(Ordering::Relaxed);
                while !is_over() {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(unit) = units.get(index) else { break };
                    match work(unit, &is_over) {
                        Ok(Ok(())) => in_a_row.store(0, Ordering::Relaxed),
                        Ok(Err(why)) => {
                            let row = in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
                            if row >= 2 * parallel.max(4) {
                                given_up.store(true, Ordering::Relaxed);
                                over.store(true, Ordering::Relaxed);
                            }
                            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                            failed.push((index, name(unit), why));
                        }
                        Err(error) => {
                            over.store(true, Ordering::Relaxed);
                            let mut fault = fault.lock().unwrap_or_else(PoisonError::into_inner);
                            fault.get_or_insert(error);
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = fault.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let mut failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.sort_unstable_by_key(|(index, ..)| *index);
    let failed = failed.into_iter().map(|(_, name, why)| (name, why)).collect();
    Ok(Failures { failed, given_up: given_up.into_inner() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_worked_on_once_and_failures_stand_in_order() {
        let counts: Vec<AtomicUsize> = (0..200).map(|_| AtomicUsize::new(0)).collect();
        let units: Vec<usize> = (0..200).collect();
        let failures = each(&units, 7, usize::to_string, |&unit, _| {
            counts[unit].fetch_add(1, Ordering::Relaxed);
            Ok(if unit % 50 == 3 { Err("no".to_owned()) } else { Ok(()) })
        });
        let failures = failures.unwrap();
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        let names: Vec<&str> = failures.failed.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!((names, failures.given_up), (vec!["3", "53", "103", "153"], false));
        assert!(failures.check(true).is_ok());
        let error = failures.check(false).unwrap_err().to_string();
        assert!(error.contains("4 requests") && error.contains("the first 3: no"), "{error}");
    }

    #[test]
    fn a_dead_server_is_given_up_and_an_error_ends_everything() {
        let units = [(); 1000];
        let asked = AtomicUsize::new(0);
        let dead = each(
            &units,
            2,
            |()| String::new(),
            |(), _| {
                asked.fetch_add(1, Ordering::Relaxed);
                Ok(Err("away".to_owned()))
            },
        );
        let dead = dead.unwrap();
        assert!(dead.given_up && dead.check(true).is_err());
        assert!(asked.load(Ordering::Relaxed) <= 10, "{asked:?}");
        let error = each(&units, 3, |()| String::new(), |(), _| Err(Error::failed("full disk")));
        assert!(error.unwrap_err().to_string().contains("full disk"));
    }
}
