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
}

impl Vm {
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
        }
    }

    pub(super) fn space(&self, as_id: u32) -> Option<&Space> {
        self.spaces.get(as_id as usize)
    }
}
