//! The two dirty log ioctls.

use std::sync::Arc;

use super::bitmap::Bitmap;
use super::config::DirtyTracking;
use super::counts::Call;
use super::vm::Vm;
use crate::errno::Errno;
use crate::range::Range;

impl Vm {
    /// The bitmap of a slot for which logging starts
    /// (`kvm_prepare_memory_region()`).
    pub(super) fn fresh_bitmap(&self, range: Range) -> Option<Arc<Bitmap>> {
        let initially_set = match self.config.dirty {
            DirtyTracking::Bitmap => false,
            DirtyTracking::ManualProtect { initially_set } => initially_set,
            DirtyTracking::Ring => return None,
        };
        let pages = range.size() / self.config.limits.page_size;
        Some(Arc::new(Bitmap::new(pages, initially_set)))
    }

    /// `KVM_GET_DIRTY_LOG`.
    pub(super) fn get_dirty_log(
        &mut self,
        as_id: u16,
        id: u16,
        bitmap: &mut [u64],
    ) -> Result<(), Errno> {
        self.counts.get_dirty_log += 1;
        let manual = matches!(self.config.dirty, DirtyTracking::ManualProtect { .. });
        self.check_dirty_slot(Call::GetDirtyLog, as_id, id)?;
        let log = self.logged(as_id, id)?;
        let out = bitmap.get_mut(..log.len() as usize).ok_or(Errno::EINVAL)?;
        log.write_to(out);
        if !manual {
            Arc::make_mut(log).clear();
        }
        Ok(())
    }

    /// `KVM_CLEAR_DIRTY_LOG`.
    pub(super) fn clear_dirty_log(
        &mut self,
        as_id: u16,
        id: u16,
        first: u64,
        pages: u32,
        bitmap: &[u64],
    ) -> Result<(), Errno> {
        self.counts.clear_dirty_log += 1;
        self.check_dirty_slot(Call::ClearDirtyLog, as_id, id)?;
        if first % 64 != 0 {
            return Err(Errno::EINVAL);
        }
        let log = self.logged(as_id, id)?;
        let rest = log.pages.checked_sub(first).ok_or(Errno::EINVAL)?;
        let pages = u64::from(pages);
        if pages > rest || (pages < rest && pages % 64 != 0) {
            return Err(Errno::EINVAL);
        }
        let masks = bitmap.get(..pages.div_ceil(64) as usize).ok_or(Errno::EINVAL)?;
        Arc::make_mut(log).forget(first, masks, pages);
        Ok(())
    }

    fn check_dirty_slot(&mut self, call: Call, as_id: u16, id: u16) -> Result<(), Errno> {
        self.faults.strike(call).map_err(|(errno, _)| errno)?;
        if self.config.dirty == DirtyTracking::Ring {
            return Err(Errno::ENXIO);
        }
        let limits = &self.config.limits;
        if as_id >= limits.address_spaces || u32::from(id) >= limits.slots {
            return Err(Errno::EINVAL);
        }
        Ok(())
    }

    fn logged(&mut self, as_id: u16, id: u16) -> Result<&mut Arc<Bitmap>, Errno> {
        let live = self.spaces.get_mut(usize::from(as_id)).and_then(|space| space.get_mut(id));
        live.and_then(|live| live.dirty.as_mut()).ok_or(Errno::ENOENT)
    }
}
