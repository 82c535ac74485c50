//! A VM with an interrupt controller, busy vCPUs, and a way.

use std::io;
use std::ops::Range;

use anyhow::{Context as _, Result};
use kvm_ioctls::VmFd;

use super::Devices;
use super::board::Board;
use super::library::Library;
use super::taken::taken;
use super::ways::{Apply, ByHand, CallOrder, Way};
use crate::compare::{Taken, Watch};
use crate::rig::START;
use crate::spent::Spent;
use crate::timed::Clock;
use kvm_memslots_kit::guest::BusyVcpus;
use kvm_memslots_kit::machine::{new_vm, split_irqchip};

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
    pub(super) fn new(args: &Devices, vcpus: usize) -> Result<Self> {
        let vm = vm()?;
        let board = Board::new(&args.size).context(PARTS)?;
        let start = || BusyVcpus::start(&vm, OWN_SLOT, vcpus, args.busy.work());
        let busy = (vcpus > 0).then(start).transpose()?;
        if let Some(busy) = &busy {
            busy.wait_for_progress(START)?;
        }
        let clock = args.profile.then(Clock::default);
        Ok(Self { busy, board, vm, clock })
    }

    pub(super) fn way(&self, way: Way) -> Result<Box<dyn Apply + '_>> {
        let clock = self.clock.clone();
        let by_hand = |order| ByHand::new(&self.vm, order, clock.clone());
        let made: io::Result<Box<dyn Apply + '_>> = match way {
            Way::CloudHypervisor => {
                by_hand(CallOrder::CLOUD_HYPERVISOR).map(|way| Box::new(way) as _)
            }
            Way::Firecracker => by_hand(CallOrder::FIRECRACKER).map(|way| Box::new(way) as _),
            Way::OneByOne | Way::Deferred | Way::Together | Way::Window => {
                Library::new(&self.vm, way, OWN_SLOT, &self.board, clock)
                    .map(|way| Box::new(way) as _)
            }
        };
        made.with_context(|| format!("{way}, opening"))
    }

    pub(super) const fn board(&self) -> &Board {
        &self.board
    }

    /// Attaches all, and detaches them.
    pub(super) fn round(&self, way: Way, watch: &mut Watch<'_>) -> Result<Vec<Taken>> {
        let mut applied = self.way(way)?;
        let all = 0..self.board.devices.len();
        // What opening and the window took.
        if let Some(clock) = &self.clock {
            clock.take();
        }
        let (attached, attach) = watch.lap(|| attach(&mut *applied, &self.board, all.clone()));
        let attached = attached.with_context(|| format!("{way}, attaching"))?;
        let attached = taken(attach, &attached, self.clock.as_ref());
        if let Some(busy) = &self.busy {
            busy.wait_for_progress(START)?;
        }
        let (detached, detach) = watch.lap(|| applied.detach(&self.board, all));
        let detached = detached.with_context(|| format!("{way}, detaching"))?;
        let detached = taken(detach, &detached, self.clock.as_ref());
        if let Some(busy) = &self.busy {
            busy.check()?;
        }
        Ok(vec![attached, detached])
    }

    pub(super) fn finish(self) -> Result<()> {
        Ok(self.busy.as_ref().map_or(Ok(()), BusyVcpus::stop)?)
    }
}

/// Attaches devices, and does what that leaves behind the last.
pub(super) fn attach(
    applied: &mut dyn Apply,
    board: &Board,
    which: Range<usize>,
) -> io::Result<Spent> {
    let mut spent = applied.attach(board, which)?;
    spent += applied.finish()?;
    Ok(spent)
}

/// What there is to say where there are no devices to be had.
pub(super) const PARTS: &str = "the devices' memory and eventfds";

/// A VM as Cloud Hypervisor has it.
pub(super) fn vm() -> Result<VmFd> {
    let made = new_vm().and_then(|vm| split_irqchip(&vm).map(|()| vm));
    made.context("no VM")
}
