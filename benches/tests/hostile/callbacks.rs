//! Callbacks that panic, refuse or call back, while a guest runs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use kvm_memslots::{Changes, ErrorKind, GateError, Observer, Region, VcpuGate, Vm};
use kvm_memslots_kit::guest::Outcome;

use crate::{Owned, Rig, ram};

/// Where something happens.
const WHERE: [&str; 5] = ["check", "pause", "unmapping", "resume", "mapped"];

/// Calls back each time, and at one place panics.
#[derive(Default)]
struct Hostile {
    vm: OnceLock<Weak<Vm>>,
    panics: AtomicUsize,
    reentrant: AtomicU32,
}

impl Hostile {
    fn at(&self, place: &str) {
        if let Some(vm) = self.vm.get().and_then(Weak::upgrade) {
            let _ = (vm.regions(), vm.slots(0), vm.event_state());
            for refused in [vm.apply(Changes::new()), vm.close()] {
                if matches!(refused.unwrap_err().kind(), ErrorKind::Reentrant) {
                    self.reentrant.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        let n = self.panics.load(Ordering::Relaxed);
        if n > 0 && WHERE[n - 1] == place {
            std::panic::resume_unwind(Box::new("hostile"));
        }
    }
}

impl VcpuGate for Hostile {
    fn pause(&self) -> Result<(), GateError> {
        self.at("pause");
        Ok(())
    }

    fn resume(&self) {
        self.at("resume");
    }
}

impl Observer for Hostile {
    fn check(
        &self,
        _: &[Region],
        _: &[Region],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.at("check");
        Ok(())
    }

    fn unmapping(&self, _: &Region) {
        self.at("unmapping");
    }

    fn mapped(&self, _: &Region) {
        self.at("mapped");
    }
}

/// Whatever panics, the guest finds what the library says that there is: what was
/// asked for, or what was there before.
#[test]
fn callbacks_panic_and_call_back_while_a_guest_looks() {
    let test = "callbacks_panic_and_call_back_while_a_guest_looks";
    for place in 0..=WHERE.len() {
        let hostile = Arc::<Hostile>::default();
        let Some(rig) = Rig::with(test, |builder| {
            builder.gate(Arc::clone(&hostile) as _).observer(Arc::clone(&hostile) as _)
        }) else {
            return;
        };
        let Rig { mut prober, vm, fd } = rig;
        let vm = Arc::new(vm);
        let memory = [Owned::numbered(4, 1), Owned::numbered(4, 11), Owned::numbered(4, 21)];
        let mut c = Changes::new();
        let replaced = c.map(ram(0, 4, memory[0].backing()).log_dirty());
        let gone = c.map(ram(8, 4, memory[1].backing()));
        vm.apply(c).unwrap();
        hostile.vm.set(Arc::downgrade(&vm)).unwrap();
        hostile.panics.store(place, Ordering::Relaxed);
        let mut c = Changes::new();
        c.replace(replaced, memory[2].backing());
        c.unmap(gone);
        let done = catch_unwind(AssertUnwindSafe(|| vm.apply(c)));
        hostile.panics.store(0, Ordering::Relaxed);
        assert_eq!(done.is_err(), place > 0, "{place}: {done:?}");
        let called = hostile.reentrant.load(Ordering::Relaxed);
        assert!(called > 0, "{place}: nobody called back");
        let read = |prober: &mut kvm_memslots_kit::guest::Prober, page| {
            let access = kvm_memslots_kit::guest::Access::Read(crate::gpa(page));
            prober.probe(&[access]).unwrap()[0]
        };
        let found = [read(&mut prober, 0), read(&mut prober, 8)];
        let is_there = vm.regions().iter().any(|region| region.id == gone);
        let expected = if is_there {
            [Outcome::Value(1), Outcome::Value(11)]
        } else {
            [Outcome::Value(21), Outcome::Mmio]
        };
        assert_eq!(found, expected, "{place}");
        // Nothing has happened yet where the first is asked.
        assert_eq!(is_there, ["check", "pause"].contains(&WHERE[place.max(1) - 1]) && place > 0);
        vm.dirty_log(replaced).unwrap();
        vm.close().unwrap();
        assert_eq!([read(&mut prober, 0), read(&mut prober, 8)], [Outcome::Mmio; 2]);
        drop((vm, fd));
    }
}
