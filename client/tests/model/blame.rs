//! What KVM refuses: the error names the region that is to blame, also inside a
//! slot that several share, and nothing has changed.

use std::sync::{Arc, Mutex};

use crate::common::{
    self, Gate, HVA, PAGE, Paper, batched, changes, map_all, memory, on_model, ram,
};
use kvm_memslots::backend::model::memory::{Call, Fault, ModelConfig};
use kvm_memslots::backend::{MemoryCalls, MemoryModel, Op};
use kvm_memslots::{
    Backing, Changes, Errno, ErrorKind, GateError, HolePolicy, Kind, Limits, Mapping, Observer,
    Range, Region, RegionId, RegionSpec, Slot, VcpuGate, Vm, at,
};

/// How the VM and KVM look.
fn look(vm: &Vm, model: &MemoryModel) -> (Vec<Region>, Vec<Slot>) {
    (vm.regions(), model.slots(0))
}

/// A slot made behind the library's back.
fn foreign(model: &MemoryModel, id: u16, page: u64) {
    let range = Range::new(page * PAGE, PAGE).unwrap();
    let slot = Slot { id, mapping: Mapping::new(range, HVA, Kind::Ram).unwrap() };
    // SAFETY: the model maps nothing.
    unsafe { model.change(0, &Op::Create(slot)) }.unwrap();
}

#[test]
fn what_kvm_refuses() {
    for batch in [None, Some(100)] {
        let (vm, model) = common::vm(batched(Limits::x86(), batch));
        map_all(&vm, [ram(16, 16)]);
        foreign(&model, 500, 200);
        let before = look(&vm, &model);
        let mut c = Changes::new();
        c.map(ram(100, 1).label("fine"));
        c.map(ram(200, 1).label("taken"));
        let error = vm.apply(c).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error.kind(), ErrorKind::Refused { .. }), "{text}");
        assert_eq!((error.errno(), error.change()), (Errno::EEXIST, Some(1)), "{text}");
        for part in ["\"taken\"", "0xc8000", "EEXIST", "reserve_slots"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(look(&vm, &model), before);

        for errno in [Errno::EINTR, Errno::ENOMEM, Errno::EINVAL, Errno::EIO] {
            model.inject(Fault::every(errno));
            let error = vm.apply(changes(|c| _ = c.map(ram(100, 1)))).unwrap_err();
            assert!(error.to_string().contains(&errno.to_string()), "{error}");
            assert_eq!(error.errno(), errno);
            model.clear_faults();
            assert_eq!(look(&vm, &model), before);
        }
    }
}

type Make = fn(&mut Changes, RegionId);

/// A change that comes to one call is tried once, as in a loop: what KVM says to
/// that is the error. A set makes the calls up to the one that is refused, takes
/// those back that were carried out, and asks nothing where no slot is shared.
#[test]
fn what_is_refused_is_tried_once() {
    let one: [(&str, Make); 5] = [
        ("map", |c, _| _ = c.map(ram(100, 1).label("main"))),
        ("unmap", |c, id| c.unmap(id)),
        ("log", |c, id| c.set_log_dirty(id, true)),
        ("stop to log", |c, id| c.set_log_dirty(id, false)),
        ("move", |c, id| c.move_to(id, 100 * PAGE)),
    ];
    let refused = |vm: &Vm, model: &MemoryModel, c: Changes, k: u64| {
        model.reset_counts();
        model.inject(Fault::nth(k, Errno::ENOMEM).only(Call::SetRegion));
        let error = vm.apply(c).unwrap_err();
        model.clear_faults();
        let counts = model.counts();
        (error, counts.ioctls, counts.refused)
    };
    for (name, make) in one {
        for logged in [false, true] {
            let (vm, model) = common::vm(Limits::x86());
            let spec = ram(16, 16).label("main");
            let [id] = map_all(&vm, [if logged { spec.log_dirty() } else { spec }]);
            if (name == "log" && logged) || (name == "stop to log" && !logged) {
                continue;
            }
            let before = look(&vm, &model);
            let (error, ioctls, refused) = refused(&vm, &model, changes(|c| make(c, id)), 1);
            assert_eq!((ioctls, refused), (1, 1), "{name}: {error}");
            assert!(matches!(error.kind(), ErrorKind::Refused { .. }), "{name}: {error}");
            assert!(error.to_string().contains("\"main\""), "{name}: {error}");
            assert_eq!((error.errno(), error.change()), (Errno::ENOMEM, Some(0)), "{name}");
            assert_eq!(look(&vm, &model), before, "{name}");
        }
    }
    for k in 1..=5 {
        let (vm, model) = common::vm(Limits::x86());
        let c = changes(|c| (0..5).for_each(|n| _ = c.map(ram(n, 1))));
        let (error, ioctls, refused) = refused(&vm, &model, c, k);
        assert_eq!((ioctls, refused), (2 * k - 1, 1), "{error}");
        assert_eq!(error.change(), Some(k as usize - 1));
        assert_eq!(model.slot_count(0), 0);
    }
}

/// Regions that share a slot: each is named when it is the one in the way, with
/// its change, whatever the number of changes that are fine.
#[test]
fn a_region_inside_a_slot_is_found_by_asking() {
    for batch in [None, Some(100)] {
        for bad in 0..9 {
            let (vm, model) = common::vm(batched(Limits::x86(), batch));
            foreign(&model, 500, 100 + bad);
            let before = look(&vm, &model);
            let mut c = Changes::new();
            let ids: Vec<_> = (0..9)
                .map(|n| c.map(ram(100 + n, 1).permanent().label(format!("part {n}")).tag(n)))
                .collect();
            let error = vm.apply(c).unwrap_err();
            let region = error.region().unwrap();
            assert_eq!((region.id, region.tag), (ids[bad as usize], Some(bad)), "{error}");
            assert_eq!(error.change(), Some(bad as usize), "{error}");
            let ErrorKind::Refused { range, errno, .. } = error.kind() else { panic!("{error}") };
            assert_eq!((range.gpa(), range.size()), ((100 + bad) * PAGE, PAGE));
            assert_eq!(*errno, Errno::EEXIST);
            assert_eq!(look(&vm, &model), before, "what was asked is not there");
            assert_eq!(vm.slot_usage(0).unwrap().used, 0);
        }
    }
}

/// An address beyond what the VM has, in the last of those that share a slot.
#[test]
fn the_first_region_beyond_the_guests_addresses_is_named() {
    let config = ModelConfig::new(Limits::x86()).guest_physical_bits(24);
    let (vm, _) = on_model(Vm::builder(), MemoryModel::with_config(config));
    let mut c = Changes::new();
    let pages = (1 << 24) / PAGE;
    for n in 0..4 {
        c.map(ram(pages - 2 + n, 1).permanent().tag(n));
    }
    let error = vm.apply(c).unwrap_err();
    assert_eq!(error.region().unwrap().tag, Some(2), "{error}");
    assert_eq!((error.errno(), error.change()), (Errno::EINVAL, Some(2)));
    assert!(error.to_string().contains("guest physical address bits"), "{error}");
}

/// What stays of a region that was split is in the way of what goes.
#[test]
fn a_hole_names_the_part_that_stays() {
    let model = MemoryModel::new(Limits::x86());
    let (vm, _) = on_model(Vm::builder().holes(HolePolicy::Refuse), model);
    let [low] = map_all(&vm, [ram(0, 4).label("RAM")]);
    let mut c = Changes::new();
    let high = c.split(low, 2 * PAGE);
    vm.apply(c).unwrap();
    let error = vm.apply(changes(|c| c.unmap(high))).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Hole { .. }), "{error}");
    assert_eq!(error.region().map(|region| region.id), Some(low), "{error}");
}

/// `EINVAL` has many reasons: what is said fits what was asked.
#[test]
fn an_address_and_a_guest_memfd_are_named_as_reasons() {
    let config = ModelConfig::new(Limits::x86().with_guest_memfd()).guest_physical_bits(24);
    let (vm, model) = on_model(Vm::builder(), MemoryModel::with_config(config));
    model.add_guest_memfd(7, 4 * PAGE);
    let [id] = map_all(&vm, [ram(0, 1)]);
    let private = |page: u64, offset: u64| {
        let backing = memory(HVA + page * PAGE, PAGE).with_guest_memfd(7, offset * PAGE);
        changes(|c| _ = c.map(RegionSpec::ram(at(page * PAGE, PAGE), backing)))
    };
    vm.apply(private(4, 0)).unwrap();
    for (set, says) in [
        (changes(|c| c.move_to(id, 1 << 24)), "guest physical address bits"),
        (private(8, 4), "ends before"),
        (private(8, 0), "has this part in a slot already"),
    ] {
        let error = vm.apply(set).unwrap_err();
        assert_eq!(error.errno(), Errno::EINVAL, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
}

/// Asking must not make matters worse: a question that can't be taken back is
/// settled with the next set of changes.
#[test]
fn a_question_that_fails_leaves_nothing_behind() {
    let paper = Arc::new(Paper(HVA, 8 * PAGE));
    for k in 2..8 {
        let (vm, model) = common::vm(Limits::x86());
        foreign(&model, 500, 3);
        let foreign_slot = model.slots(0);
        let mut c = Changes::new();
        for n in 0..8 {
            let backing = Backing::owned(paper.clone(), n * PAGE);
            c.map(RegionSpec::ram(at(n * PAGE, PAGE), backing).permanent());
        }
        model.inject(Fault::from_nth(k, Errno::ENOMEM).only(Call::SetRegion));
        let error = vm.apply(c).unwrap_err();
        assert_eq!(error.errno(), Errno::EEXIST, "{error}");
        let live = model.slots(0).len() > 1;
        assert!(!live || Arc::strong_count(&paper) > 1, "KVM maps it: it is held");
        model.clear_faults();
        vm.apply(Changes::new()).unwrap();
        assert_eq!(model.slots(0), foreign_slot);
        assert_eq!(Arc::strong_count(&paper), 1);
    }
}

/// KVM's own slots are known by name.
#[test]
#[cfg(target_arch = "x86_64")]
fn slots_of_kvms_own() {
    let own = [
        (0xfee0_0000, 1, "APIC access page"),
        (0xfffb_c000, 1, "identity map (KVM_SET_IDENTITY_MAP_ADDR)"),
        (0xfffb_d000, 3, "TSS (KVM_SET_TSS_ADDR)"),
        (0xfeff_c000, 1, "identity map (KVM_SET_IDENTITY_MAP_ADDR)"),
        (0xfeff_d000, 3, "TSS (KVM_SET_TSS_ADDR)"),
    ];
    for (gpa, pages, name) in own {
        for batch in [None, Some(16)] {
            let range = Range::new(gpa, pages * PAGE).unwrap();
            let config = ModelConfig::new(batched(Limits::x86(), batch)).internal_slot(range);
            let (vm, model) = on_model(Vm::builder(), MemoryModel::with_config(config));
            let mut c = Changes::new();
            let first = gpa / PAGE - 2;
            for n in 0..2 {
                c.map(ram(first + n, 1).permanent().tag(n));
            }
            c.map(ram(first + 2, pages).permanent().label("in the way").tag(2));
            c.map(ram(first + 2 + pages, 1).permanent().tag(3));
            let error = vm.apply(c).unwrap_err();
            let ErrorKind::Refused { in_the_way, .. } = error.kind() else { panic!("{error}") };
            assert!(in_the_way.unwrap().contains(name), "{error}");
            assert!(error.to_string().contains(name), "{error}");
            assert!(error.to_string().contains("\"in the way\""), "{error}");
            assert_eq!(error.change(), Some(2), "{error}");
            assert!(model.slots(0).is_empty());
        }
    }
}

struct NoGate;

impl VcpuGate for NoGate {
    fn pause(&self) -> Result<(), GateError> {
        Err(GateError::new("vcpu 3 does not answer").with_errno(Errno::EAGAIN))
    }

    fn resume(&self) {
        unreachable!("nothing was paused");
    }
}

#[test]
fn holes_and_gates() {
    let (vm, model) =
        on_model(Vm::builder().holes(HolePolicy::Refuse), MemoryModel::new(Limits::x86()));
    let [id] = map_all(&vm, [ram(16, 16).label("main")]);
    let before = look(&vm, &model);
    let shrink = || changes(|c| c.resize(id, 4 * PAGE));
    for error in [vm.preview(&shrink()).unwrap_err(), vm.apply(shrink()).unwrap_err()] {
        let text = error.to_string();
        let ErrorKind::Hole { range, count: 1, named: true, .. } = error.kind() else {
            panic!("{text}");
        };
        assert_eq!((range.gpa(), range.end()), (0x10000, 0x14000));
        for part in ["[0x10000, 0x14000)", "\"main\"", "HolePolicy"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!((error.errno(), look(&vm, &model)), (Errno::EPERM, before.clone()));
    }

    vm.set_hole_policy(HolePolicy::Gate(Arc::new(NoGate))).unwrap();
    assert_eq!(vm.preview(&shrink()).unwrap().holes.len(), 1);
    let error = vm.apply(shrink()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Gate(_)), "{error}");
    assert!(error.to_string().contains("vcpu 3 does not answer"), "{error}");
    assert_eq!((error.errno(), look(&vm, &model)), (Errno::EAGAIN, before.clone()));

    // A call that is refused while vCPUs are paused: they run again.
    let gate = Arc::new(Gate::default());
    vm.set_hole_policy(HolePolicy::Gate(gate.clone())).unwrap();
    for k in [1, 2] {
        model.inject(Fault::nth(k, Errno::ENOMEM));
        assert_eq!(vm.apply(shrink()).unwrap_err().errno(), Errno::ENOMEM);
        assert_eq!((u64::from(gate.pauses()), look(&vm, &model)), (k, before.clone()));
    }
    assert!(vm.apply(shrink()).unwrap().vcpus_paused);
}

/// Notes what it hears, and refuses when told to.
#[derive(Default)]
struct Listener {
    heard: Mutex<Vec<(&'static str, u64)>>,
    refuses: Mutex<bool>,
}

impl Listener {
    fn take(&self) -> Vec<(&'static str, u64)> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }

    fn hear(&self, what: &'static str, region: &Region) {
        self.heard.lock().unwrap().push((what, region.tag.unwrap()));
    }
}

impl Observer for Listener {
    fn check(
        &self,
        going: &[Region],
        coming: &[Region],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        for region in going {
            self.hear("goes", region);
        }
        for region in coming {
            self.hear("comes", region);
        }
        if *self.refuses.lock().unwrap() { Err("no DMA map left".into()) } else { Ok(()) }
    }

    fn unmapping(&self, region: &Region) {
        self.hear("unmapping", region);
    }

    fn mapped(&self, region: &Region) {
        self.hear("mapped", region);
    }
}

#[test]
fn observers_hear_and_refuse() {
    let listeners = [Arc::new(Listener::default()), Arc::new(Listener::default())];
    let mut builder = Vm::builder();
    for listener in &listeners {
        builder = builder.observer(listener.clone());
    }
    let (vm, model) = on_model(builder, MemoryModel::new(Limits::x86()));
    let [id] = map_all(&vm, [ram(0, 1).tag(1)]);
    let heard = || listeners.each_ref().map(|listener| listener.take());
    let all = [("comes", 1), ("mapped", 1)];
    assert_eq!(heard(), [all, all]);
    let swap = || {
        let mut c = Changes::new();
        c.unmap(id);
        c.map(RegionSpec::ram(at(0, PAGE), memory(HVA + PAGE, PAGE)).tag(2));
        c
    };
    let before = look(&vm, &model);

    // The first that refuses is the end of it.
    *listeners[0].refuses.lock().unwrap() = true;
    let error = vm.apply(swap()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Observer(_)), "{error}");
    assert!(error.to_string().contains("no DMA map left"), "{error}");
    assert_eq!((error.errno(), look(&vm, &model)), (Errno::ECANCELED, before.clone()));
    assert_eq!(heard(), [vec![("goes", 1), ("comes", 2)], vec![]]);
    *listeners[0].refuses.lock().unwrap() = false;

    // KVM refuses: what goes is there again.
    model.inject(Fault::nth(2, Errno::ENOMEM));
    assert_eq!(vm.apply(swap()).unwrap_err().errno(), Errno::ENOMEM);
    assert_eq!(look(&vm, &model), before);
    let all = [("goes", 1), ("comes", 2), ("unmapping", 1), ("mapped", 1)];
    assert_eq!(heard(), [all, all]);

    vm.apply(swap()).unwrap();
    let all = [("goes", 1), ("comes", 2), ("unmapping", 1), ("mapped", 2)];
    assert_eq!(heard(), [all, all]);
    // A log is nobody else's business.
    let there = vm.region_at(0, 0).unwrap().id;
    vm.apply(changes(|c| c.set_log_dirty(there, true))).unwrap();
    assert_eq!(heard(), [vec![], vec![]]);
}
