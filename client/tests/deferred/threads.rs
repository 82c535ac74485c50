//! vCPU threads against the thread that maps, promotes and unmaps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use kvm_memslots::deferred::Retry;
use kvm_memslots::{Backing, RegionSpec, at};

use crate::memory::{Memory, PAGE, device, map_now, open, ram, unmap_now};

/// Sets the flag when dropped, also by a panic: threads that wait for it end.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

const READERS: u64 = 3;
const ROUNDS: u64 = 400;

/// Memory is unmapped from this process as soon as the region is: a reader that
/// is still at it dies of it.
#[test]
fn nobody_is_left_in_memory_that_is_gone() {
    let (vm, _) = open(5);
    let stop = AtomicBool::new(false);
    let (served, missed) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for n in 0..READERS {
            let exits = vm.deferred(0).unwrap();
            let (stop, served, missed) = (&stop, &served, &missed);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let mut data = [0; 64];
                    // Both halves of a region that is whole or not there.
                    let got = exits.read(PAGE - 32, &mut data, |_, data| data.fill(0xee));
                    assert!(data.iter().all(|b| [0x5a, 0xa5, 0xee].contains(b)), "{data:x?}");
                    let _ = exits.write(n * 8, &[0x11; 8], |_, _| {});
                    let of = if got.bytes == 64 { served } else { missed };
                    of.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _stop = Stop(&stop);
        for round in 0..ROUNDS {
            let memory = Arc::new(Memory::new(2));
            memory.write(PAGE - 32, &[[0x5a, 0xa5][(round % 2) as usize]; 64]);
            // In half of the rounds without an owner: it is the change alone
            // that keeps readers out.
            let spec = if round % 4 < 2 {
                RegionSpec::device(at(0, 2 * PAGE), Backing::owned(Arc::clone(&memory) as _, 0))
            } else {
                device(0, 2 * PAGE, memory.hva())
            };
            let id = map_now(&vm, spec.deferrable());
            if round % 3 == 0 {
                vm.promote().unwrap();
            }
            if round % 8 == 0 {
                thread::yield_now();
            }
            unmap_now(&vm, id);
            drop(Arc::into_inner(memory).expect("nobody else has it any more"));
        }
        // On a busy machine the readers may have seen little: both must have
        // happened, often.
        let memory = Memory::new(2);
        memory.write(PAGE - 32, &[0x5a; 64]);
        let id = map_now(&vm, device(0, 2 * PAGE, memory.hva()).deferrable());
        await_more(&served);
        unmap_now(&vm, id);
        drop(memory);
        await_more(&missed);
    });
}

fn await_more(count: &AtomicU64) {
    let enough = count.load(Ordering::Relaxed) + 100;
    while count.load(Ordering::Relaxed) < enough {
        thread::yield_now();
    }
}

/// Each vCPU counts up a word of its own, by exits, while the region is promoted
/// and unmapped and mapped again over the same memory: no write is lost.
#[test]
fn no_write_is_lost() {
    let memory = Memory::new(1);
    let (vm, _) = open(50);
    let exits: Vec<_> = (0..READERS).map(|_| vm.deferred(0).unwrap()).collect();
    let stop = AtomicBool::new(false);
    let counts: Vec<u64> = thread::scope(|scope| {
        let spec = || device(0, PAGE, memory.hva()).deferrable().log_dirty();
        let vcpus: Vec<_> = exits
            .into_iter()
            .zip(0..READERS)
            .map(|(exits, n)| {
                let (vm, stop) = (&vm, &stop);
                scope.spawn(move || {
                    let mut count = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        let mut missed = false;
                        let wrote =
                            exits.write(n * 8, &(count + 1).to_le_bytes(), |_, _| missed = true);
                        if missed {
                            // The device's, which ignores it.
                            continue;
                        }
                        count += 1;
                        let mut back = [0; 8];
                        let read = exits.read(n * 8, &mut back, |_, data| {
                            data.copy_from_slice(&count.to_le_bytes());
                        });
                        assert_eq!(u64::from_le_bytes(back), count);
                        if wrote.due || read.due {
                            vm.promote_due().unwrap();
                        }
                    }
                    count
                })
            })
            .collect();
        let stopped = Stop(&stop);
        for _ in 0..ROUNDS / 2 {
            let id = map_now(&vm, spec());
            thread::yield_now();
            unmap_now(&vm, id);
        }
        let id = map_now(&vm, spec());
        while vm.exits_served(id).unwrap() < 20 {
            thread::yield_now();
        }
        drop(stopped);
        let counts = vcpus.into_iter().map(|vcpu| vcpu.join().unwrap()).collect();
        assert!(vm.dirty_log(id).unwrap().is_dirty(0));
        counts
    });
    for (n, count) in counts.iter().enumerate() {
        assert_eq!(memory.read(n as u64 * 8, 8), count.to_le_bytes(), "vCPU {n}");
    }
    assert!(counts.iter().any(|count| *count > 0));
}

/// Long enough for the other thread to come in between, on any machine.
const LONG: u64 = 1024;

/// A thread that is in the midst of an access when its memory is unmapped.
#[test]
fn an_unmap_waits_for_an_access_under_way() {
    let (vm, _) = open(u64::MAX);
    let began = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let exits = vm.deferred(0).unwrap();
        scope.spawn(|| {
            let exits = exits;
            let mut data = vec![0; (LONG * PAGE) as usize];
            while !stop.load(Ordering::Relaxed) {
                began.fetch_add(1, Ordering::Relaxed);
                let _ = exits.read(0, &mut data, |_, _| {});
            }
        });
        let _stop = Stop(&stop);
        for _ in 0..20 {
            let memory = Memory::new(LONG);
            let spec = device(0, LONG * PAGE, memory.hva()).deferrable();
            let id = map_now(&vm, spec);
            let before = began.load(Ordering::Relaxed);
            while began.load(Ordering::Relaxed) < before + 2 {
                thread::yield_now();
            }
            unmap_now(&vm, id);
            drop(memory);
        }
    });
}

/// Whoever reads the log and then copies the pages that are in it has the last
/// values in the end.
#[test]
fn no_dirty_page_is_lost() {
    let memory = Memory::new(LONG);
    let (vm, _) = open(u64::MAX);
    let spec = ram(0, LONG * PAGE, memory.hva()).deferrable().log_dirty();
    let id = map_now(&vm, spec);
    let mut copy = vec![0; LONG as usize];
    for round in 1..10 {
        let exits = vm.deferred(0).unwrap();
        thread::scope(|scope| {
            let writer = scope.spawn(move || {
                let data = vec![round; (LONG * PAGE) as usize];
                let _ = exits.write(0, &data, |_, _| {});
            });
            let mut over = false;
            while !over {
                over = writer.is_finished();
                for page in vm.dirty_log(id).unwrap().iter() {
                    copy[page as usize] = memory.read((page + 1) * PAGE - 1, 1)[0];
                }
            }
        });
        assert!(copy.iter().all(|byte| *byte == round), "round {round}");
    }
}

/// Two vCPUs at instructions that KVM can't decode: each is told to try again,
/// whoever of them mapped the region.
#[test]
fn nobody_who_could_not_be_decoded_is_left_behind() {
    let memory = Memory::new(1);
    let (vm, _) = open(u64::MAX);
    let exits: Vec<_> = (0..READERS).map(|_| vm.deferred(0).unwrap()).collect();
    for _ in 0..200 {
        let id = map_now(&vm, device(0, PAGE, memory.hva()).deferrable());
        thread::scope(|scope| {
            for exits in exits.iter().map(Clone::clone) {
                let vm = &vm;
                scope.spawn(move || {
                    let retry = vm.undecoded(&exits).unwrap();
                    assert_eq!(retry, Retry::Reenter);
                });
            }
        });
        unmap_now(&vm, id);
    }
}
