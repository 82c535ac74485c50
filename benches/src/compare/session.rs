//! Runs of ways, in turn.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{CountedBy, Lap, Ratio, Row, Watch, Way, median};
use kvm_memslots_kit::grace::GraceCounter;

/// Samples by name.
pub type Pools = BTreeMap<&'static str, Vec<u64>>;

/// What is compared: the part of a run that makes one row for each way.
#[derive(Debug, Clone)]
pub struct Shape {
    /// What is done, and beside what.
    pub what: String,
    /// Of which size.
    pub size: u64,
    /// What the size counts.
    pub unit: &'static str,
    /// What else there is to say of it.
    pub more: Vec<(&'static str, Value)>,
}

/// What was found of one part of one run.
#[derive(Debug, Clone, Default)]
pub struct Taken {
    /// How long it took, or what was counted.
    pub lap: Lap,
    /// Calls that changed something in KVM, where that is known.
    pub ioctls: Option<u64>,
    /// Grace periods that these wait for by KVM's rules, where that is known.
    pub grace_periods: Option<u64>,
    /// What else there is to say; the last run's counts.
    pub more: Vec<(&'static str, Value)>,
    /// Samples that the run took beside its time.
    pub pools: Vec<(&'static str, Vec<u64>)>,
}

/// Why a run has no result.
#[derive(Debug)]
pub enum Stop<E> {
    /// That can't be done here, which is a row that says so.
    Skip(String),
    /// It failed.
    Fail(E),
}

impl<E> From<E> for Stop<E> {
    fn from(error: E) -> Self {
        Self::Fail(error)
    }
}

/// How comparisons are made, and who hears of them.
pub struct Session<'a> {
    /// Runs that are measured, beside those that warm up and count.
    pub runs: usize,
    /// Whether the thread that does the work is kept on one CPU, which takes the
    /// scheduler out of the comparison.
    pub pin: bool,
    /// Counts the grace periods of this thread.
    pub calls: Option<GraceCounter>,
    /// Counts those of the whole machine.
    pub machine: Option<GraceCounter>,
    /// Is told before each run what it is.
    pub on_run: &'a mut dyn FnMut(&str),
    /// Gets each comparison when it is done.
    pub on_rows: &'a mut dyn FnMut(Vec<Row>),
}

impl std::fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("runs", &self.runs).finish_non_exhaustive()
    }
}

/// One way of a comparison, while it is made.
struct Contender<W> {
    way: W,
    parts: Vec<Part>,
    /// Why it is out.
    skipped: Option<String>,
}

/// One part of its runs.
#[derive(Default)]
struct Part {
    last: Taken,
    counted: Option<u64>,
    machine: Option<u64>,
    walls: Vec<u64>,
    pools: Pools,
}

/// What a round of runs is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Round {
    Count,
    CountMachine,
    Time,
}

impl Session<'_> {
    /// Compares ways in what `run` does, and hands the rows out, of each of which
    /// `finish` says more.
    ///
    /// # Errors
    /// As [`rows`](Self::rows).
    pub fn compare<W: Way, E>(
        &mut self,
        shapes: &[Shape],
        ways: &[W],
        against: &[W],
        run: impl FnMut(W, &mut Watch<'_>) -> Result<Vec<Taken>, Stop<E>>,
        finish: impl FnMut(&mut Row),
    ) -> Result<(), E> {
        let mut rows = self.rows(shapes, ways, against, run)?;
        rows.iter_mut().for_each(finish);
        (self.on_rows)(rows);
        Ok(())
    }

    /// Has `run` do each way again and again, in turn, so that what else the
    /// machine does hits all of them alike; every other round backwards. A run is
    /// of as many parts as there are `shapes`. In the first round grace periods are
    /// counted, if they can be, and no time is.
    ///
    /// The rows are those of the first part, each way's in order, and so on; their
    /// ratios are to the ways `against`.
    ///
    /// # Errors
    /// The first failure of `run`.
    pub fn rows<W: Way, E>(
        &mut self,
        shapes: &[Shape],
        ways: &[W],
        against: &[W],
        mut run: impl FnMut(W, &mut Watch<'_>) -> Result<Vec<Taken>, Stop<E>>,
    ) -> Result<Vec<Row>, E> {
        let new = |way: &W| {
            let parts = shapes.iter().map(|_| Part::default()).collect();
            Contender { way: *way, parts, skipped: None }
        };
        let mut contenders: Vec<Contender<W>> = ways.iter().map(new).collect();
        let what = shapes.first().map_or_else(String::new, |shape| shape.what.clone());
        let machine = self.machine.is_some().then_some(Round::CountMachine);
        let rounds = [Round::Count].into_iter().chain(machine);
        let rounds = rounds.chain(std::iter::repeat_n(Round::Time, self.runs));
        for (number, round) in rounds.enumerate() {
            for index in 0..contenders.len() {
                let backwards = contenders.len() - 1 - index;
                let index = if number % 2 == 0 { index } else { backwards };
                let contender = &mut contenders[index];
                (self.on_run)(&format!("{what}, {}", contender.way.name()));
                if contender.skipped.is_some() {
                    continue;
                }
                let counter = match round {
                    Round::Count => self.calls.as_mut(),
                    Round::CountMachine => self.machine.as_mut(),
                    Round::Time => None,
                };
                let mut watch = counter.map_or(Watch::Time { pin: self.pin }, Watch::Count);
                match run(contender.way, &mut watch) {
                    Ok(taken) => contender.take(round, taken),
                    Err(Stop::Skip(why)) => contender.skipped = Some(why),
                    Err(Stop::Fail(error)) => return Err(error),
                }
            }
        }
        Ok(rows(shapes, &contenders, against))
    }
}

impl<W> Contender<W> {
    fn take(&mut self, round: Round, taken: Vec<Taken>) {
        for (part, taken) in self.parts.iter_mut().zip(taken) {
            match round {
                Round::Count => part.counted = taken.lap.counted,
                Round::CountMachine => part.machine = taken.lap.counted,
                Round::Time => {
                    part.walls.push(u64::try_from(taken.lap.wall.as_nanos()).unwrap_or(u64::MAX));
                    for (name, samples) in &taken.pools {
                        part.pools.entry(name).or_default().extend(samples);
                    }
                }
            }
            part.last = taken;
        }
    }
}

fn rows<W: Way>(shapes: &[Shape], contenders: &[Contender<W>], against: &[W]) -> Vec<Row> {
    let parts = shapes.iter().enumerate();
    let all = parts.flat_map(|(index, shape)| {
        contenders.iter().map(move |contender| {
            let others = contenders
                .iter()
                .filter(|other| other.way != contender.way && against.contains(&other.way));
            let mine = &contender.parts[index].walls;
            let ratio = |other: &Contender<W>| {
                Some((other.way.name(), Ratio::of(mine, &other.parts[index].walls)?))
            };
            let ratios = others.filter_map(ratio).collect();
            row(shape, contender, &contender.parts[index], ratios)
        })
    });
    all.collect()
}

fn row<W: Way>(
    shape: &Shape,
    contender: &Contender<W>,
    part: &Part,
    ratios: BTreeMap<String, Ratio>,
) -> Row {
    let ran = contender.skipped.is_none();
    let planned = part.last.grace_periods.filter(|_| ran);
    let counted = part.counted.filter(|_| ran);
    let said = shape.more.iter().chain(&part.last.more);
    let more: Map<String, Value> =
        said.map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    Row {
        what: shape.what.clone(),
        size: shape.size,
        unit: shape.unit.to_owned(),
        way: contender.way.name(),
        ioctls: part.last.ioctls.filter(|_| ran),
        grace_periods: counted.or(planned),
        grace_periods_by: counted.map_or(CountedBy::Plan, |_| CountedBy::Kernel),
        grace_periods_planned: planned,
        machine_counted: part.machine,
        runs: part.walls.len(),
        wall_ns: median(&part.walls),
        wall_ns_min: part.walls.iter().min().copied(),
        wall_ns_max: part.walls.iter().max().copied(),
        walls_ns: part.walls.clone(),
        ratios,
        note: None,
        skipped: contender.skipped.clone(),
        more,
        pools: part.pools.clone(),
    }
}
