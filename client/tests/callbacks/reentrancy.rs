//! Callbacks look regions up, and may not change them.

use std::sync::{Arc, OnceLock, Weak};

use kvm_memslots::backend::{EventModel, Irqchip, MemoryModel};
use kvm_memslots::{
    Changes, ErrorKind, GateError, HolePolicy, Limits, Observer, Region, VcpuGate, Vm,
};

use crate::rig::{PAGE, Script, locked, ram};

#[derive(Default)]
struct Caller {
    vm: OnceLock<Weak<Vm>>,
    script: Script,
}

impl Caller {
    fn calls_back(&self, from: &str) {
        self.script.called(from);
        let Some(vm) = self.vm.get().and_then(Weak::upgrade) else { return };
        let refused = |kind: &ErrorKind| matches!(kind, ErrorKind::Reentrant);
        let error = vm.apply(Changes::new()).unwrap_err();
        assert!(refused(error.kind()), "{from}: {error}");
        let error = vm.preview(&Changes::new()).unwrap_err();
        assert!(refused(error.kind()), "{from}: {error}");
        assert!(refused(vm.close().unwrap_err().kind()));
        assert!(refused(vm.set_hole_policy(HolePolicy::Refuse).unwrap_err().kind()));
        // The first page is there throughout.
        let region = vm.region_at(0, 0).unwrap();
        assert_eq!(vm.region(region.id).unwrap(), region);
        assert_eq!(vm.region_at_hva(0, region.hva).unwrap().0, region);
        let slot = vm.slots(0)[0];
        assert_eq!(vm.region_at_slot(0, slot.id, 0).unwrap().0, region);
        assert!(!vm.regions().is_empty() && vm.devices().is_empty());
    }
}

impl VcpuGate for Caller {
    fn pause(&self) -> Result<(), GateError> {
        self.calls_back("pause");
        Ok(())
    }

    fn resume(&self) {
        self.calls_back("resume");
    }
}

impl Observer for Caller {
    fn check(
        &self,
        _: &[Region],
        _: &[Region],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.calls_back("check");
        Ok(())
    }

    fn unmapping(&self, _: &Region) {
        self.calls_back("unmapping");
    }

    fn mapped(&self, _: &Region) {
        self.calls_back("mapped");
    }
}

#[test]
fn callbacks_look_up_and_do_not_apply() {
    let caller = Arc::<Caller>::default();
    let harvest = Arc::clone(&caller);
    let vm = Vm::builder()
        .gate(Arc::clone(&caller) as _)
        .observer(Arc::clone(&caller) as _)
        .harvest(move |vm| {
            harvest.calls_back("harvest");
            assert!(matches!(vm.apply(Changes::new()).unwrap_err().kind(), ErrorKind::Reentrant));
        })
        .open_on(
            Arc::new(MemoryModel::new(Limits::x86())),
            Arc::new(EventModel::new(Irqchip::Split)),
        )
        .unwrap();
    let vm = Arc::new(vm);
    let mut c = Changes::new();
    c.map(ram(0, PAGE));
    let logged = c.map(ram(4 * PAGE, 2 * PAGE).log_dirty());
    vm.apply(c).unwrap();
    caller.vm.set(Arc::downgrade(&vm)).unwrap();
    locked(&caller.script.heard).clear();
    let mut c = Changes::new();
    c.set_read_only(logged, true);
    vm.apply(c).unwrap();
    let heard = locked(&caller.script.heard).clone();
    let all = ["check", "pause", "harvest", "unmapping", "resume", "mapped"];
    assert_eq!(heard, all, "each was called, in this order");
}
