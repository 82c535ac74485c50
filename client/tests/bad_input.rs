//! Bad input gets an error that says what is wrong, and changes nothing: on the
//! model, and on KVM where there is one.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)]

mod common;

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use common::{HVA, PAGE, on_model};
use kvm_memslots::backend::model::{Call, Fault, SharedModel};
use kvm_memslots::backend::{Errno, Memslots, Model};
use kvm_memslots::{
    AddressSpace, Builder, Error, Executor, GateError, HolePolicy, HostMemory, Limits, MemFlags,
    RegionId, RegionSpec, VcpuGate,
};

/// A space with one region, 16 pages at page 16, and what it looks like.
struct Fixture {
    space: AddressSpace,
    model: SharedModel,
    id: RegionId,
    before: (String, String),
}

impl Fixture {
    fn new() -> Self {
        Self::with(AddressSpace::builder(), Model::new(Limits::x86()))
    }

    fn with(builder: Builder, model: Model) -> Self {
        let (mut space, model) = on_model(builder, model);
        let mut tx = space.begin();
        // SAFETY: the model maps nothing.
        let id = unsafe { tx.map(ram(16, 16).label("main")) }.unwrap();
        tx.commit().unwrap();
        let before = look(&space, &model);
        Self { space, model, id, before }
    }

    /// Makes one step, and checks that it changed nothing; returns the error
    /// and its text.
    fn refused<T: std::fmt::Debug>(
        &mut self,
        step: impl FnOnce(&mut kvm_memslots::Transaction<'_>) -> Result<T, Error>,
    ) -> (Error, String) {
        let mut tx = self.space.begin();
        let error = step(&mut tx).unwrap_err();
        // A step that was refused is not part of the transaction.
        assert_eq!(tx.commit().unwrap().ioctls, 0);
        self.unchanged();
        let text = error.to_string();
        (error, text)
    }

    fn map(&mut self, spec: RegionSpec) -> (Error, String) {
        // SAFETY: the model maps nothing.
        self.refused(|tx| unsafe { tx.map(spec) })
    }

    fn resize(&mut self, id: RegionId, size: u64) -> (Error, String) {
        // SAFETY: the model maps nothing.
        self.refused(|tx| unsafe { tx.resize(id, size) })
    }

    fn unchanged(&self) {
        assert_eq!(look(&self.space, &self.model), self.before);
    }
}

fn look(space: &AddressSpace, model: &SharedModel) -> (String, String) {
    let slots: Vec<_> = model.lock().slots(space.as_id()).collect();
    (format!("{:?}", Vec::from_iter(space.regions())), format!("{slots:?}"))
}

fn ram(page: u64, pages: u64) -> RegionSpec {
    RegionSpec::ram(page * PAGE, pages * PAGE, HVA + page * PAGE)
}

macro_rules! assert_refused {
    ($refused:expr, $pattern:pat, $($text:expr),+) => {
        let (error, text) = $refused;
        assert!(matches!(error, $pattern), "{error:?}");
        $(assert!(text.contains($text), "{text:?} does not say {:?}", $text);)+
    };
}

#[test]
fn sizes_and_addresses() {
    let mut f = Fixture::new();
    let spec = |gpa, size, hva| RegionSpec::ram(gpa, size, hva).label("bad");
    assert_refused!(f.map(spec(0, 0, HVA)), Error::Empty { .. }, "\"bad\"", "GPA 0x0", "unmap");
    assert_refused!(
        f.map(spec(0, 0x1001, HVA)),
        Error::Unaligned { .. },
        "size 0x1001 is not a multiple of the page size, 0x1000"
    );
    assert_refused!(f.map(spec(0x10, PAGE, HVA)), Error::Unaligned { .. }, "GPA 0x10 is not");
    assert_refused!(
        f.map(spec(0, PAGE, HVA + 8)),
        Error::Unaligned { .. },
        "HVA 0x700000000008 is not"
    );
    let top = u64::MAX - PAGE + 1;
    assert_refused!(f.map(spec(top, PAGE, HVA)), Error::Wraps { .. }, "GPA plus size wraps");
    assert_refused!(f.map(spec(top, 2 * PAGE, HVA)), Error::Wraps { .. }, "GPA plus size wraps");
    assert_refused!(f.map(spec(0, PAGE, top)), Error::Wraps { .. }, "HVA plus size wraps");
    assert_refused!(
        f.map(spec(1 << 40, 1 << 43, HVA)),
        Error::TooLarge { .. },
        "largest slot is 0x7fffffff000 bytes",
        "several regions"
    );
}

#[test]
fn overlaps() {
    let mut f = Fixture::new();
    for (page, pages) in [(16, 16), (0, 17), (31, 1), (20, 1), (0, 100)] {
        assert_refused!(
            f.map(ram(page, pages).label("late")),
            Error::Overlap { .. },
            "\"late\"",
            "overlaps RAM \"main\"",
            "GPA 0x10000"
        );
    }
    // With a region of the same transaction.
    assert_refused!(
        f.refused(|tx| {
            // SAFETY: the model maps nothing.
            let first = unsafe { tx.map(ram(40, 2).label("first")) }?;
            // SAFETY: as above.
            let error = unsafe { tx.map(ram(41, 2).label("second")) };
            tx.unmap(first)?;
            error
        }),
        Error::Overlap { .. },
        "\"second\"",
        "\"first\""
    );
    // By growing, over what was mapped behind it.
    assert_refused!(
        f.refused(|tx| {
            // SAFETY: the model maps nothing.
            let low = unsafe { tx.map(ram(0, 8).label("low")) }?;
            // SAFETY: as above.
            let error = unsafe { tx.resize(low, 17 * PAGE) };
            tx.unmap(low)?;
            error
        }),
        Error::Overlap { .. },
        "\"low\"",
        "size 0x11000",
        "\"main\""
    );
}

#[test]
fn resize_split_and_flags() {
    let mut f = Fixture::new();
    let id = f.id;
    assert_refused!(f.resize(id, 0), Error::Empty { .. }, "\"main\"");
    assert_refused!(f.resize(id, 100), Error::Unaligned { .. }, "size 0x64");
    assert_refused!(f.resize(id, u64::MAX - PAGE + 1), Error::Wraps { .. }, "\"main\"");
    assert_refused!(f.refused(|tx| tx.shrink(id, 17 * PAGE)), Error::NotSmaller { .. }, "resize");
    for offset in [0, 16 * PAGE, 17 * PAGE, u64::MAX - PAGE + 1] {
        assert_refused!(
            f.refused(|tx| tx.split(id, offset)),
            Error::SplitOutside { .. },
            "\"main\"",
            &format!("{offset:#x}")
        );
    }
    assert_refused!(f.refused(|tx| tx.split(id, 9)), Error::Unaligned { .. }, "split offset 0x9");
    for flags in [MemFlags::GUEST_MEMFD, MemFlags::from_bits_retain(1 << 9)] {
        assert_refused!(
            f.refused(|tx| tx.set_flags(id, flags)),
            Error::FlagsNotSettable { .. },
            "\"main\""
        );
    }
}

#[test]
fn what_kvm_lacks() {
    let limits = Limits { readonly: false, ..Limits::x86() };
    let mut f = Fixture::with(AddressSpace::builder(), Model::new(limits));
    let id = f.id;
    assert_refused!(
        f.map(ram(0, 1).read_only()),
        Error::ReadOnlyUnsupported { .. },
        "KVM_CAP_READONLY_MEM"
    );
    assert_refused!(
        f.refused(|tx| tx.set_flags(id, MemFlags::READONLY)),
        Error::ReadOnlyUnsupported { .. },
        "\"main\""
    );
    assert_refused!(
        f.map(ram(0, 1).guest_memfd(5, 0)),
        Error::GuestMemfdUnsupported { .. },
        "KVM_CAP_GUEST_MEMFD"
    );
    let limits = Limits { guest_memfd: true, ..Limits::x86() };
    let mut f = Fixture::with(AddressSpace::builder(), Model::new(limits));
    assert_refused!(
        f.map(ram(0, 1).guest_memfd(5, 0).log_dirty()),
        Error::GuestMemfdFlags { .. },
        "dirty logging",
        "guest_memfd"
    );
    assert_refused!(
        f.map(ram(0, 1).guest_memfd(5, 12)),
        Error::Unaligned { .. },
        "guest_memfd offset 0xc"
    );
    let (space, limits) = (AddressSpace::builder().address_space(1), Limits::x86());
    let error = space.open_on(Box::new(Model::new(limits))).unwrap_err();
    assert!(matches!(error, Error::NoSuchAddressSpace { asked: 1, available: 1 }), "{error}");
    let batch = AddressSpace::builder().executor(Executor::Batch);
    let error = batch.open_on(Box::new(Model::new(limits))).unwrap_err();
    assert!(matches!(error, Error::NoBatchIoctl), "{error}");
}

#[test]
fn ids() {
    let mut f = Fixture::new();
    let other = Fixture::new();
    let foreign = other.id;
    assert_refused!(
        f.refused(|tx| tx.unmap(foreign)),
        Error::ForeignRegion { .. },
        &foreign.to_string(),
        "valid on their own"
    );
    let (space, index, generation) = f.id.to_raw();
    for unknown in [(space, index + 1, 0), (space, index, generation + 1)] {
        let unknown = RegionId::from_raw(unknown.0, unknown.1, unknown.2);
        assert_refused!(
            f.refused(|tx| tx.set_flags(unknown, MemFlags::empty())),
            Error::UnknownRegion { .. },
            &unknown.to_string()
        );
    }

    // Of a transaction that was dropped, of one that unmapped, and after the
    // place in the table was used again.
    let mut tx = f.space.begin();
    // SAFETY: the model maps nothing.
    let dropped = unsafe { tx.map(ram(0, 1)) }.unwrap();
    drop(tx);
    let mut tx = f.space.begin();
    // SAFETY: the model maps nothing.
    let gone = unsafe { tx.map(ram(0, 1)) }.unwrap();
    tx.unmap(gone).unwrap();
    tx.commit().unwrap();
    let mut tx = f.space.begin();
    // SAFETY: the model maps nothing.
    let reused = unsafe { tx.map(ram(0, 1)) }.unwrap();
    tx.commit().unwrap();
    f.before = look(&f.space, &f.model);
    for stale in [dropped, gone] {
        assert_eq!(stale.to_raw().1, reused.to_raw().1, "the place is used again");
        assert_refused!(
            f.refused(|tx| tx.unmap(stale)),
            Error::StaleRegion { .. },
            &stale.to_string()
        );
        assert!(matches!(f.space.dirty_log(stale), Err(Error::StaleRegion { .. })));
    }
}

#[test]
fn too_many_slots() {
    let model = Model::new(Limits::x86().with_slots(10));
    let mut f = Fixture::with(AddressSpace::builder().reserve_slots(0..=3), model);
    let mut tx = f.space.begin();
    for n in 0..6 {
        // SAFETY: the model maps nothing.
        unsafe { tx.map(ram(100 + 2 * n, 1)) }.unwrap();
    }
    let before = f.model.lock().counts();
    let dry = tx.dry_run().unwrap_err();
    let error = tx.commit().unwrap_err();
    for error in [dry, error] {
        assert!(matches!(error, Error::TooManySlots { needed: 7, available: 6 }), "{error}");
    }
    assert_eq!(f.model.lock().counts(), before, "checked before the first call");
    f.unchanged();
    let error = f.space.reserve_slots(4..=4).unwrap_err();
    assert!(matches!(error, Error::SlotInUse { id: 4 }), "{error}");
}

#[test]
fn what_kvm_refuses() {
    for batch in [None, Some(100)] {
        let limits = Limits { batch, ..Limits::x86() };
        let mut f = Fixture::with(AddressSpace::builder(), Model::new(limits));
        // A slot made behind the library's back.
        let foreign = kvm_memslots::Slot {
            id: 500,
            mapping: kvm_memslots::Mapping::ram(200 * PAGE, PAGE, HVA),
        };
        // SAFETY: the model maps nothing.
        unsafe { f.model.clone().set_region(&foreign.to_kvm(0)) }.unwrap();
        f.before = look(&f.space, &f.model);

        let mut tx = f.space.begin();
        // SAFETY: the model maps nothing.
        unsafe {
            tx.map(ram(100, 1).label("fine")).unwrap();
            tx.map(ram(200, 1).label("taken")).unwrap();
        }
        let error = tx.commit().unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Refused { errno: Errno::EEXIST, .. }), "{text}");
        for part in ["\"taken\"", "0xc8000", "EEXIST", "reserve_slots"] {
            assert!(text.contains(part), "{text}");
        }
        f.unchanged();

        for errno in [Errno::EINTR, Errno::ENOMEM, Errno::EINVAL, Errno::EIO] {
            f.model.lock().inject(Fault::nth(1, errno));
            let mut tx = f.space.begin();
            // SAFETY: the model maps nothing.
            unsafe { tx.map(ram(100, 1)) }.unwrap();
            let text = tx.commit().unwrap_err().to_string();
            assert!(text.contains(&errno.to_string()), "{text}");
            f.unchanged();
        }
    }
}

struct NoGate;

impl VcpuGate for NoGate {
    fn pause(&self) -> Result<(), GateError> {
        Err(GateError::new("vcpu 3 does not answer"))
    }

    fn resume(&self) {
        unreachable!("nothing was paused");
    }
}

#[test]
fn holes_and_gates() {
    let mut f = Fixture::new();
    let id = f.id;
    let mut tx = f.space.begin();
    tx.shrink(id, 4 * PAGE).unwrap();
    assert_eq!(tx.dry_run().unwrap().holes.len(), 1);
    let error = tx.commit().unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Hole { .. }), "{text}");
    for part in ["[0x10000, 0x14000)", "\"main\"", "HolePolicy"] {
        assert!(text.contains(part), "{text}");
    }
    f.unchanged();

    f.space.set_hole_policy(HolePolicy::Gate(Arc::new(NoGate)));
    let mut tx = f.space.begin();
    tx.shrink(id, 4 * PAGE).unwrap();
    let error = tx.commit().unwrap_err();
    assert!(error.to_string().contains("vcpu 3 does not answer"), "{error}");
    f.unchanged();
}

/// Host memory that exists on paper.
struct Paper(u64, u64);

// SAFETY: only ever mapped into a model.
unsafe impl HostMemory for Paper {
    fn range(&self) -> (u64, u64) {
        (self.0, self.1)
    }
}

#[test]
fn owned_memory() {
    let mut f = Fixture::new();
    let memory = Arc::new(Paper(HVA, 4 * PAGE));
    for spec in [ram(2, 3), ram(4, 1), RegionSpec::ram(0, PAGE, HVA - PAGE)] {
        let memory = memory.clone();
        assert_refused!(
            f.refused(|tx| tx.map_owned(spec, memory)),
            Error::OutsideHostMemory { .. },
            "0x4000 bytes at HVA 0x700000000000"
        );
    }
    let mut tx = f.space.begin();
    let owned = tx.map_owned(ram(1, 2), memory.clone()).unwrap();
    tx.commit().unwrap();
    f.before = look(&f.space, &f.model);
    assert_refused!(f.resize(owned, 4 * PAGE), Error::OutsideHostMemory { .. }, "size 0x4000");

    // Kept alive while mapped, wherever the region went.
    assert_eq!(Arc::strong_count(&memory), 2);
    let mut tx = f.space.begin();
    let tail = tx.split(owned, PAGE).unwrap();
    tx.commit().unwrap();
    f.space.set_hole_policy(HolePolicy::NoVcpuRuns);
    let mut tx = f.space.begin();
    tx.unmap(owned).unwrap();
    tx.commit().unwrap();
    assert_eq!(Arc::strong_count(&memory), 2);
    let mut tx = f.space.begin();
    tx.unmap(tail).unwrap();
    f.model.lock().inject(Fault::every(Errno::ENOMEM).only(Call::SetRegion));
    tx.commit().unwrap_err();
    assert_eq!(Arc::strong_count(&memory), 2, "still mapped");
    drop(f.space);
    assert_eq!(Arc::strong_count(&memory), 2, "leaked: the slot may be live");
}

#[test]
fn memory_of_a_commit_that_got_stuck_is_kept_until_it_is_repaired() {
    let mut f = Fixture::new();
    let memory = Arc::new(Paper(HVA, 4 * PAGE));
    let mut tx = f.space.begin();
    tx.map_owned(ram(0, 1), memory.clone()).unwrap();
    tx.map_owned(ram(2, 1), memory.clone()).unwrap();
    f.model.lock().inject(Fault::from_nth(2, Errno::ENOMEM).only(Call::SetRegion));
    let error = tx.commit().unwrap_err();
    assert!(matches!(&error, Error::Stuck { live, .. } if live.len() == 1), "{error}");
    assert!(Arc::strong_count(&memory) > 1, "a slot over it is live");
    f.model.lock().clear_faults();
    f.space.begin().commit().unwrap();
    assert_eq!(Arc::strong_count(&memory), 1);
    f.unchanged();
}

#[test]
fn dropping_an_address_space_unmaps_what_it_owns() {
    let mut f = Fixture::new();
    let memory = Arc::new(Paper(HVA, 4 * PAGE));
    let mut tx = f.space.begin();
    tx.map_owned(ram(1, 2), memory.clone()).unwrap();
    tx.commit().unwrap();
    assert_eq!(f.model.lock().slot_count(0), 2);
    drop(f.space);
    assert_eq!(f.model.lock().slot_count(0), 1, "the caller answers for the other one");
    assert_eq!(Arc::strong_count(&memory), 1);
}

#[test]
fn dirty_logs() {
    let mut f = Fixture::new();
    let error = f.space.dirty_log(f.id).unwrap_err();
    assert!(error.to_string().contains("\"main\""), "{error}");
    assert!(matches!(error, Error::NotLogged { .. }));
    let mut tx = f.space.begin();
    tx.set_flags(f.id, MemFlags::LOG_DIRTY_PAGES).unwrap();
    tx.commit().unwrap();
    let short = kvm_memslots::DirtyBitmap::new(15);
    let error = f.space.clear_dirty_log(f.id, &short).unwrap_err();
    assert!(matches!(error, Error::BitmapSize { pages: 15, expected: 16, .. }), "{error}");
}

#[test]
fn descriptors_that_are_no_vm() {
    let file = File::open("/proc/self/exe").unwrap();
    let error = AddressSpace::open(&file).unwrap_err();
    assert!(matches!(error, Error::Open(_)), "{error}");
    let Ok(kvm) = kvm_ioctls::Kvm::new() else {
        eprintln!("SKIPPED descriptors_that_are_no_vm: no usable /dev/kvm");
        return;
    };
    let dev_kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
    let error = AddressSpace::open(dev_kvm.as_fd()).unwrap_err();
    assert!(error.to_string().contains("/dev/kvm"), "{error}");
    drop(kvm);
}
