//! What QEMU's `scripts/simpletrace.py` makes of a file of the `simple` backend:
//! `event delta_us pid=N name=value ...`, one line an event.

use std::sync::LazyLock;

use regex::Regex;

use super::fields::Names;
use super::lines::Line;
use super::{At, Problem, clock, regex};

static LINE: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"^(?<event>\w+) (?<back>-)?(?<delta>\d+\.\d{3}) pid=\d+(?: (?<fields>.*))?$")
});

/// An event and when it was, in nanoseconds since the first.
pub(super) struct Event {
    pub(super) name: String,
    pub(super) at: u64,
    pub(super) fields: String,
}

/// The times are since the event before.
#[derive(Debug, Default)]
pub(super) struct Clock {
    at: u64,
}

impl Clock {
    /// The line, if it is one of that program's.
    pub(super) fn read(&mut self, line: &Line) -> Result<Option<Event>, At> {
        let Some(found) = LINE.captures(&line.text) else { return Ok(None) };
        let name = found["event"].to_owned();
        if name == "Dropped_Event" {
            return Err(At(line.number, Problem::Dropped));
        }
        // Microseconds with three digits, read as seconds.
        let delta = clock::seconds(&found["delta"]).unwrap_or(0) / 1_000_000;
        self.at = if found.name("back").is_some() {
            self.at.saturating_sub(delta)
        } else {
            self.at.saturating_add(delta)
        };
        let fields = found.name("fields").map_or("", |fields| fields.as_str()).to_owned();
        Ok(Some(Event { name, at: self.at, fields }))
    }
}

/// The arguments of `kvm_set_user_memory`, by the names that QEMU's sources gave
/// them.
pub(super) const NAMES: Names =
    ["as", "slot", "flags", "guest_phys_addr", "memory_size", "userspace_addr", "fd", "fd_offset"];
