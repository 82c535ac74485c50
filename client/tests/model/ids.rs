//! Names of another VM, of a set that was dropped, used twice; sets applied twice.

use crate::common::fixture::{Fixture, look};
use crate::common::{HVA, PAGE, assert_same_slots, changes, map_all, memory, ram};
use kvm_memslots::device::Device;
use kvm_memslots::{Changes, DirtyBitmap, Errno, ErrorKind, RegionId};

#[test]
fn ids() {
    let mut f = Fixture::new();
    let other = Fixture::new();
    // Of another VM, of a set that was dropped, of one that was refused, of a
    // region that is unmapped, and of nothing.
    let dropped = Changes::new().map(ram(0, 1));
    let mut c = Changes::new();
    let aborted = c.map(ram(0, 1));
    c.map(ram(16, 1));
    f.vm.apply(c).unwrap_err();
    let mut c = Changes::new();
    let gone = c.map(ram(0, 1));
    c.unmap(gone);
    f.vm.apply(c).unwrap();
    let [unmapped, reused] = [0; 2].map(|_| {
        let [id] = map_all(&f.vm, [ram(0, 1)]);
        f.vm.apply(changes(|c| c.unmap(id))).unwrap();
        id
    });
    map_all(&f.vm, [ram(0, 1)]);
    f.before = look(&f.vm, &f.model);
    let never = [0, u64::MAX].map(RegionId::from_raw);
    for id in [other.id, dropped, aborted, gone, unmapped, reused, never[0], never[1]] {
        let steps: [fn(&mut Changes, RegionId); 9] = [
            |c, id| c.unmap(id),
            |c, id| c.resize(id, PAGE),
            |c, id| _ = c.split(id, PAGE),
            |c, id| c.join(id),
            |c, id| c.set_log_dirty(id, true),
            |c, id| c.set_read_only(id, true),
            |c, id| c.set_trap(id, false),
            |c, id| c.move_to(id, PAGE),
            |c, id| c.replace(id, memory(HVA, PAGE)),
        ];
        for step in steps {
            assert_refused!(
                f.refused(|c| step(c, id)),
                ErrorKind::UnknownRegion { .. },
                ENOENT,
                &id.to_string(),
                "another VM's"
            );
        }
        let single = f.vm.apply(changes(|c| c.unmap(id))).unwrap_err();
        assert_eq!((single.errno(), single.change()), (Errno::ENOENT, Some(0)));
        for error in [
            f.vm.region(id).unwrap_err(),
            f.vm.dirty_log(id).unwrap_err(),
            f.vm.dirty_log_of(id, 0..1).unwrap_err(),
            f.vm.clear_dirty_log(id, 0, &DirtyBitmap::new(1)).unwrap_err(),
        ] {
            assert!(matches!(error.kind(), ErrorKind::UnknownRegion { .. }), "{error}");
        }
    }
    assert_ne!(unmapped, reused, "a name is never another region's");
    assert_eq!(RegionId::from_raw(f.id.to_raw()), f.id);
}

#[test]
fn a_set_that_is_applied_twice() {
    let f = Fixture::new();
    let id = f.id;
    let second = Fixture::new();
    let mut c = Changes::new();
    let new = c.map(ram(0, 1));
    f.vm.apply(c.clone()).unwrap();
    let before = look(&f.vm, &f.model);
    let error = f.vm.apply(c.clone()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Twice { .. }), "{error}");
    assert_eq!((error.errno(), error.change()), (Errno::EEXIST, Some(0)));
    assert!(error.to_string().contains("applied before"), "{error}");
    assert_eq!(look(&f.vm, &f.model), before);
    // To another VM that is something new, of that VM.
    second.vm.apply(c).unwrap();
    second.vm.region(new).unwrap();
    f.vm.apply(changes(|c| c.unmap(new))).unwrap();
    second.vm.region(new).unwrap();
    f.unchanged();

    // A set that was made for another VM.
    let made_for_f = changes(|c| {
        c.map(ram(40, 1));
        c.set_log_dirty(id, true);
    });
    let before = look(&second.vm, &second.model);
    let error = second.vm.apply(made_for_f.clone()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UnknownRegion { .. }), "{error}");
    assert_eq!((error.change(), look(&second.vm, &second.model)), (Some(1), before));
    f.vm.apply(made_for_f).unwrap();

    // A name that is used twice in one set, by whatever maps it.
    let f = Fixture::new();
    assert_refused!(
        f.refused(|c| {
            let id = c.map(ram(0, 1));
            c.map_as(id, ram(1, 1));
        }),
        ErrorKind::Twice { .. },
        EEXIST,
        "region"
    );
    assert_refused!(
        f.refused(|c| {
            let id = RegionId::new();
            c.map_as(id, ram(0, 1));
            c.attach(Device::new("nic").region(id, ram(1, 1)));
        }),
        ErrorKind::Twice { .. },
        EEXIST,
        "device \"nic\""
    );
    // Splitting again, with a copy of the set: the upper part is there.
    let mut c = Changes::new();
    c.split(f.id, 8 * PAGE);
    f.vm.apply(c.clone()).unwrap();
    c.resize(f.id, PAGE);
    let error = f.vm.apply(c).unwrap_err();
    let kind = error.kind();
    let twice = matches!(kind, ErrorKind::Twice { .. } | ErrorKind::SplitOutside { .. });
    assert!(twice && error.change() == Some(0), "{error}");
}

/// A VMM that keeps its own name of a region while it is made anew.
#[test]
fn a_name_that_is_unmapped_first_can_be_mapped_again() {
    for size in [1, 12] {
        let f = Fixture::new();
        let others = (100..100 + size).map(|page| ram(page, 1));
        let mut set = changes(|c| others.for_each(|spec| _ = c.map(spec)));
        set.set_log_dirty(f.id, true);
        f.vm.apply(set.clone()).unwrap();
        f.model.guest_write(0, 16 * PAGE, 1);
        // Elsewhere, and larger.
        let mut c = Changes::new();
        c.unmap(f.id);
        c.map_as(f.id, ram(40, 32).label("anew"));
        set.regions().take(size as usize - 1).for_each(|(id, _)| c.unmap(id));
        let report = f.vm.apply(c.clone()).unwrap();
        let region = f.vm.region(f.id).unwrap();
        assert_eq!((region.range.gpa(), region.range.size()), (40 * PAGE, 32 * PAGE));
        assert_eq!(region.label.as_deref(), Some("anew"));
        assert!(f.vm.region_at(0, 16 * PAGE).is_none());
        let [(last, pages)] = &report.last_dirty[..] else { panic!("{report:?}") };
        assert_eq!((last.id, last.range.gpa(), pages.count()), (f.id, 16 * PAGE, 1));
        assert_same_slots(&f.vm, &f.model);
        // The same memory again is nothing to KVM.
        let mut c = changes(|c| c.unmap(f.id));
        c.map_as(f.id, ram(40, 32));
        let report = f.vm.apply(c).unwrap();
        assert_eq!((report.ioctls, report.regions_cancelled), (0, 1));
        // And gone again in the same set.
        let mut c = changes(|c| c.unmap(f.id));
        c.map_as(f.id, ram(0, 1));
        c.unmap(f.id);
        f.vm.apply(c).unwrap();
        f.vm.region(f.id).unwrap_err();
        assert!(f.vm.region_at(0, 40 * PAGE).is_none());
        assert_same_slots(&f.vm, &f.model);
    }
}
