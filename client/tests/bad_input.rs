//! Bad input gets an error that says what is wrong, and changes nothing: on the
//! model, and on KVM where there is one.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod common;

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use common::fixture::Fixture;
use common::{HVA, PAGE, changes, map_all, memory, ram};
use kvm_memslots::backend::{EventModel, Irqchip, MemoryModel};
use kvm_memslots::{
    Access, Backing, Builder, Changes, DirtyBitmap, Errno, Error, ErrorKind, Executor, Limits,
    MemFlags, RegionSpec, Vm, at,
};

#[test]
fn sizes_and_addresses() {
    let f = Fixture::new();
    let spec = |gpa, size, hva| {
        RegionSpec::ram(at(gpa, size), memory(hva, u64::MAX)).label("bad").tag(0xbad)
    };
    assert_refused!(
        f.map(spec(0, 0, HVA)),
        ErrorKind::Empty,
        EINVAL,
        "\"bad\"",
        "tag 0xbad",
        "GPA 0x0",
        "unmap"
    );
    assert_refused!(
        f.map(spec(0, 0x1001, HVA)),
        ErrorKind::Unaligned { .. },
        EINVAL,
        "size 0x1001 is not a multiple of the page size, 0x1000"
    );
    assert_refused!(
        f.map(spec(0x10, PAGE, HVA)),
        ErrorKind::Unaligned { .. },
        EINVAL,
        "GPA 0x10 is not"
    );
    assert_refused!(
        f.map(spec(0, PAGE, HVA + 8)),
        ErrorKind::Unaligned { .. },
        EINVAL,
        "HVA 0x700000000008 is not"
    );
    let top = u64::MAX - PAGE + 1;
    for size in [PAGE, 2 * PAGE] {
        assert_refused!(
            f.map(spec(top, size, HVA)),
            ErrorKind::Wraps { .. },
            EINVAL,
            "GPA plus size wraps"
        );
    }
    assert_refused!(
        f.map(spec(0, PAGE, top)),
        ErrorKind::Wraps { .. },
        EINVAL,
        "HVA plus size wraps"
    );
    // A range that ends before it starts.
    let (end, start) = (PAGE, 2 * PAGE);
    assert_refused!(
        f.map(RegionSpec::ram(start..end, memory(HVA, u64::MAX))),
        ErrorKind::Wraps { .. },
        EINVAL,
        "wraps"
    );
}

#[test]
fn overlaps() {
    let f = Fixture::new();
    for (page, pages) in [(16, 16), (0, 17), (31, 1), (20, 1), (0, 100)] {
        assert_refused!(
            f.map(ram(page, pages).label("late")),
            ErrorKind::Overlap { .. },
            EEXIST,
            "\"late\"",
            "overlaps RAM \"main\"",
            "GPA 0x10000"
        );
    }
    // With a region of the same set: the one that came last is to blame.
    for (first, second) in [(40, 41), (41, 40)] {
        assert_refused!(
            f.refused(|c| {
                c.map(ram(first, 2).label("first"));
                c.map(ram(second, 2).label("second"));
            }),
            ErrorKind::Overlap { .. },
            EEXIST,
            "\"second\"",
            "overlaps RAM \"first\""
        );
    }
    // By growing, over what was mapped behind it.
    assert_refused!(
        f.refused(|c| {
            let low = RegionSpec::ram(at(0, 8 * PAGE), memory(HVA, 64 * PAGE));
            let low = c.map(low.label("low"));
            c.resize(low, 17 * PAGE);
        }),
        ErrorKind::Overlap { .. },
        EEXIST,
        "\"low\"",
        "size 0x11000",
        "\"main\""
    );
    // By moving.
    let id = f.id;
    assert_refused!(
        f.refused(|c| c.move_to(id, 1000 * PAGE)),
        ErrorKind::Overlap { .. },
        EEXIST,
        "\"main\"",
        "GPA 0x3e8000"
    );
}

#[test]
fn resize_split_move_and_replace() {
    let f = Fixture::new();
    let id = f.id;
    let resize = |size| f.refused(|c| c.resize(id, size));
    assert_refused!(resize(0), ErrorKind::Empty, EINVAL, "\"main\"");
    assert_refused!(resize(100), ErrorKind::Unaligned { .. }, EINVAL, "size 0x64");
    assert_refused!(resize(u64::MAX - PAGE + 1), ErrorKind::Wraps { .. }, EINVAL, "\"main\"");
    assert_refused!(
        resize(65 * PAGE),
        ErrorKind::OutsideBacking { .. },
        EINVAL,
        "size 0x41000",
        "its backing is 0x40000 bytes at HVA 0x700000010000"
    );
    for offset in [0, 16 * PAGE, 17 * PAGE, u64::MAX - PAGE + 1] {
        assert_refused!(
            f.refused(|c| _ = c.split(id, offset)),
            ErrorKind::SplitOutside { .. },
            EINVAL,
            "\"main\"",
            &format!("{offset:#x}")
        );
    }
    assert_refused!(
        f.refused(|c| _ = c.split(id, 9)),
        ErrorKind::Unaligned { .. },
        EINVAL,
        "split offset 0x9"
    );
    assert_refused!(
        f.refused(|c| c.move_to(id, 5)),
        ErrorKind::Unaligned { .. },
        EINVAL,
        "GPA 0x5"
    );
    let top = u64::MAX - PAGE + 1;
    assert_refused!(f.refused(|c| c.move_to(id, top)), ErrorKind::Wraps { .. }, EINVAL, "GPA plus");
    assert_refused!(
        f.refused(|c| c.replace(id, memory(HVA, 15 * PAGE))),
        ErrorKind::OutsideBacking { .. },
        EINVAL,
        "\"main\"",
        "0xf000 bytes"
    );
    // What was promised of a backing ends where the region was cut, as its
    // memory may be somebody else's since.
    f.vm.apply(changes(|c| c.resize(id, 8 * PAGE))).unwrap();
    let error = f.vm.apply(changes(|c| c.resize(id, 9 * PAGE))).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::OutsideBacking { len: 0x8000, .. }), "{error}");
}

#[test]
fn no_change_widens_what_was_promised() {
    let f = Fixture::new();
    // SAFETY: the model maps nothing.
    let read = || unsafe { Backing::borrowed(HVA, 4 * PAGE, Access::Read) };
    let [rom] = map_all(&f.vm, [RegionSpec::ram(at(0, PAGE), read()).label("rom")]);
    assert!(f.vm.region(rom).unwrap().flags.contains(MemFlags::READONLY));
    let error = f.vm.apply(changes(|c| c.set_read_only(rom, false))).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::ReadOnlyBacking), "{error}");
    assert_eq!(error.errno(), Errno::EACCES);
    assert!(error.to_string().contains("\"rom\""), "{error}");
    // Nor do the parts of a region reach where the whole did not, or the other
    // one is.
    let mut c = Changes::new();
    let low = f.id;
    let high = c.split(low, 8 * PAGE);
    f.vm.apply(c).unwrap();
    for (id, pages) in [(low, 9), (high, 57)] {
        let error = f.vm.apply(changes(|c| c.resize(id, pages * PAGE))).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::OutsideBacking { .. }), "{error}");
    }
    // Writable memory behind what is read-only, and back.
    let c = changes(|c| c.replace(low, read()));
    let error = f.vm.apply(c).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::OutsideBacking { .. }), "{error}");
    let c = changes(|c| {
        c.resize(low, 4 * PAGE);
        c.replace(low, read());
    });
    let error = f.vm.apply(c).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::ReadOnlyBacking), "{error}");
}

#[test]
fn what_kvm_lacks() {
    let f = Fixture::with(Vm::builder(), Limits::x86().with_readonly(false));
    let id = f.id;
    assert_refused!(
        f.map(ram(0, 1).read_only()),
        ErrorKind::ReadOnlyUnsupported,
        EOPNOTSUPP,
        "KVM_CAP_READONLY_MEM"
    );
    assert_refused!(
        f.refused(|c| c.set_read_only(id, true)),
        ErrorKind::ReadOnlyUnsupported,
        EOPNOTSUPP,
        "\"main\""
    );
    let private =
        |offset| RegionSpec::ram(at(0, PAGE), memory(HVA, PAGE).with_guest_memfd(5, offset));
    assert_refused!(
        f.map(private(0)),
        ErrorKind::GuestMemfdUnsupported,
        EOPNOTSUPP,
        "KVM_CAP_GUEST_MEMFD"
    );
    let f = Fixture::with(Vm::builder(), Limits::x86().with_guest_memfd());
    assert_refused!(
        f.map(private(0).log_dirty()),
        ErrorKind::GuestMemfdFlags { .. },
        EINVAL,
        "dirty logging",
        "guest_memfd"
    );
    assert_refused!(
        f.map(private(12)),
        ErrorKind::Unaligned { .. },
        EINVAL,
        "guest_memfd offset 0xc"
    );
    assert_refused!(
        f.map(private(0).deferrable()),
        ErrorKind::NotDeferrable { .. },
        EINVAL,
        "private memory"
    );
    assert_refused!(
        f.map(ram(0, 1).address_space(1)),
        ErrorKind::NoSuchAddressSpace { asked: 1, available: 1 },
        EINVAL,
        "KVM_CAP_MULTI_ADDRESS_SPACE"
    );
    let open_with = |builder: Builder, limits| {
        let events = EventModel::new(Irqchip::Split);
        let memory = MemoryModel::new(limits);
        builder.open_on(Arc::new(memory), Arc::new(events)).unwrap_err()
    };
    let x86 = Limits::x86();
    let bad =
        [(0, 1, 1), (3, 1, 1), (0x1800, 1, 1), (u64::MAX, 1, 1), (PAGE, 0, 1), (PAGE, 1, 256)];
    for (bytes, pages, spaces) in bad {
        let limits = x86.with_page_size(bytes).with_slot_pages(pages).with_address_spaces(spaces);
        let error = open_with(Vm::builder(), limits);
        let ErrorKind::BackendLimits { page_size, slot_pages, address_spaces } = *error.kind()
        else {
            panic!("{error}")
        };
        assert_eq!((page_size, slot_pages, address_spaces), (bytes, pages, spaces));
        assert_eq!(error.errno(), Errno::EINVAL);
        assert!(error.to_string().contains(&format!("{bytes:#x} bytes")), "{error}");
    }
    let open = |builder| open_with(builder, x86);
    let error = open(Vm::builder().reserve_slots(1, 0..=1));
    let missing = matches!(error.kind(), ErrorKind::NoSuchAddressSpace { asked: 1, available: 1 });
    assert!(missing, "{error}");
    let error = open(Vm::builder().executor(Executor::Batch));
    assert!(matches!(error.kind(), ErrorKind::NoBatchIoctl), "{error}");
}

#[test]
fn too_many_slots() {
    let f = Fixture::with(Vm::builder().reserve_slots(0, 0..=3), Limits::x86().with_slots(10));
    let c = changes(|c| (0..6).for_each(|n| _ = c.map(ram(100 + 2 * n, 1))));
    let before = f.model.counts();
    let preview = f.vm.preview(&c).unwrap_err();
    for error in [preview, f.vm.apply(c).unwrap_err()] {
        let kind = error.kind();
        let honest = matches!(kind, ErrorKind::TooManySlots { needed: 7, available: 6, .. });
        assert!(honest && error.errno() == Errno::ENOSPC, "{error}");
    }
    assert_eq!(f.model.counts(), before, "checked before the first call");
    f.unchanged();
    let error = f.vm.reserve_slots(0, 4..=4).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::SlotInUse { as_id: 0, id: 4 }), "{error}");
    let error = f.vm.reserve_slots(1, 4..=4).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NoSuchAddressSpace { asked: 1, .. }), "{error}");
}

#[test]
fn dirty_logs() {
    let f = Fixture::new();
    let not_logged = |error: Error| {
        assert!(error.to_string().contains("\"main\""), "{error}");
        assert!(matches!(error.kind(), ErrorKind::NotLogged));
        assert_eq!(error.errno(), Errno::ENODATA);
    };
    not_logged(f.vm.dirty_log(f.id).unwrap_err());
    not_logged(f.vm.dirty_log_of(f.id, 0..1).unwrap_err());
    not_logged(f.vm.clear_dirty_log(f.id, 0, &DirtyBitmap::new(16)).unwrap_err());
    f.vm.apply(changes(|c| c.set_log_dirty(f.id, true))).unwrap();
    let no_such = |error: Error, first, end| {
        let ErrorKind::NoSuchPages { first: f, end: e, pages: 16, .. } = error.kind() else {
            panic!("{error}");
        };
        assert_eq!((*f, *e, error.errno()), (first, end, Errno::EINVAL));
    };
    let (end, start) = (3, 4);
    let ranges = [0..17, 16..17, 15..u64::MAX, u64::MAX - 1..u64::MAX, 2..2, start..end];
    for pages in ranges {
        let (first, end) = (pages.start, pages.end);
        no_such(f.vm.dirty_log_of(f.id, pages).unwrap_err(), first, end);
    }
    for (first, pages) in [(0, 17), (1, 16), (16, 1), (0, 0)] {
        let error = f.vm.clear_dirty_log(f.id, first, &DirtyBitmap::new(pages)).unwrap_err();
        no_such(error, first, first + pages);
    }
    let error = f.vm.clear_dirty_log(f.id, u64::MAX, &DirtyBitmap::new(2)).unwrap_err();
    no_such(error, u64::MAX, u64::MAX);
}

#[test]
fn descriptors_that_are_no_vm() {
    let file = File::open("/proc/self/exe").unwrap();
    let error = Vm::open(&file).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Open(_)), "{error}");
    let Ok(dev_kvm) = File::options().read(true).write(true).open("/dev/kvm") else {
        eprintln!("SKIPPED descriptors_that_are_no_vm: no usable /dev/kvm");
        return;
    };
    let error = Vm::open(dev_kvm.as_fd()).unwrap_err();
    assert!(error.to_string().contains("/dev/kvm"), "{error}");
}
