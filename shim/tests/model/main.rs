//! Each rule of the model, one by one.

#![allow(clippy::unwrap_used)]

mod batch;
mod dirty;
mod guest;
mod rules;
mod trap;

use kvm_memslots_uapi::{MemFlags, kvm_userspace_memory_region2};

use kvm_memslots_shim::memory::model::{DirtyTracking, Model, ModelConfig};
use kvm_memslots_shim::{Errno, Limits};

const PAGE: u64 = 4096;
const LOG: u32 = MemFlags::LOG_DIRTY_PAGES.bits();
const READONLY: u32 = MemFlags::READONLY.bits();
const MEMFD: u32 = MemFlags::GUEST_MEMFD.bits();

type Region = kvm_userspace_memory_region2;

/// Slot `slot`: `pages` pages at guest page `gfn`, host page `hfn`.
fn region(slot: u32, gfn: u64, pages: u64, hfn: u64) -> Region {
    Region {
        slot,
        guest_phys_addr: gfn * PAGE,
        memory_size: pages * PAGE,
        userspace_addr: hfn * PAGE,
        ..Default::default()
    }
}

fn delete(slot: u32) -> Region {
    region(slot, 0, 0, 0)
}

fn logged(region: Region) -> Region {
    Region { flags: region.flags | LOG, ..region }
}

/// SMM, private memory and the batch ioctl.
fn everything() -> Limits {
    Limits::x86().with_batch(64).with_address_spaces(2).with_guest_memfd()
}

fn model() -> Model {
    Model::new(everything())
}

fn tracking(dirty: DirtyTracking) -> Model {
    Model::with_config(ModelConfig::new(everything()).dirty_tracking(dirty))
}

fn set(model: &Model, region: Region) -> Result<(), Errno> {
    model.set_user_memory_region2(&region)
}

/// What a call cost: grace periods.
fn cost(model: &Model, region: Region) -> u64 {
    let before = model.counts().grace_periods;
    let _ = set(model, region);
    model.counts().grace_periods - before
}

/// The dirty pages of a slot of up to 128 pages.
fn dirty(model: &Model, id: u16) -> Vec<u32> {
    let mut words = [0; 2];
    model.get_dirty_log(0, id, &mut words).unwrap();
    (0..128).filter(|page| words[*page as usize / 64] >> (page % 64) & 1 == 1).collect()
}
