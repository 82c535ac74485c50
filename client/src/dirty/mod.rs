//! Dirty pages, region by region, whatever slots they are logged in.

mod bitmap;
mod bits;
mod log;
mod overlay;

pub use bitmap::DirtyBitmap;
pub(crate) use overlay::Overlay;
