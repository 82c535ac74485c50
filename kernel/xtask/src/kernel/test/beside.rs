//! Tests beside each other: one whose guest takes turns on one of this
//! machine's processors leaves the others to other tests.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use super::attempt::{FAILED, SKIPPED, one};
use super::list::Again;
use super::{Case, Processors};
use crate::kernel::boot::Guest;
use crate::kernel::initrd::Program;
use crate::run;
use crate::tally::Tally;

/// How many setups of a test may fail: of a kernel that does not boot, all do,
/// and there would be no end.
const FAILURES: usize = 3;

/// A test of the list, and its setup.
type Place = (usize, usize);

/// What is to be run.
struct Queue<'a> {
    cases: &'a [Case],
    waiting: VecDeque<Place>,
    /// Tests, once for each setup that failed.
    failed: Vec<usize>,
}

impl<'a> Queue<'a> {
    fn new(cases: &'a [Case], fits: impl Fn(&Case) -> bool) -> Self {
        let fitting = cases.iter().enumerate().filter(|(_, case)| fits(case));
        let waiting = fitting.map(|(nth, _)| (nth, 0)).collect();
        Self { cases, waiting, failed: Vec::new() }
    }

    /// The next. The setup after it waits from now on.
    fn take(&mut self) -> Option<(Place, Case)> {
        let (test, nth) = self.waiting.pop_front()?;
        let case = self.cases.get(test)?;
        if case.again == Again::Setup {
            self.waiting.push_front((test, nth + 1));
        }
        Some(((test, nth), case.of_setup(nth)))
    }

    /// How one ended. Setups are numbered, and the first that is skipped is one
    /// more than there are.
    fn ended(&mut self, (test, _): Place, verdict: &str) {
        if verdict == FAILED {
            self.failed.push(test);
        }
        let failed = self.failed.iter().filter(|&&other| other == test).count();
        if verdict == SKIPPED || failed >= FAILURES {
            self.waiting.retain(|&(other, _)| other != test);
        }
    }
}

/// Where a test's lines go.
pub(super) enum Lines {
    /// To be seen at once.
    Live,
    /// Kept until its end: another's would come between them.
    Kept(String),
}

impl Lines {
    pub(super) fn say(&mut self, line: &str) {
        match self {
            Self::Live => run::say(line),
            Self::Kept(lines) => *lines = format!("{lines}{line}\n"),
        }
    }

    fn end(self) {
        if let Self::Kept(lines) = self {
            run::say(lines.trim_end_matches('\n'));
        }
    }
}

/// What was found of one.
struct Found {
    place: Place,
    verdict: &'static str,
    /// For the summary.
    line: String,
    tally: Tally,
}

/// Runs `cases` and counts them in `tally`; a line for each, in their order.
pub(super) fn run(
    guest: &Guest,
    cases: &[Case],
    programs: &[Program],
    tally: &mut Tally,
) -> Vec<String> {
    let mut found = Vec::new();
    let turns = |case: &Case| guest.processors(case.processors) == Processors::Turns;
    let passes =
        [(Queue::new(cases, turns), guest.beside()), (Queue::new(cases, |c| !turns(c)), 1)];
    for (queue, workers) in passes {
        let workers = workers.min(queue.waiting.len());
        let (queue, all) = (Mutex::new(queue), Mutex::new(&mut found));
        thread::scope(|scope| {
            for worker in 0..workers {
                let (queue, all) = (&queue, &all);
                scope.spawn(move || {
                    while let Some((place, case)) = { lock(queue).take() } {
                        let lines =
                            if workers > 1 { Lines::Kept(String::new()) } else { Lines::Live };
                        let found = find(guest, place, &case, programs, worker, lines);
                        lock(queue).ended(place, found.verdict);
                        lock(all).push(found);
                    }
                });
            }
        });
    }
    counted(found, tally)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn find(
    guest: &Guest,
    place: Place,
    case: &Case,
    programs: &[Program],
    worker: usize,
    mut lines: Lines,
) -> Found {
    lines.say(&format!("\n==> {}", case.name));
    let (start, mut tally) = (Instant::now(), Tally::default());
    let (verdict, tried) = one(guest, case, programs, worker, &mut lines, &mut tally);
    lines.end();
    let again = if tried == 1 { String::new() } else { format!(", try {tried}") };
    let took = start.elapsed().as_secs_f64();
    let line = format!("{took:>7.1} s  {:<13} {}", format!("{verdict}{again}"), case.name);
    Found { place, verdict, line, tally }
}

/// Counts what was `found`, in the order of the list.
fn counted(mut found: Vec<Found>, tally: &mut Tally) -> Vec<String> {
    found.sort_by_key(|found| found.place);
    // That there are no more setups is not worth counting.
    found.retain(|found| found.place.1 == 0 || found.verdict != SKIPPED);
    let mut lines = Vec::new();
    for found in found {
        lines.push(found.line);
        tally.add(found.tally);
    }
    lines
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::attempt::OK;
    use super::super::tests::case;
    use super::*;

    fn places(queue: &Queue<'_>) -> Vec<Place> {
        queue.waiting.iter().copied().collect()
    }

    #[test]
    fn setups_are_taken_until_one_is_skipped() {
        let cases = [case("trap_race_test"), case("dirty_test")];
        let mut queue = Queue::new(&cases, |_| true);
        let (first, taken) = queue.take().unwrap();
        assert!(taken.name.ends_with(", setup 0"), "{}", taken.name);
        let (second, _) = queue.take().unwrap();
        assert_eq!((first, second, places(&queue)), ((0, 0), (0, 1), vec![(0, 2), (1, 0)]));
        queue.ended(first, OK);
        assert_eq!(places(&queue), [(0, 2), (1, 0)]);
        queue.ended(second, SKIPPED);
        assert_eq!(places(&queue), [(1, 0)]);
        assert_eq!(queue.take().unwrap().0, (1, 0));
        assert!(queue.take().is_none());
    }

    #[test]
    fn setups_that_all_fail_have_an_end() {
        let cases = [case("trap_race_test")];
        let mut queue = Queue::new(&cases, |_| true);
        let mut taken = 0;
        while let Some((place, _)) = queue.take() {
            queue.ended(place, FAILED);
            taken += 1;
        }
        assert_eq!(taken, FAILURES);
    }

    #[test]
    fn what_was_found_is_counted_in_order() {
        let found = |place, verdict| {
            let mut tally = Tally::default();
            match verdict {
                OK => tally.passed = 1,
                _ => tally.skipped.push(String::new()),
            }
            Found { place, verdict, line: format!("{place:?}"), tally }
        };
        let mut tally = Tally::default();
        let all = vec![
            found((2, 0), SKIPPED),
            found((1, 2), SKIPPED),
            found((1, 1), OK),
            found((0, 0), OK),
            found((1, 0), OK),
        ];
        assert_eq!(counted(all, &mut tally), ["(0, 0)", "(1, 0)", "(1, 1)", "(2, 0)"]);
        assert_eq!((tally.passed, tally.skipped.len()), (3, 1));
    }
}
