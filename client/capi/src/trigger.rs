//! A trigger, which C and the device share.

use std::sync::Arc;

use kvm_memslots::device::Trigger;

use crate::handles::held;

/// `struct kvm_memslots_trigger`
#[derive(Debug)]
pub struct CTrigger(pub(crate) Arc<Trigger>);

held! {
    CTrigger, "kvm_memslots_trigger", b"kvmsTRIG";
}
