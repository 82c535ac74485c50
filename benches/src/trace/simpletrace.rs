//! What QEMU's `scripts/simpletrace.py` makes of a file of the `simple` backend:
//! `event delta_us pid=N name=value ...`, one line an event.

use std::sync::LazyLock;

use kvm_memslots::MemFlags;
use kvm_memslots_shim::uapi::kvm_userspace_memory_region2;
use regex::Regex;

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
pub(super) fn arguments(fields: &str) -> Result<(kvm_userspace_memory_region2, i32), String> {
    let mut region = kvm_userspace_memory_region2::default();
    let (mut ret, mut seen) = (0, Vec::new());
    for field in fields.split_whitespace() {
        let (name, value) = field.split_once('=').ok_or_else(|| format!("{field}?"))?;
        let number = value.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        let number = number.ok_or_else(|| format!("{name} is not a number: {value}"))?;
        let narrow = || u32::try_from(number).map_err(|_| format!("{name} has 32 bits: {value}"));
        match name {
            "as" => region.slot |= narrow()?.checked_mul(1 << 16).ok_or("as has 16 bits")?,
            "slot" => region.slot |= narrow()?,
            "flags" => region.flags = narrow()?,
            "guest_phys_addr" => region.guest_phys_addr = number,
            "memory_size" => region.memory_size = number,
            "userspace_addr" => region.userspace_addr = number,
            // Values are 64 bits wide, whatever they were.
            "fd" => region.guest_memfd = number as u32,
            "fd_offset" => region.guest_memfd_offset = number,
            "ret" => ret = (number as u32).cast_signed(),
            _ => return Err(format!("what is {name}?")),
        }
        if seen.contains(&name) {
            return Err(format!("{name} twice"));
        }
        seen.push(name);
    }
    let needed = ["slot", "flags", "guest_phys_addr", "memory_size", "userspace_addr", "ret"];
    if let Some(missing) = needed.into_iter().find(|name| !seen.contains(name)) {
        return Err(format!("no {missing}"));
    }
    if region.flags & MemFlags::GUEST_MEMFD.bits() == 0 {
        (region.guest_memfd, region.guest_memfd_offset) = (0, 0);
    }
    Ok((region, ret))
}
