//! This process: its clock, its errno, its stderr, its id, its end.

use std::ffi::c_int;
use std::io::Write as _;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Instant;

use crate::settings::{Mode, Settings, Stats};
use crate::stats::COUNTS;

/// What the environment says, read when the first VM is made: by then the
/// process is up.
pub(crate) fn settings() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(|| {
        Settings::read(|name| std::env::var(name).ok()).unwrap_or_else(|wrong| {
            say(&format!("switched off: {wrong}"));
            Settings {
                mode: Mode::Off,
                flips: None,
                policy: kvm_memslots::deferred::policy::Policy::default(),
                writable: false,
                stats: Vec::new(),
            }
        })
    })
}

/// The process that made VMs; 0 before that.
static OWNER: AtomicI32 = AtomicI32::new(0);

/// Whether this is the child of a process that made VMs. Those are its
/// parent's: KVM refuses it every call.
static CHILD: AtomicBool = AtomicBool::new(false);

/// This process makes a VM.
pub(crate) fn is_owner() {
    // SAFETY: has no preconditions.
    let pid = unsafe { libc::getpid() };
    if OWNER.swap(pid, Ordering::SeqCst) == 0 {
        extern "C" fn child() {
            CHILD.store(true, Ordering::SeqCst);
        }
        // Not run for `vfork`, whose child shares all memory with its parent.
        // SAFETY: the handler only sets a flag.
        unsafe { libc::pthread_atfork(None, None, Some(child)) };
    }
}

/// Whether nothing here is for this process: it is a child.
pub(crate) fn is_child() -> bool {
    CHILD.load(Ordering::SeqCst)
}

/// Whether this process has made VMs itself. A child by `vfork` has not.
pub(crate) fn owns() -> bool {
    // SAFETY: has no preconditions.
    OWNER.load(Ordering::SeqCst) == unsafe { libc::getpid() }
}

/// Nanoseconds since this was first asked for.
pub(crate) fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let ns = START.get_or_init(Instant::now).elapsed().as_nanos();
    // In 584 years.
    u64::try_from(ns).unwrap_or(u64::MAX)
}

pub(crate) fn errno() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

pub(crate) fn set_errno(errno: c_int) {
    // SAFETY: has no preconditions.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: this thread's, always there.
    unsafe { *place = errno };
}

/// Says a line on stderr. That nobody can hear it is no error.
pub(crate) fn say(line: &str) {
    // Tests have it said very often.
    if cfg!(test) {
        return;
    }
    let _ = std::io::stderr().write_all(format!("kvm-memslots-preload: {line}\n").as_bytes());
}

/// Writes the statistics, once, where they are wanted.
pub(crate) fn end() {
    static ENDED: AtomicBool = AtomicBool::new(false);
    if is_child() || !owns() || ENDED.swap(true, Ordering::SeqCst) {
        return;
    }
    let settings = settings();
    if settings.stats.is_empty() {
        return;
    }
    let totals = COUNTS.totals(match settings.mode {
        Mode::Off => return,
        Mode::Count => "count",
        Mode::Trap => "trap",
        Mode::Defer => "defer",
        Mode::Auto => "auto",
    });
    for stats in &settings.stats {
        match stats {
            Stats::Stderr => totals.to_string().lines().for_each(say),
            Stats::File(file) => {
                let json = || serde_json::to_string(&totals).unwrap_or_default();
                let is_json = Path::new(file).extension().is_some_and(|is| is == "json");
                let text = if is_json { json() } else { totals.to_string() };
                if let Err(error) = std::fs::write(file, text + "\n") {
                    say(&format!("{file}: {error}"));
                }
            }
        }
    }
}
