//! All executions of a litmus test that the model allows.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

use super::model::{Execution, Kind};
use super::parse::{Expr, Litmus};
use super::relation::Relation;
use super::thread::{self, Event, Locations, Trace};

/// What the model says of a test's condition.
#[derive(Debug, PartialEq)]
pub(super) struct Found {
    /// Executions that the model allows.
    pub(super) allowed: usize,
    /// Those in which the condition holds.
    pub(super) holds: usize,
}

impl Found {
    /// As herd7 says it.
    pub(super) fn verdict(&self) -> &'static str {
        match self.holds {
            0 => "Never",
            holds if holds == self.allowed => "Always",
            _ => "Sometimes",
        }
    }
}

/// Finds all executions of `litmus`.
pub(super) fn run(litmus: &Litmus) -> Result<Found> {
    let mut locations = Locations::default();
    let mut initial = BTreeMap::new();
    for (name, value) in &litmus.initial {
        let value = match value {
            Expr::Number(number) => *number,
            Expr::Name(name) => locations.address(name),
            _ => bail!("{name} begins with what is no value"),
        };
        initial.insert(locations.number(name), value);
    }
    for name in litmus.threads.iter().flat_map(|thread| &thread.locations) {
        locations.number(name);
    }
    let traces = litmus.threads.iter().map(|thread| thread::traces(thread, litmus, &locations));
    let traces = traces.collect::<Result<Vec<_>>>()?;
    let mut found = Found { allowed: 0, holds: 0 };
    let mut chosen = Vec::new();
    each_choice(&traces, &mut chosen, &mut |chosen| {
        Candidate::new(chosen, &locations, &initial).each(&mut |candidate, execution| {
            if execution.is_allowed() {
                found.allowed += 1;
                let value = |name: &str| candidate.value(name, &locations, &execution.co);
                found.holds += usize::from(holds(&litmus.exists, &value)? != 0);
            }
            Ok(())
        })
    })?;
    if found.allowed == 0 {
        bail!("the model allows no execution");
    }
    Ok(found)
}

/// One trace of each thread.
fn each_choice<'a>(
    traces: &'a [Vec<Trace>],
    chosen: &mut Vec<&'a Trace>,
    done: &mut impl FnMut(&[&'a Trace]) -> Result<()>,
) -> Result<()> {
    let Some(of_thread) = traces.get(chosen.len()) else { return done(chosen) };
    for trace in of_thread {
        chosen.push(trace);
        each_choice(traces, chosen, done)?;
        chosen.pop();
    }
    Ok(())
}

/// The value of a condition.
fn holds(condition: &Expr, value: &impl Fn(&str) -> Option<i64>) -> Result<i64> {
    Ok(match condition {
        Expr::Number(number) => *number,
        Expr::Name(name) => match value(name) {
            Some(value) => value,
            None => bail!("no {name} in the condition's execution"),
        },
        Expr::Not(inner) => i64::from(holds(inner, value)? == 0),
        Expr::Binary(left, operator, right) => {
            let right = match right.as_ref() {
                // What something is equal to is a location's address.
                Expr::Name(name) if !name.contains(':') => &Expr::Name(format!("&{name}")),
                right => right,
            };
            let (left, right) = (holds(left, value)?, holds(right, value)?);
            i64::from(match operator.as_str() {
                "=" | "==" => left == right,
                "!=" => left != right,
                "/\\" => left != 0 && right != 0,
                _ => left != 0 || right != 0,
            })
        }
        Expr::Deref(_) | Expr::Call(..) => bail!("a condition with a call"),
    })
}

/// Traces of all threads, together.
struct Candidate<'a> {
    chosen: &'a [&'a Trace],
    kinds: Vec<Kind>,
    threads: Vec<Option<usize>>,
    events: Vec<Event>,
    locations: Vec<Option<usize>>,
    po: Relation,
    deps: [Relation; 3],
}

impl<'a> Candidate<'a> {
    fn new(chosen: &'a [&'a Trace], locations: &Locations, initial: &BTreeMap<usize, i64>) -> Self {
        let mut events = Vec::new();
        let mut threads = Vec::new();
        for location in 0..locations.count() {
            let value = initial.get(&location).copied().unwrap_or_default();
            events.push(Event::new(Kind::Initial, Some(location), value));
            threads.push(None);
        }
        for (thread, trace) in chosen.iter().enumerate() {
            let first = events.len();
            for event in &trace.events {
                let mut event = event.clone();
                for deps in &mut event.deps {
                    *deps = deps.iter().map(|dep| dep + first).collect();
                }
                events.push(event);
                threads.push(Some(thread));
            }
        }
        let count = events.len();
        let po = Relation::of(count, |from, to| {
            from < to && threads[from].is_some() && threads[from] == threads[to]
        });
        let deps = [0, 1, 2]
            .map(|which| Relation::of(count, |from, to| events[to].deps[which].contains(&from)));
        let kinds = events.iter().map(|event| event.kind).collect();
        let locations = events.iter().map(|event| event.location).collect();
        Self { chosen, kinds, threads, events, locations, po, deps }
    }

    /// Each way in which reads can read and writes can be ordered.
    fn each(&self, done: &mut impl FnMut(&Self, &Execution<'_>) -> Result<()>) -> Result<()> {
        if self.events.len() > 64 {
            bail!("more than 64 events");
        }
        let none = Relation::on(self.events.len(), 0);
        let all: BTreeSet<usize> = self.locations.iter().flatten().copied().collect();
        let all: Vec<usize> = all.into_iter().collect();
        self.order(&all, none.clone(), none, done)
    }

    /// Orders the writes to `locations`, of locks whole critical sections.
    fn order(
        &self,
        locations: &[usize],
        co: Relation,
        rf: Relation,
        done: &mut impl FnMut(&Self, &Execution<'_>) -> Result<()>,
    ) -> Result<()> {
        let Some((&location, others)) = locations.split_first() else {
            let unlocked = |read: &usize| self.kinds[*read] != Kind::LockRead;
            let reads: Vec<usize> = (0..self.events.len())
                .filter(|&event| self.kinds[event].is_read())
                .filter(unlocked)
                .collect();
            return self.read(&reads, co, rf, done);
        };
        // A section is what nothing comes between.
        let mut sections: Vec<Vec<usize>> = Vec::new();
        for event in self.written(location) {
            match sections.last_mut() {
                Some(last) if self.kinds[event] == Kind::Unlock => last.push(event),
                _ => sections.push(vec![event]),
            }
        }
        let mut orders = Vec::new();
        permute(&mut sections[1..].to_vec(), 0, &mut orders);
        for order in orders {
            let order: Vec<usize> =
                sections[0].iter().chain(order.iter().flatten()).copied().collect();
            let (mut co, mut rf) = (co.clone(), rf.clone());
            for (nth, &write) in order.iter().enumerate() {
                for &later in &order[nth + 1..] {
                    co.add(write, later);
                }
                if self.kinds[write] == Kind::LockWrite {
                    // A lock is read where it is written.
                    rf.add(order[nth - 1], write - 1);
                }
            }
            self.order(others, co, rf, done)?;
        }
        Ok(())
    }

    fn written(&self, location: usize) -> impl Iterator<Item = usize> {
        (0..self.events.len()).filter(move |&event| {
            self.kinds[event].is_write() && self.locations[event] == Some(location)
        })
    }

    /// Has `reads` read what has their values.
    fn read(
        &self,
        reads: &[usize],
        co: Relation,
        rf: Relation,
        done: &mut impl FnMut(&Self, &Execution<'_>) -> Result<()>,
    ) -> Result<()> {
        let Some((&read, others)) = reads.split_first() else {
            let [addr, data, ctrl] = &self.deps;
            let Self { kinds, threads, locations, po, .. } = self;
            let execution = Execution { kinds, threads, locations, po, addr, data, ctrl, rf, co };
            return done(self, &execution);
        };
        let Some(location) = self.locations[read] else { bail!("a read of nothing") };
        for write in self.written(location) {
            if self.events[write].value == self.events[read].value {
                let mut rf = rf.clone();
                rf.add(write, read);
                self.read(others, co.clone(), rf, done)?;
            }
        }
        Ok(())
    }

    /// The value that a register, or a location, has in the end.
    fn value(&self, name: &str, locations: &Locations, co: &Relation) -> Option<i64> {
        if let Some((thread, register)) = name.split_once(':') {
            let trace = self.chosen.get(thread.parse::<usize>().ok()?)?;
            return Some(trace.registers.get(register).copied().unwrap_or_default());
        }
        if let Some(name) = name.strip_prefix('&') {
            return locations.find(name).map(thread::address_of);
        }
        let location = locations.find(name)?;
        let last = |&write: &usize| !self.written(location).any(|later| co.holds(write, later));
        self.written(location).find(last).map(|last| self.events[last].value)
    }
}

fn permute(items: &mut Vec<Vec<usize>>, from: usize, done: &mut Vec<Vec<Vec<usize>>>) {
    if from >= items.len() {
        done.push(items.clone());
        return;
    }
    for nth in from..items.len() {
        items.swap(from, nth);
        permute(items, from + 1, done);
        items.swap(from, nth);
    }
}
