//! Who uses `log`, and has no `tracing` subscriber, hears of warnings: a program of its
//! own, as both have one logger a process.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvm_memslots::backend::{EventModel, Irqchip, MemoryModel};
use kvm_memslots::{Access, Backing, Changes, Limits, RegionId, RegionSpec, Vm, at};

use told::Told;

#[allow(dead_code)]
#[path = "common/told.rs"]
mod told;

static HEARD: Mutex<Vec<(log::Level, String, String)>> = Mutex::new(Vec::new());

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let said = (record.level(), record.target().to_owned(), record.args().to_string());
        HEARD.lock().unwrap().push(said);
    }

    fn flush(&self) {}
}

/// What was said since the last time.
fn heard() -> Vec<(log::Level, String, String)> {
    std::mem::take(&mut *HEARD.lock().unwrap())
}

fn refused(vm: &Vm) {
    let mut changes = Changes::new();
    changes.unmap(RegionId::new());
    vm.apply(changes).unwrap_err();
}

fn map(vm: &Vm) {
    let mut changes = Changes::new();
    // SAFETY: a model touches no memory.
    let memory = unsafe { Backing::borrowed(0x7000_0000_0000, 0x1000, Access::ReadWrite) };
    changes.map(RegionSpec::ram(at(0, 0x1000), memory));
    vm.apply(changes).unwrap();
}

#[test]
fn warnings_are_heard_through_log() {
    log::set_logger(&Logger).unwrap();
    let open = || {
        let (memory, events) = (MemoryModel::new(Limits::x86()), EventModel::new(Irqchip::Split));
        Vm::builder().open_on(Arc::new(memory), Arc::new(events)).unwrap()
    };
    // Nobody listens.
    refused(&open());
    assert_eq!(heard(), []);

    log::set_max_level(log::LevelFilter::Warn);
    let vm = open();
    map(&vm);
    assert_eq!(heard(), [], "what is well is no warning");
    refused(&vm);
    let said = heard();
    let [(log::Level::Warn, target, text)] = &said[..] else { panic!("{said:?}") };
    assert!(target.starts_with("kvm_memslots"), "{target}");
    assert!(text.contains("not applied") && text.contains("region"), "{text}");

    // A start that pays for its order: memory that waits for the irqchip.
    let slow = Told::new(|_| std::thread::sleep(Duration::from_millis(5)));
    let events = EventModel::new(Irqchip::Full);
    map(&Vm::builder().open_on(Arc::new(slow), Arc::new(events)).unwrap());
    let said = heard();
    let [(log::Level::Warn, _, text)] = &said[..] else { panic!("{said:?}") };
    assert!(text.contains("KVM_CREATE_IRQCHIP"), "{text}");

    log::set_max_level(log::LevelFilter::Debug);
    map(&open());
    let levels: Vec<_> = heard().into_iter().map(|(level, ..)| level).collect();
    assert_eq!(levels, [log::Level::Debug; 2], "opened, applied");
}
