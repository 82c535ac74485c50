//! The probe for `KVM_IRQFD_FLAG_NO_IRQBYPASS` against kernels that have it, lack
//! it and lie.

use std::ffi::c_int;

use kvm_memslots_uapi::irqfd::{
    KVM_CAP_IRQFD_NO_IRQBYPASS, KVM_IRQFD_FLAG_NO_IRQBYPASS, NoIrqBypass, ProbeIrqfd,
    probe_no_irqbypass,
};

struct Kernel {
    claims: c_int,
    known: u32,
    calls: usize,
}

impl ProbeIrqfd for Kernel {
    fn check_extension(&mut self, cap: u32) -> c_int {
        assert_eq!(cap, u32::from_be_bytes(*b"MSNB"));
        assert_eq!(cap, KVM_CAP_IRQFD_NO_IRQBYPASS);
        self.claims
    }

    fn irqfd(&mut self, flags: u32) -> Result<(), c_int> {
        self.calls += 1;
        assert_eq!(flags & 1, 1, "nothing may be assigned");
        if flags & !self.known == 0 { Ok(()) } else { Err(libc::EINVAL) }
    }
}

fn probe(claims: c_int, known: u32) -> (NoIrqBypass, usize) {
    let mut kernel = Kernel { claims, known, calls: 0 };
    (probe_no_irqbypass(&mut kernel), kernel.calls)
}

#[test]
fn only_what_answers_as_the_abi_says_is_believed() {
    let flag = KVM_IRQFD_FLAG_NO_IRQBYPASS;
    assert_eq!(flag, 0x8000);
    let claim = c_int::try_from(flag).expect("a small number");
    assert_eq!(probe(0, 3), (NoIrqBypass::Absent, 0));
    assert_eq!(probe(-1, 3), (NoIrqBypass::Absent, 0));
    assert_eq!(probe(claim, 3 | flag), (NoIrqBypass::Present, 2));
    let impostor = |claimed, with_flag, with_unknown| {
        (NoIrqBypass::Impostor { claimed, with_flag, with_unknown }, 2)
    };
    // Another meaning of the number, a capability without the flag, a kernel
    // that takes any flag.
    assert_eq!(probe(1, 3 | flag), impostor(1, 0, libc::EINVAL));
    assert_eq!(probe(claim, 3), impostor(claim, libc::EINVAL, libc::EINVAL));
    assert_eq!(probe(claim, u32::MAX), impostor(claim, 0, 0));
}
