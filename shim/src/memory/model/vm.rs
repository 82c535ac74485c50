//! What the model knows of a VM.

use super::config::ModelConfig;
use super::counts::{Call, Counts};
use super::memfd::Memfds;
use super::space::Space;
use crate::fault::Faults;

/// A VM's memslots.
#[derive(Debug, Clone)]
pub(super) struct Vm {
    pub(super) config: ModelConfig,
    pub(super) spaces: Vec<Space>,
    pub(super) memfds: Memfds,
    /// Pages of all slots (`kvm->nr_memslot_pages`).
    pub(super) pages: u64,
    pub(super) counts: Counts,
    pub(super) faults: Faults<Call>,
    /// Whether a flip has made a slot trap (`kvm->guest_accesses_tell`).
    pub(super) traps: bool,
}

impl Vm {
    /// Counts what the first flip waits for that makes a slot trap.
    pub(super) fn flipped(&mut self, begins_to_trap: bool) {
        self.counts.grace_periods += u64::from(begins_to_trap && !self.traps);
        self.traps |= begins_to_trap;
    }

    /// Without slots.
    pub(super) fn new(config: ModelConfig) -> Self {
        let spaces = vec![Space::default(); usize::from(config.limits.address_spaces)];
        Self {
            config,
            spaces,
            memfds: Memfds::default(),
            pages: 0,
            counts: Counts::default(),
            faults: Faults::default(),
            traps: false,
        }
    }

    pub(super) fn space(&self, as_id: u32) -> Option<&Space> {
        self.spaces.get(as_id as usize)
    }
}
