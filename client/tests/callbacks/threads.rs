//! Lookups and log reads on several threads, while another one applies changes,
//! through an `Arc<Vm>` in a trait object.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use kvm_memslots::backend::{EventModel, Irqchip};
use kvm_memslots::{Changes, DirtyBitmap, ErrorKind, Limits, RegionId, Vm};

use crate::rig::{PAGE, Script, locked, open, ram};
use crate::told::{Call, Told};

trait Hotplug: Send + Sync {
    fn plug(&self, gpa: u64) -> RegionId;
    fn unplug(&self, id: RegionId);
}

struct Manager(Arc<Vm>);

impl Hotplug for Manager {
    fn plug(&self, gpa: u64) -> RegionId {
        let mut c = Changes::new();
        let id = c.map(ram(gpa, 4 * PAGE).log_dirty());
        self.0.apply(c).unwrap();
        id
    }

    fn unplug(&self, id: RegionId) {
        let mut c = Changes::new();
        c.unmap(id);
        let report = self.0.apply(c).unwrap();
        assert_eq!(report.last_dirty.len(), 1);
    }
}

const ROUNDS: u64 = 300;

/// Ends the process if it is not done in a long time: a deadlock.
struct Watchdog(Arc<AtomicBool>);

impl Watchdog {
    fn new() -> Self {
        let done = Arc::<AtomicBool>::default();
        let watched = Arc::clone(&done);
        std::thread::spawn(move || {
            for _ in 0..3000 {
                std::thread::sleep(Duration::from_millis(100));
                if watched.load(Ordering::Relaxed) {
                    return;
                }
            }
            eprintln!("deadlock");
            std::process::abort();
        });
        Self(done)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn nobody_waits_for_ever() {
    let _watchdog = Watchdog::new();
    for limits in [Limits::x86(), Limits::x86().with_batch(64)] {
        let (vm, model, _) = open(limits, &Arc::<Script>::default(), true);
        let vm = Arc::new(vm);
        let mut c = Changes::new();
        let stays = c.map(ram(0, 4 * PAGE).log_dirty().permanent());
        vm.apply(c).unwrap();
        let stop = AtomicBool::new(false);
        let looked = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        assert_eq!(vm.region_at(0, PAGE).map(|r| r.id), Some(stays));
                        let region = vm.region_at(0, 0).unwrap();
                        assert_eq!(vm.region_at_hva(0, region.hva).unwrap().0.id, stays);
                        looked.fetch_add(1, Ordering::Relaxed);
                        std::thread::yield_now();
                    }
                });
            }
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    vm.dirty_log(stays).unwrap();
                    for region in vm.regions() {
                        match vm.dirty_log(region.id) {
                            Ok(_) => {}
                            Err(error) => {
                                let gone = matches!(error.kind(), ErrorKind::UnknownRegion { .. });
                                assert!(gone, "{error}");
                            }
                        }
                    }
                    vm.dirty_logs().unwrap();
                    std::thread::yield_now();
                }
            });
            let changers: Vec<_> = (0..2)
                .map(|n| {
                    let manager: Box<dyn Hotplug> = Box::new(Manager(Arc::clone(&vm)));
                    scope.spawn(move || {
                        for round in 0..ROUNDS {
                            let id = manager.plug((8 + 8 * n + round % 2) * PAGE);
                            manager.unplug(id);
                        }
                    })
                })
                .collect();
            let results: Vec<_> =
                changers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
            while looked.load(Ordering::Relaxed) < 10 {
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
            results.into_iter().for_each(|result| result.unwrap());
        });
        assert_eq!(vm.slots(0), model.slots(0));
        assert_eq!(vm.regions().len(), 1);
    }
}

/// What others do while KVM is at a dirty log.
type Meanwhile = Box<dyn Fn() + Send>;

/// Where KVM takes its time for a log, other memory changes, and lookups see it.
#[test]
fn nobody_waits_for_a_log_but_who_changes_what_is_logged() {
    let _watchdog = Watchdog::new();
    let meanwhile = Arc::new(Mutex::<Option<Meanwhile>>::default());
    let at_a_log = Arc::clone(&meanwhile);
    let calls = Told::new(move |call| {
        if call == Call::Log {
            locked(&at_a_log).iter().for_each(|others| others());
        }
    });
    let events = Arc::new(EventModel::new(Irqchip::Split));
    let vm = Arc::new(Vm::builder().open_on(Arc::new(calls), events).unwrap());
    let mut c = Changes::new();
    let logged = c.map(ram(0, PAGE).log_dirty());
    vm.apply(c).unwrap();
    let next = AtomicU64::new(1);
    let (done, changed) = mpsc::channel();
    let others = Arc::clone(&vm);
    *locked(&meanwhile) = Some(Box::new(move || {
        let (vm, done) = (Arc::clone(&others), done.clone());
        let gpa = 2 * PAGE * next.fetch_add(1, Ordering::Relaxed);
        let other = std::thread::spawn(move || {
            let mut c = Changes::new();
            let id = c.map(ram(gpa, PAGE));
            vm.apply(c).unwrap();
            done.send(vm.region_at(0, gpa).map(|region| region.id) == Some(id)).unwrap();
        });
        other.join().unwrap();
    }));
    vm.dirty_log(logged).unwrap();
    vm.for_each_dirty_log(|_, _| {}).unwrap();
    vm.clear_dirty_log(logged, 0, &DirtyBitmap::new(1)).unwrap();
    *locked(&meanwhile) = None;
    assert_eq!(changed.iter().collect::<Vec<_>>(), [true; 3]);
}

/// Whatever is applied before it is gone when it returns, also what another thread is
/// applying while it is called.
#[test]
fn closing_waits_for_what_is_being_applied() {
    let _watchdog = Watchdog::new();
    for _ in 0..300 {
        let (entered, let_in) = mpsc::channel();
        let (let_go, go_on) = mpsc::channel::<()>();
        let go_on = Mutex::new(go_on);
        let told = Told::new(move |call| {
            if call == Call::Change && entered.send(()).is_ok() {
                // Hung up: it is not the first call.
                let _ = locked(&go_on).recv();
            }
        });
        let events = Arc::new(EventModel::new(Irqchip::Split));
        let vm = Vm::builder().open_on(Arc::new(told), events).unwrap();
        std::thread::scope(|scope| {
            let applied = scope.spawn(|| {
                let mut c = Changes::new();
                c.map(ram(0, PAGE));
                vm.apply(c).unwrap();
            });
            let_in.recv().unwrap();
            // In the middle of a call, and about to be waited for.
            let closed = scope.spawn(|| {
                drop(let_go);
                vm.close().unwrap()
            });
            applied.join().unwrap();
            assert_eq!(closed.join().unwrap().slots, 0);
        });
        assert_eq!(vm.regions(), []);
        assert_eq!(vm.slots(0), []);
    }
}
