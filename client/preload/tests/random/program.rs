//! A random program: calls, exits, signals, forks, descriptors that come and go,
//! a filter at the end; and a line for everything that it sees.

use std::ffi::{c_int, c_ulong};
use std::fmt::Write as _;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_run};

use crate::machine::{CREATE_VM, FLASH_BYTES, Machine, PAGE, anonymous, call, set, set_nowhere};
use crate::passing;
use crate::random::Random;

static HANDLED: AtomicU32 = AtomicU32::new(0);
static RUN: AtomicPtr<kvm_run> = AtomicPtr::new(ptr::null_mut());

/// As many VMMs kick a vCPU: what comes next is not to be run.
extern "C" fn handler(_: c_int) {
    HANDLED.fetch_add(1, Ordering::SeqCst);
    let run = RUN.load(Ordering::SeqCst);
    if !run.is_null() {
        // SAFETY: mapped for good.
        unsafe { (&raw mut (*run).immediate_exit).write_volatile(1) };
    }
}

const fn bit(signal: c_int) -> u64 {
    1 << (signal - 1)
}

/// Runs the program of `seed`; what it saw. `Err` is why it can't.
pub(crate) fn run(seed: u64, steps: u64) -> Result<String, c_int> {
    let handler: extern "C" fn(c_int) = handler;
    // SAFETY: the handler writes a count and a byte.
    unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };
    // SAFETY: opens a file.
    let kvm = unsafe { libc::open(c"/dev/kvm".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    let mut program =
        Program { kvm, machine: Machine::new(kvm)?, random: Random(seed), seen: String::new() };
    for step in 0..steps {
        let seen = program.step();
        let _ = writeln!(program.seen, "{step}: {seen}");
    }
    let _ = writeln!(program.seen, "held: {}", passing::held());
    if seed % 2 == 0 {
        program.filter();
    }
    Ok(program.seen)
}

struct Program {
    kvm: c_int,
    machine: Machine,
    random: Random,
    seen: String,
}

impl Program {
    fn step(&mut self) -> String {
        let slot = 1 + self.random.below(3) as u32;
        // Each at a place of its own, as a rule.
        let (page, pages) = (2 * u64::from(slot - 1), 1 + self.random.below(2));
        let machine = &self.machine;
        match self.random.below(27) {
            0..=4 => {
                let times = 1 + self.random.below(5);
                let all = (0..times).map(|_| machine.churn(slot, page, 2));
                format!("churn {slot}: {:?}", Vec::from_iter(all))
            }
            5 => format!("away {slot}: {}", machine.slot(slot, page, 0, 0)),
            6 => {
                let flags =
                    [0, KVM_MEM_READONLY, KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES, 1 << 9];
                let flags = flags[self.random.below(4) as usize];
                let page = self.random.below(6);
                format!("slot {slot}, {page}+{pages}: {}", machine.slot(slot, page, pages, flags))
            }
            7 => format!("log {slot}: {}", machine.dirty_log(slot * self.random.below(2) as u32)),
            8..=12 => {
                let bx = self.random.below(FLASH_BYTES - 2);
                format!("probe {bx:#x}:{}", machine.probe(bx))
            }
            13 => {
                let at = self.random.below(FLASH_BYTES);
                // SAFETY: one of its bytes.
                unsafe { machine.flash.add(at as usize).write_volatile(at as u8) };
                "write".to_owned()
            }
            14 => {
                let end = anonymous(2 * PAGE);
                // SAFETY: the second of its pages, which nothing uses.
                unsafe { libc::munmap(end.add(PAGE as usize).cast(), PAGE as usize) };
                let end = end as u64 + PAGE;
                let crosses = set_nowhere(machine.vm, end - 16);
                format!("nowhere: {} {crosses} {}", set_nowhere(machine.vm, 8), machine.cut(end))
            }
            15 => self.kicked(),
            16 => self.let_in(),
            17 => self.ignored(),
            18 => format!("child: {:#x}", self.child()),
            19 => self.other_descriptor(),
            20 => format!("spawned: {}", passing::spawned(self.random.below(2))),
            21 => format!(
                "replaced: {}, {}",
                passing::replaced(self.kvm, machine),
                self.another_machine()
            ),
            22 => format!(
                "by a child: {}, {}",
                passing::closed_by_child(machine),
                self.another_machine()
            ),
            23 => self.other_vcpu(),
            24 => self.replaced_vcpu(),
            _ => self.another_machine(),
        }
    }

    /// One kick ends a loop of reads, wherever it comes.
    fn kicked(&mut self) -> String {
        let machine = &self.machine;
        for _ in 0..6 {
            machine.churn(1, 0, 2);
        }
        let handled = HANDLED.load(Ordering::SeqCst);
        RUN.store(machine.run, Ordering::SeqCst);
        machine.enter(0x10, true);
        // SAFETY: this thread, which waits for the other.
        let this = unsafe { libc::pthread_self() };
        let after = std::time::Duration::from_micros(self.random.below(3_000));
        let result = std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(after);
                // SAFETY: a thread that is there.
                unsafe { libc::pthread_kill(this, libc::SIGUSR1) };
            });
            // Without a kick this would not end.
            loop {
                let result = machine.run();
                if result != 0 {
                    break result;
                }
            }
        });
        RUN.store(ptr::null_mut(), Ordering::SeqCst);
        machine.immediate_exit(false);
        format!("kicked {result}, handled {}", HANDLED.load(Ordering::SeqCst) - handled)
    }

    /// A signal that only the guest's time lets in.
    fn let_in(&mut self) -> String {
        let machine = &self.machine;
        let set = machine.let_in(Some(0));
        let handled = HANDLED.load(Ordering::SeqCst);
        let blocked = mask(bit(libc::SIGUSR1));
        // SAFETY: to this thread.
        unsafe { libc::raise(libc::SIGUSR1) };
        machine.enter(0x20, false);
        let ended = machine.run();
        let before = HANDLED.load(Ordering::SeqCst) - handled;
        mask(blocked);
        let after = HANDLED.load(Ordering::SeqCst) - handled;
        let cleared = machine.let_in(None);
        format!("let in {set} {ended} {before} {after} {cleared}:{}", machine.probe(0x20))
    }

    /// Signals that nobody handles leave no trace.
    fn ignored(&mut self) -> String {
        // SAFETY: this thread, which waits for the other.
        let this = unsafe { libc::pthread_self() };
        let machine = &self.machine;
        let seen = std::thread::scope(|scope| {
            scope.spawn(move || {
                for _ in 0..200 {
                    // SAFETY: a thread that is there.
                    unsafe { libc::pthread_kill(this, libc::SIGURG) };
                }
            });
            Vec::from_iter((0..4).map(|at| {
                machine.churn(2, 2, 2);
                machine.probe(0x2000 + at)
            }))
        });
        // A guest that runs is interrupted by nothing; the last run is asked to end.
        format!("ignored {seen:?}")
    }

    /// What a child finds of its parent's, and makes itself.
    fn child(&mut self) -> c_int {
        let close = self.random.below(2) == 0;
        // SAFETY: the child makes system calls only.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let of_parent = self.machine.slot(1, 0, 0, 0);
            let vm = call(self.kvm, CREATE_VM, ptr::null_mut());
            let own = set(vm, 1, 0, PAGE, self.machine.flash as u64, KVM_MEM_READONLY);
            let gone = set(vm, 1, 0, 0, 0, 0);
            for fd in (3..64).filter(|_| close) {
                // SAFETY: the child's.
                unsafe { libc::close(fd) };
            }
            let code = of_parent.wrapping_mul(7) ^ own.wrapping_mul(5) ^ gone ^ vm;
            // SAFETY: does not return.
            unsafe { libc::_exit(code & 0xff) };
        }
        let mut status = 0;
        // SAFETY: this process's child.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        status
    }

    /// The VM under another number, the old one closed in some way.
    fn other_descriptor(&mut self) -> String {
        let old = self.machine.vm;
        let new = passing::again(old, self.random.below(passing::WAYS));
        self.close(old);
        self.machine.vm = new;
        format!("{old} is {new}: {:?}", self.machine.churn(3, 4, 2))
    }

    /// The same with the vCPU.
    fn other_vcpu(&mut self) -> String {
        let old = self.machine.vcpu;
        // By a number that is free, not by the VM's.
        let new = passing::again(old, [0, 1, 4, 5][self.random.below(4) as usize]);
        self.close(old);
        self.machine.vcpu = new;
        let churned = [(); 6].map(|()| self.machine.churn(1, 0, 2));
        format!("{churned:?}, vCPU {old} is {new}:{}", self.machine.probe(0x40))
    }

    /// The number of one vCPU stands for another.
    fn replaced_vcpu(&mut self) -> String {
        let churned = [(); 6].map(|()| self.machine.churn(1, 0, 2));
        let first = self.machine.probe(0x40);
        self.machine.replace_vcpu();
        let second = self.machine.probe(0x40);
        format!("{churned:?}, vCPUs:{first}{second}, {}", self.another_machine())
    }

    fn close(&mut self, fd: c_int) {
        match self.random.below(4) {
            // SAFETY: the program's own, here and below.
            0 => drop(unsafe { libc::close(fd) }),
            // SAFETY: as above.
            1 => drop(unsafe { libc::syscall(libc::SYS_close, fd) }),
            // SAFETY: as above.
            2 => drop(unsafe { libc::close_range(fd as u32, fd as u32, 0) }),
            _ => {
                // SAFETY: as above.
                let file = unsafe { libc::fdopen(fd, c"r+".as_ptr()) };
                // SAFETY: just opened.
                unsafe { libc::fclose(file) };
            }
        }
    }

    /// Another VM, under the numbers of the one before.
    fn another_machine(&mut self) -> String {
        for fd in [self.machine.vcpu, self.machine.vm] {
            self.close(fd);
        }
        match Machine::new(self.kvm) {
            Ok(machine) => self.machine = machine,
            Err(errno) => return format!("no VM: {errno}"),
        }
        let Machine { vm, vcpu, .. } = self.machine;
        format!("VM {vm}, vCPU {vcpu}: {:?}", self.machine.churn(1, 0, 2))
    }

    /// From here on only what the program itself calls is allowed.
    fn filter(&mut self) {
        for _ in 0..6 {
            self.machine.churn(1, 0, 2);
        }
        let filtered = filter();
        let first = self.machine.churn(1, 0, 2);
        let second = [self.machine.probe(0x30), self.machine.probe(0x2001)];
        let _ = writeln!(self.seen, "filter {filtered}: {first:?} {second:?}");
    }
}

fn mask(blocked: u64) -> u64 {
    let mut old = 0_u64;
    let (new, how) = (&raw const blocked, libc::SIG_SETMASK);
    // SAFETY: sets of the kernel's size.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, new, &raw mut old, 8_usize) };
    old
}

/// Kills for any call but those of the programs themselves.
fn filter() -> c_int {
    const ALLOWED: [i64; 10] = [
        libc::SYS_ioctl,
        libc::SYS_close,
        libc::SYS_write,
        libc::SYS_openat,
        libc::SYS_exit_group,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_brk,
        libc::SYS_mremap,
        libc::SYS_rt_sigreturn,
    ];
    let op = |code, jt, k| libc::sock_filter { code, jt, jf: 0, k };
    let mut code = vec![op(0x20, 0, 0)];
    for (at, number) in ALLOWED.iter().enumerate() {
        code.push(op(0x15, (ALLOWED.len() - at) as u8, *number as u32));
    }
    code.push(op(0x06, 0, libc::SECCOMP_RET_KILL_PROCESS));
    code.push(op(0x06, 0, libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
    // SAFETY: numbers only.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as c_ulong, 0, 0, 0) };
    let mode = c_ulong::from(libc::SECCOMP_MODE_FILTER);
    // SAFETY: the structure that it takes.
    unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) }
}
