//! A guest that takes interrupts and writes where it is told to (x86-64).
//!
//! In long mode at CPL 0, with an IDT that counts what arrives by vector. It
//! waits in `hlt`, where interrupts reach it, and looks for work when the one of
//! the lowest priority has, so after all that were pending. Its slot is at guest
//! address 0.

use std::arch::global_asm;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, kvm_dtable, kvm_msi, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use kvm_memslots::device::Bus;
use nix::errno::Errno;

use super::GuestError;
use crate::host::{HostMemory, LARGE_PAGE, Pages};

// The slot's layout.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
/// Four of them: 4 GiB of identity map.
const PAGE_DIRECTORIES: u64 = 0x3000;
const GDT: u64 = 0x7000;
const TSS: u64 = 0x7100;
const IDT: u64 = 0x8000;
const COUNTERS: u64 = 0x9000;
const CODE: u64 = 0xa000;
/// A stub for each vector.
const STUBS: u64 = 0xc000;
const STACK_TOP: u64 = 0x1_0000;
/// How many writes there are to do, then the writes.
const MAILBOX: u64 = 0x2_0000;
const WRITES: u64 = MAILBOX + 64;
const WRITE_SIZE: u64 = 32;
const STUB_SIZE: u64 = 16;

/// Where the guest says that it is done: no memory is there.
const DOORBELL: u64 = 0xdfff_f000;
/// A write of this value to the doorbell ends the guest.
const STOP: u64 = 0xdead;
/// The interrupt after which the guest looks for work: of the lowest priority, so
/// that all others come before it.
const WAKE: u8 = 0x20;

/// Bit 8 of the spurious vector register enables the local APIC.
const APIC_SVR: usize = 0xf0;
const APIC_EOI: u64 = 0xfee0_00b0;
/// Messages to this address reach the first vCPU.
pub const MSI_ADDRESS: u64 = 0xfee0_0000;

/// How long the guest may take for what it is told.
const PATIENCE: Duration = Duration::from_mins(2);

// Read-only data to the host, which copies it into the guest and never runs it.
// RBX: counters, RBP: mailbox, R8: the APIC's EOI, R9: the stack, R10: doorbell.
global_asm!(
    r#"
    .pushsection .rodata.kvm_memslots_interrupted, "a", @progbits
    .balign 16
    .globl kvm_memslots_interrupted, kvm_memslots_interrupted_common
    .globl kvm_memslots_interrupted_end
kvm_memslots_interrupted:
1:  mov     rsp, r9
    sti
    hlt
    cli
    jmp     1b

    // A stub has pushed its vector. What was interrupted is not returned to.
kvm_memslots_interrupted_common:
    pop     rdx
    inc     qword ptr [rbx + rdx * 8]
    xor     eax, eax
    mov     dword ptr [r8], eax
    cmp     rdx, {wake}
    jne     1b
    mov     rcx, [rbp]
    test    rcx, rcx
    jz      1b

    mov     [rbp], rax
    lea     rsi, [rbp + 64]
3:  mov     rdx, [rsi]
    mov     rax, [rsi + 8]
    mov     rdi, [rsi + 16]
    cmp     rdi, 1
    je      11f
    cmp     rdi, 2
    je      12f
    cmp     rdi, 4
    je      14f
    cmp     rdi, 8
    je      18f
    cmp     rdi, 17
    je      21f
    cmp     rdi, 18
    je      22f
    out     dx, eax
    jmp     4f
11: mov     byte ptr [rdx], al
    jmp     4f
12: mov     word ptr [rdx], ax
    jmp     4f
14: mov     dword ptr [rdx], eax
    jmp     4f
18: mov     qword ptr [rdx], rax
    jmp     4f
21: out     dx, al
    jmp     4f
22: out     dx, ax
4:  add     rsi, 32
    dec     rcx
    jnz     3b
    xor     eax, eax
    mov     dword ptr [r10], eax
    jmp     1b
kvm_memslots_interrupted_end:
    .popsection
"#,
    wake = const WAKE,
);

unsafe extern "C" {
    static kvm_memslots_interrupted: u8;
    static kvm_memslots_interrupted_common: u8;
    static kvm_memslots_interrupted_end: u8;
}

fn code() -> &'static [u8] {
    let (start, end) =
        (&raw const kvm_memslots_interrupted, &raw const kvm_memslots_interrupted_end);
    // SAFETY: labels of the block above, in this order, around initialised data
    // that never changes.
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

/// A write of the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestWrite {
    /// Memory or ports.
    pub bus: Bus,
    /// Where, below 4 GiB.
    pub addr: u64,
    /// Bytes: 1, 2, 4, or 8 in memory.
    pub len: u32,
    /// What; bits beyond `len` are 0.
    pub value: u64,
}

/// The guest, on a thread of its own.
#[derive(Debug)]
pub struct Interrupted {
    memory: Arc<HostMemory>,
    thread: Option<JoinHandle<()>>,
    exits: Arc<Mutex<Vec<GuestWrite>>>,
    done: Mutex<Receiver<Result<(), GuestError>>>,
    vm: VmFdHandle,
}

/// A duplicate of the VM's descriptor.
#[derive(Debug)]
struct VmFdHandle(VmFd);

impl Interrupted {
    /// Gives `vm`, which has an interrupt controller in the kernel, a vCPU 0
    /// and, under the id `slot`, the 2 MiB at guest address 0.
    ///
    /// # Errors
    /// [`GuestError`]: KVM refused.
    pub fn start(vm: &VmFd, slot: u16) -> Result<Self, GuestError> {
        let kvm = Kvm::new().map_err(GuestError::kvm("opening /dev/kvm"))?;
        let handle = {
            use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
            // SAFETY: the VM keeps its descriptor open while it is borrowed.
            let fd = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) };
            let fd = fd.try_clone_to_owned().map_err(|error| GuestError::Host {
                call: "duplicating the VM",
                errno: Errno::from_raw(error.raw_os_error().unwrap_or(0)),
            })?;
            // SAFETY: a VM's descriptor that nobody else owns.
            unsafe { kvm.create_vmfd_from_rawfd(fd.into_raw_fd()) }
                .map_err(GuestError::kvm("duplicating the VM"))?
        };
        let memory = HostMemory::reserve(LARGE_PAGE, Pages::Small);
        let memory = Arc::new(memory.map_err(GuestError::host("mmap"))?);
        write_tables(&memory);
        let region = kvm_userspace_memory_region {
            slot: u32::from(slot),
            flags: 0,
            guest_phys_addr: 0,
            memory_size: memory.size(),
            userspace_addr: memory.hva(),
        };
        // SAFETY: the memory is only accessed atomically, and held until the
        // vCPU's thread has been joined.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(GuestError::kvm("KVM_SET_USER_MEMORY_REGION for the guest code's slot"))?;
        let vcpu = vm.create_vcpu(0).map_err(GuestError::kvm("KVM_CREATE_VCPU"))?;
        enter(&kvm, &vcpu)?;
        let (sender, done) = channel();
        let exits = Arc::default();
        let theirs = Arc::clone(&exits);
        let thread = std::thread::spawn(move || run(vcpu, &theirs, &sender));
        Ok(Self {
            memory,
            thread: Some(thread),
            exits,
            done: Mutex::new(done),
            vm: VmFdHandle(handle),
        })
    }

    /// How often this vector's interrupt has arrived.
    #[must_use]
    pub fn count(&self, vector: u8) -> u64 {
        self.memory.read(COUNTERS + u64::from(vector) * 8)
    }

    /// Waits until it has arrived `count` times; whether it has.
    #[must_use]
    pub fn wait_for(&self, vector: u8, count: u64, patience: Duration) -> bool {
        let start = std::time::Instant::now();
        while self.count(vector) < count {
            if start.elapsed() > patience {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }

    /// Has the guest do `writes`; those that came out as exits. Interrupts that
    /// are pending have arrived before.
    ///
    /// # Errors
    /// How the guest died, or that it is late.
    pub fn write(&mut self, writes: &[GuestWrite]) -> Result<Vec<GuestWrite>, GuestError> {
        for (write, index) in writes.iter().zip(0..) {
            let place = WRITES + index * WRITE_SIZE;
            let port = if write.bus == Bus::Pio { 16 } else { 0 };
            self.memory.write(place, write.addr);
            self.memory.write(place + 8, write.value);
            self.memory.write(place + 16, u64::from(write.len) + port);
        }
        self.lock_exits().clear();
        self.memory.write(MAILBOX, writes.len() as u64);
        if writes.is_empty() {
            return Ok(Vec::new());
        }
        self.wake()?;
        let done = self.done.get_mut().unwrap_or_else(PoisonError::into_inner);
        let late = |_| {
            let what = "did not do its writes";
            GuestError::Late { index: 0, what, waited: PATIENCE }
        };
        done.recv_timeout(PATIENCE).map_err(late)??;
        Ok(std::mem::take(&mut *self.lock_exits()))
    }

    fn wake(&self) -> Result<(), GuestError> {
        let msi =
            kvm_msi { address_lo: MSI_ADDRESS as u32, data: u32::from(WAKE), ..Default::default() };
        self.vm.0.signal_msi(msi).map(drop).map_err(GuestError::kvm("KVM_SIGNAL_MSI"))
    }

    fn lock_exits(&self) -> std::sync::MutexGuard<'_, Vec<GuestWrite>> {
        self.exits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Interrupted {
    fn drop(&mut self) {
        let stop = GuestWrite { bus: Bus::Mmio, addr: DOORBELL, len: 4, value: STOP };
        // A guest that does not stop keeps its thread and its memory.
        match self.write(&[stop]) {
            Ok(_) => _ = self.thread.take().map(JoinHandle::join),
            Err(_) => std::mem::forget(Arc::clone(&self.memory)),
        }
    }
}

fn run(mut vcpu: VcpuFd, exits: &Mutex<Vec<GuestWrite>>, done: &Sender<Result<(), GuestError>>) {
    let value = |data: &[u8]| data.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
    loop {
        let write = match vcpu.run() {
            Ok(VcpuExit::MmioWrite(DOORBELL, data)) => {
                let stop = value(data) == STOP;
                if done.send(Ok(())).is_err() || stop {
                    return;
                }
                continue;
            }
            Ok(VcpuExit::MmioWrite(addr, data)) => {
                GuestWrite { bus: Bus::Mmio, addr, len: data.len() as u32, value: value(data) }
            }
            Ok(VcpuExit::IoOut(port, data)) => GuestWrite {
                bus: Bus::Pio,
                addr: port.into(),
                len: data.len() as u32,
                value: value(data),
            },
            Ok(exit) => {
                let exit = format!("{exit:x?}");
                let pc = vcpu.get_regs().map_or(0, |regs| regs.rip);
                let _ = done.send(Err(GuestError::Died { pc, exit }));
                return;
            }
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => continue,
            Err(error) => {
                let _ = done.send(Err(GuestError::kvm("KVM_RUN")(error)));
                return;
            }
        };
        exits.lock().unwrap_or_else(PoisonError::into_inner).push(write);
    }
}

fn write_tables(memory: &HostMemory) {
    const TABLE: u64 = 0x27;
    const LARGE: u64 = 0xe7;
    memory.write(PML4, PDPT | TABLE);
    for directory in 0..4 {
        let table = PAGE_DIRECTORIES + directory * 0x1000;
        memory.write(PDPT + directory * 8, table | TABLE);
        for entry in 0..512 {
            let page = (directory * 512 + entry) * LARGE_PAGE;
            memory.write(table + entry * 8, page | LARGE);
        }
    }
    // 8: 64-bit code, 16: data, 24: the TSS, busy.
    memory.write(GDT + 8, 0x00af_9b00_0000_ffff);
    memory.write(GDT + 16, 0x00cf_9300_0000_ffff);
    memory.write(GDT + 24, 0x0000_8b00_0000_0067 | TSS << 16);
    memory.write_bytes(CODE, code());
    let start = &raw const kvm_memslots_interrupted;
    let common = &raw const kvm_memslots_interrupted_common;
    let common = CODE + (common.addr() - start.addr()) as u64;
    for vector in 32..256 {
        let stub = STUBS + vector * STUB_SIZE;
        // push imm32; jmp rel32
        let mut bytes = vec![0x68];
        bytes.extend((vector as u32).to_le_bytes());
        bytes.push(0xe9);
        bytes.extend((common.wrapping_sub(stub + 10) as u32).to_le_bytes());
        memory.write_bytes(stub, &bytes);
        // An interrupt gate: present, CPL 0, code segment 8.
        let low = (stub & 0xffff) | 8 << 16 | 0x8e00 << 32 | (stub >> 16 & 0xffff) << 48;
        memory.write(IDT + vector * 16, low);
    }
}

fn enter(kvm: &Kvm, vcpu: &VcpuFd) -> Result<(), GuestError> {
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(GuestError::kvm("KVM_GET_SUPPORTED_CPUID"))?;
    vcpu.set_cpuid2(&cpuid).map_err(GuestError::kvm("KVM_SET_CPUID2"))?;
    let mut lapic = vcpu.get_lapic().map_err(GuestError::kvm("KVM_GET_LAPIC"))?;
    for (place, byte) in lapic.regs[APIC_SVR..].iter_mut().zip(0x1ff_u32.to_le_bytes()) {
        *place = byte.cast_signed();
    }
    vcpu.set_lapic(&lapic).map_err(GuestError::kvm("KVM_SET_LAPIC"))?;

    let mut sregs = vcpu.get_sregs().map_err(GuestError::kvm("KVM_GET_SREGS"))?;
    let data = kvm_segment {
        limit: u32::MAX,
        selector: 16,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment { selector: 8, type_: 11, db: 0, l: 1, ..data };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        base: TSS,
        selector: 24,
        type_: 11,
        present: 1,
        limit: 0x67,
        ..Default::default()
    };
    sregs.gdt = kvm_dtable { base: GDT, limit: 39, ..Default::default() };
    sregs.idt = kvm_dtable { base: IDT, limit: 0xfff, ..Default::default() };
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8001_0033, PML4, 1 << 5, 0x500);
    vcpu.set_sregs(&sregs).map_err(GuestError::kvm("KVM_SET_SREGS"))?;
    let regs = kvm_regs {
        rip: CODE,
        rbx: COUNTERS,
        rbp: MAILBOX,
        rsp: STACK_TOP,
        r8: APIC_EOI,
        r9: STACK_TOP,
        r10: DOORBELL,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(GuestError::kvm("KVM_SET_REGS"))
}
