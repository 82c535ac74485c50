//! `struct kvm_userspace_memory_regions` and an owned buffer that holds one
//! with its entries.

use alloc::vec::Vec;
use core::fmt;
use core::mem::{align_of, size_of};

use crate::{MemoryRegionsFlags, kvm_userspace_memory_region2};

/// The header of a batch, followed in memory by `nr` entries of
/// [`kvm_userspace_memory_region2`]. 64 bytes.
#[repr(C)]
#[allow(non_camel_case_types)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct kvm_userspace_memory_regions {
    /// In: how many entries follow.
    pub nr: u32,
    /// In: [`MemoryRegionsFlags`].
    pub flags: u32,
    /// In: the address space of every entry. Bits 16 to 31 of each entry's
    /// `slot` must be 0.
    pub as_id: u32,
    /// Out: the index of the entry that was refused; `nr` if the call
    /// succeeded or no single entry is to blame.
    pub failed: u32,
    /// Must be 0.
    pub reserved: [u64; 6],
}

const HEADER_WORDS: usize = size_of::<kvm_userspace_memory_regions>() / size_of::<u64>();
const ENTRY_WORDS: usize = size_of::<kvm_userspace_memory_region2>() / size_of::<u64>();

// The buffer is a `Vec<u64>`: both structures are whole words of it.
const _: () = {
    assert!(size_of::<kvm_userspace_memory_regions>() == HEADER_WORDS * 8);
    assert!(size_of::<kvm_userspace_memory_region2>() == ENTRY_WORDS * 8);
    assert!(align_of::<kvm_userspace_memory_regions>() <= align_of::<u64>());
    assert!(align_of::<kvm_userspace_memory_region2>() <= align_of::<u64>());
};

/// The most entries a [`MemoryRegions`] takes: a delete and a create for each
/// of the 65,536 slot ids that an entry can name. A kernel says its own,
/// smaller limit through
/// [`KVM_CAP_USER_MEMORY_REGIONS`](crate::KVM_CAP_USER_MEMORY_REGIONS).
pub const MAX_ENTRIES: usize = 2 * 65_536;

/// Why an entry can't be part of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryError {
    /// The address space belongs in the header: bits 16 to 31 of `slot` must
    /// be 0.
    SlotBeyond16Bits {
        /// The `slot` of the entry.
        slot: u32,
    },
    /// The batch holds [`MAX_ENTRIES`] already.
    Full,
}

impl fmt::Display for EntryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SlotBeyond16Bits { slot } => write!(
                f,
                "slot {slot:#x} has bits above 15 set: a batch names its address space in the header"
            ),
            Self::Full => write!(f, "a batch takes at most {MAX_ENTRIES} entries"),
        }
    }
}

impl core::error::Error for EntryError {}

impl EntryError {
    /// What KVM would say: `EINVAL`, or `E2BIG`.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::SlotBeyond16Bits { .. } => nix::errno::Errno::EINVAL as i32,
            Self::Full => nix::errno::Errno::E2BIG as i32,
        }
    }
}

/// A batch: header and entries in one allocation, laid out as the kernel reads
/// it. `nr` always equals the number of entries behind the header.
///
/// ```
/// # use kvm_memslots_uapi::{MemoryRegions, MemoryRegionsFlags};
/// let mut regions = MemoryRegions::new(0, MemoryRegionsFlags::empty());
/// regions.push(&Default::default())?;
/// assert_eq!(regions.header().nr, 1);
/// # Ok::<(), kvm_memslots_uapi::EntryError>(())
/// ```
///
/// Safe code can't make the two differ. The header is read-only:
///
/// ```compile_fail,E0594
/// # use kvm_memslots_uapi::{MemoryRegions, MemoryRegionsFlags};
/// let mut regions = MemoryRegions::new(0, MemoryRegionsFlags::empty());
/// regions.header().nr = 1;
/// ```
///
/// and a batch can't be put together from parts:
///
/// ```compile_fail,E0451
/// # use kvm_memslots_uapi::{MemoryRegions, MemoryRegionsFlags};
/// let mut regions = MemoryRegions::new(0, MemoryRegionsFlags::empty());
/// regions = MemoryRegions { words: vec![1; 8] };
/// ```
#[derive(Clone)]
pub struct MemoryRegions {
    words: Vec<u64>,
}

impl MemoryRegions {
    /// An empty batch for address space `as_id`, with room for `capacity`
    /// entries (160 bytes each).
    #[must_use]
    pub fn with_capacity(as_id: u16, flags: MemoryRegionsFlags, capacity: usize) -> Self {
        let capacity = capacity.min(MAX_ENTRIES);
        let mut words = Vec::with_capacity(HEADER_WORDS + capacity * ENTRY_WORDS);
        words.resize(HEADER_WORDS, 0);
        let mut regions = Self { words };
        let header = regions.header_mut();
        header.as_id = u32::from(as_id);
        header.flags = flags.bits();
        regions
    }

    /// An empty batch for address space `as_id`.
    #[must_use]
    pub fn new(as_id: u16, flags: MemoryRegionsFlags) -> Self {
        Self::with_capacity(as_id, flags, 0)
    }

    /// A batch of `entries`, in this order.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn from_entries(
        as_id: u16,
        flags: MemoryRegionsFlags,
        entries: &[kvm_userspace_memory_region2],
    ) -> Result<Self, EntryError> {
        let mut regions = Self::with_capacity(as_id, flags, entries.len());
        for entry in entries {
            regions.push(entry)?;
        }
        Ok(regions)
    }

    /// Appends `entry`. Entries take effect as if applied in order.
    ///
    /// # Errors
    /// [`EntryError`]; the batch is then what it was.
    pub fn push(&mut self, entry: &kvm_userspace_memory_region2) -> Result<(), EntryError> {
        if entry.slot > u32::from(u16::MAX) {
            return Err(EntryError::SlotBeyond16Bits { slot: entry.slot });
        }
        if self.len() == MAX_ENTRIES {
            return Err(EntryError::Full);
        }
        let k = entry;
        self.words.extend_from_slice(&[
            pair(k.slot, k.flags),
            k.guest_phys_addr,
            k.memory_size,
            k.userspace_addr,
            k.guest_memfd_offset,
            pair(k.guest_memfd, k.pad1),
        ]);
        self.words.extend_from_slice(&k.pad2);
        self.header_mut().nr += 1;
        Ok(())
    }

    /// Forgets the entries; keeps address space, flags and allocation.
    pub fn clear(&mut self) {
        self.words.truncate(HEADER_WORDS);
        self.header_mut().nr = 0;
    }

    /// The header as it is now: after the ioctl, with `failed` filled in.
    #[must_use]
    pub fn header(&self) -> &kvm_userspace_memory_regions {
        // SAFETY: `words` holds at least HEADER_WORDS initialised words, the
        // structure is that long, no more aligned than u64, and any bit
        // pattern is a value of it.
        unsafe { &*self.words.as_ptr().cast() }
    }

    fn header_mut(&mut self) -> &mut kvm_userspace_memory_regions {
        // SAFETY: as in `header`, and the borrow of `self` is exclusive.
        unsafe { &mut *self.words.as_mut_ptr().cast() }
    }

    /// The entries, in order.
    #[must_use]
    pub fn entries(&self) -> &[kvm_userspace_memory_region2] {
        let words = &self.words[HEADER_WORDS..];
        // SAFETY: `words` is initialised, a whole number of entries long (only
        // `push` and `clear` change its length), the structure is no more
        // aligned than u64, and any bit pattern is a value of it.
        unsafe { core::slice::from_raw_parts(words.as_ptr().cast(), words.len() / ENTRY_WORDS) }
    }

    /// How many entries there are: always the header's `nr`.
    #[must_use]
    pub fn len(&self) -> usize {
        (self.words.len() - HEADER_WORDS) / ENTRY_WORDS
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.len() == HEADER_WORDS
    }

    /// Sets the flags of the batch.
    pub fn set_flags(&mut self, flags: MemoryRegionsFlags) {
        self.header_mut().flags = flags.bits();
    }

    /// Records the outcome a kernel would write to `failed`: for backends that
    /// stand in for a kernel.
    pub fn set_failed(&mut self, failed: u32) {
        self.header_mut().failed = failed;
    }

    /// The entry that the kernel refused, if it blamed one. Meaningful after
    /// the ioctl failed.
    #[must_use]
    pub fn failed_entry(&self) -> Option<(usize, &kvm_userspace_memory_region2)> {
        let index = self.header().failed as usize;
        self.entries().get(index).map(|entry| (index, entry))
    }

    /// The argument of the ioctl. Valid for reads and writes of header and
    /// entries while `self` is neither moved out of nor changed.
    #[must_use]
    pub fn as_mut_ptr(&mut self) -> *mut kvm_userspace_memory_regions {
        self.words.as_mut_ptr().cast()
    }
}

impl fmt::Debug for MemoryRegions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRegions")
            .field("header", self.header())
            .field("entries", &self.entries())
            .finish()
    }
}

/// Two `u32` fields that follow each other in a structure, as one word of it.
fn pair(first: u32, second: u32) -> u64 {
    let mut word = [0; 8];
    word[..4].copy_from_slice(&first.to_ne_bytes());
    word[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(word)
}
