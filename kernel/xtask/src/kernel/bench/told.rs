//! Comparisons that selftests make themselves, and tell of in a line.

use anyhow::{Context as _, Result};

use super::super::series::Series;
use super::super::target::{Arch, Target};

/// What a selftest is run for.
#[derive(Debug, PartialEq)]
pub(super) struct Told {
    pub(super) series: Series,
    pub(super) program: &'static str,
    pub(super) args: &'static [&'static str],
    pub(super) append: &'static str,
    /// Whether its times are numbers of instructions: what it compares is the
    /// path, and a processor that has to be woken takes as long as the machine
    /// likes.
    pub(super) icount: bool,
    /// Where it is run so; everywhere if `None`.
    arch: Option<Arch>,
    /// A line of it, with `{}` for each word that differs from run to run.
    line: &'static str,
    /// What is compared, with `{}` for the words before the numbers.
    work: &'static str,
    with: With,
    /// How many times as fast as what it is compared with it has to be, or how
    /// many instructions more it may take, by [`With::Cycles`].
    wanted: f64,
}

/// What the number of a line is compared with; numbers are microseconds, except
/// where it says something else.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum With {
    /// The second number of the line.
    Second,
    /// The same. The line ends with grace periods, of this, of which there may
    /// be none, and of the other, if the kernel counts them.
    SecondCounted,
    /// That of the line on a kernel without the series. The number after it is
    /// grace periods, of which there may be none with the series.
    Vanilla,
    /// The same, of cycles, which are instructions by `icount`, and no grace
    /// periods. Where a series is asked for, it is the kernel with what that
    /// stands on, and the latter against one without any series, which tells
    /// what costs what.
    Cycles,
    /// The same, of an emulated instruction, and what it may take more is for each
    /// of its [`accesses`].
    Accesses,
}

/// A comparison with its figures, in microseconds or instructions.
#[derive(Debug, PartialEq)]
pub(super) struct Compared {
    work: String,
    /// What it is compared with.
    other: f64,
    this: f64,
    /// `None` if it is not the series that is compared.
    wanted: Option<f64>,
    /// Of the other and of this, if they are counted.
    grace_periods: Option<[u64; 2]>,
    /// Whether they are instructions, and `wanted` is the difference.
    instructions: bool,
}

const SLEEPING: Told = Told {
    series: Series::Waits,
    program: "memslot_sleeping_fault_test",
    args: &[],
    append: "",
    icount: true,
    arch: Some(Arch::X86_64),
    line: "{}: {} us a memslot update, {} us in an idle VM",
    work: "a memslot update while a fault sleeps ({}), against an idle VM",
    with: With::Second,
    wanted: 1.0 / 3.0,
};

static ALL: [Told; 7] = [
    SLEEPING,
    Told { append: "kvm_amd.npt=0", work: "the same with shadow paging ({})", ..SLEEPING },
    Told {
        program: "irqfd_deassign_test",
        args: &["measure"],
        line: "{} irqfds deassigned in {} us, {} grace periods",
        work: "deassign {} irqfds, against a kernel without the series",
        with: With::Vanilla,
        wanted: 10.0,
        ..SLEEPING
    },
    Told {
        series: Series::Trap,
        program: "mem_trap_test",
        args: &["1000"],
        icount: false,
        arch: None,
        line: "A vCPU spins, {} slots: a flip takes {} us, to delete and create {} us \
               ({} flips); grace periods in all: {} and {}",
        with: With::SecondCounted,
        work: "a flip of KVM_MEM_TRAP among {} slots, against deleting and creating",
        wanted: 10.0,
        ..SLEEPING
    },
    Told {
        series: Series::Trap,
        program: "mem_trap_test",
        args: &["measure"],
        append: "kvm.force_emulation_prefix=1",
        line: "An emulated {} takes {} cycles",
        work: "an emulated {} where nothing traps",
        with: With::Accesses,
        wanted: 2.0,
        ..SLEEPING
    },
    Told {
        series: Series::Trap,
        program: "mem_trap_test",
        args: &["measure"],
        append: "kvm.force_emulation_prefix=1",
        line: "A {} fault takes {} cycles",
        work: "a {} fault where nothing traps",
        with: With::Cycles,
        wanted: 0.0,
        ..SLEEPING
    },
    Told {
        series: Series::Trap,
        program: "mem_readonly_test",
        args: &["1000"],
        line: "A vCPU spins, {} slots: a read-only flip takes {} us, to delete and create {} us \
               ({} flips); grace periods in all: {} and {}",
        with: With::SecondCounted,
        work: "a flip of KVM_MEM_READONLY among {} slots, against deleting and creating",
        wanted: 10.0,
        ..SLEEPING
    },
];

/// The series that are compared. What one stands on has comparisons of its own.
pub(super) fn series(target: &Target) -> Result<Vec<Series>> {
    target.series.map_or_else(|| target.with(), |series| Ok(vec![series]))
}

/// What `target` has of them.
pub(super) fn of(target: &Target) -> Result<Vec<&'static Told>> {
    let with = series(target)?;
    let fits = |told: &&Told| {
        with.contains(&told.series) && told.arch.is_none_or(|arch| arch == target.arch)
    };
    Ok(ALL.iter().filter(fits).collect())
}

impl Told {
    /// As filters see it.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.program, self.append)
    }

    /// Whether its numbers are instructions.
    fn counts(&self) -> bool {
        matches!(self.with, With::Cycles | With::Accesses)
    }

    /// The kernels that are compared: that of `target`, if nothing else is, and
    /// those without the series, in order. Each is to be held against the next.
    pub(super) fn kernels(&self, target: &Target) -> Result<Vec<Target>> {
        let mut kernels = vec![target.clone()];
        if self.counts() && target.series.is_some() {
            let below = target.with()?.into_iter().rev().nth(1);
            kernels.extend(below.map(|below| Target { series: Some(below), ..target.clone() }));
        }
        if self.with == With::Vanilla || self.counts() {
            kernels.push(target.without_series());
        }
        Ok(kernels)
    }

    /// What `lines` tell, and those of a kernel without the series.
    pub(super) fn compared(&self, lines: &[String], vanilla: &[String]) -> Result<Vec<Compared>> {
        let found = |lines: &[String]| -> Vec<Vec<String>> {
            lines.iter().filter_map(|line| words(line, self.line)).collect()
        };
        let vanilla = found(vanilla);
        let compared = found(lines).into_iter().map(|words| {
            let number = |words: &[String], nth: usize| words.get(nth)?.parse::<f64>().ok();
            let this = number(&words, 1)?;
            let count = |words: &[String], nth: usize| words.get(nth)?.parse::<u64>().ok();
            let mut grace_periods = None;
            let other = match self.with {
                With::Second => number(&words, 2)?,
                With::SecondCounted => {
                    grace_periods = count(&words, 5).zip(count(&words, 4)).map(<[u64; 2]>::from);
                    number(&words, 2)?
                }
                With::Vanilla | With::Cycles | With::Accesses => {
                    let vanilla = vanilla.iter().find(|other| other[0] == words[0])?;
                    if self.with == With::Vanilla {
                        grace_periods = Some([count(vanilla, 2)?, count(&words, 2)?]);
                    }
                    number(vanilla, 1)?
                }
            };
            let instructions = self.counts();
            let mut work = self.work.replace("{}", &words[0]);
            if self.icount && !instructions {
                work.push_str(", 1 ns an instruction");
            }
            let mut wanted = Some(self.wanted);
            if self.with == With::Accesses {
                let accesses = accesses(&words[0]);
                work = format!("{work}, {accesses} accesses");
                wanted = Some(self.wanted * f64::from(accesses));
            }
            Some(Compared { work, other, this, wanted, grace_periods, instructions })
        });
        let compared: Option<Vec<Compared>> = compared.collect();
        compared
            .filter(|compared| !compared.is_empty())
            .with_context(|| format!("{} did not tell its times", self.program))
    }
}

impl Compared {
    /// Of times in microseconds: what `work` is held against, and its own.
    pub(super) fn of_times(work: String, other: f64, this: f64, wanted: Option<f64>) -> Self {
        Self { work, other, this, wanted, grace_periods: None, instructions: false }
    }

    /// Says which kernels are compared. Something is wanted of `target` only.
    pub(super) fn between(mut self, this: &Target, other: &Target, target: &Target) -> Self {
        let name = |kernel: &Target| kernel.series.map_or("no series", Series::name);
        self.work = format!("{}: {} against {}", self.work, name(this), name(other));
        self.wanted = self.wanted.filter(|_| this.series == target.series);
        self
    }

    fn ratio(&self) -> f64 {
        // Less than the clock shows is as good as one of it.
        self.other.max(1.0) / self.this.max(1.0)
    }

    pub(super) fn reached(&self) -> bool {
        let Some(wanted) = self.wanted else { return true };
        if self.instructions {
            return self.this - self.other <= wanted;
        }
        self.ratio() >= wanted && self.grace_periods.is_none_or(|[_, this]| this == 0)
    }

    /// As [`HEADER`] names them.
    pub(super) fn cells(&self) -> Vec<String> {
        let verdict = match self.wanted {
            None => "",
            Some(_) if self.reached() => "yes",
            Some(_) => "NO",
        };
        let grace_periods =
            |nth: usize| self.grace_periods.map_or_else(String::new, |gps| gps[nth].to_string());
        let took = |number: f64| {
            if self.instructions {
                format!("{number:.0} instructions")
            } else {
                format!("{number:.1} us")
            }
        };
        let shown = |number: f64| {
            if self.instructions {
                format!("{number:+.0}")
            } else {
                super::table::three_digits(number)
            }
        };
        let ratio = if self.instructions { self.this - self.other } else { self.ratio() };
        vec![
            self.work.clone(),
            took(self.other),
            grace_periods(0),
            took(self.this),
            grace_periods(1),
            shown(ratio),
            self.wanted.map_or_else(String::new, shown),
            verdict.to_owned(),
        ]
    }
}

pub(super) const HEADER: [&str; 8] =
    ["work", "against", "GPs", "took", "GPs", "ratio", "wanted", "reached"];

/// How often an emulated instruction called `kind` accesses the guest's memory: its
/// prefix and itself are fetched, then it reads or writes, or does both.
fn accesses(kind: &str) -> u8 {
    if kind == "exchange" { 4 } else { 3 }
}

/// The words in `line` where `pattern` has `{}`; `None` if the rest differs.
fn words(line: &str, pattern: &str) -> Option<Vec<String>> {
    let mut fixed = pattern.split("{}");
    let mut rest = line.trim().strip_prefix(fixed.next()?)?;
    let mut words = Vec::new();
    for fixed in fixed {
        let end = if fixed.is_empty() { rest.len() } else { rest.find(fixed)? };
        words.push(rest[..end].to_owned());
        rest = &rest[end + fixed.len()..];
    }
    rest.is_empty().then_some(words)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn lines(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|&line| line.to_owned()).collect()
    }

    #[test]
    fn words_where_the_pattern_has_none() {
        let is = |line, pattern| words(line, pattern);
        assert_eq!(is("  a: 1 us, 2 us", "{}: {} us, {} us"), Some(lines(&["a", "1", "2"])));
        assert_eq!(is("a: 1 us, 2 us more", "{}: {} us, {} us"), None);
        assert_eq!(is("a 7", "a {}"), Some(lines(&["7"])));
        assert_eq!(is("b 7", "a {}"), None);
    }

    #[test]
    fn a_fault_that_sleeps() {
        let told = lines(&[
            "Random seed: 0x1",
            "  read: 40 us a memslot update, 20 us in an idle VM",
            "  read, memslot replaced: 90 us a memslot update, 20 us in an idle VM",
        ]);
        let compared = SLEEPING.compared(&told, &[]).unwrap();
        assert_eq!(compared.len(), 2);
        assert!(compared[0].reached() && !compared[1].reached());
        assert!(compared[1].work.contains("read, memslot replaced"), "{:?}", compared[1]);
        assert!(SLEEPING.compared(&told[..1], &[]).is_err());
    }

    #[test]
    fn a_flip() {
        let flips = ALL.iter().find(|told| told.program == "mem_readonly_test").unwrap();
        let said = |gps: &str| {
            let line = "A vCPU spins, 4001 slots: a read-only flip takes 2.50 us, to delete and \
                        create 60.00 us (48.0 flips); grace periods in all: ";
            flips.compared(&[format!("{line}{gps}")], &[]).unwrap().remove(0)
        };
        assert!(said("0 and 3000").reached() && !said("1 and 3000").reached());
        assert_eq!(said("0 and 3000").grace_periods, Some([3000, 0]));
        assert!(said("-1 and -1").reached());
        assert_eq!(said("-1 and -1").grace_periods, None);
    }

    #[test]
    fn against_a_kernel_without_the_series() {
        let irqfds = ALL.iter().find(|told| told.with == With::Vanilla).unwrap();
        let this = lines(&["  256 irqfds deassigned in 900 us, 0 grace periods"]);
        let other = lines(&["  256 irqfds deassigned in 45000 us, 256 grace periods"]);
        let compared = irqfds.compared(&this, &other).unwrap();
        assert!((compared[0].ratio() - 50.0).abs() < 1e-9 && compared[0].reached());
        assert!(irqfds.compared(&this, &[]).is_err());
        let waits = lines(&["  256 irqfds deassigned in 900 us, 1 grace periods"]);
        assert!(!irqfds.compared(&waits, &other).unwrap()[0].reached());
    }

    #[test]
    fn instructions_more_than_without_the_series() {
        let access = ALL.iter().find(|told| told.with == With::Accesses).unwrap();
        let said = |cycles: u32| lines(&[&format!("An emulated read takes {cycles} cycles")]);
        let compared = |cycles| access.compared(&said(cycles), &said(5000)).unwrap().remove(0);
        assert!(compared(5006).reached() && compared(4990).reached());
        assert!(!compared(5007).reached());
        assert!(compared(5006).cells()[0].ends_with(", 3 accesses"));
        assert_eq!(
            compared(5007).cells()[1..],
            ["5000 instructions", "", "5007 instructions", "", "+7", "+6", "NO"]
        );
        let said = |cycles: u32| lines(&[&format!("An emulated exchange takes {cycles} cycles")]);
        let compared = |cycles| access.compared(&said(cycles), &said(5000)).unwrap().remove(0);
        assert!(compared(5008).reached() && !compared(5009).reached());

        let fault = ALL.iter().find(|told| told.with == With::Cycles).unwrap();
        let said = |cycles: u32| lines(&[&format!("A page fault takes {cycles} cycles")]);
        let compared = |cycles| fault.compared(&said(cycles), &said(5000)).unwrap().remove(0);
        assert!(compared(5000).reached() && !compared(5001).reached());
    }

    #[test]
    fn the_kernels_that_are_compared() {
        let access = ALL.iter().find(|told| told.with == With::Accesses).unwrap();
        let all = Target::of("6.12");
        let names = |told: &Told, target: &Target| -> Vec<String> {
            told.kernels(target).unwrap().iter().map(Target::name).collect()
        };
        assert_eq!(names(access, &all), ["6.12-x86_64", "6.12-x86_64-vanilla"]);
        let trap = Target { series: Some(Series::Trap), ..all };
        assert_eq!(
            names(access, &trap),
            ["6.12-x86_64-trap", "6.12-x86_64-batch", "6.12-x86_64-vanilla"]
        );
        assert_eq!(names(&SLEEPING, &trap), ["6.12-x86_64-trap"]);

        let [this, below, vanilla] = &access.kernels(&trap).unwrap()[..] else { panic!() };
        let said = |cycles: u32| lines(&[&format!("An emulated read takes {cycles} cycles")]);
        let row = || access.compared(&said(5007), &said(5000)).unwrap().remove(0);
        let cells = row().between(this, below, &trap).cells();
        assert!(cells[0].ends_with(": trap against batch") && cells[7] == "NO", "{cells:?}");
        let cells = row().between(below, vanilla, &trap).cells();
        assert!(cells[0].ends_with(": batch against no series"), "{cells:?}");
        assert_eq!(cells[5..], ["+7", "", ""]);
    }
}
