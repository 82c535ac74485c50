//! Them on this machine, their ioctls counted by strace.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use super::spec::{Place, Spec};
use super::timed;
use crate::kernel::target;
use crate::kernel::vmm::guest::VmmGuest;
use crate::kernel::vmm::host;
use crate::kernel::vmm::table::Measured;
use crate::kernel::vmm::which::{Kernel, Way};
use crate::run;

/// Each way is run so often, in turn, but what is timed without strace once. Counts are of the
/// last, the time to set up is the least: in some runs of either way a call that has nothing to do
/// with memory or devices (`KVM_REINJECT_CONTROL`) waits for 16 ms.
const RUNS: usize = 9;

/// Runs each of `built`.
pub(super) fn run(
    spec: &Spec,
    built: &[(Way, PathBuf)],
    guest: &VmmGuest,
) -> Result<Vec<Measured>> {
    host::available()?;
    let runs = if spec.timed { 1 } else { RUNS };
    let mut rows = Vec::new();
    let mut set_up = vec![Vec::new(); built.len()];
    for _ in 0..runs {
        rows.clear();
        for ((way, program), times) in built.iter().zip(&mut set_up) {
            let row = one(spec, *way, program, guest)?;
            times.extend(row.set_up);
            rows.push(row);
        }
    }
    for (row, times) in rows.iter_mut().zip(set_up) {
        row.set_up = times.into_iter().min_by(f64::total_cmp);
    }
    let timed = spec.timed && built.len() == Way::ALL.len();
    if let (true, Some(last)) = (timed, rows.last_mut()) {
        last.remarks = timed::compare(spec, built, guest)?;
    }
    Ok(rows)
}

fn one(spec: &Spec, way: Way, program: &Path, guest: &VmmGuest) -> Result<Measured> {
    let dir = spec.published.base().join(way.name());
    let (trace, console) = (dir.join("strace.txt"), dir.join("console.txt"));
    let place = Place { dir: &dir, program, kernel: &guest.kernel, initrd: &guest.initrd };
    let vmm = format!(
        "timeout {} strace -f -ttt -X raw -e trace=ioctl -o {} {}",
        spec.limit,
        run::quoted(&trace.display().to_string()),
        (spec.host)(&place)?,
    );
    // They want a terminal.
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &vmm]).arg(&console);
    let (name, way_name) = (spec.published.name, way.name());
    run::say(&format!("running {name}, {way_name} (console: {})", target::shown(&console)));
    let start = Instant::now();
    let mut row = Measured::new(way, Kernel::Host, "");
    let status = run::streamed(&mut script, |line| {
        let after = start.elapsed().as_secs_f64();
        if line.contains("VMM-GUEST up") {
            row.up = Some(after);
        } else if line.contains("VMM-GUEST done") {
            row.done = Some(after);
        }
    })?;
    let traced = host::traced(&trace)?;
    row.counts = traced.counts;
    row.set_up = traced.set_up;
    if row.done.is_none() {
        row.notes.push(format!("the guest ended after {} KVM_RUN, {status}", traced.runs));
    }
    Ok(row)
}
