//! What is served, and what is left to the device.

use kvm_memslots::deferred::{Deferral, Deferred, Part, Served};
use kvm_memslots::{Changes, ErrorKind, RegionSpec, Vm, at};

use crate::memory::{Memory, PAGE, device, map_now, memory, open, open_with, ram, rom, unmap_now};

const NEVER: u64 = u64::MAX;

/// Reads; the device gives 0xee, and what it was asked.
fn read(exits: &Deferred, gpa: u64, len: usize) -> (Vec<u8>, Vec<(u64, usize)>) {
    let mut data = vec![0xaa; len];
    let mut asked = Vec::new();
    let served = exits.read(gpa, &mut data, |gpa, data| {
        data.fill(0xee);
        asked.push((gpa, data.len()));
    });
    let devices: usize = asked.iter().map(|(_, len)| len).sum();
    assert_eq!(served.bytes + devices, len);
    (data, asked)
}

fn write(exits: &Deferred, gpa: u64, data: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut asked = Vec::new();
    let served = exits.write(gpa, data, |gpa, data| asked.push((gpa, data.to_vec())));
    let devices: usize = asked.iter().map(|(_, data)| data.len()).sum();
    assert_eq!(served.bytes + devices, data.len());
    asked
}

fn pattern(memory: &Memory, pages: u64) {
    for at in 0..pages * PAGE / 8 {
        memory.write(at * 8, &(0x0101_0101_0101_0101 * (at % 251)).to_le_bytes());
        memory.write(at * 8 + at % 8, &[0x77]);
    }
}

#[test]
fn any_width_at_any_alignment_and_over_the_edges() {
    let memory = Memory::new(3);
    pattern(&memory, 3);
    let (vm, model) = open(NEVER);
    // Two regions that touch, and nothing around them.
    let mut c = Changes::new();
    c.map(device(16 * PAGE, PAGE, memory.hva()).deferrable());
    c.map(device(17 * PAGE, PAGE, memory.hva() + 2 * PAGE).deferrable());
    let report = vm.apply(c).unwrap();
    assert_eq!((report.ioctls, report.grace_periods, report.slots), (0, 0, 0));
    assert_eq!((report.regions_deferred, report.regions_cancelled), (2, 0));
    assert_eq!(model.counts().ioctls, 0);

    let guest = |gpa: u64| match gpa / PAGE {
        16 => memory.read(gpa - 16 * PAGE, 1)[0],
        17 => memory.read(gpa - 15 * PAGE, 1)[0],
        _ => 0xee,
    };
    let exits = vm.deferred(0).unwrap();
    for around in [16 * PAGE, 17 * PAGE, 18 * PAGE] {
        for gpa in around - 20..around + 4 {
            for len in 1..=16 {
                let expected: Vec<u8> = (gpa..gpa + len as u64).map(guest).collect();
                assert_eq!(read(&exits, gpa, len).0, expected, "{len} bytes at {gpa:#x}");
                let data: Vec<u8> = (0..len as u8).map(|n| n ^ gpa as u8).collect();
                let devices: Vec<u8> =
                    write(&exits, gpa, &data).into_iter().flat_map(|(_, data)| data).collect();
                let (mut to_device, mut expected) = (Vec::new(), Vec::new());
                for (n, byte) in data.iter().enumerate() {
                    let outside = !(16..18).contains(&((gpa + n as u64) / PAGE));
                    if outside { &mut to_device } else { &mut expected }.push(*byte);
                }
                assert_eq!(devices, to_device);
                let back = read(&exits, gpa, len).0;
                let mut inside = back
                    .iter()
                    .enumerate()
                    .filter(|(n, _)| (16..18).contains(&((gpa + *n as u64) / PAGE)));
                assert!(expected.iter().eq(inside.by_ref().map(|(_, byte)| byte)));
            }
        }
    }
}

#[test]
fn what_is_none_of_it_is_the_devices_in_one_piece() {
    let memory = Memory::new(1);
    let (vm, _) = open(NEVER);
    let exits = vm.deferred(0).unwrap();
    assert_eq!(read(&exits, 0, 8).1, [(0, 8)], "nothing is mapped");
    map_now(&vm, ram(0, 16 * PAGE, 0x7000_0000_0000));
    map_now(&vm, device(32 * PAGE, PAGE, memory.hva()).deferrable());
    assert_eq!(read(&exits, 24 * PAGE, 8).1, [(24 * PAGE, 8)]);
    assert_eq!(read(&exits, 0, 8).1, [(0, 8)], "not deferrable: whatever exits there");
    assert_eq!(read(&exits, u64::MAX - 3, 8).1, [(u64::MAX - 3, 8)], "wraps");
    assert_eq!(exits.read_part(32 * PAGE - 2, &mut [0; 8]), Part::Device(2));
    let served = Served { bytes: 2, due: false, fault: None };
    assert_eq!(exits.read_part(33 * PAGE - 2, &mut [0; 8]), Part::Memory(served));
    assert_eq!(read(&exits, 32 * PAGE, 0).1, []);
}

#[test]
fn writes_to_read_only_regions_are_the_devices() {
    let memory = Memory::new(1);
    memory.write(8, &[1, 2, 3, 4]);
    let (vm, _) = open(1);
    let id = map_now(&vm, rom(0, PAGE, memory.hva()).deferrable());
    let exits = vm.deferred(0).unwrap();
    assert_eq!(write(&exits, 8, &[9, 9]), [(8, vec![9, 9])]);
    assert_eq!(memory.read(8, 4), [1, 2, 3, 4]);
    // It would have exited with a slot as well: it is no reason to make one.
    assert_eq!(vm.exits_served(id).unwrap(), 0);
    assert_eq!(read(&exits, 8, 4), (vec![1, 2, 3, 4], vec![]));
    assert_eq!(vm.exits_served(id).unwrap(), 1);
}

#[test]
fn an_unmapped_region_is_the_devices() {
    let memory = Memory::new(2);
    memory.write(0, &[5]);
    let (vm, model) = open(NEVER);
    let exits = vm.deferred(0).unwrap();
    let spec = || device(0, PAGE, memory.hva()).deferrable();
    let id = map_now(&vm, spec());
    assert_eq!(read(&exits, 0, 1), (vec![5], vec![]));
    let mut c = Changes::new();
    c.unmap(id);
    drop(c);
    assert_eq!(read(&exits, 0, 1), (vec![5], vec![]), "not committed");
    assert_eq!(unmap_now(&vm, id).ioctls, 0);
    assert_eq!(read(&exits, 0, 1), (vec![0xee], vec![(0, 1)]));

    map_now(&vm, spec());
    assert_eq!(read(&exits, 0, 1).1, []);
    drop(vm);
    assert_eq!(read(&exits, 0, 1).1, [(0, 1)], "the VM is gone");
    assert_eq!(model.counts().ioctls, 0);
}

#[test]
fn a_mapped_region_is_served_to_exits_that_come_late() {
    let memory = Memory::new(1);
    memory.write(0, &[5]);
    let (vm, _) = open(2);
    let id = map_now(&vm, device(0, PAGE, memory.hva()).deferrable());
    let exits = vm.deferred(0).unwrap();
    vm.promote().unwrap().unwrap();
    assert!(!vm.region(id).unwrap().deferred && vm.region(id).unwrap().deferrable);
    for _ in 0..3 {
        let served = exits.read(0, &mut [0], |_, _| panic!("there is memory"));
        assert_eq!(served, Served { bytes: 1, due: false, fault: None });
    }
    assert_eq!(vm.exits_served(id).unwrap(), 0, "it waits no longer");
}

#[test]
fn splits_sizes_and_flags_of_what_waits_cost_nothing() {
    let host = Memory::new(4);
    pattern(&host, 4);
    let (vm, model) = open(NEVER);
    let backing = memory(host.hva(), 4 * PAGE);
    let spec = RegionSpec::device(at(0, 3 * PAGE), backing).deferrable();
    let low = map_now(&vm, spec);
    let exits = vm.deferred(0).unwrap();
    let mut c = Changes::new();
    let high = c.split(low, PAGE);
    c.resize(high, 3 * PAGE);
    c.set_read_only(low, true);
    vm.apply(c).unwrap();
    assert_eq!(vm.deferred_count(), 2);
    assert_eq!(read(&exits, PAGE - 4, 8), (host.read(PAGE - 4, 8), vec![]));
    assert_eq!(read(&exits, 4 * PAGE - 8, 8), (host.read(4 * PAGE - 8, 8), vec![]));
    assert_eq!(write(&exits, PAGE - 1, &[1, 2]), [(PAGE - 1, vec![1])]);
    assert_eq!(host.read(PAGE, 1), [2]);
    assert_eq!(model.counts().ioctls, 0);
    // Mapped, they are what they became.
    assert_eq!(vm.promote().unwrap().unwrap().slots, 2);
}

#[test]
fn what_cannot_be_served_is_not_deferrable() {
    let mut limits = kvm_memslots::Limits::x86().with_trap();
    limits.guest_memfd = true;
    let (vm, _) = open_with(Deferral::default(), limits);
    let spec = || ram(0, PAGE, 0x7000_0000_0000);
    let private = memory(0x7000_0000_0000, PAGE).with_guest_memfd(5, 0);
    let private = RegionSpec::ram(at(0, PAGE), private);
    for spec in [private.deferrable(), spec().trapped().deferrable()] {
        let mut c = Changes::new();
        c.map(spec);
        let error = vm.apply(c).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NotDeferrable { .. }), "{error}");
        assert!(error.to_string().contains("deferrable"), "{error}");
    }
    let id = map_now(&vm, spec().alone().deferrable());
    let mut c = Changes::new();
    c.set_trap(id, true);
    let error = vm.apply(c).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NotDeferrable { .. }), "{error}");
}

#[test]
fn writes_that_are_served_are_dirty() {
    let memory = Memory::new(130);
    let (vm, model) = open(NEVER);
    let id = map_now(&vm, ram(PAGE, 130 * PAGE, memory.hva()).log_dirty().deferrable());
    let exits = vm.deferred(0).unwrap();
    let dirty = |vm: &Vm| -> Vec<u64> { vm.dirty_log(id).unwrap().iter().collect() };
    write(&exits, PAGE, &[1]);
    write(&exits, 66 * PAGE - 1, &[1, 2]);
    write(&exits, 131 * PAGE - 1, &[1]);
    read(&exits, 10 * PAGE, 8);
    assert_eq!(dirty(&vm), [0, 64, 65, 129]);
    assert_eq!(dirty(&vm), [0_u64; 0]);

    // Some served, some by the guest itself, one by a late exit.
    write(&exits, 5 * PAGE, &[1]);
    vm.promote().unwrap().unwrap();
    model.guest_write(0, 6 * PAGE, 1);
    write(&exits, 7 * PAGE, &[1]);
    assert_eq!(dirty(&vm), [4, 5, 6]);

    // What was served before a split or a change of size is not forgotten.
    write(&exits, 9 * PAGE, &[1]);
    write(&exits, 20 * PAGE, &[1]);
    let mut c = Changes::new();
    let high = c.split(id, 16 * PAGE);
    vm.apply(c).unwrap();
    assert_eq!(vm.dirty_log(id).unwrap().iter().collect::<Vec<_>>(), [8]);
    assert_eq!(vm.dirty_log(high).unwrap().iter().collect::<Vec<_>>(), [3]);
}
