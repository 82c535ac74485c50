//! A program with several VMs whose descriptors change places, whose vCPUs' pages are
//! mapped here and there, and some of whose vCPUs have masks of signals.

use std::ffi::c_int;
use std::fmt::Write as _;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::machine::{FLASH_BYTES, Machine, PAGE, call, map};
use crate::passing;
use crate::random::Random;

static HANDLED: AtomicU32 = AtomicU32::new(0);

extern "C" fn handler(_: c_int) {
    HANDLED.fetch_add(1, Ordering::SeqCst);
}

const SIGNAL: u64 = 1 << (libc::SIGUSR1 - 1);
/// `KVM_RUN`s after which none is looked at, where slots stay as they are.
const LONG: u32 = 4_200;

/// Runs the program of `seed`; what it saw. `Err` is why it can't.
pub(crate) fn run(seed: u64, steps: u64) -> Result<String, c_int> {
    let handler: extern "C" fn(c_int) = handler;
    // SAFETY: the handler adds to a count.
    unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };
    set_mask(libc::SIG_BLOCK);
    // SAFETY: opens a file.
    let kvm = unsafe { libc::open(c"/dev/kvm".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    let mut random = Random(seed);
    let machines = [new(kvm, &mut random)?, new(kvm, &mut random)?, new(kvm, &mut random)?];
    let mut shuffled = Shuffled { kvm, machines, pages: Vec::new(), random };
    let mut seen = String::new();
    for step in 0..steps {
        let _ = writeln!(seen, "{step}: {}", shuffled.step());
    }
    let _ = writeln!(seen, "held: {}", passing::held());
    Ok(seen)
}

/// One whose flash is not like the others'.
fn new(kvm: c_int, random: &mut Random) -> Result<Machine, c_int> {
    let machine = Machine::new(kvm)?;
    for at in 0..FLASH_BYTES {
        // SAFETY: one of its bytes.
        unsafe { machine.flash.add(at as usize).write(random.below(256) as u8) };
    }
    Ok(machine)
}

fn set_mask(how: c_int) {
    let set = SIGNAL;
    // SAFETY: a set of the kernel's size.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const set, 0_usize, 8_usize) };
}

struct Shuffled {
    kvm: c_int,
    machines: [Machine; 3],
    /// Other places where pages of vCPUs are mapped.
    pages: Vec<*mut u8>,
    random: Random,
}

impl Shuffled {
    fn step(&mut self) -> String {
        let which = self.random.below(3) as usize;
        let other = (which + 1 + self.random.below(2) as usize) % 3;
        let slot = 1 + self.random.below(3) as u32;
        let (page, times) = (2 * u64::from(slot - 1), 1 + self.random.below(6));
        let machine = &self.machines[which];
        match self.random.below(30) {
            0..=8 => {
                let all = (0..times).map(|_| machine.churn(slot, page, 2));
                format!("churn {which}, {slot}: {:?}", Vec::from_iter(all))
            }
            9 => format!("away {which}, {slot}: {}", machine.slot(slot, page, 0, 0)),
            10..=16 => {
                let bx = self.random.below(FLASH_BYTES - 2);
                format!("probe {which}, {bx:#x}:{}", machine.probe(bx))
            }
            17 | 18 => {
                let [one, two] = [which, other].map(|which| self.machines[which].vcpu);
                exchange(one, two);
                (self.machines[which].vcpu, self.machines[other].vcpu) = (two, one);
                format!("vCPUs {which} and {other}")
            }
            19 => {
                let [one, two] = [which, other].map(|which| self.machines[which].vm);
                exchange(one, two);
                (self.machines[which].vm, self.machines[other].vm) = (two, one);
                format!("VMs {which} and {other}")
            }
            20 => self.map_again(which),
            21 => self.unmap(),
            22 => {
                let old = machine.vcpu;
                let new = passing::again(old, [0, 1, 4, 5][self.random.below(4) as usize]);
                // SAFETY: the program's own.
                unsafe { libc::close(old) };
                self.machines[which].vcpu = new;
                format!("vCPU {which}: {old} is {new}")
            }
            23 => {
                let mask = [None, Some(0), Some(SIGNAL)][self.random.below(3) as usize];
                format!("mask {which}, {mask:?}: {}", machine.let_in(mask))
            }
            24 => {
                // SAFETY: to this thread.
                unsafe { libc::raise(libc::SIGUSR1) };
                "raised".to_owned()
            }
            25 => {
                set_mask(libc::SIG_UNBLOCK);
                set_mask(libc::SIG_BLOCK);
                format!("handled: {}", HANDLED.load(Ordering::SeqCst))
            }
            26 => {
                machine.immediate_exit(true);
                let ended = (0..LONG).filter(|_| machine.run() < 0).count();
                machine.immediate_exit(false);
                format!("long {which}: {ended}")
            }
            27 => {
                let at = self.random.below(FLASH_BYTES) as usize;
                // SAFETY: one of its bytes.
                unsafe { machine.flash.add(at).write_volatile(at as u8) };
                "write".to_owned()
            }
            28 => format!("log {which}, {slot}: {}", machine.dirty_log(slot)),
            _ => self.renew(which),
        }
    }

    /// Two places of one page; which of them is looked at from now on may be either.
    fn map_again(&mut self, which: usize) -> String {
        let machine = &mut self.machines[which];
        let page = map(3 * PAGE, libc::MAP_SHARED, machine.vcpu);
        if self.random.below(2) == 0 {
            self.pages.push(page);
        } else {
            self.pages.push(machine.run.cast());
            machine.run = page.cast();
        }
        format!("mapped {which}")
    }

    /// One of the other places goes, or something else comes there.
    fn unmap(&mut self) -> String {
        if self.pages.is_empty() {
            return "unmapped none".to_owned();
        }
        let at = self.random.below(self.pages.len() as u64) as usize;
        let page = self.pages.swap_remove(at).cast();
        let (bytes, access) = (3 * PAGE as usize, libc::PROT_READ | libc::PROT_WRITE);
        if self.random.below(2) == 0 {
            // SAFETY: nothing looks there any more.
            let gone = unsafe { libc::munmap(page, bytes) };
            return format!("unmapped {at}: {gone}");
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: as above.
        let now = unsafe { libc::mmap(page, bytes, access, flags, -1, 0) };
        // What a guest's read looks like, which nobody is to answer.
        // SAFETY: mapped above.
        unsafe { now.cast::<[u32; 4]>().write([0, 0, kvm_bindings::KVM_EXIT_MMIO, 0]) };
        format!("something else at {at}: {}", ptr::eq(now, page))
    }

    fn renew(&mut self, which: usize) -> String {
        let Machine { vm, vcpu, .. } = self.machines[which];
        for fd in [vcpu, vm] {
            // SAFETY: the program's own.
            unsafe { libc::close(fd) };
        }
        match new(self.kvm, &mut self.random) {
            Ok(machine) => self.machines[which] = machine,
            Err(errno) => return format!("no VM: {errno}"),
        }
        let Machine { vm, vcpu, .. } = self.machines[which];
        // Whether it is one.
        let extension = call(vm, 0xae03, ptr::without_provenance_mut(3));
        format!("VM {vm}, vCPU {vcpu}, {}", extension > 0)
    }
}

/// What two numbers stand for.
fn exchange(one: c_int, two: c_int) {
    // SAFETY: numbers of the program's own, here and below.
    let third = unsafe { libc::fcntl(one, libc::F_DUPFD_CLOEXEC, 3) };
    for (from, to) in [(two, one), (third, two)] {
        // SAFETY: as above.
        assert_eq!(unsafe { libc::dup3(from, to, libc::O_CLOEXEC) }, to);
    }
    // SAFETY: as above.
    unsafe { libc::close(third) };
}
