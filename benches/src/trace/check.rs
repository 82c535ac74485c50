//! Whether a VM could have made the calls of a trace.

use std::collections::HashSet;

use kvm_memslots::Limits;
use kvm_memslots_shim::memory::model::{Model, ModelConfig};
use kvm_memslots_shim::uapi::MemFlags;

use super::{At, Problem, Trace};

/// What the largest host allows: the trace may be from any.
fn anywhere() -> ModelConfig {
    let limits = Limits::x86().with_slots(1 << 16).with_address_spaces(2).with_guest_memfd();
    ModelConfig::new(limits).guest_physical_bits(64).hva_end(1 << 56)
}

/// Makes the calls on the model of KVM.
pub(super) fn check(trace: &Trace) -> Result<(), At> {
    let model = Model::with_config(anywhere());
    let mut memfds = HashSet::new();
    for call in &trace.calls {
        let fd = call.region.guest_memfd;
        if call.region.flags & MemFlags::GUEST_MEMFD.bits() != 0 && memfds.insert(fd) {
            model.add_guest_memfd(fd.cast_signed(), i64::MAX as u64);
        }
        // What KVM refused may have had reasons that are not in the trace.
        if call.errno != 0 {
            continue;
        }
        model
            .set_user_memory_region2(&call.region)
            .map_err(|errno| At(call.line, Problem::Impossible { errno }))?;
    }
    Ok(())
}
