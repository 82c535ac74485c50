//! A program whose calls are not what KVM expects: bad pointers, structures of
//! other sizes, numbers at the edges, descriptors of something else; between them
//! slots that churn and a guest that reads them.

use std::ffi::{c_int, c_ulong, c_void};
use std::fmt::Write as _;
use std::ptr;

use crate::machine::{FLASH, FLASH_BYTES, Machine, PAGE, anonymous, call};
use crate::random::Random;

/// Calls that are looked at, by their numbers.
const SET_REGION: c_ulong = 0x4020_ae46;
const SET_REGION2: c_ulong = 0x40a0_ae49;
const CREATE_VCPU: c_ulong = 0xae41;
const SET_SIGNAL_MASK: c_ulong = 0x4004_ae8b;
const ENABLE_CAP: c_ulong = 0x4068_aea3;
/// `KVM_CREATE_VM` is not: what succeeds makes a VM.
const REQUESTS: [c_ulong; 11] = [
    SET_REGION,
    SET_REGION2,
    CREATE_VCPU,
    0x4010_ae42, // KVM_GET_DIRTY_LOG
    0xc018_aec0, // KVM_CLEAR_DIRTY_LOG
    SET_SIGNAL_MASK,
    ENABLE_CAP,
    0xae80,      // KVM_RUN, of what may be no vCPU
    0x8018_ae66, // KVM_SET_MEMORY_ATTRIBUTES with another direction
    0xae04,      // KVM_GET_VCPU_MMAP_SIZE
    0xae43,      // KVM_SET_MEMORY_ALIAS, long gone
];

/// None of them is a size that KVM takes and a machine has not.
const SIZES: [u64; 8] = [0, 1, PAGE - 1, PAGE, 2 * PAGE, 1 << 62, u64::MAX, u64::MAX - 0xfff];
const SLOTS: [u32; 8] = [1, 2, 3, 32_766, 32_767, 65_535, 1 << 16 | 1, u32::MAX];
const FLAGS: [u32; 6] = [0, 1, 2, 3, 1 << 9, u32::MAX];
/// `KVM_CAP_EXIT_ON_EMULATION_FAILURE`, and none.
const CAPS: [u32; 3] = [204, 0, u32::MAX];

/// Runs the program of `seed`; what it saw. `Err` is why it can't.
pub(crate) fn run(seed: u64, steps: u64) -> Result<String, c_int> {
    // SAFETY: opens a file.
    let kvm = unsafe { libc::open(c"/dev/kvm".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    let machine = Machine::new(kvm)?;
    // The last page before nothing.
    let edge = anonymous(2 * PAGE);
    // SAFETY: the second of its pages, which nothing uses.
    unsafe { libc::munmap(edge.add(PAGE as usize).cast(), PAGE as usize) };
    let mut strange = Strange { kvm, machine, edge: edge as u64 + PAGE, random: Random(seed) };
    let mut seen = String::new();
    for step in 0..steps {
        let _ = writeln!(seen, "{step}: {}", strange.step());
    }
    Ok(seen)
}

struct Strange {
    kvm: c_int,
    machine: Machine,
    /// Where memory ends.
    edge: u64,
    random: Random,
}

impl Strange {
    fn step(&mut self) -> String {
        let slot = 1 + self.random.below(3) as u32;
        let page = 2 * u64::from(slot - 1);
        // Some calls have the library leave a VM alone for good.
        if self.random.below(24) == 0 {
            return self.another_machine();
        }
        match self.random.below(8) {
            0 => {
                let all = (0..5).map(|_| self.machine.churn(slot, page, 2));
                format!("churn {slot}: {:?}", Vec::from_iter(all))
            }
            1 => {
                let bx = self.random.below(FLASH_BYTES - 2);
                format!("probe {bx:#x}:{}", self.machine.probe(bx))
            }
            _ => self.call(),
        }
    }

    fn another_machine(&mut self) -> String {
        for fd in [self.machine.vcpu, self.machine.vm] {
            // SAFETY: numbers of the program's own.
            unsafe { libc::close(fd) };
        }
        match Machine::new(self.kvm) {
            Ok(machine) => self.machine = machine,
            Err(errno) => return format!("no VM: {errno}"),
        }
        format!("VM {}, vCPU {}", self.machine.vm, self.machine.vcpu)
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.random.below(of.len() as u64) as usize]
    }

    fn call(&mut self) -> String {
        let mut request = self.pick(&REQUESTS);
        // Another size or direction; as an int that was one with its sign.
        request = match self.random.below(10) {
            0 => request ^ 8 << 16,
            1 => request ^ 1 << 31,
            2 => request as u32 as i32 as c_ulong,
            _ => request,
        };
        let Machine { vm, vcpu, .. } = self.machine;
        let fd = match self.random.below(8) {
            0 => vcpu,
            1 => self.kvm,
            2 => self.pick(&[-1, 0, 60_000, 70_000, c_int::MAX]),
            _ => vm,
        };
        // A vCPU that runs may run on for ever.
        if request & 0xffff_ffff == 0xae80 && fd == vcpu {
            return "none".to_owned();
        }
        let mut bytes = [0; 512];
        self.fill(request, &mut bytes);
        let before = bytes;
        let arg: *mut c_void = match self.random.below(10) {
            0 => ptr::null_mut(),
            1 => ptr::without_provenance_mut(8),
            2 => ptr::without_provenance_mut(usize::MAX - 7),
            // The structure goes on where nothing is.
            3 => ptr::with_exposed_provenance_mut((self.edge - 8 * self.random.below(5)) as usize),
            _ => bytes.as_mut_ptr().cast(),
        };
        // The argument is a number.
        let is_vcpu = request & 0xffff_ffff == CREATE_VCPU;
        let arg = if is_vcpu { ptr::without_provenance_mut(self.id()) } else { arg };
        let result = call(fd, request, arg);
        if is_vcpu && result >= 0 {
            // SAFETY: just made.
            unsafe { libc::close(result) };
        }
        // What was written there is compared, too; what was there before has
        // addresses in it.
        let changes = bytes.iter().zip(&before).map(|(now, then)| now ^ then);
        let sum = changes.fold(0_u32, |sum, bits| sum.rotate_left(5) ^ u32::from(bits));
        format!("{request:#x} of {fd}: {result}, {sum:#x}")
    }

    fn id(&mut self) -> usize {
        let any = self.random.below(8) as usize;
        self.pick(&[any, 4096, u32::MAX as usize, usize::MAX])
    }

    /// Something like a structure of the call's.
    fn fill(&mut self, request: c_ulong, bytes: &mut [u8; 512]) {
        let mut put = |at: usize, value: u64, size: usize| {
            bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
        };
        let slot = self.pick(&SLOTS);
        match request & 0xff {
            0x46 | 0x49 => {
                let flash = self.machine.flash as u64;
                let page = PAGE * self.random.below(8);
                put(0, slot.into(), 4);
                put(4, self.pick(&FLAGS).into(), 4);
                put(8, self.pick(&[FLASH + page, FLASH + page, 0, FLASH + 1, u64::MAX - 0xfff]), 8);
                put(16, self.pick(&SIZES), 8);
                put(24, self.pick(&[flash + page, flash + page, flash + 1, 0, 1 << 63]), 8);
            }
            0x42 | 0xc0 => {
                put(0, slot.into(), 4);
                put(4, self.random.below(100), 4);
                put(8, self.random.below(2) * 64, 8);
                put(16, self.pick(&[0, 8, self.edge - 8]), 8);
            }
            0x8b => {
                put(0, self.pick(&[8, 8, 0, 4, u64::MAX]), 4);
                // All but two signals that nobody sends.
                put(4, self.random.below(4) << 40, 8);
            }
            0xa3 => {
                put(0, self.pick(&CAPS).into(), 4);
                put(4, self.random.below(2), 4);
                put(8, self.random.below(3), 8);
            }
            _ => (0..64).for_each(|at| put(at * 8, self.random.below(u64::MAX), 8)),
        }
    }
}
