//! The guest programs, entered with the mailbox's address in X0 and the
//! doorbell's in X1, at EL1.

use std::arch::global_asm;

use crate::guest::live::code::mailbox;

/// Bytes of the exception vectors, which the code begins with.
pub(super) const VECTORS: u64 = 0x800;

// Read-only data to the host, which copies it into the guest and never runs it.
// An exception is one that nothing here is made for: it tells the host, beside
// the doorbell, which.
global_asm!(
    r#"
    .pushsection .rodata.kvm_memslots_guest, "a", %progbits
    .balign {VECTORS}
    .globl kvm_memslots_guest_code, kvm_memslots_guest_spin
    .globl kvm_memslots_guest_fault_in, kvm_memslots_guest_probe
    .globl kvm_memslots_guest_end

kvm_memslots_guest_code:
    .rept   16
    .balign {VECTORS} / 16
    mrs     x2, esr_el1
    str     x2, [x1, #8]
    b       .
    .endr
    .balign {VECTORS}

kvm_memslots_guest_spin:
1:  ldr     x2, [x0, #{PROGRESS}]
    add     x2, x2, #1
    str     x2, [x0, #{PROGRESS}]
    b       1b

    .balign 16
kvm_memslots_guest_fault_in:
    ldr     x2, [x0, #{RANGE}]
    ldr     x3, [x0, #{END}]
    ldr     x4, [x0, #{STRIDE}]
2:  str     x2, [x2]
    ldr     x5, [x0, #{PROGRESS}]
    add     x5, x5, #1
    str     x5, [x0, #{PROGRESS}]
    add     x2, x2, x4
    cmp     x2, x3
    b.lo    2b
    str     x2, [x1]
    b       kvm_memslots_guest_fault_in

    .balign 16
kvm_memslots_guest_probe:
    mov     x2, #0
    add     x3, x0, #{ACCESSES}
3:  ldr     x4, [x0, #{COUNT}]
    cmp     x2, x4
    b.hs    5f
    str     x2, [x0, #{CURRENT}]
    ldr     x5, [x3]
    ldr     x6, [x3, #16]
    ldr     x8, [x3, #24]
    cbnz    x6, 4f
    cmp     x8, #2
    b.lo    21f
    b.eq    22f
    cmp     x8, #4
    b.eq    24f
    ldr     x7, [x5]
    b       29f
21: ldrb    w7, [x5]
    b       29f
22: ldrh    w7, [x5]
    b       29f
24: ldr     w7, [x5]
29: str     x7, [x3, #8]
    b       6f
4:  cmp     x6, #1
    b.ne    7f
    ldr     x7, [x3, #8]
    cmp     x8, #2
    b.lo    31f
    b.eq    32f
    cmp     x8, #4
    b.eq    34f
    str     x7, [x5]
    b       6f
31: strb    w7, [x5]
    b       6f
32: strh    w7, [x5]
    b       6f
34: str     w7, [x5]
    b       6f
7:  cmp     x6, #2
    b.ne    8f
    ldp     x7, x8, [x5]
    str     x7, [x3, #8]
    b       6f
8:  adr     x9, 9f
    br      x5
9:  str     x7, [x3, #8]
6:  add     x2, x2, #1
    add     x3, x3, #{ACCESS_SIZE}
    b       3b
5:  str     x2, [x1]
    b       kvm_memslots_guest_probe
kvm_memslots_guest_end:
    .popsection
"#,
    VECTORS = const VECTORS,
    PROGRESS = const mailbox::PROGRESS,
    RANGE = const mailbox::RANGE,
    END = const mailbox::END,
    STRIDE = const mailbox::STRIDE,
    COUNT = const mailbox::COUNT,
    CURRENT = const mailbox::CURRENT,
    ACCESSES = const mailbox::ACCESSES,
    ACCESS_SIZE = const mailbox::ACCESS_SIZE,
);

/// Code that goes back to where it was called from, with `value`.
pub(in crate::guest) fn returning(value: u64) -> Vec<u8> {
    // movz x7, ...; movk x7, ..., lsl 16, 32, 48; br x9
    let moves = [0xd280_0007_u32, 0xf2a0_0007, 0xf2c0_0007, 0xf2e0_0007];
    let part = |n: usize| ((value >> (16 * n)) as u32 & 0xffff) << 5;
    let moves = moves.iter().enumerate().map(|(n, opcode)| opcode | part(n));
    moves.chain([0xd61f_0120]).flat_map(u32::to_le_bytes).collect()
}
