//! What the library's own tests have in common.

#[path = "../../../client/tests/common/host.rs"]
pub(crate) mod host;
#[path = "../../../client/tests/common/numbers.rs"]
pub(crate) mod numbers;
