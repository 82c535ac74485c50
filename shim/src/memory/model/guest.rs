//! What a guest finds at an address.

use std::sync::Arc;

use kvm_memslots_uapi::MemFlags;

use super::space::Live;
use super::vm::Vm;
use crate::range::Range;

/// What becomes of a guest's access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GuestAccess {
    /// Host memory, without an exit to userspace.
    Ram {
        /// The host virtual address.
        hva: u64,
    },
    /// A write to a read-only slot: `KVM_EXIT_MMIO`.
    RomWrite,
    /// No slot, or one that traps: `KVM_EXIT_MMIO`.
    Mmio,
}

impl GuestAccess {
    /// Whether `KVM_RUN` returns with `KVM_EXIT_MMIO`.
    #[must_use]
    pub const fn exits(self) -> bool {
        matches!(self, Self::RomWrite | Self::Mmio)
    }
}

/// A part of a guest's access that ends where a slot does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The guest addresses.
    pub range: Range,
    /// What becomes of the access; the host address is that of its start.
    pub access: GuestAccess,
}

impl Vm {
    pub(super) fn guest_at(&self, as_id: u16, gpa: u64) -> GuestAccess {
        let live = self.space(u32::from(as_id)).and_then(|space| space.at(gpa));
        live.map_or(GuestAccess::Mmio, |live| ram(live, gpa))
    }

    pub(super) fn guest_read(&self, as_id: u16, gpa: u64, len: u64) -> Vec<Piece> {
        self.pieces(as_id, gpa, len, ram)
    }

    pub(super) fn guest_write(&mut self, as_id: u16, gpa: u64, len: u64) -> Vec<Piece> {
        let pieces = self.pieces(as_id, gpa, len, |live, gpa| match ram(live, gpa) {
            GuestAccess::Ram { .. } if is_read_only(live) => GuestAccess::RomWrite,
            access => access,
        });
        for piece in pieces.iter().filter(|piece| !piece.access.exits()) {
            self.mark_dirty(as_id, piece.range);
        }
        pieces
    }

    fn pieces(
        &self,
        as_id: u16,
        gpa: u64,
        len: u64,
        access: impl Fn(&Live, u64) -> GuestAccess,
    ) -> Vec<Piece> {
        let space = self.space(u32::from(as_id));
        let end = gpa.saturating_add(len);
        let mut pieces = Vec::new();
        let mut at = gpa;
        while at < end {
            let live = space.and_then(|space| space.at(at));
            let stop = match live {
                Some(live) => live.slot.mapping.range().end(),
                None => space.and_then(|space| space.next_start(at)).unwrap_or(end),
            };
            let Some(range) = Range::between(at, stop.min(end)) else { break };
            let access = live.map_or(GuestAccess::Mmio, |live| access(live, at));
            pieces.push(Piece { range, access });
            at = range.end();
        }
        pieces
    }

    /// `range` lies in one slot.
    fn mark_dirty(&mut self, as_id: u16, range: Range) {
        let page = self.config.limits.page_size;
        let Some(space) = self.spaces.get_mut(usize::from(as_id)) else { return };
        let Some(id) = space.at(range.gpa()).map(|live| live.slot.id) else { return };
        let Some(live) = space.get_mut(id) else { return };
        let start = live.slot.mapping.range().gpa();
        if let Some(bitmap) = &mut live.dirty {
            let first = (range.gpa() - start) / page;
            let last = (range.end() - 1 - start) / page;
            Arc::make_mut(bitmap).set(first, last - first + 1);
        }
    }
}

fn is_read_only(live: &Live) -> bool {
    live.slot.mapping.flags().contains(MemFlags::READONLY)
}

fn ram(live: &Live, gpa: u64) -> GuestAccess {
    let mapping = live.slot.mapping;
    if mapping.flags().contains(MemFlags::TRAP) {
        return GuestAccess::Mmio;
    }
    GuestAccess::Ram { hva: mapping.hva() + (gpa - mapping.range().gpa()) }
}
