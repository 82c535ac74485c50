//! Exits: which of them are served here, and when deferred slots are mapped for
//! them.

use std::ffi::c_int;

use super::machine::{State, Tells, Vm};
use super::memslots::Kvm;
use crate::decide::access::{Access, Mmio, Piece};
use crate::decide::slot::Repair;
use crate::memory;
use crate::sys::now;

/// What became of an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Served {
    /// Nothing: it is for the VMM.
    No,
    /// The vCPU is to go on.
    Again,
    /// The memory is not there: what KVM would have answered.
    Fault(c_int),
}

impl Vm {
    /// An access came out of the guest as MMIO. `data` is what it wrote, or gets
    /// what it is to read. `since` is when the exit before it came out, if it
    /// was served.
    pub(crate) fn serve(
        &self,
        kvm: &dyn Kvm,
        access: Mmio,
        data: &mut [u8; 8],
        since: Option<u64>,
    ) -> Served {
        let write = access.write;
        loop {
            let seen = self.state.with(|state| {
                let found = state.slots.access(access);
                match found {
                    Access::Serve { .. } if state.blind => None,
                    Access::Serve { pieces, .. } if write => {
                        // Not once the slot may be gone.
                        let written = copy(&pieces, data, true);
                        Some((pieces, state.changes, written))
                    }
                    Access::Serve { pieces, .. } => Some((pieces, state.changes, Ok(()))),
                    Access::Pass => None,
                }
            });
            let Some((pieces, changes, mut copied)) = seen else { return Served::No };
            if !write {
                copied = copy(&pieces, data, false);
            }
            let done = self.state.with(|state| {
                // What was read may have been read after the slot was gone.
                if !write && state.changes != changes {
                    return None;
                }
                if let Err(errno) = copied {
                    return Some(Served::Fault(errno));
                }
                self.served(state, kvm, &access, since);
                Some(Served::Again)
            });
            if let Some(done) = done {
                return done;
            }
        }
    }

    /// An exit was served; what comes of that.
    pub(super) fn served(
        &self,
        state: &mut State,
        kvm: &dyn Kvm,
        access: &Mmio,
        since: Option<u64>,
    ) {
        (if access.write { &self.counts.writes } else { &self.counts.reads }).add(1);
        let found = state.slots.access(*access);
        let Access::Serve { slot, deferred, .. } = found else { return };
        if let Some(counts) = state.slots.counts(slot) {
            counts.exits += 1;
        }
        if deferred {
            state.bill.exit(since.map(|then| now().saturating_sub(then)));
            if state.bill.is_due(state.slots.deferred()) && self.promote(state, kvm) {
                self.counts.promoted_by_exits.add(1);
            }
        }
    }

    /// A vCPU came out of the guest for an access that KVM can't describe; whether
    /// it is to go on without the VMM. `before` is what `promotions` was when it
    /// went in.
    pub(crate) fn undecodable(&self, kvm: &dyn Kvm, before: u64) -> bool {
        self.state.with(|state| {
            if state.slots.deferred() > 0 {
                self.counts.promoted_by_undecodable.add(1);
                return self.promote(state, kvm);
            }
            // Another thread has mapped meanwhile what it was about.
            if self.promotions() != before {
                return true;
            }
            // Not ours. KVM is to do with it what it does when nobody asks.
            self.tell_no_more(state, kvm)
        })
    }

    /// A vCPU goes in whose exits are not looked at, as no slot has churned for long. KVM is
    /// not to tell it what it would tell nobody; where it can't be had, nobody asks again.
    pub(crate) fn is_quiet(&self, kvm: &dyn Kvm) {
        self.state.with(|state| {
            if state.slots.deferred() == 0 && !self.tell_no_more(state, kvm) {
                self.tells(state, Tells::No);
            }
        });
    }

    /// Maps what is deferred; whether all is mapped.
    fn promote(&self, state: &mut State, kvm: &dyn Kvm) -> bool {
        let mut from = 0;
        while let Some((at, repair)) = state.slots.repair(from) {
            let map = matches!(repair, Repair::Map(_));
            if !map || self.repair(state, kvm, &repair).is_err() {
                from = at + 1;
            }
        }
        state.bill.settled();
        state.slots.deferred() == 0
    }
}

/// Between the pieces and the data of an exit.
fn copy(pieces: &[Piece; 2], data: &mut [u8; 8], write: bool) -> Result<(), c_int> {
    let mut done = 0;
    for piece in pieces.iter().filter(|piece| piece.bytes > 0) {
        let Some(part) = data.get_mut(done..done + piece.bytes) else { return Err(libc::EFAULT) };
        if write {
            memory::write(piece.hva, part)?;
        } else {
            memory::read_steady(piece.hva, part)?;
        }
        done += piece.bytes;
    }
    Ok(())
}
