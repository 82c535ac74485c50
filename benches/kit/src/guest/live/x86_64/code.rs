//! The guest programs, entered with the mailbox's address in RDI and the
//! doorbell's in RSI, at CPL 3: there a port would need I/O privileges.

use std::arch::global_asm;

use crate::guest::live::code::mailbox;

// Read-only data to the host, which copies it into the guest and never runs it.
global_asm!(
    r#"
    .pushsection .rodata.kvm_memslots_guest, "a", @progbits
    .balign 16
    .globl kvm_memslots_guest_code, kvm_memslots_guest_spin
    .globl kvm_memslots_guest_fault_in, kvm_memslots_guest_probe
    .globl kvm_memslots_guest_end

kvm_memslots_guest_code:
kvm_memslots_guest_spin:
1:  inc     qword ptr [rdi + {PROGRESS}]
    jmp     1b

    .balign 16
kvm_memslots_guest_fault_in:
    mov     rax, [rdi + {RANGE}]
    mov     rcx, [rdi + {END}]
    mov     rdx, [rdi + {STRIDE}]
2:  mov     [rax], rax
    inc     qword ptr [rdi + {PROGRESS}]
    add     rax, rdx
    cmp     rax, rcx
    jb      2b
    mov     [rsi], rax
    jmp     kvm_memslots_guest_fault_in

    .balign 16
kvm_memslots_guest_probe:
    xor     ebx, ebx
    lea     rcx, [rdi + {ACCESSES}]
3:  cmp     rbx, [rdi + {COUNT}]
    jae     5f
    mov     [rdi + {CURRENT}], rbx
    mov     rdx, [rcx]
    mov     r8, [rcx + 24]
    cmp     qword ptr [rcx + 16], 0
    jne     4f
    xor     eax, eax
    cmp     r8, 2
    jb      21f
    je      22f
    cmp     r8, 4
    je      24f
    mov     rax, [rdx]
    jmp     29f
21: mov     al, [rdx]
    jmp     29f
22: mov     ax, [rdx]
    jmp     29f
24: mov     eax, [rdx]
29: mov     [rcx + 8], rax
    jmp     6f
4:  cmp     qword ptr [rcx + 16], 1
    jne     7f
    mov     rax, [rcx + 8]
    cmp     r8, 2
    jb      31f
    je      32f
    cmp     r8, 4
    je      34f
    mov     [rdx], rax
    jmp     6f
31: mov     [rdx], al
    jmp     6f
32: mov     [rdx], ax
    jmp     6f
34: mov     [rdx], eax
    jmp     6f
7:  cmp     qword ptr [rcx + 16], 2
    jne     8f
    popcnt  rax, qword ptr [rdx]
    mov     [rcx + 8], rax
    jmp     6f
8:  lea     r9, [rip + 9f]
    jmp     rdx
9:  mov     [rcx + 8], rax
6:  inc     rbx
    add     rcx, {ACCESS_SIZE}
    jmp     3b
5:  mov     [rsi], rax
    jmp     kvm_memslots_guest_probe
kvm_memslots_guest_end:
    .popsection
"#,
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
    // mov rax, value; jmp r9
    [&[0x48, 0xb8], &value.to_le_bytes()[..], &[0x41, 0xff, 0xe1]].concat()
}
