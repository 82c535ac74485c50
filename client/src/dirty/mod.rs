//! Dirty logs of regions, whatever slots they are in.

mod all;
mod bitmap;
mod last;
mod log;
mod overlay;
mod state;

pub use bitmap::{DirtyBitmap, DirtyPages};
pub(crate) use overlay::Overlay;
pub(crate) use state::DirtyState;
