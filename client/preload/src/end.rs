//! Statistics, written where they are wanted: once, when the program ends by
//! `exit`, or when it is about to restrict its system calls.

use std::ffi::c_int;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::process::Status;
use crate::root;
use crate::settings::{self, Stats};
use crate::stats::Totals;
use crate::sys;

/// Where the program was and what its stderr was when it began. A daemon has
/// another directory later, and may have something else as descriptor 2.
struct Began {
    directory: Option<PathBuf>,
    stderr: Option<(u64, u64)>,
}

static BEGAN: OnceLock<Began> = OnceLock::new();

/// Notes where the program is, if that will matter.
pub(crate) fn begin() {
    let Some(settings) = settings::settings() else { return };
    let relative = |stats: &Stats| matches!(stats, Stats::File(file) if !file.starts_with('/'));
    let directory = || std::env::current_dir().ok();
    let _ = BEGAN.set(Began {
        directory: settings.stats.iter().any(relative).then(directory).flatten(),
        stderr: settings.stats.contains(&Stats::Stderr).then(stderr).flatten(),
    });
}

/// What descriptor 2 is.
fn stderr() -> Option<(u64, u64)> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fills in the structure.
    if unsafe { libc::fstat(std::io::stderr().as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: filled in.
    let stat = unsafe { stat.assume_init() };
    Some((stat.st_dev, stat.st_ino))
}

/// Writes the statistics of a process that has made VMs.
pub(crate) fn write() {
    // The process that has written its own.
    static WRITTEN: AtomicI32 = AtomicI32::new(0);
    let (Some(settings), Some(root)) = (settings::settings(), root::root()) else { return };
    // A child by `vfork` has its parent's memory, not its number. Who can't be told
    // from it, as `/proc` has gone, writes.
    let pid = root.pid();
    if settings.stats.is_empty()
        || Status::read().number().is_some_and(|number| number != pid)
        || WRITTEN.swap(pid, Ordering::SeqCst) == pid
    {
        return;
    }
    let totals = Totals::new(root, settings.mode.name());
    for stats in &settings.stats {
        // That it can't be had is no error of the program's.
        let _ = match stats {
            Stats::Stderr => to_stderr(&totals),
            Stats::File(file) => to_file(file, pid, &totals),
        };
    }
}

/// Not to a file, or a guest's disk, that is descriptor 2 by now.
fn to_stderr(totals: &Totals) -> Option<()> {
    let began = BEGAN.get()?.stderr?;
    if stderr()? != began {
        return None;
    }
    let mut text = String::new();
    for line in totals.to_string().lines() {
        text.extend(["kvm-memslots-preload: ", line, "\n"]);
    }
    // SAFETY: these bytes are only read.
    unsafe { sys::transfer(true, 2, text.as_ptr() as u64, text.len()) }.ok().map(drop)
}

fn to_file(file: &str, pid: c_int, totals: &Totals) -> Option<()> {
    let file = file.replace("%p", &pid.to_string());
    let path = match BEGAN.get().and_then(|began| began.directory.as_ref()) {
        Some(directory) => directory.join(&file),
        None => PathBuf::from(&file),
    };
    let is_json = Path::new(&file).extension().is_some_and(|is| is == "json");
    let text =
        if is_json { serde_json::to_string(totals).ok()? + "\n" } else { totals.to_string() };
    std::fs::write(path, text).ok()
}
