//! A VMM's memory manager: boot memory, hotplug and unplug, migration, BARs that
//! move, from several threads while a vCPU runs.
//!
//! What to look at: [`Guest`] is all that the rest of the VMM knows, a trait
//! object; each method builds [`Changes`] and applies them; nothing is borrowed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_memslots::device::{Device, DeviceId, Doorbell};
use kvm_memslots::{
    Backing, Changes, MemFlags, Observer, Region, RegionId, RegionSpec, Report, Vm, at, vm_fd,
};
use kvm_memslots_examples::{Gate, Result, eventfd, has_kvm, memory};
use vm_memory::{Bytes, GuestRegionMmap, MemoryRegionAddress};

const MIB: u64 = 1 << 20;
/// Hot-plugged memory starts here, a block at a time.
const HOTPLUG: u64 = 4 << 30;
const BLOCK: u64 = 2 * MIB;
const BAR: u64 = 0xe000_0000;
/// The guest's program: `inc word [0x2000]; out 0x80, al; jmp back`, in real mode.
#[cfg(target_arch = "x86_64")]
const PROGRAM: [u8; 8] = [0xff, 0x06, 0x00, 0x20, 0xe6, 0x80, 0xeb, 0xf8];

/// What the rest of the VMM knows of guest memory.
trait Guest: Send + Sync {
    fn plug(&self, block: u64) -> Result<()>;
    fn unplug(&self, block: u64) -> Result<()>;
    fn start_migration(&self) -> Result<Report>;
    /// The dirty pages since the last call.
    fn collect(&self) -> Result<u64>;
    fn stop_migration(&self) -> Result<()>;
    fn move_bar(&self, to: u64) -> Result<Report>;
}

type Memory = Arc<GuestRegionMmap>;

fn ram(region: &Memory) -> Result<RegionSpec> {
    Ok(RegionSpec::vm_memory(region).ok_or("memory without a host address")?)
}

/// What a vhost backend would be told.
#[derive(Default)]
struct MemoryTable(Mutex<HashMap<RegionId, u64>>);

impl Observer for MemoryTable {
    fn unmapping(&self, region: &Region) {
        lock(&self.0).remove(&region.id);
    }

    fn mapped(&self, region: &Region) {
        lock(&self.0).insert(region.id, region.range.size());
    }
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Manager {
    vm: Arc<Vm>,
    boot: RegionId,
    bar: RegionId,
    blocks: Mutex<HashMap<u64, RegionId>>,
    _nic: DeviceId,
}

impl Manager {
    /// Boot memory and a device, in one set of changes.
    fn new(vm: Arc<Vm>, low: &Memory) -> Result<Self> {
        let mut c = Changes::new();
        // It stays for as long as the VM lives.
        let boot = c.map(ram(low)?.permanent().label("boot memory"));
        let bar = RegionId::new();
        let window = memory(0, 64 << 10)?;
        let window = Backing::vm_memory(&window).ok_or("no host address")?;
        let nic = Device::new("nic")
            .region(bar, RegionSpec::device(at(BAR, 64 << 10), window).label("BAR 0"))
            .ioeventfd(Doorbell::in_region(bar, 0x1_0000).len(2).value(0), eventfd()?)
            .ioeventfd(Doorbell::in_region(bar, 0x1_0000).len(2).value(1), eventfd()?);
        let nic = c.attach(nic);
        println!("start: {}", vm.apply(c)?);
        Ok(Self { vm, boot, bar, blocks: Mutex::default(), _nic: nic })
    }

    /// Switches the logs of all RAM, in one set of changes.
    fn set_log(&self, on: bool) -> Result<Report> {
        let blocks = lock(&self.blocks);
        let mut c = Changes::new();
        c.set_log_dirty(self.boot, on);
        blocks.values().for_each(|id| c.set_log_dirty(*id, on));
        Ok(self.vm.apply(c)?)
    }
}

impl Guest for Manager {
    fn plug(&self, block: u64) -> Result<()> {
        let memory = memory(HOTPLUG + block * BLOCK, BLOCK)?;
        let mut blocks = lock(&self.blocks);
        let mut spec = ram(&memory)?.tag(block);
        if self.vm.region(self.boot)?.flags.contains(MemFlags::LOG_DIRTY_PAGES) {
            spec = spec.log_dirty();
        }
        let mut c = Changes::new();
        let id = c.map(spec);
        self.vm.apply(c)?;
        blocks.insert(block, id);
        Ok(())
    }

    fn unplug(&self, block: u64) -> Result<()> {
        let mut blocks = lock(&self.blocks);
        let id = *blocks.get(&block).ok_or("no such block")?;
        let mut c = Changes::new();
        c.unmap(id);
        self.vm.apply(c)?;
        blocks.remove(&block);
        Ok(())
    }

    fn start_migration(&self) -> Result<Report> {
        self.set_log(true)
    }

    fn collect(&self) -> Result<u64> {
        let mut pages = 0;
        self.vm.for_each_dirty_log(|_, dirty| pages += dirty.count())?;
        Ok(pages)
    }

    fn stop_migration(&self) -> Result<()> {
        self.set_log(false).map(drop)
    }

    fn move_bar(&self, to: u64) -> Result<Report> {
        let mut c = Changes::new();
        // The doorbells go with it.
        c.move_to(self.bar, to);
        Ok(self.vm.apply(c)?)
    }
}

fn main() -> Result<()> {
    if !has_kvm("memory-manager") {
        return Ok(());
    }
    let fd = kvm_ioctls::Kvm::new()?.create_vm()?;
    let gate = Arc::new(Gate::default());
    let table = Arc::new(MemoryTable::default());
    let vm = Vm::builder()
        .gate(Arc::clone(&gate) as _)
        .observer(Arc::clone(&table) as Arc<dyn Observer>)
        .open(vm_fd(&fd))?;
    let low = memory(0, 16 * MIB)?;
    let manager = Manager::new(Arc::new(vm), &low)?;
    let guest: Arc<dyn Guest> = Arc::new(manager);

    #[cfg(target_arch = "x86_64")]
    let vcpu = {
        low.write_slice(&PROGRAM, MemoryRegionAddress(0x1000))?;
        let vcpu = kvm_memslots_examples::real_mode(&fd, 0x1000, 0)?;
        kvm_memslots_examples::Running::start(vcpu, gate, |exit| match exit {
            kvm_ioctls::VcpuExit::IoOut(..) => Ok(()),
            exit => Err(format!("the guest ended with {exit:?}")),
        })
    };
    let counter = || low.read_obj::<u16>(MemoryRegionAddress(0x2000));
    let before = counter()?;

    let mut threads = Vec::new();
    let mut spawn = |work: fn(&dyn Guest) -> Result<()>| {
        let guest = Arc::clone(&guest);
        threads.push(std::thread::spawn(move || work(&*guest)));
    };
    spawn(|guest| (0..32).try_for_each(|block| guest.plug(block)));
    spawn(|guest| {
        (100..132).try_for_each(|block| guest.plug(block).and_then(|()| guest.unplug(block)))
    });
    spawn(|guest| (0..8).try_for_each(|n| guest.move_bar(BAR + n % 2 * 16 * MIB).map(drop)));
    spawn(|guest| {
        println!("migration: {}", guest.start_migration()?);
        let pages: Vec<u64> = (0..4).map(|_| guest.collect()).collect::<Result<_>>()?;
        println!("dirty pages: {pages:?}");
        guest.stop_migration()
    });
    for thread in threads {
        thread.join().map_err(|_| "a thread panicked")??;
    }
    #[cfg(target_arch = "x86_64")]
    {
        vcpu.wait(|| counter().is_ok_and(|now| now != before))?;
        vcpu.stop()?;
    }
    (0..32).try_for_each(|block| guest.unplug(block))?;
    let left = lock(&table.0).len();
    println!("the guest counted on; {left} regions are left: boot memory and the BAR");
    if left == 2 { Ok(()) } else { Err("observers saw something else".into()) }
}
