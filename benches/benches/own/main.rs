//! What the library takes by itself, compared as the `memslots` tool compares: all
//! of it, or what has the words of the command line in its name.

mod deferred;
mod library;
mod planner;

use std::convert::Infallible;
use std::time::{Duration, Instant};

use kvm_memslots_bench::compare::{Lap, Ratio, Row, Session, Shape, Stop, Taken, Way};
use kvm_memslots_bench::report::{Column, human, table};

fn main() {
    library::all();
    deferred::all();
    planner::all();
}

/// A way by its name, and what does it so many times and says how long that took.
struct Timed<'a>(String, Box<dyn FnMut(u32) -> Duration + 'a>);

/// What is timed is the whole of `once`.
fn each<'a>(way: impl Into<String>, mut once: impl FnMut() + 'a) -> Timed<'a> {
    let times = move |times| {
        let start = Instant::now();
        (0..times).for_each(|_| once());
        start.elapsed()
    };
    Timed(way.into(), Box::new(times))
}

fn took<T>(work: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    drop(work());
    start.elapsed()
}

/// The first one is compared with.
#[derive(Clone, Copy, PartialEq)]
struct Nth<'a>(usize, &'a str);

impl Way for Nth<'_> {
    fn name(self) -> String {
        self.1.to_owned()
    }
}

/// A run takes this long at least.
const RUN: Duration = Duration::from_millis(5);

/// Compares what takes `what` and says what was found.
fn compare(what: &str, ways: Vec<Timed<'_>>) {
    // Cargo gives options of its own.
    let mut words = std::env::args().skip(1).filter(|word| !word.starts_with('-'));
    if !words.all(|word| what.contains(&word)) {
        return;
    }
    let (names, mut works): (Vec<_>, Vec<_>) =
        ways.into_iter().map(|Timed(name, work)| (name, (work, 1))).unzip();
    eprintln!("{what}");
    for (work, times) in &mut works {
        // Not by what it says, which may be a part of what it took.
        while took(|| work(*times)) < RUN && *times < 1 << 24 {
            *times *= 2;
        }
    }
    let ways: Vec<_> = names.iter().enumerate().map(|(index, name)| Nth(index, name)).collect();
    let least = |row: &Row| row.wall_ns_min.map_or_else(String::new, human);
    let ratio = |row: &Row| row.ratios.values().next().map_or("-".to_owned(), Ratio::to_string);
    let columns = [
        Column::Way("way"),
        Column::Time("time"),
        Column::With("least", least),
        Column::With("ratio to the first", ratio),
    ];
    let mut session = Session {
        runs: 21,
        pin: true,
        calls: None,
        machine: None,
        on_run: &mut |_| (),
        on_rows: &mut |rows| println!("\n{what}\n{}", table(&columns, &rows)),
    };
    let shape = Shape { what: what.to_owned(), size: 1, unit: "times", more: Vec::new() };
    let Ok(()) = session.compare(
        &[shape],
        &ways,
        &ways[..1],
        |way, watch| {
            let (work, times) = &mut works[way.0];
            let (wall, lap) = watch.lap(|| work(*times));
            Ok::<_, Stop<Infallible>>(vec![Taken {
                lap: Lap { wall: wall / *times, ..lap },
                ..Taken::default()
            }])
        },
        |_| (),
    );
}
