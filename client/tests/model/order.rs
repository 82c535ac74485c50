//! The order of a VM's start: what is said of it, and when.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use crate::common::told::{Call, Told};
use crate::common::{HVA, PAGE, ram};
use kvm_memslots::backend::{EventModel, Irqchip};
use kvm_memslots::device::{Bus, Device, Doorbell};
use kvm_memslots::{Access, Backing, Builder, Changes, Errno, RegionSpec, Vm, at};

/// Counts warnings about the order, by the call that they name.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    fn of(&self, work: impl FnOnce()) -> Vec<String> {
        keep_callsites_on();
        tracing::subscriber::with_default(self.clone(), work);
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// Where a process has one subscriber, a thread without one that comes to a callsite
/// first switches that off for all: `tracing` asks that thread's. Of two it asks both.
fn keep_callsites_on() {
    static TWO: OnceLock<[tracing::Dispatch; 2]> = OnceLock::new();
    TWO.get_or_init(|| [(), ()].map(|()| tracing::Dispatch::new(Warnings::default())));
    // What was switched off before that.
    tracing::callsite::rebuild_interest_cache();
}

impl tracing::field::Visit for Warnings {
    fn record_debug(&mut self, _: &tracing::field::Field, _: &dyn std::fmt::Debug) {}

    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        if field.name() == "call" {
            self.0.lock().unwrap().push(value.to_owned());
        }
    }
}

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut self.clone());
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// Its memslot calls take as long as one behind a normal grace period.
fn slow_vm(builder: Builder, irqchip: Irqchip) -> Vm {
    let slow = Told::new(|call| {
        if call == Call::Change {
            std::thread::sleep(Duration::from_millis(3));
        }
    });
    builder.open_on(Arc::new(slow), Arc::new(EventModel::new(irqchip))).unwrap()
}

/// Maps `pages`, two pages each and none beside another, in one set.
fn map(vm: &Vm, pages: &[u64]) {
    let mut changes = Changes::new();
    for page in pages {
        changes.map(ram(*page, 1));
    }
    vm.apply(changes).unwrap();
}

fn attach(vm: &Vm, changes: Changes, deferred: bool) {
    let mut changes = changes;
    let doorbell = Doorbell::at(Bus::Mmio, 0xd000_0000).len(2);
    let device = Device::new("net").ioeventfd(doorbell, 5);
    changes.attach(if deferred { device.defer_ioeventfds() } else { device });
    vm.apply(changes).unwrap();
}

#[test]
fn an_irqchip_before_memory_is_said_once() {
    for pages in [&[0][..], &[0, 8]] {
        let warned = Warnings::default().of(|| {
            let vm = slow_vm(Vm::builder(), Irqchip::Full);
            map(&vm, pages);
            map(&vm, &[20]);
            attach(&vm, Changes::new(), false);
            map(&vm, &[22]);
        });
        assert_eq!(warned, ["KVM_CREATE_IRQCHIP"], "{pages:?}");
    }
}

#[test]
fn what_is_switched_off_says_nothing() {
    let warned = Warnings::default().of(|| {
        let vm = slow_vm(Vm::builder().order_check(false), Irqchip::Full);
        map(&vm, &[0]);
        attach(&vm, Changes::new(), false);
        map(&vm, &[4]);
    });
    assert_eq!(warned, [""; 0]);
}

#[test]
fn without_an_irqchip_on_the_bus_nothing_is_said_however_slow() {
    for irqchip in [Irqchip::None, Irqchip::Split] {
        let warned = Warnings::default().of(|| {
            let vm = slow_vm(Vm::builder(), irqchip);
            (0..4).for_each(|page| map(&vm, &[page * 8]));
        });
        assert_eq!(warned, [""; 0], "{irqchip:?}");
    }
}

#[test]
fn one_set_and_deferred_ioeventfds_are_in_order() {
    let warned = Warnings::default().of(|| {
        let vm = slow_vm(Vm::builder(), Irqchip::Split);
        let mut together = Changes::new();
        together.map(ram(0, 2));
        attach(&vm, together, true);
        map(&vm, &[8]);
        let mut last = Changes::new();
        last.map(ram(16, 1));
        last.assign_deferred();
        vm.apply(last).unwrap();
    });
    assert_eq!(warned, [""; 0]);
}

#[test]
fn memory_in_a_hurry_after_ioeventfds_is_said_once() {
    // On a machine that stops this thread for a tenth of a second, nothing is in
    // flight any more, and nothing is said: another try.
    let hurried = || {
        Warnings::default().of(|| {
            let vm = slow_vm(Vm::builder(), Irqchip::Split);
            attach(&vm, Changes::new(), false);
            map(&vm, &[0]);
            map(&vm, &[8]);
        })
    };
    assert!((0..50).any(|_| hurried() == ["KVM_IOEVENTFD"]));
}

/// On KVM, in either order: blamed is what came early, if it was slow.
#[cfg(all(target_arch = "x86_64", feature = "kvm-ioctls"))]
#[test]
fn on_kvm_the_order_decides() {
    use std::io::Write;

    use kvm_memslots::vm_fd;

    let Ok(kvm) = kvm_ioctls::Kvm::new() else {
        let _ = writeln!(std::io::stderr(), "SKIPPED on_kvm_the_order_decides: no /dev/kvm");
        return;
    };
    for irqchip_first in [true, false] {
        let fd = kvm.create_vm().unwrap();
        if irqchip_first {
            fd.create_irq_chip().unwrap();
        }
        let mut took = Duration::ZERO;
        let warned = Warnings::default().of(|| {
            let vm = Vm::builder().open(vm_fd(&fd)).unwrap();
            let mut changes = Changes::new();
            // SAFETY: nothing of this process is there, and no vCPU runs.
            let memory = unsafe { Backing::borrowed(HVA, PAGE, Access::ReadWrite) };
            changes.map(RegionSpec::ram(at(0, PAGE), memory));
            took = vm.apply(changes).unwrap().elapsed;
        });
        let slow = took >= Duration::from_micros(1100);
        let expected: &[&str] = if irqchip_first && slow { &["KVM_CREATE_IRQCHIP"] } else { &[] };
        assert_eq!(warned, expected, "irqchip first: {irqchip_first}, {took:?}");
    }
}

/// What is asked for comes to pass where the kernel has the quirk, and bits that
/// it does not have are refused.
#[cfg(all(target_arch = "x86_64", feature = "kvm-ioctls"))]
#[test]
fn the_slot_zap_quirk_is_disabled_where_there_is_one() {
    use std::io::Write;

    use kvm_memslots::backend::{Kvm, KvmOptions};
    use kvm_memslots::{ErrorKind, vm_fd};

    let test = "the_slot_zap_quirk_is_disabled_where_there_is_one";
    let Ok(kvm) = kvm_ioctls::Kvm::new() else {
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: no /dev/kvm");
        return;
    };
    let fd = kvm.create_vm().unwrap();
    let known = Kvm::open(vm_fd(&fd), KvmOptions::default()).unwrap().quirks();
    assert!(!Vm::open(vm_fd(&fd)).unwrap().zaps_slots_only());
    let has_quirk = known & 1 << 7 != 0;
    let vm = Vm::builder().disable_slot_zap_all(0).open(vm_fd(&fd)).unwrap();
    assert_eq!(vm.zaps_slots_only(), has_quirk, "{known:#x}");
    drop(vm);
    if !has_quirk {
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: no KVM_X86_QUIRK_SLOT_ZAP_ALL");
        return;
    }
    let refused = Vm::builder().disable_slot_zap_all(1 << 62).open(vm_fd(&fd)).unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::Open(_)), "{refused}");
    assert_eq!(refused.errno(), Errno::EINVAL);
    // The VM is free for another try.
    Vm::open(vm_fd(&fd)).unwrap();
}
