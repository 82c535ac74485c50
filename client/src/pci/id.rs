//! Names of functions.

use crate::id::id;

id! {
    /// Names a function of a [`PciBars`](super::PciBars), and never another one. Lower
    /// for those that were added earlier.
    FunctionId, "function"
}
