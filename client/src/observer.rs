//! Whoever has to follow the layout of guest memory.

use crate::Region;

/// Hears of every region that comes and goes: for DMA maps (VFIO), memory tables
/// of vhost and vhost-user.
///
/// For each set of changes, on the thread that applies it:
///
/// 1. [`check`](Self::check) of each observer, in the order in which they were
///    given to the [`Builder`](crate::Builder). All of the changes have been
///    checked then, and none is done. The first that refuses is the end of it.
/// 2. [`unmapping`](Self::unmapping), for each region that goes, before KVM is
///    asked for anything. The memory is still there.
/// 3. KVM's calls. If KVM refuses one, [`mapped`](Self::mapped) is called for
///    the regions of step 2, which stay.
/// 4. [`mapped`](Self::mapped), for each region that has come.
///
/// A region whose addresses, memory or read-only flag change goes and comes
/// again. Regions that are [deferrable](crate::RegionSpec::deferrable) come when
/// they are mapped as the VMM sees it, with or without a slot.
///
/// An observer may look regions up: it finds those from before, and in step 4
/// those afterwards. It may not apply changes
/// ([`ErrorKind::Reentrant`](crate::ErrorKind::Reentrant)). A panic goes on to
/// the caller once everybody has been told and the state is settled.
pub trait Observer: Send + Sync {
    /// Whether this may be. Nothing has happened yet.
    ///
    /// # Errors
    /// Why not. Nothing is changed then.
    fn check(
        &self,
        going: &[Region],
        coming: &[Region],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let _ = (going, coming);
        Ok(())
    }

    /// The region is about to go.
    fn unmapping(&self, region: &Region);

    /// The region is there.
    fn mapped(&self, region: &Region);
}
