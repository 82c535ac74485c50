//! A VM as the random programs use it: by raw calls, whose every answer is
//! visible.

use std::ffi::{c_int, c_ulong, c_void};
use std::ptr;

use kvm_bindings::{
    KVM_EXIT_IO, KVM_EXIT_MMIO, KVM_MEM_READONLY, kvm_dirty_log, kvm_regs, kvm_run,
    kvm_signal_mask, kvm_sregs, kvm_userspace_memory_region, kvm_userspace_memory_region2,
};

pub(crate) const CREATE_VM: c_ulong = 0xae01;
const CREATE_VCPU: c_ulong = 0xae41;
const GET_DIRTY_LOG: c_ulong = 0x4010_ae42;
const SET_REGION: c_ulong = 0x4020_ae46;
const SET_REGION2: c_ulong = 0x40a0_ae49;
const RUN: c_ulong = 0xae80;
const SET_REGS: c_ulong = 0x4090_ae82;
const GET_SREGS: c_ulong = 0x8138_ae83;
const SET_SREGS: c_ulong = 0x4138_ae84;
const SET_SIGNAL_MASK: c_ulong = 0x4004_ae8b;

pub(crate) const PAGE: u64 = 4096;
/// Where the slots that come and go are; real mode reaches 64 KiB from there.
pub(crate) const FLASH: u64 = 0x8_0000;
/// Bytes of host memory behind them.
pub(crate) const FLASH_BYTES: u64 = 8 * PAGE;

/// `mov ax, [bx]`, `out 0x10, ax`, and again.
const PROBE: [u8; 6] = [0x8b, 0x07, 0xe7, 0x10, 0xeb, 0xfa];
/// `mov ax, [bx]`, and again.
const LOOP: [u8; 4] = [0x8b, 0x07, 0xeb, 0xfc];
const LOOP_AT: u64 = 0x1800;

/// -1 and errno as one number.
pub(crate) fn call(fd: c_int, request: c_ulong, arg: *mut c_void) -> c_int {
    // SAFETY: the programs pass what the kernel takes, or what it refuses.
    let result = unsafe { libc::ioctl(fd, request, arg) };
    if result < 0 { -errno() } else { result }
}

fn errno() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

pub(crate) fn map(bytes: u64, flags: c_int, fd: c_int) -> *mut u8 {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping.
    let at = unsafe { libc::mmap(ptr::null_mut(), bytes as usize, access, flags, fd, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at.cast()
}

pub(crate) fn anonymous(bytes: u64) -> *mut u8 {
    map(bytes, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
}

/// One VM with one vCPU. Its memory stays for good.
pub(crate) struct Machine {
    pub(crate) vm: c_int,
    pub(crate) vcpu: c_int,
    pub(crate) run: *mut kvm_run,
    pub(crate) flash: *mut u8,
}

impl Machine {
    pub(crate) fn new(kvm: c_int) -> Result<Self, c_int> {
        let vm = call(kvm, CREATE_VM, ptr::null_mut());
        if vm < 0 {
            return Err(vm);
        }
        let (ram, flash) = (anonymous(16 * PAGE), anonymous(FLASH_BYTES));
        for at in 0..FLASH_BYTES {
            // SAFETY: one of its bytes.
            unsafe { flash.add(at as usize).write((at ^ at >> 8) as u8) };
        }
        // SAFETY: within the 16 pages.
        unsafe { ptr::copy_nonoverlapping(PROBE.as_ptr(), ram.add(0x1000), PROBE.len()) };
        // SAFETY: the same.
        unsafe { ptr::copy_nonoverlapping(LOOP.as_ptr(), ram.add(LOOP_AT as usize), LOOP.len()) };
        assert_eq!(set(vm, 0, 0, 16 * PAGE, ram as u64, 0), 0);
        let (vcpu, run) = new_vcpu(vm, 0);
        Ok(Self { vm, vcpu, run, flash })
    }

    /// The vCPU's number stands for another vCPU of the VM, which is there once.
    pub(crate) fn replace_vcpu(&mut self) {
        let (vcpu, run) = new_vcpu(self.vm, 1);
        // SAFETY: numbers of its own, here and below.
        assert_eq!(unsafe { libc::dup3(vcpu, self.vcpu, libc::O_CLOEXEC) }, self.vcpu);
        // SAFETY: as above.
        unsafe { libc::close(vcpu) };
        self.run = run;
    }

    /// A slot over pages `page..page + pages` of the flash, or none.
    pub(crate) fn slot(&self, slot: u32, page: u64, pages: u64, flags: u32) -> c_int {
        let (gpa, hva) = (FLASH + page * PAGE, self.flash as u64 + page * PAGE);
        set(self.vm, slot, gpa, pages * PAGE, hva, flags)
    }

    /// Away and back.
    pub(crate) fn churn(&self, slot: u32, page: u64, pages: u64) -> [c_int; 2] {
        let away = self.slot(slot, page, 0, 0);
        [away, self.slot(slot, page, pages, KVM_MEM_READONLY)]
    }

    /// Slot 1 comes back by a structure of which there is no more than its start, the
    /// memory before `end`.
    pub(crate) fn cut(&self, end: u64) -> String {
        for _ in 0..6 {
            self.churn(1, 0, 2);
        }
        let mut whole = kvm_userspace_memory_region2 { slot: 1, ..Default::default() };
        let away = call(self.vm, SET_REGION2, (&raw mut whole).cast());
        let start = kvm_userspace_memory_region {
            slot: 1,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: FLASH,
            memory_size: 2 * PAGE,
            userspace_addr: self.flash as u64,
        };
        let at = end - size_of_val(&start) as u64;
        let at = ptr::with_exposed_provenance_mut::<kvm_userspace_memory_region>(at as usize);
        // SAFETY: as much as there is, aligned.
        unsafe { at.write(start) };
        let cut = call(self.vm, SET_REGION2, at.cast());
        format!("{away} {cut} {:?}", self.churn(1, 0, 2))
    }

    pub(crate) fn enter(&self, bx: u64, endless: bool) {
        let rip = if endless { LOOP_AT } else { 0x1000 };
        let mut regs = kvm_regs { rip, rbx: bx, rflags: 2, ..Default::default() };
        assert_eq!(call(self.vcpu, SET_REGS, (&raw mut regs).cast()), 0);
    }

    pub(crate) fn run(&self) -> c_int {
        call(self.vcpu, RUN, ptr::null_mut())
    }

    pub(crate) fn immediate_exit(&self, on: bool) {
        // SAFETY: mapped for good, and a byte of its own.
        unsafe { (&raw mut (*self.run).immediate_exit).write_volatile(on.into()) };
    }

    /// The guest reads two bytes; all that comes out until it says what it got.
    pub(crate) fn probe(&self, bx: u64) -> String {
        self.enter(bx, false);
        let mut seen = String::new();
        for _ in 0..40 {
            let result = self.run();
            seen += &self.came_out(result);
            // SAFETY: mapped for good; the vCPU is this thread's.
            let reason = unsafe { (*self.run).exit_reason };
            if result < 0 || reason != KVM_EXIT_MMIO {
                break;
            }
        }
        // The access ends before the next begins.
        self.immediate_exit(true);
        seen += " ";
        seen += &self.run().to_string();
        self.immediate_exit(false);
        seen
    }

    /// What `KVM_RUN` says, and answers a read.
    fn came_out(&self, result: c_int) -> String {
        if result < 0 {
            return format!(" {result}");
        }
        // SAFETY: mapped for good; the vCPU is this thread's.
        let run = unsafe { &mut *self.run };
        match run.exit_reason {
            KVM_EXIT_MMIO => {
                // SAFETY: what is there for this exit.
                let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
                let out = format!(" mmio {:#x}+{} w{}", mmio.phys_addr, mmio.len, mmio.is_write);
                mmio.data = [0xd0, 0xd1, 0xd2, 0xd3, 0, 0, 0, 0];
                out
            }
            KVM_EXIT_IO => {
                // SAFETY: what is there for this exit.
                let io = unsafe { run.__bindgen_anon_1.io };
                let at = self.run.cast::<u8>().wrapping_add(io.data_offset as usize);
                // SAFETY: in the page after the structure.
                let value = unsafe { at.cast::<u16>().read_unaligned() };
                format!(" ax={value:#06x}")
            }
            reason => format!(" exit {reason}"),
        }
    }

    /// KVM's mask of signals.
    pub(crate) fn let_in(&self, mask: Option<u64>) -> c_int {
        #[repr(C)]
        struct Mask(kvm_signal_mask, [u32; 2]);
        let mut set = Mask(kvm_signal_mask { len: 8, ..Default::default() }, [0; 2]);
        let Some(mask) = mask else { return call(self.vcpu, SET_SIGNAL_MASK, ptr::null_mut()) };
        set.1 = [mask as u32, (mask >> 32) as u32];
        call(self.vcpu, SET_SIGNAL_MASK, (&raw mut set).cast())
    }

    pub(crate) fn dirty_log(&self, slot: u32) -> String {
        let mut bits = [0_u64; 16];
        let mut log = kvm_dirty_log { slot, ..Default::default() };
        log.__bindgen_anon_1.dirty_bitmap = (&raw mut bits).cast();
        let result = call(self.vm, GET_DIRTY_LOG, (&raw mut log).cast());
        format!("{result} {:#x}", bits[0])
    }
}

/// About to run at the start of memory, with its data in the flash.
fn new_vcpu(vm: c_int, id: usize) -> (c_int, *mut kvm_run) {
    let vcpu = call(vm, CREATE_VCPU, ptr::without_provenance_mut(id));
    assert!(vcpu >= 0);
    let run = map(3 * PAGE, libc::MAP_SHARED, vcpu).cast();
    let mut sregs = kvm_sregs::default();
    assert_eq!(call(vcpu, GET_SREGS, (&raw mut sregs).cast()), 0);
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    (sregs.ds.base, sregs.ds.selector) = (FLASH, (FLASH >> 4) as u16);
    assert_eq!(call(vcpu, SET_SREGS, (&raw mut sregs).cast()), 0);
    (vcpu, run)
}

pub(crate) fn set(vm: c_int, slot: u32, gpa: u64, size: u64, hva: u64, flags: u32) -> c_int {
    let mut region = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: gpa,
        memory_size: size,
        userspace_addr: hva,
    };
    call(vm, SET_REGION, (&raw mut region).cast())
}

/// An argument that is not there.
pub(crate) fn set_nowhere(vm: c_int, at: u64) -> c_int {
    call(vm, SET_REGION, ptr::with_exposed_provenance_mut(at as usize))
}
