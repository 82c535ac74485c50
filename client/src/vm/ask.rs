//! Which region KVM means when it refuses a slot.

use kvm_memslots_shim::memory::Why;
use kvm_memslots_shim::{Errno, Mapping, Range, Slot};

use super::prepare::{Prepared, Work};
use super::{Commit, Panics, Tables, Vm};
use crate::error::{Described, Error, ErrorKind};
use kvm_memslots_shim::memory::Op;

const IDENTITY_MAP: &str = "KVM's own memslot of the identity map (KVM_SET_IDENTITY_MAP_ADDR)";
const TSS: &str = "KVM's own memslot of the TSS (KVM_SET_TSS_ADDR)";

/// Memory that KVM maps for itself on x86, below 4 GiB: where the identity map is by
/// default, and where QEMU has it, which leaves room for larger firmware. VMMs put
/// the TSS behind it. Nobody can ask KVM.
const INTERNAL: [(u64, u64, &str); 5] = [
    (0xfee0_0000, 0x1000, "KVM's own memslot of the APIC access page"),
    (0xfffb_c000, 0x1000, IDENTITY_MAP),
    (0xfffb_d000, 0x3000, TSS),
    (0xfeff_c000, 0x1000, IDENTITY_MAP),
    (0xfeff_d000, 0x3000, TSS),
];

fn internal(range: Range) -> Option<&'static str> {
    if !cfg!(target_arch = "x86_64") {
        return None;
    }
    let there = |(gpa, size, _): &&(u64, u64, _)| {
        Range::new(*gpa, *size).is_some_and(|own| own.overlaps(range))
    };
    INTERNAL.iter().find(there).map(|(_, _, name)| *name)
}

/// A region in a slot that was refused.
struct Part {
    mapping: Mapping,
    region: Box<Described>,
    change: Option<usize>,
}

impl Vm {
    /// What a plan's failure means to the one who asked. With `commit`, when
    /// everything was undone, KVM is asked which region it means.
    pub(super) fn explain(
        &self,
        prepared: &Prepared,
        work: &Work,
        why: &Why,
        commit: Option<&mut Commit>,
    ) -> Error {
        let (op, errno) = match why {
            Why::Refused { op: Some(op), errno, .. } | Why::Stuck { op: Some(op), errno, .. } => {
                (op, *errno)
            }
            Why::Refused { errno, .. } | Why::Stuck { errno, .. } => {
                return ErrorKind::RefusedWhole(*errno).into();
            }
            Why::DirtyLog { slot, errno } => {
                return ErrorKind::DirtyLog { slot: *slot, errno: *errno }.into();
            }
            other => return ErrorKind::Internal(other.to_string()).into(),
        };
        let mut parts = self.parts(prepared, work.as_id, op.range());
        let blamed = match (op, commit) {
            (Op::Create(slot), Some(commit)) if parts.len() > 1 => {
                self.find(commit, work.as_id, slot.id, &parts, errno)
            }
            _ => Some(0),
        };
        let blamed = blamed.filter(|at| *at < parts.len()).map(|at| parts.swap_remove(at));
        let range = match &blamed {
            Some(part) => part.mapping.range(),
            None => op.range(),
        };
        let in_the_way = internal(range).filter(|_| errno == Errno::EEXIST);
        let op = Box::new(*op);
        let (region, change) = match blamed {
            Some(part) => (Some(part.region), part.change),
            None => (None, None),
        };
        let error =
            Error::from(ErrorKind::Refused { op, range, errno, in_the_way }).of_region(region);
        match change {
            Some(change) => error.in_change(change),
            None => error,
        }
    }

    /// The regions in `range`, as they were to be; where there are none, as they
    /// are.
    fn parts(&self, prepared: &Prepared, as_id: u16, range: Range) -> Vec<Part> {
        let tables: &Tables = &self.tables();
        let edits = &prepared.edits;
        let new = edits.iter().filter_map(|edit| {
            let record = edit.now.as_ref().filter(|record| record.as_id == as_id)?;
            let mapping = record.mapping.clipped_to(range)?;
            Some(Part { mapping, region: record.described(edit.id), change: Some(edit.change) })
        });
        let mut parts: Vec<Part> = new.collect();
        for index in tables.regions.overlapping(as_id, range) {
            let edit = edits.iter().find(|edit| edit.index == Some(index));
            if edit.is_some_and(|edit| edit.now.is_some()) {
                continue;
            }
            if edit.is_some() && !parts.is_empty() {
                continue;
            }
            if let Some(mapping) = tables.regions.mapping(index).clipped_to(range) {
                let (region, change) = (tables.regions.described(index), edit.map(|e| e.change));
                parts.push(Part { mapping, region, change });
            }
        }
        parts.sort_by_key(|part| part.mapping.range());
        parts
    }

    /// The first of `parts` that KVM refuses with `errno`, found by halving.
    fn find(
        &self,
        commit: &mut Commit,
        as_id: u16,
        id: u16,
        parts: &[Part],
        errno: Errno,
    ) -> Option<usize> {
        let (mut from, mut to) = (0, parts.len());
        while to - from > 1 {
            let middle = from + (to - from) / 2;
            let half = parts[from..middle].iter();
            let whole = half.map(|part| part.mapping).reduce(|all, next| {
                // They were to be one slot.
                all.joined(&next).unwrap_or(all)
            })?;
            match self.ask(commit, as_id, Slot { id, mapping: whole })? {
                Err(again) if again == errno => to = middle,
                Ok(()) | Err(_) => from = middle,
            }
        }
        Some(from)
    }

    /// Whether KVM would take a slot; nothing if it can't be asked. Without the
    /// batch ioctl's dry run it is made, and deleted again.
    fn ask(&self, commit: &mut Commit, as_id: u16, slot: Slot) -> Option<Result<(), Errno>> {
        let mut panics = Panics::default();
        if self.is_batched() {
            let answer = panics.catch(|| self.memory.check_all(as_id, &[Op::Create(slot)]))?;
            return Some(answer.map_err(|refusal| refusal.errno));
        }
        let space = &mut commit.spaces[usize::from(as_id)];
        if space.ids.contains(slot.id) || !space.unsure.is_empty() {
            return None;
        }
        // SAFETY: the slot is a part of one that was to be made: whoever mapped
        // its regions promised that their memory is there, and the changes that
        // hold it are not dropped yet.
        let made = panics.catch(|| unsafe { self.memory.change(as_id, &Op::Create(slot)) });
        let gone = match made {
            Some(Err(errno)) => return Some(Err(errno)),
            Some(Ok(())) => {
                let delete = Op::Delete(slot);
                // SAFETY: nothing is mapped.
                panics.catch(|| unsafe { self.memory.change(as_id, &delete) })
            }
            None => None,
        };
        if matches!(gone, Some(Ok(()))) {
            return Some(Ok(()));
        }
        space.unsettled = true;
        space.unsure.push(slot.id);
        space.ids.take(slot.id);
        None
    }
}
