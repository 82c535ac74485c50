//! QEMU's event `kvm_set_user_memory` (`accel/kvm/trace-events`): in its log, in
//! the kernel's trace, by its converter.

use std::collections::{HashMap, HashSet};

use kvm_memslots::MemFlags;
use kvm_memslots_shim::uapi::kvm_userspace_memory_region2;

use super::fields::{Fields, Names};
use super::kernel::Kernel;
use super::lines::Line;
use super::{At, Call, clock, simpletrace};

const EVENT: &str = "kvm_set_user_memory";

/// Events of a thread that enters the guest or comes back from it.
const RUN_EVENTS: [&str; 2] = ["kvm_run_exit", "kvm_cpu_exec"];

/// Reads line after line.
#[derive(Debug, Default)]
pub(super) struct Parser {
    calls: Vec<Call>,
    /// Live slots and their flags.
    live: HashMap<u32, u32>,
    first: Option<u64>,
    /// Threads, or anybody, who ran a vCPU since their last call.
    ran: HashSet<Option<u32>>,
    simple: simpletrace::Clock,
}

/// What stands before the name of the event.
struct Prefix {
    thread: Option<u32>,
    at: Option<u64>,
}

impl Parser {
    /// A line of QEMU's log, or of its converter.
    pub(super) fn line(&mut self, line: &Line) -> Result<(), At> {
        if let Some(event) = self.simple.read(line)? {
            let prefix = Prefix { thread: None, at: Some(event.at) };
            return self.event(line, &prefix, &event.name, &event.fields, &simpletrace::NAMES);
        }
        let mut names = RUN_EVENTS.into_iter().chain([EVENT]);
        let place = |name: &str| line.text.find(&format!("{name} "));
        let Some((name, at)) = names.find_map(|name| Some((name, place(name)?))) else {
            // The last line, cut off in the name.
            return if !line.ended && is_cut_off(&line.text) { line.check_ended() } else { Ok(()) };
        };
        let rest = &line.text[at + name.len() + 1..];
        match prefix(&line.text[..at]) {
            Some(prefix) => self.event(line, &prefix, name, rest, &NAMES),
            None if name != EVENT => Ok(()),
            None => line.check_ended().and(Err(line.malformed(
                "expected nothing but QEMU's time, the journal's or libvirt's prefix, or a quote \
                 before it; -D FILE gives QEMU's log a file",
            ))),
        }
    }

    /// What QEMU's `ftrace` backend wrote into the kernel's trace.
    pub(super) fn mark(&mut self, line: &Line, kernel: &Kernel<'_>, text: &str) -> Result<(), At> {
        let prefix = Prefix { thread: Some(kernel.thread), at: Some(kernel.at) };
        let Some((name, rest)) = text.split_once(' ') else { return Ok(()) };
        self.event(line, &prefix, name, rest, &NAMES)
    }

    /// An event, whose arguments have these names.
    fn event(
        &mut self,
        line: &Line,
        prefix: &Prefix,
        name: &str,
        arguments: &str,
        names: &Names,
    ) -> Result<(), At> {
        if RUN_EVENTS.contains(&name) {
            self.ran.insert(prefix.thread);
        }
        if name != EVENT {
            return Ok(());
        }
        line.check_ended()?;
        let found = Fields::new(arguments.split_whitespace()).and_then(|it| it.event(names));
        let (region, ret) = found.map_err(|why| line.malformed(why))?;
        let first = self.first.or(prefix.at);
        self.first = first;
        let call = Call {
            // The event is after the ioctl (`kvm_set_user_memory_region()`).
            ended: prefix.at.zip(first).map(|(at, first)| at.saturating_sub(first)),
            thread: prefix.thread,
            after_run: self.ran.remove(&prefix.thread),
            errno: ret.saturating_neg(),
            ..Call::of(line.number, region)
        };
        if ret == 0 {
            self.calls.extend(self.implied_delete(&call));
            if call.deletes() {
                self.live.remove(&call.id());
            } else {
                self.live.insert(call.id(), region.flags);
            }
        }
        self.calls.push(call);
        Ok(())
    }

    /// KVM does not switch read-only on a live slot, so QEMU deletes it first,
    /// and has no event for that (`kvm_set_user_memory_region()`).
    fn implied_delete(&self, call: &Call) -> Option<Call> {
        let live = self.live.get(&call.id()).filter(|_| !call.deletes())?;
        let switched = (live ^ call.region.flags) & MemFlags::READONLY.bits() != 0;
        let region = kvm_userspace_memory_region2 { memory_size: 0, ..call.region };
        switched.then_some(Call { implied: true, region, ..*call })
    }

    pub(super) fn finish(self) -> Vec<Call> {
        self.calls
    }
}

/// Whether a line ends within the name of the event.
fn is_cut_off(text: &str) -> bool {
    const LEAST: usize = "kvm_set_u".len();
    (LEAST..=EVENT.len()).any(|length| text.ends_with(&EVENT[..length]))
}

/// Nothing, `thread@seconds.microseconds:` (`-msg timestamp=on`, up to 10.1),
/// or an ISO 8601 time (`qemu_log()` since).
fn prefix(text: &str) -> Option<Prefix> {
    if text.is_empty() {
        return Some(Prefix { thread: None, at: None });
    }
    if let Some((thread, time)) = text.strip_suffix(':').and_then(|text| text.split_once('@')) {
        let (thread, at) = (thread.parse().ok()?, clock::seconds(time)?);
        return Some(Prefix { thread: Some(thread), at: Some(at) });
    }
    let at = clock::iso8601(text.strip_suffix(' ')?)?;
    Some(Prefix { thread: None, at: Some(at) })
}

/// `AddrSpace#0 Slot#1 flags=0x2 gpa=0x0 size=0x1000 ua=0x7f00 guest_memfd=-1
/// guest_memfd_offset=0x0 ret=0`; up to 8.2 without `AddrSpace` and
/// `guest_memfd`, and with the address space in the upper half of the slot.
const NAMES: Names =
    ["AddrSpace", "Slot", "flags", "gpa", "size", "ua", "guest_memfd", "guest_memfd_offset"];
