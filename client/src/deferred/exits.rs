//! What a vCPU thread does with an MMIO exit.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::access;
use super::serving::Serving;
use super::table::{Entry, at};

/// Serves MMIO exits from the memory of deferrable regions: one for each vCPU
/// thread, cloned or from [`Vm::deferred`].
///
/// Calls on different threads take no lock and wait for nobody. An exit that
/// races a [`promote`](crate::Vm::promote) is served from the memory
/// that the guest then has mapped; one that races an unmap is served, or is the
/// device's, and when the change that unmaps it has been applied it is the device's.
///
/// [`Vm::deferred`]: crate::Vm::deferred
pub struct Deferred {
    shared: Arc<Serving>,
    /// Promotions that this thread knows of.
    seen: Cell<u64>,
    /// The last promotion before an access could not be decoded, while slots are
    /// too short for all that wait to be tried at once.
    pub(crate) round: Cell<Option<u64>>,
    exits: Cell<u32>,
    /// When the last exit was answered, for those whose time is taken.
    answered: Cell<Option<Instant>>,
}

/// What became of an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use]
pub struct Served {
    /// How many bytes were served from memory; the others were the device's.
    pub bytes: usize,
    /// [`Vm::promote_due`](crate::Vm::promote_due) is worth
    /// its while now. Said until it is done, on each exit and to each thread.
    pub due: bool,
    /// The guest address at which the host memory could not be accessed, where
    /// that was so (a file that was truncated, memory that was taken away).
    /// Nothing was served from there on, and the rest of `data` is what it was.
    ///
    /// With a slot, `KVM_RUN` would have failed with `EFAULT`: it is for the VMM
    /// to do what it does then.
    pub fault: Option<u64>,
}

/// What becomes of the first bytes of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Part {
    /// That many were served from memory.
    Memory(Served),
    /// That many are none of a deferrable region, or written to a read-only
    /// one: the device's.
    Device(usize),
    /// The memory can't be accessed ([`Served::fault`]), or this process was
    /// forked from the one that opened the VM.
    Fault,
}

/// What came of an access to a region.
enum Answer {
    /// So many bytes were served: where that is not all, the next one can't be
    /// accessed.
    Served(usize),
    /// It is not for the memory: a write to what is read-only.
    NotMemory,
}

/// One exit in so many has its time taken: the clock costs more than serving it
/// does.
const SAMPLE: u32 = 512;
/// Of the first so many exits of a thread it is every other one.
const WARM_UP: u32 = 32;

impl Deferred {
    pub(crate) fn new(shared: &Arc<Serving>) -> Self {
        Self {
            seen: Cell::new(shared.promotions.load(Ordering::Acquire)),
            shared: Arc::clone(shared),
            round: Cell::new(None),
            exits: Cell::new(0),
            answered: Cell::new(None),
        }
    }

    /// Answers a read of `data.len()` bytes at `gpa`. What lies in deferrable
    /// regions, one or several, is read from their memory; for what does not,
    /// `device` is called, in ascending order, with address and bytes. An access
    /// that none of it does is `device`'s as a whole.
    ///
    /// Naturally aligned 1, 2, 4 and 8 bytes are read at once. `device` may
    /// change the address space.
    pub fn read(
        &self,
        gpa: u64,
        data: &mut [u8],
        mut device: impl FnMut(u64, &mut [u8]),
    ) -> Served {
        let len = data.len();
        in_parts(gpa, len, |at, done| {
            let part = self.read_part(at, &mut data[done..]);
            if let Part::Device(bytes) = part {
                device(at, &mut data[done..done + bytes]);
            }
            part
        })
    }

    /// Answers a write, as [`read`](Self::read) does a read. Writes to read-only
    /// regions are `device`'s. Written pages of regions with a dirty log are in
    /// that.
    pub fn write(&self, gpa: u64, data: &[u8], mut device: impl FnMut(u64, &[u8])) -> Served {
        in_parts(gpa, data.len(), |at, done| {
            let part = self.write_part(at, &data[done..]);
            if let Part::Device(bytes) = part {
                device(at, &data[done..done + bytes]);
            }
            part
        })
    }

    /// The first step of [`read`](Self::read): for callers that can't be called
    /// back. At least one byte, of `data` that has any.
    pub fn read_part(&self, gpa: u64, data: &mut [u8]) -> Part {
        self.part(gpa, data.len(), |entry, hva, len| {
            let data = &mut data[..len];
            if !entry.never_faults {
                return Answer::Served(access::try_read(self.shared.pid, hva, data));
            }
            // SAFETY: `part` gives out memory of a region, which its owner
            // vouched for until it is taken from the table and nobody has the
            // table any more; and it never faults.
            unsafe { access::read(hva, data) };
            Answer::Served(len)
        })
    }

    /// The first step of [`write`](Self::write).
    pub fn write_part(&self, gpa: u64, data: &[u8]) -> Part {
        self.part(gpa, data.len(), |entry, hva, len| {
            let data = &data[..len];
            if entry.read_only {
                return Answer::NotMemory;
            }
            let written = if entry.never_faults {
                // SAFETY: as above, and the region is not read-only.
                unsafe { access::write(hva, data) };
                len
            } else {
                // SAFETY: as above, but for the promise that it never faults.
                unsafe { access::try_write(self.shared.pid, hva, data) }
            };
            entry.life.mark(hva - entry.hva, written as u64);
            Answer::Served(written)
        })
    }

    /// Has `serve` do what the region at `gpa` has of `len` bytes.
    fn part(&self, gpa: u64, len: usize, serve: impl FnOnce(&Entry, u64, usize) -> Answer) -> Part {
        if self.shared.process.is_fork() {
            // The memory of the guest is its VMM's, which is another process.
            return Part::Fault;
        }
        let table = self.shared.table.load();
        let fitting = |bytes: u64| usize::try_from(bytes).map_or(len, |bytes| bytes.min(len));
        let entry = match at(&table, gpa) {
            Ok(entry) => entry,
            Err(next) => return Part::Device(next.map_or(len, |next| fitting(next - gpa))),
        };
        let offset = gpa - entry.range.gpa();
        let bytes = fitting(entry.range.size() - offset);
        let bytes = match serve(entry, entry.hva + offset, bytes) {
            Answer::Served(0) if len > 0 => return Part::Fault,
            Answer::Served(bytes) => bytes,
            Answer::NotMemory => return Part::Device(bytes),
        };
        // The vCPU has got on.
        self.round.set(None);
        let mut due = false;
        if entry.waits {
            self.take_time();
            let exits = entry.life.exits.fetch_add(1, Ordering::Relaxed) + 1;
            due = self.shared.is_due_now(&entry.life, exits);
            if due {
                self.shared.queue(&entry.life);
            }
        }
        Part::Memory(Served { bytes, due, fault: None })
    }

    /// Every so often, the time from one answer to the next exit.
    fn take_time(&self) {
        if !self.shared.measures {
            return;
        }
        let exits = self.exits.get().wrapping_add(1);
        self.exits.set(exits);
        if let Some(answered) = self.answered.take() {
            self.shared.note_exit(answered.elapsed().as_nanos() as u64);
        } else if exits < WARM_UP || exits % SAMPLE == 0 {
            self.answered.set(Some(Instant::now()));
        }
    }

    /// How often regions were promoted so far.
    pub(crate) fn promotions(&self) -> u64 {
        self.shared.promotions.load(Ordering::Acquire)
    }

    /// Whether regions were promoted since this was last asked on this thread.
    pub(crate) fn promoted_meanwhile(&self) -> bool {
        let now = self.promotions();
        self.seen.replace(now) != now
    }
}

/// Takes an access step by step: `step` is told where it is, and how many bytes that
/// is behind `gpa`.
fn in_parts(gpa: u64, len: usize, mut step: impl FnMut(u64, usize) -> Part) -> Served {
    let mut all = Served::default();
    let mut done = 0;
    while done < len {
        let at = gpa.wrapping_add(done as u64);
        done += match step(at, done) {
            Part::Memory(served) => {
                all.bytes += served.bytes;
                all.due |= served.due;
                served.bytes
            }
            Part::Device(bytes) => bytes,
            Part::Fault => {
                all.fault = Some(at);
                break;
            }
        }
    }
    all
}

impl Clone for Deferred {
    /// For another thread.
    fn clone(&self) -> Self {
        Self { seen: self.seen.clone(), ..Self::new(&self.shared) }
    }
}

impl fmt::Debug for Deferred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (slot_ns, exit_ns) = self.shared.costs();
        f.debug_struct("Deferred")
            .field("policy", &self.shared.policy)
            .field("slot_ns", &slot_ns)
            .field("exit_ns", &exit_ns)
            .finish_non_exhaustive()
    }
}
