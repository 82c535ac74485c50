//! Dirty logs of regions, whatever slots they are in.

mod bitmap;
mod state;

pub use bitmap::{DirtyBitmap, DirtyPages};
/// Pages that KVM does not know to be dirty any more, but that nobody has been told of
/// yet: filled where a slot's log had to be read on behalf of several regions, or
/// before the slot went; emptied as the regions' logs are read.
pub(crate) use kvm_memslots_shim::Pages as Overlay;
pub(crate) use state::DirtyState;
