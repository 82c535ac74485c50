//! Kernels that lie, that are interrupted, and that lack what others have.
#![allow(clippy::unwrap_used)]

mod asked;
mod calls;
mod fake;
