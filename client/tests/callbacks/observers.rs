//! What observers hear, in which order, and what they may refuse.

use std::sync::{Arc, Mutex};

use kvm_memslots::backend::model::memory::{Call, Fault};
use kvm_memslots::backend::{EventModel, Irqchip, MemoryModel};
use kvm_memslots::{
    Backing, Changes, Errno, ErrorKind, FileRange, Limits, Observer, Region, RegionSpec, Vm, at,
};

use crate::rig::{HVA, Owned, PAGE, Script, locked, ram};

type Heard = Arc<Mutex<Vec<(&'static str, &'static str, Option<u64>)>>>;

struct Named {
    name: &'static str,
    heard: Heard,
    /// The tag that it does not want.
    refuses: Option<u64>,
    files: Mutex<Vec<Option<FileRange>>>,
}

impl Named {
    fn hear(&self, what: &'static str, tag: Option<u64>) {
        locked(&self.heard).push((self.name, what, tag));
    }
}

impl Observer for Named {
    fn check(
        &self,
        _: &[Region],
        coming: &[Region],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.hear("check", None);
        let unwanted = self.refuses.is_some() && coming.iter().any(|r| r.tag == self.refuses);
        if unwanted { Err("not that one".into()) } else { Ok(()) }
    }

    fn unmapping(&self, region: &Region) {
        self.hear("unmapping", region.tag);
    }

    fn mapped(&self, region: &Region) {
        self.hear("mapped", region.tag);
        locked(&self.files).push(region.file);
    }
}

fn named(name: &'static str, heard: &Heard, refuses: Option<u64>) -> Arc<Named> {
    Arc::new(Named { name, heard: Arc::clone(heard), refuses, files: Mutex::default() })
}

fn rig(refuses: Option<u64>) -> (Vm, MemoryModel, Heard, Arc<Named>) {
    let heard = Heard::default();
    let (vfio, vhost) = (named("vfio", &heard, None), named("vhost", &heard, refuses));
    let model = MemoryModel::new(Limits::x86());
    let builder = Vm::builder().observer(Arc::clone(&vfio) as _).observer(vhost as _);
    let events = Arc::new(EventModel::new(Irqchip::Split));
    let vm = builder.open_on(Arc::new(model.clone()), events).unwrap();
    (vm, model, heard, vfio)
}

fn take(heard: &Heard) -> Vec<(&'static str, &'static str, Option<u64>)> {
    std::mem::take(&mut *locked(heard))
}

const CHECKS: [(&str, &str, Option<u64>); 2] = [("vfio", "check", None), ("vhost", "check", None)];

fn both(what: &'static str, tag: u64) -> [(&'static str, &'static str, Option<u64>); 2] {
    [("vfio", what, Some(tag)), ("vhost", what, Some(tag))]
}

#[test]
fn observers_are_told_in_order() {
    let (vm, _, heard, _) = rig(None);
    let mut c = Changes::new();
    let id = c.map(ram(0, PAGE).tag(1));
    vm.apply(c).unwrap();
    assert_eq!(take(&heard), [CHECKS, both("mapped", 1)].concat());
    let mut c = Changes::new();
    c.move_to(id, 8 * PAGE);
    vm.apply(c).unwrap();
    let moved = [CHECKS, both("unmapping", 1), both("mapped", 1)];
    assert_eq!(take(&heard), moved.concat());
    // Logging is nothing that they have to follow.
    let mut c = Changes::new();
    c.set_log_dirty(id, true);
    vm.apply(c).unwrap();
    assert_eq!(take(&heard), []);
    let mut c = Changes::new();
    c.unmap(id);
    vm.apply(c).unwrap();
    assert_eq!(take(&heard), [CHECKS, both("unmapping", 1)].concat());
}

#[test]
fn one_that_refuses_is_the_end_of_it() {
    let (vm, model, heard, _) = rig(Some(7));
    let mut c = Changes::new();
    c.map(ram(0, PAGE).tag(1));
    vm.apply(c).unwrap();
    take(&heard);
    let (slots, calls) = (model.slots(0), model.counts());
    let mut c = Changes::new();
    c.map(ram(4 * PAGE, PAGE).tag(7));
    let error = vm.apply(c).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Observer(_)), "{error}");
    assert!(error.to_string().contains("not that one"), "{error}");
    assert_eq!(take(&heard), CHECKS);
    assert_eq!((model.slots(0), model.counts()), (slots, calls), "nothing was asked of KVM");
    assert_eq!(vm.regions().len(), 1);
}

/// Who was told that memory goes hears that it is there.
#[test]
fn what_kvm_refuses_is_taken_back() {
    let (vm, model, heard, _) = rig(None);
    let mut c = Changes::new();
    let id = c.map(ram(0, PAGE).tag(1));
    vm.apply(c).unwrap();
    take(&heard);
    let slots = model.slots(0);
    model.inject(Fault::nth(1, Errno::ENOMEM).only(Call::SetRegion));
    let mut c = Changes::new();
    c.unmap(id);
    c.map(ram(4 * PAGE, PAGE).tag(2));
    vm.apply(c).unwrap_err();
    assert_eq!(take(&heard), [CHECKS, both("unmapping", 1), both("mapped", 1)].concat());
    assert_eq!(model.slots(0), slots);
    assert!(vm.region(id).is_ok());
}

#[test]
fn observers_are_told_the_file() {
    let (vm, model, _, vfio) = rig(None);
    let script = Arc::<Script>::default();
    let memory = Arc::new(Owned { hva: HVA, size: 4 * PAGE, model, script });
    let mut c = Changes::new();
    c.map(RegionSpec::ram(at(0, PAGE), Backing::owned(memory, 2 * PAGE)));
    c.map(ram(8 * PAGE, PAGE));
    vm.apply(c).unwrap();
    let mut files = locked(&vfio.files).clone();
    files.sort_by_key(Option::is_none);
    assert_eq!(files, [Some(FileRange { fd: 77, offset: 2 * PAGE }), None]);
}
