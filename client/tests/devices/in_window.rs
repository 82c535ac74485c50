//! Devices whose memory is in a window: all or nothing with the rest of the set.

use kvm_memslots::backend::model::{events, memory};
use kvm_memslots::device::{Device, DeviceId, DevicePart};
use kvm_memslots::window::{
    CheckedFile, Contents, Placement, Window, WindowErrorKind, WindowPart, WindowSpec,
};
use kvm_memslots::{Changes, Errno, Error, ErrorKind, RegionId, RegionSpec, at};

use crate::host::{Peek, numbered};
use crate::rig::{Rig, device};

const PAGE: u64 = 0x1000;
/// A part has so many pages.
const LEN: u64 = 2 * PAGE;
const PAGES: u64 = 32;
const WINDOW: u64 = 0x10_0000_0000;

/// A VM with a window, and a file whose pages are filled with 1, 2, ...
struct Windowed {
    rig: Rig,
    window: Window,
    file: CheckedFile,
    peek: Peek,
}

impl Windowed {
    fn new() -> Self {
        let rig = Rig::new();
        let window = Window::new(WindowSpec::new(at(WINDOW, PAGES * PAGE))).unwrap();
        let span = at(WINDOW, window.size());
        rig.apply(|c| c.map(RegionSpec::ram(span, window.backing()).alone())).unwrap();
        let file = CheckedFile::new(numbered(PAGES as u8)).unwrap();
        Self { rig, window, file, peek: Peek::new() }
    }

    /// Pages `from` and the next of the file, at page `page` of the window.
    fn part(&self, page: u64, from: u64) -> WindowPart {
        WindowPart::new(&self.window, page * PAGE, LEN, &self.file, from * PAGE)
    }

    /// A device with a BAR in a slot, doorbells and vectors, and two parts.
    fn device(&self, n: u64) -> (Device, [RegionId; 2]) {
        let ids = [RegionId::new(), RegionId::new()];
        let parts = [self.part(n * 4, n * 4), self.part(n * 4 + 2, n * 4 + 2).read_only()];
        let device = ids
            .into_iter()
            .zip(parts)
            .fold(device(n, 0), |device, (id, part)| device.in_window(id, part));
        (device, ids)
    }

    fn attach(&self, n: u64) -> Result<(DeviceId, [RegionId; 2]), Error> {
        let (device, ids) = self.device(n);
        self.rig.attach(device).map(|id| (id, ids))
    }

    /// What is placed, what each page of the window holds, and what KVM has.
    fn seen(&self) -> (Vec<Placement>, Vec<Option<u8>>, crate::rig::Seen) {
        (self.window.placed(), self.peek.pages(&self.window), self.rig.seen())
    }

    /// What is in the window is this: page of the window, page of the file.
    fn assert_placed(&self, parts: &[(u64, u64)]) {
        let (placed, pages, _) = self.seen();
        let offsets: Vec<_> = placed.iter().map(|p| (p.offset / PAGE, p.len)).collect();
        let mut wanted: Vec<_> = parts.iter().map(|(page, _)| (*page, LEN)).collect();
        wanted.sort_unstable();
        assert_eq!(offsets, wanted);
        let mut expected = vec![None; PAGES as usize];
        for (page, from) in parts {
            for n in 0..2 {
                expected[(page + n) as usize] = Some((from + n + 1) as u8);
            }
        }
        assert_eq!(pages, expected);
    }
}

#[test]
fn it_comes_and_goes_with_the_device() {
    let w = Windowed::new();
    let ((id, ids), report) = w
        .rig
        .apply(|c| {
            let (device, ids) = w.device(1);
            (c.attach(device), ids)
        })
        .unwrap();
    assert_eq!(report.ioctls, 1, "the BAR in a slot");
    w.assert_placed(&[(4, 4), (6, 6)]);
    let access: Vec<_> = w.window.placed().iter().map(|p| p.access).collect();
    assert_eq!(access, [kvm_memslots::Access::ReadWrite, kvm_memslots::Access::Read]);
    let (_, report) = w.rig.apply(|c| c.move_in_window(ids[1], 20 * PAGE)).unwrap();
    assert_eq!((report.calls(), report.waits()), (0, 0));
    w.assert_placed(&[(4, 4), (20, 6)]);
    w.rig.detach(id).unwrap();
    w.assert_placed(&[]);
    let error = w.rig.apply(|c| c.move_in_window(ids[1], 0)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UnknownRegion(id) if *id == ids[1]), "{error}");
}

#[test]
fn a_set_takes_effect_as_if_one_after_the_other() {
    let w = Windowed::new();
    let (one, one_ids) = w.attach(1).unwrap();
    w.rig
        .apply(|c| {
            let (device, ids) = w.device(2);
            let two = c.attach(device);
            c.move_in_window(ids[0], 24 * PAGE);
            c.move_in_window(one_ids[0], 8 * PAGE);
            c.move_in_window(ids[0], 4 * PAGE);
            let (device, _) = w.device(3);
            let three = c.attach(device);
            c.detach(three);
            two
        })
        .unwrap();
    w.assert_placed(&[(8, 4), (6, 6), (4, 8), (10, 10)]);
    w.rig.detach(one).unwrap();
    w.assert_placed(&[(4, 8), (10, 10)]);
    w.rig.vm.close().unwrap();
    w.assert_placed(&[]);
}

#[test]
fn two_that_swap_their_places() {
    let w = Windowed::new();
    let [(_, a), (_, b)] = [1, 2].map(|n| w.attach(n).unwrap());
    for round in 0..4 {
        let at = |n: u64| if round % 2 == 0 { 12 - n } else { n };
        w.rig
            .apply(|c| {
                c.move_in_window(a[0], at(4) * PAGE);
                c.move_in_window(b[0], at(8) * PAGE);
            })
            .unwrap();
        w.assert_placed(&[(at(4), 4), (6, 6), (at(8), 8), (10, 10)]);
    }
}

/// The calls of a set of changes, one device coming, one going, one moving.
fn busy_set(w: &Windowed, two: DeviceId, one: [RegionId; 2]) -> Changes {
    let mut c = Changes::new();
    c.attach(w.device(4).0);
    c.detach(two);
    // One takes the place of a part that goes, the other moves elsewhere.
    c.move_in_window(one[0], 8 * PAGE);
    c.move_in_window(one[1], 26 * PAGE);
    c
}

#[test]
fn what_kvm_refuses_leaves_the_window_as_it_was() {
    let (mut refused, mut passed) = (0, false);
    for k in 1..100 {
        let w = Windowed::new();
        let [(_, one), (two, _)] = [1, 2].map(|n| w.attach(n).unwrap());
        let before = w.seen();
        w.rig.events.inject(events::Fault::nth(k, Errno::ENOMEM));
        let changes = busy_set(&w, two, one);
        let Err(error) = w.rig.vm.apply(changes) else {
            w.assert_placed(&[(8, 4), (26, 6), (16, 16), (18, 18)]);
            passed = true;
            break;
        };
        refused += 1;
        assert!(matches!(error.kind(), ErrorKind::EventRefused { .. }), "{error}");
        assert_eq!(w.seen(), before, "call {k}: {error}");
        w.rig.events.clear_faults();
        w.rig.vm.apply(busy_set(&w, two, one)).unwrap();
        w.assert_placed(&[(8, 4), (26, 6), (16, 16), (18, 18)]);
        w.rig.assert_known();
    }
    // Two devices' doorbells and vectors, and the routes.
    assert_eq!((refused, passed), (2 * (2 + 3) + 1, true));
}

#[test]
fn memory_that_is_refused_leaves_the_window_as_it_was() {
    for k in 1..=2 {
        let w = Windowed::new();
        let [(_, one), (two, _)] = [1, 2].map(|n| w.attach(n).unwrap());
        let before = w.seen();
        let fault = memory::Fault::nth(k, Errno::ENOMEM).only(memory::Call::SetRegion);
        w.rig.memory.inject(fault);
        let error = w.rig.vm.apply(busy_set(&w, two, one)).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Refused { .. }), "{error}");
        assert_eq!(w.seen(), before, "{error}");
        w.rig.vm.apply(busy_set(&w, two, one)).unwrap();
    }
}

/// The kernel refuses a place after others were made, and memory and interrupts
/// were changed.
#[test]
fn a_place_that_is_refused_undoes_all_else() {
    let w = Windowed::new();
    let [(_, one), (two, _)] = [1, 2].map(|n| w.attach(n).unwrap());
    let before = w.seen();
    let mut c = busy_set(&w, two, one);
    // An offset that no file has.
    let bad = WindowPart::new(&w.window, 30 * PAGE, LEN, &w.file, 1 << 63);
    c.attach(device(5, 0).in_window(RegionId::new(), bad));
    let error = w.rig.vm.apply(c).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Window(_)), "{error}");
    assert_eq!((error.errno(), error.change()), (Errno::EOVERFLOW, Some(4)), "{error}");
    assert_eq!((error.device(), error.part()), (Some("dev5"), Some(in_window(0))), "{error}");
    assert_eq!(w.seen(), before);
    w.rig.assert_known();
    w.rig.vm.apply(busy_set(&w, two, one)).unwrap();
}

const fn in_window(index: usize) -> DevicePart {
    DevicePart::InWindow { index }
}

/// Refused before anything is done: KVM is not asked.
#[test]
fn what_has_no_room_is_refused_and_named() {
    let w = Windowed::new();
    let (one, ids) = w.attach(1).unwrap();
    w.window.place(28 * PAGE, PAGE, Contents::checked(&w.file, 0)).unwrap();
    let before = w.seen();
    let calls = (w.rig.events.counts(), w.rig.memory.counts());
    let one_part = |page: u64, len: u64| {
        let part = WindowPart::new(&w.window, page * PAGE, len, &w.file, 0);
        Device::new("late").in_window(RegionId::new(), part)
    };
    let wrong = |change: usize, index: usize, f: &dyn Fn(&mut Changes)| {
        let mut c = Changes::new();
        f(&mut c);
        for checked in [w.rig.vm.preview(&c).map(drop), w.rig.vm.apply(c).map(drop)] {
            let error = checked.unwrap_err();
            assert_eq!((error.change(), error.part()), (Some(change), Some(in_window(index))));
            assert!(error.device().is_some(), "{error}");
            let ErrorKind::Window(inner) = error.kind() else { panic!("{error}") };
            assert_eq!(inner.edit(), None, "{error}");
            match inner.kind() {
                WindowErrorKind::Taken { .. } => assert_eq!(error.errno(), Errno::EEXIST),
                WindowErrorKind::Geometry { .. } => assert_eq!(error.errno(), Errno::EINVAL),
                other => panic!("{other}"),
            }
            assert_eq!(w.seen(), before, "{error}");
            assert_eq!((w.rig.events.counts(), w.rig.memory.counts()), calls, "{error}");
        }
    };
    // Another device's, the VMM's own, another of the set's.
    wrong(0, 0, &|c| _ = c.attach(one_part(5, PAGE)));
    wrong(0, 0, &|c| _ = c.attach(one_part(27, LEN)));
    wrong(1, 0, &|c| {
        c.attach(one_part(20, LEN));
        c.attach(one_part(21, LEN));
    });
    wrong(1, 0, &|c| {
        c.attach(one_part(21, LEN));
        c.attach(one_part(20, LEN));
    });
    wrong(1, 1, &|c| {
        c.attach(one_part(0, LEN));
        c.move_in_window(ids[1], 0);
    });
    // Not whole pages of the window.
    for (page, len) in [(31, LEN), (1 << 50, PAGE), (0, 0), (0, 17), (0, !0xfff)] {
        wrong(0, 0, &|c| _ = c.attach(one_part(page, len)));
    }
    wrong(0, 0, &|c| c.move_in_window(ids[0], 17));
    // One that goes makes room for another.
    w.rig
        .apply(|c| {
            c.detach(one);
            c.attach(one_part(5, LEN));
        })
        .unwrap();
    assert_eq!(w.window.placed().len(), 2);
}

#[test]
fn a_name_is_one_memory_s() {
    let w = Windowed::new();
    let (_, ids) = w.attach(1).unwrap();
    let region = RegionId::new();
    w.rig.apply(|c| c.map_as(region, crate::rig::bar(0x8000_0000, PAGE))).unwrap();
    let before = w.seen();
    for id in [ids[0], region] {
        let late = Device::new("late").in_window(id, w.part(20, 0));
        let error = w.rig.attach(late).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Twice { .. }), "{error}");
        assert_eq!((error.device(), error.part()), (Some("late"), Some(in_window(0))));
    }
    let id = RegionId::new();
    let twice = Device::new("twice").in_window(id, w.part(20, 0)).in_window(id, w.part(22, 0));
    assert_eq!(w.rig.attach(twice).unwrap_err().part(), Some(in_window(1)));
    assert_eq!(w.seen(), before);
}

/// The VMM has removed or replaced what a device had.
#[test]
fn what_is_gone_already_need_not_go() {
    let w = Windowed::new();
    let (id, ids) = w.attach(1).unwrap();
    w.window.remove(4 * PAGE, LEN).unwrap();
    w.window.remove(6 * PAGE, PAGE).unwrap();
    w.rig.apply(|c| c.move_in_window(ids[0], 20 * PAGE)).unwrap();
    w.rig.detach(id).unwrap();
    // What is left of it is not what was placed, and the VMM's.
    let left: Vec<_> = w.window.placed().iter().map(|p| (p.offset, p.len)).collect();
    assert_eq!(left, [(7 * PAGE, PAGE)]);
}
