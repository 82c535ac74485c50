//! What a guest's serial console says: the output of the command, its exit
//! status, and whether the kernel complained.
//!
//! Console and command share one line, on every architecture. The kernel is
//! booted with `printk.time=1`, so each line of its own starts with
//! `[SECONDS.MICROSECONDS] ` and goes up to the end of the line, and may start
//! in the middle of a line of the command.

/// What the guest's `/init` prints before the command runs.
const BEGIN: &str = "LAB-BEGIN";
/// What it prints, with the exit status, when the command has ended.
const EXIT: &str = "LAB-EXIT ";

/// Lines of a splat that are shown; the log has all.
const SPLAT_LINES: usize = 80;

/// What only a kernel that has found something wrong says.
const SPLATS: [&str; 20] = [
    "WARNING:",
    "BUG:",
    "kernel BUG at",
    "KASAN",
    "UBSAN",
    "KCSAN",
    "Oops",
    "Kernel panic",
    "general protection fault",
    "Unable to handle kernel",
    "possible recursive locking",
    "possible circular locking",
    "inconsistent lock state",
    "suspicious RCU usage",
    "refcount_t:",
    "list_add corruption",
    "list_del corruption",
    "self-detected stall",
    "detected stalls",
    "blocked for more than",
];

/// What kmemleak reports, which `/init` prints after the command.
const LEAK: &str = "unreferenced object";

#[derive(Debug, Default, PartialEq, Clone, Copy)]
enum Phase {
    /// Firmware and boot.
    #[default]
    Before,
    Command,
    After,
}

/// A console, read a line at a time.
#[derive(Debug, Default)]
pub(super) struct Console {
    phase: Phase,
    /// The start of a line of the command that the kernel has broken into.
    partial: String,
    output: Vec<String>,
    status: Option<i32>,
    splat: Vec<String>,
}

impl Console {
    /// Takes a line; what it completes of the command's output.
    pub(super) fn line(&mut self, line: &str) -> Option<&str> {
        let line = line.trim_end_matches(['\r', '\n']);
        let (own, kernel) = match kernel_message(line) {
            Some(at) => (&line[..at], Some(&line[at..])),
            None => (line, None),
        };
        self.partial.push_str(own);
        if let Some(message) = kernel {
            self.kernel(message);
            return None;
        }
        let line = std::mem::take(&mut self.partial);
        match self.phase {
            Phase::Before if line.ends_with(BEGIN) => self.phase = Phase::Command,
            Phase::Command => return self.command(line),
            Phase::After if !self.splat.is_empty() || line.contains(LEAK) => self.complain(&line),
            Phase::Before | Phase::After => {}
        }
        None
    }

    fn command(&mut self, line: String) -> Option<&str> {
        // Output that does not end with a line end is in front of it.
        if let Some((rest, status)) = line.split_once(EXIT) {
            self.phase = Phase::After;
            self.status = status.trim().parse().ok();
            if rest.is_empty() {
                return None;
            }
            self.output.push(rest.to_owned());
        } else {
            self.output.push(line);
        }
        self.output.last().map(String::as_str)
    }

    fn kernel(&mut self, message: &str) {
        if !self.splat.is_empty() || SPLATS.iter().any(|splat| message.contains(splat)) {
            self.complain(message);
        }
    }

    fn complain(&mut self, line: &str) {
        if self.splat.len() < SPLAT_LINES {
            self.splat.push(line.to_owned());
        }
    }

    /// What the command wrote.
    pub(super) fn output(&self) -> &[String] {
        &self.output
    }

    /// The command's exit status, once it has ended.
    pub(super) fn status(&self) -> Option<i32> {
        self.status
    }

    /// The kernel's first complaint and what it said after that; empty if it
    /// has not complained.
    pub(super) fn splat(&self) -> &[String] {
        &self.splat
    }
}

/// Where in `line` a message of the kernel starts: `[    1.234567] `, or
/// `[    1.234567][    T1] ` where the kernel names the caller.
fn kernel_message(line: &str) -> Option<usize> {
    line.match_indices('[').map(|(at, _)| at).find(|at| is_timestamp(&line[at + 1..]))
}

fn is_timestamp(rest: &str) -> bool {
    let Some((time, _)) = rest.split_once(']') else { return false };
    let Some((seconds, micros)) = time.trim_start().split_once('.') else { return false };
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    digits(seconds) && digits(micros) && micros.len() == 6 && time.len() >= 12
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(log: &str) -> Console {
        let mut console = Console::default();
        for line in log.lines() {
            console.line(line);
        }
        console
    }

    const BOOT: &str = "\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS (version 1.16.2-debian-1.16.2-1)\r\n\
                        Booting from ROM..[    0.000000] tsc: Unable to calibrate against PIT\r\n\
                        LAB-BEGIN\r\n";

    #[test]
    fn a_command_and_its_status() {
        let console = read(&format!("{BOOT}one\r\ntwo\r\nLAB-EXIT 3\r\n[    5.000000] reboot\r\n"));
        assert_eq!(console.output(), ["one", "two"]);
        assert_eq!(console.status(), Some(3));
        assert_eq!(console.splat(), [""; 0]);
    }

    #[test]
    fn messages_of_the_kernel_are_no_output() {
        let console = read(&format!(
            "{BOOT}test a ... [    5.123456] kvm: user requested TSC rate below hardware speed\r\n\
             [    5.123999][  T42] kvm: again\r\n\
             ok\r\n\
             [1] [ 1.5 ] [0.1] are the command's\r\n\
             no line end[  100.000001] kvm: x\r\nLAB-EXIT 0\r\n"
        ));
        assert_eq!(
            console.output(),
            ["test a ... ok", "[1] [ 1.5 ] [0.1] are the command's", "no line end"]
        );
        assert_eq!(console.status(), Some(0));
        assert_eq!(console.splat(), [""; 0]);
    }

    #[test]
    fn lines_are_handed_on_as_they_are_complete() {
        let mut console = Console::default();
        assert_eq!(console.line("LAB-BEGIN"), None);
        assert_eq!(console.line("a[    5.123456] kvm: x"), None);
        assert_eq!(console.line("b"), Some("ab"));
        assert_eq!(console.line("LAB-EXIT 0"), None);
        assert_eq!(console.line("no output"), None);
    }

    #[test]
    fn a_guest_that_did_not_get_to_the_end() {
        assert_eq!(read(&format!("{BOOT}one\r\ntwo\r\n")).status(), None);
        assert_eq!(read("SeaBIOS\r\n").status(), None);
        assert_eq!(read(&format!("{BOOT}LAB-EXIT \r\n")).status(), None);
    }

    #[test]
    fn a_command_can_not_end_before_it_began() {
        assert_eq!(read("LAB-EXIT 0\r\n").status(), None);
    }

    const WARNING: &str = "\
[    4.000000] kvm: harmless\r
[    4.100000] ------------[ cut here ]------------\r
[    4.100001] WARNING: CPU: 1 PID: 71 at virt/kvm/kvm_main.c:1637 kvm_set_memslot+0x5e/0x700\r
[    4.100002] CPU: 1 UID: 0 PID: 71 Comm: memslots Not tainted 6.12.117 #1\r
[    4.100003] Call Trace:\r
[    4.100004]  kvm_vm_ioctl+0x5f1/0xd30\r
[    4.100005] ---[ end trace 0000000000000000 ]---\r
";

    #[test]
    fn a_warning_is_a_splat_with_its_trace() {
        let console = read(&format!("{BOOT}{WARNING}LAB-EXIT 0\r\n"));
        let splat = console.splat();
        assert!(splat[0].contains("kvm_set_memslot"), "{splat:?}");
        assert!(splat[3].contains("kvm_vm_ioctl"), "{splat:?}");
        assert_eq!(splat.len(), 5);
        assert_eq!(console.status(), Some(0));
    }

    #[test]
    fn splats_of_every_kind() {
        for splat in [
            "BUG: KASAN: slab-use-after-free in kvm_commit_memory_region+0x77/0x90",
            "BUG: kernel NULL pointer dereference, address: 0000000000000008",
            "BUG: sleeping function called from invalid context at mm/page_alloc.c:5",
            "kernel BUG at virt/kvm/kvm_main.c:1!",
            "Oops: Oops: 0002 [#1] PREEMPT SMP",
            "Oops: general protection fault, probably for non-canonical address",
            "WARNING: possible circular locking dependency detected",
            "WARNING: possible recursive locking detected",
            "WARNING: suspicious RCU usage",
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
            "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:",
            "INFO: task memslots:71 blocked for more than 120 seconds.",
            "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100",
            "Unable to handle kernel paging request at virtual address ffff800080000000",
            "WARNING: CPU: 0 PID: 1 at lib/debugobjects.c:514 debug_print_object+0x8a/0xb0",
            "UBSAN: array-index-out-of-bounds in virt/kvm/kvm_main.c:1:2",
            "refcount_t: underflow; use-after-free.",
            "list_add corruption. prev->next should be next",
        ] {
            let console = read(&format!("{BOOT}[   12.345678] {splat}\r\nLAB-EXIT 0\r\n"));
            assert_eq!(console.splat().len(), 1, "{splat}");
        }
    }

    #[test]
    fn a_splat_in_the_middle_of_output_and_before_the_command() {
        let console = read(&format!("{BOOT}ab[   12.345678] BUG: x\r\nc\r\nLAB-EXIT 1\r\n"));
        assert_eq!(console.output(), ["abc"]);
        assert_eq!(console.splat(), ["[   12.345678] BUG: x"]);
        assert_eq!(read("[    0.345678] Kernel panic - not syncing: VFS\r\n").splat().len(), 1);
    }

    #[test]
    fn a_command_may_say_what_it_likes() {
        let console = read(&format!("{BOOT}BUG: WARNING: KASAN, said the test\r\nLAB-EXIT 0\r\n"));
        assert_eq!(console.splat(), [""; 0]);
    }

    #[test]
    fn what_the_kernel_says_of_fault_injection_is_no_splat() {
        let log = "[    4.1] x\r\n[    4.100000] FAULT_INJECTION: forcing a failure.\r\n\
                   [    4.100001] Call Trace:\r\n";
        assert_eq!(read(&format!("{BOOT}{log}LAB-EXIT 0\r\n")).splat(), [""; 0]);
    }

    #[test]
    fn leaks_that_are_reported_after_the_command() {
        let leak = "unreferenced object 0xffff888003a1c000 (size 96):\r\n  comm \"memslots\"\r\n";
        let console = read(&format!("{BOOT}{leak}LAB-EXIT 0\r\n"));
        assert_eq!(console.splat(), [""; 0]);
        let console = read(&format!("{BOOT}LAB-EXIT 0\r\n{leak}"));
        assert_eq!(console.splat().len(), 2);
    }

    #[test]
    fn a_splat_without_end_is_cut() {
        let storm = "[   12.345678] BUG: x\r\n".repeat(10_000);
        assert_eq!(read(&storm).splat().len(), SPLAT_LINES);
    }
}
