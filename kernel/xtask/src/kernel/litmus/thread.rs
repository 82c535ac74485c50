//! What a thread of a litmus test may do by itself, whatever it reads.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

use super::model::Kind;
use super::parse::{Expr, Litmus, Statement, Thread};

/// Reads that something depends on, by their numbers in the thread.
type Reads = BTreeSet<usize>;

#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) kind: Kind,
    pub(super) location: Option<usize>,
    /// What is read or written.
    pub(super) value: i64,
    /// On what it depends, for its address, its value, and being there at all.
    pub(super) deps: [Reads; 3],
}

impl Event {
    pub(super) fn new(kind: Kind, location: Option<usize>, value: i64) -> Self {
        Self { kind, location, value, deps: Default::default() }
    }
}

/// What a thread does if its reads have certain values.
#[derive(Debug, Clone, Default)]
pub(super) struct Trace {
    pub(super) events: Vec<Event>,
    pub(super) registers: BTreeMap<String, i64>,
    /// What the registers depend on.
    from: BTreeMap<String, Reads>,
    /// What decided that the present branch is taken.
    ctrl: Reads,
}

/// The locations of a test, which threads share by their names.
#[derive(Debug, Default)]
pub(super) struct Locations(Vec<String>);

/// Addresses are numbers that nobody writes otherwise.
const ADDRESS: i64 = 1 << 32;

impl Locations {
    /// The number of a location, which may be new.
    pub(super) fn number(&mut self, name: &str) -> usize {
        self.find(name).unwrap_or_else(|| {
            self.0.push(name.to_owned());
            self.0.len() - 1
        })
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|known| known == name)
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// A pointer to a location, which may be new.
    pub(super) fn address(&mut self, name: &str) -> i64 {
        address_of(self.number(name))
    }
}

pub(super) fn address_of(location: usize) -> i64 {
    ADDRESS + i64::try_from(location).unwrap_or_default()
}

/// The location that `value` points to.
fn pointee(value: i64) -> Option<usize> {
    usize::try_from(value - ADDRESS).ok()
}

/// All traces of `thread`.
pub(super) fn traces(
    thread: &Thread,
    litmus: &Litmus,
    locations: &Locations,
) -> Result<Vec<Trace>> {
    let mut values = BTreeSet::from([0]);
    for thread in &litmus.threads {
        numbers(&thread.body, &mut values);
    }
    for initial in litmus.initial.values() {
        match initial {
            Expr::Number(number) => drop(values.insert(*number)),
            _ => values.extend((0..locations.count()).map(address_of)),
        }
    }
    let machine = Machine { values, thread, locations };
    let mut traces = machine.run(&thread.body, Trace::default())?;
    for trace in &traces {
        trace.check()?;
    }
    // Another value of a read that decides nothing is another trace.
    traces.retain(|trace| !trace.events.is_empty());
    Ok(traces)
}

/// The numbers in `body`.
fn numbers(body: &[Statement], values: &mut BTreeSet<i64>) {
    fn of(expr: &Expr, values: &mut BTreeSet<i64>) {
        match expr {
            Expr::Number(number) => drop(values.insert(*number)),
            Expr::Name(_) | Expr::Deref(_) => {}
            Expr::Call(_, args) => args.iter().for_each(|arg| of(arg, values)),
            Expr::Not(inner) => of(inner, values),
            Expr::Binary(left, _, right) => {
                of(left, values);
                of(right, values);
            }
        }
    }
    for statement in body {
        match statement {
            Statement::Assign(_, expr) | Statement::Call(expr) => of(expr, values),
            Statement::If(condition, then, otherwise) => {
                of(condition, values);
                numbers(then, values);
                numbers(otherwise, values);
            }
        }
    }
}

struct Machine<'a> {
    /// What a read may find.
    values: BTreeSet<i64>,
    thread: &'a Thread,
    locations: &'a Locations,
}

/// A value and what it depends on.
type Value = (i64, Reads);

impl Machine<'_> {
    fn run(&self, body: &[Statement], trace: Trace) -> Result<Vec<Trace>> {
        let mut traces = vec![trace];
        for statement in body {
            let mut next = Vec::new();
            for trace in traces {
                next.extend(self.step(statement, trace)?);
            }
            traces = next;
        }
        Ok(traces)
    }

    fn step(&self, statement: &Statement, trace: Trace) -> Result<Vec<Trace>> {
        let mut traces = Vec::new();
        match statement {
            Statement::Call(call) => {
                traces.extend(self.eval(call, trace)?.into_iter().map(|(trace, _)| trace));
            }
            Statement::Assign(register, expr) => {
                for (mut trace, (value, reads)) in self.eval(expr, trace)? {
                    trace.registers.insert(register.clone(), value);
                    trace.from.insert(register.clone(), reads);
                    traces.push(trace);
                }
            }
            Statement::If(condition, then, otherwise) => {
                for (mut trace, (value, reads)) in self.eval(condition, trace)? {
                    let before = trace.ctrl.clone();
                    trace.ctrl.extend(reads);
                    let branch = if value == 0 { otherwise } else { then };
                    for mut trace in self.run(branch, trace)? {
                        trace.ctrl.clone_from(&before);
                        traces.push(trace);
                    }
                }
            }
        }
        Ok(traces)
    }

    /// All values that `expr` may have, with what the thread did for each.
    fn eval(&self, expr: &Expr, trace: Trace) -> Result<Vec<(Trace, Value)>> {
        let value = match expr {
            Expr::Number(number) => (*number, Reads::new()),
            Expr::Name(name) => self.name(name, &trace)?,
            Expr::Not(inner) => {
                let not = |(trace, (value, reads))| (trace, (i64::from(value == 0), reads));
                return Ok(self.eval(inner, trace)?.into_iter().map(not).collect());
            }
            Expr::Binary(left, operator, right) => {
                let mut values = Vec::new();
                for (trace, (left, from)) in self.eval(left, trace)? {
                    for (trace, (right, more)) in self.eval(right, trace)? {
                        let value = i64::from(match operator.as_str() {
                            "==" => left == right,
                            "!=" => left != right,
                            _ => bail!("{operator} in a thread"),
                        });
                        values.push((trace, (value, &from | &more)));
                    }
                }
                return Ok(values);
            }
            Expr::Deref(name) => bail!("a plain access to {name}"),
            Expr::Call(name, args) => return self.call(name, args, trace),
        };
        Ok(vec![(trace, value)])
    }

    /// A register, or the address of a location.
    fn name(&self, name: &str, trace: &Trace) -> Result<Value> {
        if let Some(&value) = trace.registers.get(name) {
            return Ok((value, trace.from.get(name).cloned().unwrap_or_default()));
        }
        let shared = self.thread.locations.iter().any(|known| known == name);
        match self.locations.find(name).filter(|_| shared) {
            Some(location) => Ok((address_of(location), Reads::new())),
            None => bail!("{name} is neither a location nor has a value"),
        }
    }

    fn call(&self, name: &str, args: &[Expr], trace: Trace) -> Result<Vec<(Trace, Value)>> {
        use Kind::{Acquire, LockRead, LockWrite, Read, Release, SrcuLock, SrcuUnlock, Write};
        let (kinds, writes): (&[Kind], bool) = match name {
            "READ_ONCE" | "rcu_dereference" => (&[Read], false),
            "smp_load_acquire" => (&[Acquire], false),
            "WRITE_ONCE" => (&[Write], true),
            "smp_store_release" | "rcu_assign_pointer" => (&[Release], true),
            "spin_lock" => (&[LockRead, LockWrite], false),
            "spin_unlock" => (&[Kind::Unlock], false),
            "srcu_read_lock" => (&[SrcuLock], false),
            "srcu_read_unlock" => (&[SrcuUnlock], true),
            "synchronize_srcu" | "synchronize_srcu_expedited" => (&[Kind::SyncSrcu], false),
            "smp_mb" => (&[Kind::Mb], false),
            "smp_rmb" => (&[Kind::Rmb], false),
            "smp_wmb" => (&[Kind::Wmb], false),
            "smp_mb__after_spinlock" => (&[Kind::AfterSpinlock], false),
            "smp_mb__after_unlock_lock" => (&[Kind::AfterUnlockLock], false),
            "smp_mb__after_srcu_read_unlock" => (&[Kind::AfterSrcuReadUnlock], false),
            "rcu_read_lock" => (&[Kind::RcuLock], false),
            "rcu_read_unlock" => (&[Kind::RcuUnlock], false),
            "synchronize_rcu" | "synchronize_rcu_expedited" => (&[Kind::SyncRcu], false),
            _ => bail!("{name}() is not understood"),
        };
        let target = match args.first() {
            // A pointer is followed by the call itself.
            Some(Expr::Deref(name) | Expr::Name(name)) => Some(self.name(name, &trace)?),
            Some(_) => bail!("{name}() of what is no location"),
            None => None,
        };
        let (location, addr) = match target {
            Some((address, addr)) => match pointee(address) {
                Some(location) => (Some(location), addr),
                // What is no pointer is not followed in any execution.
                None => return Ok(Vec::new()),
            },
            None => (None, Reads::new()),
        };
        let values = match args.get(1) {
            Some(value) if writes => self.eval(value, trace)?,
            None if !writes => vec![(trace, (0, Reads::new()))],
            _ => bail!("{name}() with {} arguments", args.len()),
        };
        let mut done = Vec::new();
        for (trace, (written, data)) in values {
            let read = matches!(kinds[0], Read | Acquire);
            let one = BTreeSet::from([written]);
            for &value in if read { &self.values } else { &one } {
                let mut trace = trace.clone();
                for &kind in kinds {
                    let deps = [addr.clone(), data.clone(), trace.ctrl.clone()];
                    trace.events.push(Event { deps, ..Event::new(kind, location, value) });
                }
                let reads = kinds[0].is_read().then(|| trace.events.len() - 1);
                done.push((trace, (value, reads.into_iter().collect())));
            }
        }
        Ok(done)
    }
}

impl Trace {
    /// Each lock is unlocked, each critical section of RCU left.
    fn check(&self) -> Result<()> {
        let count = |kind| self.events.iter().filter(|event| event.kind == kind).count();
        for (enter, leave) in [
            (Kind::LockWrite, Kind::Unlock),
            (Kind::RcuLock, Kind::RcuUnlock),
            (Kind::SrcuLock, Kind::SrcuUnlock),
        ] {
            if count(enter) != count(leave) {
                bail!("{enter:?} without {leave:?}");
            }
        }
        Ok(())
    }
}
