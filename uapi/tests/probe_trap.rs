//! The probe for the trap flag believes no kernel that does not answer as the
//! ABI says.

use std::ffi::c_int;

use kvm_memslots_uapi::probe::{ProbeTrap, TrapMismatch, TrapSupport, probe_trap};
use kvm_memslots_uapi::{KVM_CAP_MEM_TRAP, MemFlags};

const TRAP: u32 = MemFlags::TRAP.bits();

/// A kernel that says what it is told to say.
struct Scripted {
    claims: c_int,
    /// How slots with the flag, and with another beside it, are answered.
    answers: [Result<(), TrapMismatch>; 2],
    slots: Vec<u32>,
}

impl ProbeTrap for Scripted {
    fn check_extension(&mut self, cap: u32) -> c_int {
        assert_eq!(cap, KVM_CAP_MEM_TRAP);
        self.claims
    }

    fn make_slot(&mut self, flags: u32) -> Result<(), TrapMismatch> {
        self.slots.push(flags);
        self.answers[usize::from(flags != TRAP)]
    }
}

fn refused(errno: c_int) -> Result<(), TrapMismatch> {
    Err(TrapMismatch::Refused { errno })
}

fn probed(claims: c_int, answers: [Result<(), TrapMismatch>; 2]) -> (TrapSupport, Vec<u32>) {
    let mut vm = Scripted { claims, answers, slots: Vec::new() };
    (probe_trap(&mut vm), vm.slots)
}

fn impostor(mismatch: TrapMismatch) -> TrapSupport {
    TrapSupport::Impostor { claimed: TRAP, mismatch }
}

#[test]
fn a_kernel_with_the_flag() {
    let (found, slots) = probed(0x8000, [Ok(()), refused(libc::EINVAL)]);
    assert_eq!(found, TrapSupport::Present);
    let [first, second] = slots[..] else { panic!("{slots:?}") };
    assert_eq!(first, TRAP);
    assert_eq!(second & TRAP, TRAP);
    assert_eq!(MemFlags::from_bits(second), None, "one of its flags must be unknown");
    assert_eq!(second >> 16, 0, "KVM's own flags say nothing");
}

#[test]
fn a_kernel_without_it_makes_no_slot() {
    for claims in [0, -1, -libc::EINVAL] {
        assert_eq!(probed(claims, [Ok(()), Ok(())]), (TrapSupport::Absent, vec![]));
    }
}

/// The number means something else.
#[test]
fn another_answer_makes_no_slot() {
    for claims in [1, 0x4000, 0x8001, c_int::MAX] {
        let (found, slots) = probed(claims, [Ok(()), refused(libc::EINVAL)]);
        let claimed = claims.unsigned_abs();
        assert_eq!(found, TrapSupport::Impostor { claimed, mismatch: TrapMismatch::Answer });
        assert!(slots.is_empty());
    }
}

#[test]
fn wrong_answers() {
    let einval = libc::EINVAL;
    let cases = [
        ([refused(einval), refused(einval)], TrapMismatch::Refused { errno: einval }),
        ([Ok(()), Ok(())], TrapMismatch::BadFlagsAnswer { errno: 0 }),
        ([Ok(()), refused(libc::EPERM)], TrapMismatch::BadFlagsAnswer { errno: libc::EPERM }),
    ];
    for (answers, mismatch) in cases {
        assert_eq!(probed(0x8000, answers).0, impostor(mismatch));
        assert!(mismatch.to_string().contains("KVM_MEM_TRAP"), "{mismatch}");
    }
}

#[test]
fn without_a_scratch_vm_it_is_not_believed() {
    let none = TrapMismatch::NoScratchVm { errno: libc::EACCES };
    assert_eq!(probed(0x8000, [Err(none), Err(none)]).0, impostor(none));
}
