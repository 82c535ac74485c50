//! Carries out changes that broke no rule.

use std::sync::Arc;

use super::bitmap::Bitmap;
use super::check::Change;
use super::space::Live;
use super::vm::Vm;
use crate::mapping::Slot;

/// What [`Vm::apply`] put somewhere else, to be put back.
#[derive(Debug)]
pub(super) struct Undo {
    pub(super) id: u16,
    pub(super) before: Option<Live>,
}

impl Vm {
    /// Carries `change` out in address space `as_id`, which passed
    /// [`check`](Vm::check) and so exists.
    pub(super) fn apply(&mut self, as_id: u16, change: Change) -> Option<Undo> {
        let (id, after) = match change {
            Change::Nothing => return None,
            Change::Delete { old } => (old.id, None),
            Change::Create(slot) => (slot.id, Some(self.with_bitmap(slot, None))),
            Change::Move { new, .. } | Change::FlagsOnly { new, .. } => {
                (new.id, Some(self.successor(as_id, new)))
            }
        };
        let before = self.replace(as_id, id, after);
        Some(Undo { id, before })
    }

    /// Puts back what `apply` changed.
    pub(super) fn undo(&mut self, as_id: u16, undo: Undo) {
        self.replace(as_id, undo.id, undo.before);
    }

    /// `slot` with the dirty bitmap that the slot of the same id has
    /// (`kvm_prepare_memory_region()`).
    fn successor(&self, as_id: u16, slot: Slot) -> Live {
        let old = self.space(u32::from(as_id)).and_then(|space| space.get(slot.id));
        let bitmap = old.and_then(|old| old.dirty.clone());
        self.with_bitmap(slot, bitmap)
    }

    fn with_bitmap(&self, slot: Slot, old: Option<Arc<Bitmap>>) -> Live {
        let logged = slot.mapping.is_logged();
        let fresh = || self.fresh_bitmap(slot.mapping.range());
        Live { slot, dirty: if logged { old.or_else(fresh) } else { None } }
    }

    fn replace(&mut self, as_id: u16, id: u16, new: Option<Live>) -> Option<Live> {
        let page = self.config.limits.page_size;
        let entering = new.as_ref().map(|live| live.slot.mapping);
        let old = self.spaces.get_mut(usize::from(as_id))?.replace(id, new);
        if let Some(Live { slot: Slot { mapping, .. }, .. }) = &old {
            self.pages -= mapping.range().size() / page;
            if let Some(memfd) = mapping.guest_memfd() {
                self.memfds.unbind(memfd);
            }
        }
        if let Some(mapping) = entering {
            self.pages += mapping.range().size() / page;
            if let Some(memfd) = mapping.guest_memfd() {
                self.memfds.bind(memfd, mapping.range().size());
            }
        }
        old
    }
}
