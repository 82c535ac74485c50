//! Doorbells that are in a region are where the region is.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_memslots::backend::model::memory::{Call, Fault, GuestAccess};
use kvm_memslots::device::{Bus, Device, Doorbell};
use kvm_memslots::{Changes, Errno, RegionId};

use crate::rig::{BAR, BAR_SIZE, Rig, bar, eventfd};

/// A device with a BAR at `gpa`, and a doorbell in it for each of two queues.
struct Bell {
    region: RegionId,
    fds: [Arc<std::os::fd::OwnedFd>; 2],
}

impl Bell {
    fn new(rig: &Rig, gpa: u64) -> Self {
        let region = RegionId::new();
        let fds = [(); 2].map(|()| Arc::new(eventfd()));
        let at = |value| Doorbell::in_region(region, 0x3000).len(2).value(value);
        let device = Device::new("net")
            .region(region, bar(gpa, 0x2000))
            .ioeventfd(at(0), Arc::clone(&fds[0]))
            .ioeventfd(at(1), Arc::clone(&fds[1]));
        rig.attach(device).unwrap();
        Self { region, fds }
    }

    /// Both ring at `gpa`, and memory is there.
    fn assert_at(&self, rig: &Rig, gpa: u64) {
        for (value, fd) in (0..).zip(&self.fds) {
            let rings = rig.events.guest_writes(Bus::Mmio, gpa + 0x3000, 2, value);
            assert_eq!(rings, Some(fd.as_raw_fd()), "queue {value} at {gpa:#x}");
        }
        let region = rig.vm.region(self.region).unwrap();
        assert_eq!(region.range.gpa(), gpa);
        assert_eq!(rig.memory.guest_at(0, gpa), GuestAccess::Ram { hva: region.hva });
    }
}

fn silent(rig: &Rig, gpa: u64) -> bool {
    (0..2).all(|value| rig.events.guest_writes(Bus::Mmio, gpa + 0x3000, 2, value).is_none())
}

const ELSEWHERE: u64 = BAR + 16 * BAR_SIZE;

#[test]
fn a_doorbell_moves_with_its_region_in_the_same_set() {
    let rig = Rig::new();
    let bell = Bell::new(&rig, BAR);
    bell.assert_at(&rig, BAR);
    rig.apply(|c| c.move_to(bell.region, ELSEWHERE)).unwrap();
    bell.assert_at(&rig, ELSEWHERE);
    assert!(silent(&rig, BAR));
    rig.assert_known();
}

#[test]
fn bars_with_doorbells_swap_places() {
    let rig = Rig::new();
    let (one, two) = (Bell::new(&rig, BAR), Bell::new(&rig, ELSEWHERE));
    let mut c = Changes::new();
    c.move_to(one.region, BAR + 4 * BAR_SIZE);
    c.move_to(two.region, BAR);
    c.move_to(one.region, ELSEWHERE);
    rig.vm.apply(c).unwrap();
    one.assert_at(&rig, ELSEWHERE);
    two.assert_at(&rig, BAR);
    rig.assert_known();
    // And back, by two moves that only together lead anywhere.
    let swapped = rig.apply(|c| {
        c.move_to(one.region, BAR);
        c.move_to(two.region, ELSEWHERE);
    });
    swapped.unwrap();
    one.assert_at(&rig, BAR);
    two.assert_at(&rig, ELSEWHERE);
    assert!(silent(&rig, BAR + 4 * BAR_SIZE));
    rig.assert_known();
}

#[test]
fn a_move_that_is_refused_leaves_the_doorbell_where_it_was() {
    let rig = Rig::new();
    let bell = Bell::new(&rig, BAR);
    let before = rig.seen();
    rig.memory.inject(Fault::nth(1, Errno::ENOMEM).only(Call::SetRegion));
    rig.apply(|c| c.move_to(bell.region, ELSEWHERE)).unwrap_err();
    assert_eq!(rig.seen(), before);
    bell.assert_at(&rig, BAR);
    rig.assert_known();
}

#[test]
fn a_doorbell_is_silent_when_its_region_is_unmapped() {
    let rig = Rig::new();
    let bell = Bell::new(&rig, BAR);
    rig.apply(|c| c.unmap(bell.region)).unwrap();
    assert!(silent(&rig, BAR));
    rig.assert_known();
    rig.vm.close().unwrap();
    assert!(bell.fds.iter().all(|fd| Arc::strong_count(fd) == 1));
}
