//! A VM with an interrupt controller, busy vCPUs, and a way.

use std::io;
use std::time::Duration;

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::VmFd;

use super::Devices;
use super::board::Board;
use super::error::DevicesError;
use super::library::Library;
use super::taken::{profiled, taken};
use super::ways::{Apply, ByHand, CallOrder, Way};
use crate::compare::{Taken, Watch};
use crate::timed::Clock;
use kvm_memslots_kit::guest::BusyVcpus;
use kvm_memslots_kit::machine::new_vm;

/// vCPUs that take longer than this to get going never will.
const START: Duration = Duration::from_secs(30);

/// The slot of the guest code: the last one that every KVM has.
const OWN_SLOT: u16 = 508;

pub(super) struct Rig {
    // In this order: no vCPU runs when memory and VM go.
    busy: Option<BusyVcpus>,
    board: Board,
    vm: VmFd,
    /// If it is asked where the time goes.
    clock: Option<Clock>,
}

impl Rig {
    pub(super) fn new(args: &Devices, vcpus: usize) -> Result<Self, DevicesError> {
        let vm = new_vm().map_err(DevicesError::Vm)?;
        split_irqchip(&vm).map_err(DevicesError::Vm)?;
        let board = Board::new(args).map_err(DevicesError::Board)?;
        let start = || BusyVcpus::start(&vm, OWN_SLOT, vcpus, args.busy.work());
        let busy = (vcpus > 0).then(start).transpose()?;
        if let Some(busy) = &busy {
            busy.wait_for_progress(START)?;
        }
        let clock = args.profile.then(Clock::default);
        Ok(Self { busy, board, vm, clock })
    }

    pub(super) fn way(&self, way: Way) -> Result<Box<dyn Apply + '_>, DevicesError> {
        let open = |error| DevicesError::Call { way, what: "opening", error };
        let by_hand = |order| {
            let by_hand: Box<dyn Apply + '_> =
                Box::new(ByHand::new(&self.vm, order, self.clock.clone()).map_err(open)?);
            Ok::<_, DevicesError>(by_hand)
        };
        Ok(match way {
            Way::CloudHypervisor => by_hand(CallOrder::CLOUD_HYPERVISOR)?,
            Way::Firecracker => by_hand(CallOrder::FIRECRACKER)?,
            Way::OneByOne | Way::Deferred | Way::Together | Way::Window => {
                let clock = self.clock.clone();
                let library = Library::new(&self.vm, way, OWN_SLOT, &self.board, clock);
                Box::new(library.map_err(open)?)
            }
        })
    }

    pub(super) const fn board(&self) -> &Board {
        &self.board
    }

    /// Attaches all, and detaches them.
    pub(super) fn round(
        &self,
        way: Way,
        watch: &mut Watch<'_>,
    ) -> Result<Vec<Taken>, DevicesError> {
        let mut applied = self.way(way)?;
        let all = 0..self.board.devices.len();
        let refused = |what| move |error| DevicesError::Call { way, what, error };
        // What opening and the window took.
        if let Some(clock) = &self.clock {
            clock.take();
        }
        let (attached, attach) = watch.lap(|| {
            let attached = applied.attach(&self.board, all.clone())?;
            Ok(attached.plus(applied.finish()?))
        });
        let attached = taken(attach, &attached.map_err(refused("attaching"))?);
        let attached = profiled(self.clock.as_ref(), attached);
        if let Some(busy) = &self.busy {
            busy.wait_for_progress(START)?;
        }
        let (detached, detach) = watch.lap(|| applied.detach(&self.board, all));
        let detached = taken(detach, &detached.map_err(refused("detaching"))?);
        let detached = profiled(self.clock.as_ref(), detached);
        if let Some(busy) = &self.busy {
            busy.check()?;
        }
        Ok(vec![attached, detached])
    }

    pub(super) fn finish(self) -> Result<(), DevicesError> {
        Ok(self.busy.as_ref().map_or(Ok(()), BusyVcpus::stop)?)
    }
}

/// Local APICs in the kernel, pins in the VMM: as Cloud Hypervisor has it.
pub(super) fn split_irqchip(vm: &VmFd) -> io::Result<()> {
    let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    cap.args[0] = 24;
    vm.enable_cap(&cap).map_err(|error| {
        let error = io::Error::from(error);
        let what = "an interrupt controller in the kernel (KVM_CAP_SPLIT_IRQCHIP, x86 only)";
        io::Error::new(error.kind(), format!("{what}: {error}"))
    })
}
