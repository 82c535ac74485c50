//! How long VMMs take to their first `KVM_RUN` with nobody watching their calls.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::spec::{Place, Spec};
use crate::kernel::vmm::guest::VmmGuest;
use crate::kernel::vmm::which::Way;
use crate::run;

/// In the lab, `vmm-timed PAIRS`.
pub(super) const SCRIPT: &str = include_str!("timed.sh");
/// There a pair is as good as any other.
pub(super) const PAIRS_IN_LAB: usize = 15;

/// On this machine both ways are run in turn for so long, at most so often.
const LONG: Duration = Duration::from_secs(200);
const PAIRS: usize = 2000;

/// What a run says, in nanoseconds: of the clock, and of processors.
type Timed = [f64; 2];

/// Today's run, and ours.
type Pair = [Timed; 2];

/// What the second of `built` takes of what the first does, in words.
pub(super) fn compare(
    spec: &Spec,
    built: &[(Way, PathBuf)],
    guest: &VmmGuest,
) -> Result<Vec<String>> {
    let name = spec.published.name;
    run::say(&format!("running {name} both ways in turn for {} s, timed", LONG.as_secs()));
    let mut pairs = Vec::new();
    let start = Instant::now();
    while pairs.is_empty() || (pairs.len() < PAIRS && start.elapsed() < LONG) {
        let mut pair = Pair::default();
        // Who is first has what the other left in caches.
        for nth in if pairs.len() % 2 == 0 { [0, 1] } else { [1, 0] } {
            let (way, program) = &built[nth];
            pair[nth] = one(spec, *way, program, guest)?;
        }
        pairs.push(pair);
    }
    Ok(remarks(["time", "processor time"], "ms", &pairs))
}

/// The same of what the script says in the lab, where the clock counts instructions.
pub(super) fn compared(lines: &[String]) -> Result<Vec<String>> {
    let of = |way: Way| {
        let prefix = format!("VMM {} ", way.name());
        lines.iter().filter_map(move |line| parse(line.strip_prefix(&prefix)?))
    };
    let [today, ours] = Way::ALL.map(of);
    let pairs: Vec<Pair> = today.zip(ours).map(<[_; 2]>::from).collect();
    if pairs.len() != PAIRS_IN_LAB {
        bail!("of {PAIRS_IN_LAB} pairs {} said how long they took", pairs.len());
    }
    let names = ["instructions of the machine", "instructions of the process"];
    Ok(remarks(names, "million", &pairs))
}

fn one(spec: &Spec, way: Way, program: &Path, guest: &VmmGuest) -> Result<Timed> {
    let dir: PathBuf = spec.published.base().join(way.name());
    let place = Place { dir: &dir, program, kernel: &guest.kernel, initrd: &guest.initrd };
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec {}", (spec.host)(&place)?)]);
    command.env("KRUN_RUN_TIMED", "1").stdin(Stdio::null());
    let output = command.output().context("sh")?;
    let text = String::from_utf8_lossy(&output.stderr);
    let Some(timed) = text.lines().find_map(parse) else {
        bail!("{}, {}, did not say how long it took: {text}", spec.published.name, way.name());
    };
    Ok(timed)
}

fn parse(line: &str) -> Option<Timed> {
    let mut words = line.strip_prefix("timed ")?.split_whitespace();
    let mut number = || words.next()?.parse().ok();
    Some([number()?, number()?])
}

/// A line for the clock, and one for processors.
fn remarks(names: [&str; 2], unit: &str, pairs: &[Pair]) -> Vec<String> {
    let line = |(of, name)| {
        let pairs: Vec<[f64; 2]> = pairs.iter().map(|pair| pair.map(|timed| timed[of])).collect();
        said(name, unit, &pairs)
    };
    names.into_iter().enumerate().map(line).collect()
}

/// In millions of what a run says.
fn said(name: &str, unit: &str, pairs: &[[f64; 2]]) -> String {
    let sorted = |of: fn(&[f64; 2]) -> f64| {
        let mut all: Vec<f64> = pairs.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let [today, ours] = [sorted(|pair| pair[0] / 1e6), sorted(|pair| pair[1] / 1e6)];
    let ratios = sorted(|[today, ours]| ours / today);
    let (half, [low, high]) = (ratios.len() / 2, ranks(ratios.len()));
    format!(
        "{name} to the first KVM_RUN, no strace: {:.2} {unit} today, {:.2} {unit} ours, the least \
         {:.2} and {:.2}; of {} pairs ours/today is {:.3} (95 %: {:.3} to {:.3})",
        today[half],
        ours[half],
        today[0],
        ours[0],
        ratios.len(),
        ratios[half],
        ratios[low],
        ratios[high],
    )
}

/// Between these two of `number` sorted values the median of what they are drawn from is, in 95 of
/// 100 cases at least: the sign test's interval, which is 0.98 roots to each side.
fn ranks(number: usize) -> [usize; 2] {
    let half = number.isqrt() + 1;
    [(number / 2).saturating_sub(half), (number / 2 + half).min(number.saturating_sub(1))]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_the_program_says() {
        assert_eq!(parse("timed 2500 1000   "), Some([2500.0, 1000.0]));
        assert_eq!(parse("timed 2500"), None);
        assert_eq!(parse("seccomp: -1"), None);
    }

    #[test]
    fn the_median_of_pairs_and_its_interval() {
        assert_eq!(ranks(200), [85, 115]);
        assert_eq!(ranks(3), [0, 2]);
        // Ours takes 1 % more, but for a few pairs that something else came in between of.
        let ours = |nth| if nth % 20 == 0 { 9e6 } else { 4.04e6 };
        let pairs: Vec<[f64; 2]> = (0..200).map(|nth| [4e6, ours(nth)]).collect();
        let text = said("time", "ms", &pairs);
        assert!(text.contains("4.00 ms today, 4.04 ms ours, the least 4.00 and 4.04"), "{text}");
        assert!(text.contains("is 1.010 (95 %: 1.010 to 1.010)"), "{text}");
    }

    #[test]
    fn what_the_lab_says() {
        let mut lines = vec!["booting".to_owned()];
        for nth in 0..PAIRS_IN_LAB {
            let today = "VMM today timed 2000000 1000000  ".to_owned();
            let ours = "VMM ours timed 2000000 1010000  ".to_owned();
            lines.extend(if nth % 2 == 0 { [today, ours] } else { [ours, today] });
        }
        let said = compared(&lines).unwrap();
        assert!(said[0].contains("is 1.000 (95 %: 1.000 to 1.000)"), "{said:?}");
        assert!(said[1].contains("1.00 million today, 1.01 million ours"), "{said:?}");
        lines.pop();
        assert!(compared(&lines).is_err(), "one way has said less");
    }
}
