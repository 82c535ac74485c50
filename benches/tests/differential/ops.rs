//! The operations, and how they are chosen.

use kvm_memslots_kit::guest::OWN_GPA;
use kvm_memslots_shim::Slot;
use kvm_memslots_shim::memory::{Model, Op as MemoryOp};
use kvm_memslots_shim::uapi::{MemFlags, kvm_userspace_memory_region2 as Region};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::host::{Facts, PAGE};

/// Guest pages in which slots are made; so few that they get in each other's
/// way.
pub const WINDOW: u64 = 256;
/// Slot ids that are used.
pub const IDS: u16 = 12;
/// Pages of host memory.
pub const HOST_PAGES: u64 = 512;
/// Pages of the guest memory file.
pub const MEMFD_PAGES: u64 = 64;
/// Pages of the largest slot that is read.
pub const MOST_PAGES: u64 = 96;
/// Where the guest never looks.
const UNREAD: u64 = 1 << 33;

const LOG: u32 = MemFlags::LOG_DIRTY_PAGES.bits();
const READONLY: u32 = MemFlags::READONLY.bits();
const MEMFD: u32 = MemFlags::GUEST_MEMFD.bits();

/// A region to be: addresses in pages, of window, host memory and guest memory
/// file.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    pub id: u16,
    /// Not this id if it is taken, but the next free one.
    pub fresh: bool,
    pub gfn: u64,
    pub pages: u64,
    pub host_page: u64,
    pub flags: u32,
    pub memfd_page: u64,
}

/// One thing that is wrong with a region.
#[derive(Debug, Clone, Copy)]
pub enum Damage {
    SizeUnaligned(u64),
    GpaUnaligned(u64),
    HvaUnaligned(u64),
    GpaWraps,
    GpaEndIsZero,
    HvaWraps,
    HvaAcrossTheEnd,
    HvaAtTheEnd,
    /// Nothing wrong: the last pages that there are, under an id and at guest
    /// addresses that nothing else uses, as there is no memory behind them.
    HvaUpToTheEnd,
    HvaOfTheKernel,
    TooLarge,
    SlotBeyondLimit(u16),
    AddressSpace(u16),
    UnknownFlag(u32),
    GpaAcrossTheEnd,
    GpaBeyondTheEnd,
    /// Nothing wrong: the last pages that there are.
    GpaUpToTheEnd,
    OverGuestCode,
    MemfdLogged,
    MemfdReadonly,
    MemfdClosed,
    MemfdOther,
    MemfdUnaligned(u64),
    MemfdWraps,
    MemfdBeyond,
}

/// One operation.
#[derive(Debug, Clone)]
pub enum Op {
    Set(Wish),
    Damaged(Wish, Damage),
    /// A damaged region of size 0.
    DamagedDelete(Wish, Damage),
    Delete(u16),
    /// The live slot as it is.
    Again(u16),
    Relog(u16),
    /// To another page of the window; the log flag with it, or not.
    Move(u16, u64, bool),
    MoveBeyondTheEnd(u16),
    Resize(u16, u64),
    ToggleReadonly(u16),
    Rehost(u16, u64),
    /// `KVM_SET_USER_MEMORY_REGION` with a flag that it does not know.
    MemfdThroughOldIoctl(Wish),
    /// Where the kernel has the batch ioctl.
    Batch(Vec<Op>, bool),
    /// The guest writes to these pages of the window.
    Write(Vec<u64>),
    GetDirtyLog(u16, u16),
    ClearDirtyLog {
        as_id: u16,
        id: u16,
        first: u64,
        pages: u32,
        mask: u64,
    },
}

fn wish() -> impl Strategy<Value = Wish> {
    let pages = prop_oneof![6 => 1_u64..24, 1 => 24..=MOST_PAGES];
    let flags = prop_oneof![5 => Just(0), 6 => Just(LOG), 2 => Just(READONLY),
        1 => Just(LOG | READONLY), 1 => Just(MEMFD)];
    let host_page = 0..HOST_PAGES - MOST_PAGES;
    let fresh = prop::bool::weighted(0.85);
    let id = (0..IDS, fresh);
    (id, 0..WINDOW - 8, pages, host_page, flags, 0..MEMFD_PAGES).prop_map(
        |((id, fresh), gfn, pages, host_page, flags, memfd_page)| Wish {
            id,
            fresh,
            gfn,
            pages,
            host_page,
            flags,
            memfd_page,
        },
    )
}

fn damage(facts: &Facts) -> impl Strategy<Value = Damage> + use<> {
    let bytes = || prop_oneof![Just(1_u64), Just(PAGE / 2), 1..PAGE];
    let limit = facts.limits.slots as u16;
    let damage = prop_oneof![
        bytes().prop_map(Damage::SizeUnaligned),
        bytes().prop_map(Damage::GpaUnaligned),
        bytes().prop_map(Damage::HvaUnaligned),
        bytes().prop_map(Damage::MemfdUnaligned),
        prop_oneof![Just(limit), limit..].prop_map(Damage::SlotBeyondLimit),
        prop_oneof![Just(1_u16), 1_u16..].prop_map(Damage::AddressSpace),
        (0_u32..32).prop_map(Damage::UnknownFlag),
    ];
    let fixed = prop::sample::select(vec![
        Damage::GpaWraps,
        Damage::GpaEndIsZero,
        Damage::HvaWraps,
        Damage::HvaAcrossTheEnd,
        Damage::HvaAtTheEnd,
        Damage::HvaUpToTheEnd,
        Damage::HvaOfTheKernel,
        Damage::TooLarge,
        Damage::GpaAcrossTheEnd,
        Damage::GpaBeyondTheEnd,
        Damage::GpaUpToTheEnd,
        Damage::OverGuestCode,
        Damage::MemfdLogged,
        Damage::MemfdReadonly,
        Damage::MemfdClosed,
        Damage::MemfdOther,
        Damage::MemfdWraps,
        Damage::MemfdBeyond,
    ]);
    prop_oneof![1 => damage, 2 => fixed]
}

/// A change of slots.
fn change(facts: &Facts) -> impl Strategy<Value = Op> + use<> {
    let id = || 0..IDS;
    prop_oneof![
        24 => wish().prop_map(Op::Set),
        8 => (wish(), damage(facts)).prop_map(|(wish, damage)| Op::Damaged(wish, damage)),
        4 => (wish(), damage(facts)).prop_map(|(wish, damage)| Op::DamagedDelete(wish, damage)),
        9 => id().prop_map(Op::Delete),
        2 => id().prop_map(Op::Again),
        6 => id().prop_map(Op::Relog),
        8 => (id(), 0..WINDOW - 8, any::<bool>()).prop_map(|(id, gfn, relog)| Op::Move(id, gfn, relog)),
        1 => id().prop_map(Op::MoveBeyondTheEnd),
        3 => (id(), 1_u64..32).prop_map(|(id, pages)| Op::Resize(id, pages)),
        2 => id().prop_map(Op::ToggleReadonly),
        2 => (id(), 1_u64..32).prop_map(|(id, page)| Op::Rehost(id, page)),
    ]
}

pub fn op(facts: &Facts) -> impl Strategy<Value = Op> + use<> {
    let as_id = || prop_oneof![12 => Just(0_u16), 1 => any::<u16>()];
    let limit = facts.limits.slots as u16;
    let id = move || prop_oneof![20 => 0..IDS, 1 => limit - 2..=u16::MAX];
    let first =
        prop_oneof![6 => Just(0_u64), 4 => Just(64), 1 => 0..2 * MOST_PAGES, 1 => any::<u64>()];
    let pages = prop_oneof![2 => Just(0_u32), 6 => Just(64), 6 => 1_u32..32, 1 => any::<u32>()
        .prop_map(|pages| pages % 4096)];
    let batches = if facts.limits.batch.is_some() { 20 } else { 0 };
    prop_oneof![
        60 => change(facts),
        2 => wish().prop_map(Op::MemfdThroughOldIoctl),
        12 => vec(0..WINDOW, 1..12).prop_map(Op::Write),
        7 => (as_id(), id()).prop_map(|(as_id, id)| Op::GetDirtyLog(as_id, id)),
        5 => (as_id(), id(), first, pages, any::<u64>()).prop_map(
            |(as_id, id, first, pages, mask)| Op::ClearDirtyLog { as_id, id, first, pages, mask }
        ),
        batches => (vec(change(facts), 1..10), any::<bool>())
            .prop_map(|(ops, dry_run)| Op::Batch(ops, dry_run)),
    ]
}

/// What regions are made of.
#[derive(Debug, Clone)]
pub struct Materials {
    pub facts: Facts,
    /// Host address of the memory behind all slots.
    pub hva: u64,
    /// A guest memory file of the VM, if it can have one.
    pub memfd: i32,
    /// An open file that is none.
    pub other_fd: i32,
}

impl Materials {
    /// What `op` asks of the memslot ioctl; `None` if it is about something
    /// else. `model` says what is live.
    pub fn region(&self, model: &Model, op: &Op) -> Option<Region> {
        Some(match *op {
            Op::Set(wish) | Op::MemfdThroughOldIoctl(wish) => self.wished(model, wish),
            Op::Damaged(wish, damage) => self.damaged(self.wished(model, wish), damage),
            Op::DamagedDelete(wish, damage) => {
                let slot = u32::from(pick(model, wish.id, |_| true));
                let region = Region { slot, ..self.wished(model, wish) };
                let region = self.damaged(region, damage);
                // Whatever is wrong with the size stays.
                Region { memory_size: region.memory_size % PAGE, ..region }
            }
            Op::Delete(id) => {
                let slot = u32::from(pick(model, id, |_| true));
                Region { slot, ..Default::default() }
            }
            Op::Again(id) => live(model, id),
            Op::Relog(id) => flip(live(model, id), LOG),
            Op::Move(id, gfn, relog) => {
                let region = Region { guest_phys_addr: gfn * PAGE, ..live(model, id) };
                if relog { flip(region, LOG) } else { region }
            }
            Op::MoveBeyondTheEnd(id) => self.damaged(live(model, id), Damage::GpaAcrossTheEnd),
            Op::Resize(id, pages) => Region { memory_size: pages * PAGE, ..live(model, id) },
            Op::ToggleReadonly(id) => flip(live(model, id), READONLY),
            Op::Rehost(id, page) => {
                Region { userspace_addr: self.hva + page * PAGE, ..live(model, id) }
            }
            Op::Batch(..) | Op::Write(_) | Op::GetDirtyLog(..) | Op::ClearDirtyLog { .. } => {
                return None;
            }
        })
    }

    fn wished(&self, model: &Model, wish: Wish) -> Region {
        let free = |id: &u16| model.slot(0, *id).is_none();
        let id = (wish.id..IDS).chain(0..wish.id).find(free).filter(|_| wish.fresh);
        Region {
            slot: u32::from(id.unwrap_or(wish.id)),
            flags: wish.flags,
            guest_phys_addr: wish.gfn * PAGE,
            memory_size: wish.pages * PAGE,
            userspace_addr: self.hva + wish.host_page * PAGE,
            guest_memfd: field(self.memfd),
            guest_memfd_offset: wish.memfd_page * PAGE,
            ..Default::default()
        }
    }

    fn damaged(&self, region: Region, damage: Damage) -> Region {
        let size = region.memory_size;
        let (gpa_end, hva_end) = (self.facts.gpa_end(), self.facts.hva_end);
        let gpa = |guest_phys_addr| Region { guest_phys_addr, ..region };
        let hva = |userspace_addr| Region { userspace_addr, ..region };
        let memfd = |flags| Region { flags: MEMFD | flags, ..region };
        match damage {
            Damage::SizeUnaligned(bytes) => Region { memory_size: size + bytes, ..region },
            Damage::GpaUnaligned(bytes) => gpa(region.guest_phys_addr + bytes),
            Damage::HvaUnaligned(bytes) => hva(region.userspace_addr + bytes),
            Damage::GpaWraps => gpa(0_u64.wrapping_sub(PAGE)),
            Damage::GpaEndIsZero => gpa(0_u64.wrapping_sub(size)),
            Damage::HvaWraps => hva(0_u64.wrapping_sub(PAGE)),
            Damage::HvaAcrossTheEnd => hva(hva_end - size + PAGE),
            Damage::HvaAtTheEnd => hva(hva_end),
            Damage::HvaUpToTheEnd => Region {
                slot: region.slot + u32::from(IDS),
                guest_phys_addr: UNREAD,
                ..hva(hva_end - size)
            },
            Damage::HvaOfTheKernel => hva(0xffff_8880_0000_0000),
            Damage::TooLarge => {
                Region { memory_size: (self.facts.limits.slot_pages + 1) * PAGE, ..region }
            }
            Damage::SlotBeyondLimit(id) => Region { slot: u32::from(id), ..region },
            Damage::AddressSpace(id) => {
                Region { slot: region.slot | u32::from(id) << 16, ..region }
            }
            Damage::UnknownFlag(bit) => Region { flags: region.flags | 1 << bit, ..region },
            Damage::GpaAcrossTheEnd => gpa(gpa_end - size + PAGE),
            Damage::GpaBeyondTheEnd => gpa(gpa_end),
            Damage::GpaUpToTheEnd => gpa(gpa_end - size),
            Damage::OverGuestCode => gpa(OWN_GPA - PAGE),
            Damage::MemfdLogged => memfd(LOG),
            Damage::MemfdReadonly => memfd(READONLY),
            Damage::MemfdClosed => Region { guest_memfd: field(-1), ..memfd(0) },
            Damage::MemfdOther => Region { guest_memfd: field(self.other_fd), ..memfd(0) },
            Damage::MemfdUnaligned(bytes) => {
                Region { guest_memfd_offset: region.guest_memfd_offset + bytes, ..memfd(0) }
            }
            Damage::MemfdWraps => {
                Region { guest_memfd_offset: 0_u64.wrapping_sub(PAGE), ..memfd(0) }
            }
            Damage::MemfdBeyond => {
                Region { guest_memfd_offset: (MEMFD_PAGES - 1) * PAGE, ..memfd(0) }
            }
        }
    }
}

/// The live slot that `id` stands for; a region that is always refused where
/// there is none, as there is no memory behind it.
fn live(model: &Model, id: u16) -> Region {
    let id = pick(model, id, |_| true);
    let absent = Region { slot: u32::from(id), memory_size: PAGE, ..Default::default() };
    model.slot(0, id).map_or(flip(absent, 1 << 31), |slot| MemoryOp::Create(slot).to_kvm(0))
}

/// `id` if such a slot is live; else, three times out of four, another one that
/// is, so that not too many operations are about nothing.
pub fn pick(model: &Model, id: u16, wanted: impl Fn(&Slot) -> bool) -> u16 {
    if id.is_multiple_of(4) || id >= IDS || model.slot(0, id).is_some_and(|slot| wanted(&slot)) {
        return id;
    }
    let live: Vec<_> =
        model.slots(0).into_iter().filter(|slot| slot.id < IDS && wanted(slot)).collect();
    if live.is_empty() { id } else { live[usize::from(id) % live.len()].id }
}

const fn flip(region: Region, flag: u32) -> Region {
    Region { flags: region.flags ^ flag, ..region }
}

/// A descriptor as the structure has it.
const fn field(fd: i32) -> u32 {
    fd.cast_unsigned()
}
