//! What the kernel reads from a [`MemoryRegions`] is what was put in.
#![allow(clippy::unwrap_used)]

use std::mem::size_of;

use kvm_memslots_uapi::{
    EntryError, MAX_ENTRIES, MemoryRegions, MemoryRegionsFlags,
    kvm_userspace_memory_region2 as Entry, kvm_userspace_memory_regions as Header,
};
use proptest::prelude::*;

/// Header and entries as the kernel reads them, through the ioctl's argument.
fn as_the_kernel_reads(regions: &mut MemoryRegions) -> Vec<u8> {
    let len = size_of::<Header>() + regions.len() * size_of::<Entry>();
    let bytes = regions.as_mut_ptr().cast::<u8>();
    // SAFETY: the argument of the ioctl is valid for the header and as many
    // entries as `len` says, and every byte of them is initialised.
    unsafe { std::slice::from_raw_parts(bytes, len) }.to_vec()
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_ne_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_ne_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

/// An entry from its bytes, by the offsets of `docs/reference/abi.md`.
fn parse(bytes: &[u8]) -> Entry {
    Entry {
        slot: u32_at(bytes, 0),
        flags: u32_at(bytes, 4),
        guest_phys_addr: u64_at(bytes, 8),
        memory_size: u64_at(bytes, 16),
        userspace_addr: u64_at(bytes, 24),
        guest_memfd_offset: u64_at(bytes, 32),
        guest_memfd: u32_at(bytes, 40),
        pad1: u32_at(bytes, 44),
        pad2: std::array::from_fn(|i| u64_at(bytes, 48 + 8 * i)),
    }
}

fn entry() -> impl Strategy<Value = Entry> {
    // Some slots do not fit the 16 bits there are, and some only just do.
    let edge = prop_oneof![Just(0xffff_u32), Just(0x1_0000)];
    let slot = prop_oneof![4 => 0..=0xffff_u32, 1 => edge, 1 => 0x1_0000..=u32::MAX];
    let numbers = (any::<u32>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    let rest = (any::<u32>(), any::<u32>(), any::<[u64; 14]>());
    (slot, numbers, rest).prop_map(|(slot, numbers, (guest_memfd, pad1, pad2))| {
        let (flags, guest_phys_addr, memory_size, userspace_addr, guest_memfd_offset) = numbers;
        Entry {
            slot,
            flags,
            guest_phys_addr,
            memory_size,
            userspace_addr,
            guest_memfd_offset,
            guest_memfd,
            pad1,
            pad2,
        }
    })
}

/// What is done to a batch.
#[derive(Debug, Clone)]
enum Step {
    Push(Entry),
    Clear,
    Flags(bool),
    Failed(u32),
    Clone,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => entry().prop_map(Step::Push),
        1 => Just(Step::Clear),
        1 => any::<bool>().prop_map(Step::Flags),
        1 => (0..8u32).prop_map(Step::Failed),
        1 => Just(Step::Clone),
    ]
}

fn flags(dry_run: bool) -> MemoryRegionsFlags {
    if dry_run { MemoryRegionsFlags::DRY_RUN } else { MemoryRegionsFlags::empty() }
}

/// Compares a batch with the plain values it should hold.
fn check(regions: &mut MemoryRegions, header: Header, entries: &[Entry]) {
    assert_eq!(*regions.header(), header);
    assert_eq!(regions.entries(), entries);
    assert_eq!(regions.len(), entries.len());
    assert_eq!(regions.is_empty(), entries.is_empty());
    let failed = header.failed as usize;
    assert_eq!(regions.failed_entry(), entries.get(failed).map(|entry| (failed, entry)));

    let bytes = as_the_kernel_reads(regions);
    let (head, tail) = bytes.split_at(64);
    assert_eq!(u32_at(head, 0) as usize, entries.len(), "nr is the number of entries");
    assert_eq!(u32_at(head, 4), header.flags);
    assert_eq!(u32_at(head, 8), header.as_id);
    assert_eq!(u32_at(head, 12), header.failed);
    assert!(head[16..].iter().all(|byte| *byte == 0), "reserved");
    let read: Vec<Entry> = tail.chunks(160).map(parse).collect();
    assert_eq!(read, entries);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn holds_what_was_put_in(
        as_id: u16,
        dry_run: bool,
        capacity in 0..20usize,
        steps in prop::collection::vec(step(), 0..40),
    ) {
        let mut regions = MemoryRegions::with_capacity(as_id, flags(dry_run), capacity);
        let mut entries = Vec::new();
        let mut header =
            Header { as_id: as_id.into(), flags: flags(dry_run).bits(), ..Default::default() };
        check(&mut regions, header, &entries);
        for step in steps {
            match step {
                Step::Push(entry) if entry.slot > 0xffff => prop_assert_eq!(
                    regions.push(&entry),
                    Err(EntryError::SlotBeyond16Bits { slot: entry.slot })
                ),
                Step::Push(entry) => {
                    prop_assert_eq!(regions.push(&entry), Ok(()));
                    entries.push(entry);
                }
                Step::Clear => {
                    regions.clear();
                    entries.clear();
                }
                Step::Flags(dry_run) => {
                    regions.set_flags(flags(dry_run));
                    header.flags = flags(dry_run).bits();
                }
                Step::Failed(index) => {
                    regions.set_failed(index);
                    header.failed = index;
                }
                Step::Clone => regions = regions.clone(),
            }
            header.nr = entries.len() as u32;
            check(&mut regions, header, &entries);
        }
    }

    #[test]
    fn from_entries_takes_all_or_none(entries in prop::collection::vec(entry(), 0..12)) {
        let bad = entries.iter().find(|entry| entry.slot > 0xffff);
        match MemoryRegions::from_entries(1, MemoryRegionsFlags::empty(), &entries) {
            Ok(regions) => {
                prop_assert_eq!(bad, None);
                prop_assert_eq!(regions.entries(), &entries[..]);
            }
            Err(e) => prop_assert_eq!(
                Some(e),
                bad.map(|entry| EntryError::SlotBeyond16Bits { slot: entry.slot })
            ),
        }
    }
}

#[test]
fn a_full_batch_takes_no_more() {
    let mut regions = MemoryRegions::new(0, MemoryRegionsFlags::empty());
    for i in 0..MAX_ENTRIES {
        let entry = Entry { slot: (i / 2) as u32, ..Default::default() };
        regions.push(&entry).unwrap();
    }
    assert_eq!(regions.push(&Entry::default()), Err(EntryError::Full));
    assert_eq!(regions.len(), MAX_ENTRIES);
    assert_eq!(regions.header().nr as usize, MAX_ENTRIES);
    assert_eq!(regions.entries()[MAX_ENTRIES - 1].slot, 0xffff);
    regions.clear();
    assert_eq!(regions.push(&Entry::default()), Ok(()));
}

/// More room than can ever be used is not allocated.
#[test]
fn an_absurd_capacity_is_cut() {
    let regions = MemoryRegions::with_capacity(0, MemoryRegionsFlags::empty(), usize::MAX);
    assert!(regions.is_empty());
}

#[test]
fn errors_say_what_to_do() {
    let entry = Entry { slot: 0x2_0005, ..Default::default() };
    let e = MemoryRegions::from_entries(0, MemoryRegionsFlags::empty(), &[entry]).unwrap_err();
    let text = e.to_string();
    assert!(text.contains("0x20005") && text.contains("address space in the header"), "{text}");
    assert!(EntryError::Full.to_string().contains("131072"), "{}", EntryError::Full);
}

#[test]
fn debug_shows_header_and_entries() {
    let entry = Entry { slot: 7, guest_phys_addr: 0x4000, ..Default::default() };
    let regions = MemoryRegions::from_entries(1, MemoryRegionsFlags::DRY_RUN, &[entry]).unwrap();
    let text = format!("{regions:?}");
    for part in ["nr: 1", "as_id: 1", "slot: 7", &format!("guest_phys_addr: {}", 0x4000)] {
        assert!(text.contains(part), "{part} in {text}");
    }
}
