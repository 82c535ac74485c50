//! A memslot as a VMM asks for it.

use kvm_memslots_uapi::MemFlags;

/// `KVM_MEM_READONLY`.
pub(crate) const READONLY: u32 = kvm_bindings::KVM_MEM_READONLY;
/// `KVM_MEM_TRAP`: the slot behaves as if it were absent.
pub(crate) const TRAP: u32 = MemFlags::TRAP.bits();

/// The fields that `KVM_SET_USER_MEMORY_REGION` and `..._REGION2` share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    /// The slot's id, the address space in bits 16 to 31.
    pub(crate) slot: u32,
    /// `KVM_MEM_*`.
    pub(crate) flags: u32,
    /// Guest physical address.
    pub(crate) gpa: u64,
    /// Bytes; 0 deletes the slot.
    pub(crate) size: u64,
    /// Host virtual address.
    pub(crate) hva: u64,
}

impl Region {
    /// The address space.
    pub(crate) const fn space(&self) -> u32 {
        self.slot >> 16
    }

    /// The call that deletes the slot.
    pub(crate) const fn gone(self) -> Self {
        Self { flags: 0, size: 0, ..self }
    }

    /// Whether KVM takes this for a delete of the slot that `other` made. It looks at
    /// addresses and flags of a delete, too (`kvm_set_memory_region()`), and refuses
    /// what it would refuse of a slot that is made.
    pub(crate) const fn surely_deletes(&self, other: &Self) -> bool {
        self.size == 0
            && (self.flags == 0 || self.flags == other.flags)
            && (self.gpa == 0 || self.gpa == other.gpa)
            && (self.hva == 0 || self.hva == other.hva)
    }

    /// The call that makes the slot trap.
    pub(crate) const fn trapping(self) -> Self {
        Self { flags: self.flags | TRAP, ..self }
    }

    /// Where the access at `gpa` is in host memory, if it starts in here, and
    /// how many bytes there are from there on.
    pub(crate) const fn at(&self, gpa: u64) -> Option<(u64, u64)> {
        let Some(offset) = gpa.checked_sub(self.gpa) else { return None };
        if offset < self.size { Some((self.hva + offset, self.size - offset)) } else { None }
    }

    /// Whether both map a page of the same address space.
    pub(crate) const fn overlaps(&self, other: &Self) -> bool {
        self.space() == other.space()
            && self.gpa < other.gpa.saturating_add(other.size)
            && other.gpa < self.gpa.saturating_add(self.size)
    }
}
