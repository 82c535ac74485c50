//! Dirty logs of regions, whatever slots they are in.

mod bitmap;
mod overlay;
mod state;

pub use bitmap::{DirtyBitmap, DirtyPages};
pub(crate) use overlay::Overlay;
pub(crate) use state::DirtyState;
