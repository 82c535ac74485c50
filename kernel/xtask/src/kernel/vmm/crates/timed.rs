//! How long VMMs take to their first `KVM_RUN` with nobody watching their calls.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::spec::{Place, Spec};
use crate::kernel::vmm::guest::VmmGuest;
use crate::kernel::vmm::which::Way;
use crate::run;

/// Each way is run so often, in turn.
const PAIRS: usize = 200;

/// What a run says, in nanoseconds: of the clock, and of processors.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Timed {
    clock: f64,
    used: f64,
}

/// What `ours` takes of what `today` does, in words.
pub(super) fn compare(
    spec: &Spec,
    today: &Path,
    ours: &Path,
    guest: &VmmGuest,
) -> Result<Vec<String>> {
    run::say(&format!("running {} {PAIRS} times each way, timed", spec.published.name));
    let mut pairs = Vec::new();
    for nth in 0..PAIRS {
        let today = || one(spec, Way::Today, today, guest);
        let ours = || one(spec, Way::Ours, ours, guest);
        // Who is first has what the other left in caches.
        pairs.push(if nth % 2 == 0 {
            let today = today()?;
            (today, ours()?)
        } else {
            let ours = ours()?;
            (today()?, ours)
        });
    }
    Ok(["time", "processor time"]
        .into_iter()
        .zip([|timed: Timed| timed.clock, |timed: Timed| timed.used])
        .map(|(name, of)| {
            let all: Vec<(f64, f64)> = pairs.iter().map(|(a, b)| (of(*a), of(*b))).collect();
            said(name, &all)
        })
        .collect())
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
    Some(Timed { clock: number()?, used: number()? })
}

fn said(name: &str, pairs: &[(f64, f64)]) -> String {
    let median = |of: fn(&(f64, f64)) -> f64| {
        let mut all: Vec<f64> = pairs.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let mut ratios: Vec<f64> = pairs.iter().map(|(today, ours)| ours / today).collect();
    ratios.sort_by(f64::total_cmp);
    let (low, high) = ranks(ratios.len());
    format!(
        "{name} to the first KVM_RUN, no strace: {:.2} ms today, {:.2} ms ours; of {} pairs ours/today is {:.3} \
         (95 %: {:.3} to {:.3})",
        median(|pair| pair.0) / 1e6,
        median(|pair| pair.1) / 1e6,
        ratios.len(),
        ratios[ratios.len() / 2],
        ratios[low],
        ratios[high],
    )
}

/// Between these two of `number` sorted values the median of what they are drawn from is, in 95 of
/// 100 cases: the sign test's interval, by the normal approximation of the binomial.
fn ranks(number: usize) -> (usize, usize) {
    #[expect(clippy::cast_precision_loss, reason = "hundreds")]
    let half = 0.98 * (number as f64).sqrt();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "tens, not below 0"
    )]
    let half = half.ceil() as usize;
    ((number / 2).saturating_sub(half), (number / 2 + half).min(number.saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_says() {
        assert_eq!(parse("timed 2500 1000   "), Some(Timed { clock: 2500.0, used: 1000.0 }));
        assert_eq!(parse("timed 2500"), None);
        assert_eq!(parse("seccomp: -1"), None);
    }

    #[test]
    fn the_median_of_pairs_and_its_interval() {
        assert_eq!(ranks(200), (86, 114));
        assert_eq!(ranks(3), (0, 2));
        // Ours takes 1 % more, but for a few pairs that something else came in between of.
        let pairs: Vec<(f64, f64)> =
            (0..200).map(|nth| (4e6, if nth % 20 == 0 { 9e6 } else { 4.04e6 })).collect();
        let text = said("time", &pairs);
        assert!(text.contains("4.00 ms today, 4.04 ms ours"), "{text}");
        assert!(text.contains("is 1.010 (95 %: 1.010 to 1.010)"), "{text}");
    }
}
