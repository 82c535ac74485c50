//! A guest that reads, writes and executes in a window while its contents change,
//! on real KVM.
#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::windowed::{GPA, PAGES, Rig, SPARE_SLOT, gpa};
use common::{Random, set_slot, skip};
use kvm_memslots::Changes;
use kvm_memslots::window::{Contents, Edit, Found, Gap};
use kvm_memslots_kit::guest::{Access, GuestError, Outcome, Prober, code_returning};
use kvm_memslots_kit::host::{HostMemory, Pages, SMALL_PAGE};
use kvm_memslots_kit::userfault::Userfault;
use nix::errno::Errno;

const PATIENCE: Duration = Duration::from_mins(2);

/// Values of a word in a gap of zeroes, and of what was not placed from a file.
const NOTHING: Outcome = Outcome::Value(0);

impl Rig {
    fn place(&self, page: u64, pages: u64, from: u64) {
        let contents = Contents::file(&self.file, from * SMALL_PAGE);
        self.window.place(page * SMALL_PAGE, pages * SMALL_PAGE, contents).unwrap();
    }

    fn remove(&self, page: u64, pages: u64) {
        self.window.remove(page * SMALL_PAGE, pages * SMALL_PAGE).unwrap();
    }

    fn probe(&mut self, access: Access) -> Result<Outcome, GuestError> {
        Ok(self.prober.probe(&[access])?[0])
    }

    fn read(&mut self, page: u64) -> Outcome {
        self.probe(Access::Read(gpa(page))).unwrap()
    }
}

/// The access ended the `KVM_RUN`.
fn assert_faults(result: &Result<Outcome, GuestError>) {
    assert!(matches!(result, Err(GuestError::Kvm { errno: Errno::EFAULT, .. })), "{result:?}");
}

#[test]
fn a_gap_that_faults_lets_the_guest_go_on_once_something_is_there() {
    let test = "a_gap_that_faults_lets_the_guest_go_on_once_something_is_there";
    let Some(mut rig) = Rig::new(test, Gap::Fault) else { return };
    rig.place(1, 2, 4);
    assert_eq!((rig.read(1), rig.read(2)), (Outcome::Value(5), Outcome::Value(6)));
    let access = Access::Read(gpa(3));
    assert_faults(&rig.probe(access));
    let found = rig.window.found(&rig.vm, 0, gpa(3) + 8);
    assert_eq!(found, Some(Found::Gap { offset: 3 * SMALL_PAGE + 8 }));
    rig.place(3, 1, 9);
    assert!(matches!(rig.window.found(&rig.vm, 0, gpa(3)), Some(Found::Placed(_))));
    assert_eq!(rig.probe(access).unwrap(), Outcome::Value(10), "the same access");
    rig.remove(2, 2);
    assert_eq!(rig.read(1), Outcome::Value(5));
    assert_faults(&rig.probe(access));
    assert_eq!(rig.window.found(&rig.vm, 0, gpa(PAGES)), None);
}

#[test]
fn a_gap_of_zeroes_is_read_and_faults_when_it_is_written() {
    let test = "a_gap_of_zeroes_is_read_and_faults_when_it_is_written";
    let Some(mut rig) = Rig::new(test, Gap::Zeroes) else { return };
    assert_eq!(rig.read(5), NOTHING);
    rig.place(5, 1, 0);
    assert_eq!(rig.read(5), Outcome::Value(1));
    rig.remove(5, 1);
    assert_eq!(rig.read(5), NOTHING);
    assert_faults(&rig.probe(Access::Write(gpa(5), 9)));
}

#[test]
fn a_gap_that_keeps_writes_forgets_them_when_something_is_placed() {
    let test = "a_gap_that_keeps_writes_forgets_them_when_something_is_placed";
    let Some(mut rig) = Rig::new(test, Gap::Scratch) else { return };
    assert_eq!(rig.probe(Access::Write(gpa(5), 77)).unwrap(), Outcome::Written);
    assert_eq!(rig.read(5), Outcome::Value(77));
    rig.place(5, 1, 0);
    assert_eq!(rig.read(5), Outcome::Value(1));
    rig.remove(5, 1);
    assert_eq!(rig.read(5), NOTHING);
    let anonymous = Contents::anonymous();
    rig.window.place(5 * SMALL_PAGE, SMALL_PAGE, anonymous).unwrap();
    assert_eq!(rig.probe(Access::Write(gpa(5), 78)).unwrap(), Outcome::Written);
    assert_eq!(rig.read(5), Outcome::Value(78));
    rig.remove(5, 1);
    assert_eq!(rig.read(5), NOTHING);
}

#[test]
fn what_is_read_only_and_what_is_truncated_faults_and_harms_nobody() {
    let test = "what_is_read_only_and_what_is_truncated_faults_and_harms_nobody";
    for truncated in [false, true] {
        let Some(mut rig) = Rig::new(test, Gap::Scratch) else { return };
        let contents = Contents::file(&rig.file, SMALL_PAGE).read_only();
        rig.window.place(SMALL_PAGE, 2 * SMALL_PAGE, contents).unwrap();
        assert_eq!(rig.read(2), Outcome::Value(3));
        let access = if truncated {
            rig.file.set_len(2 * SMALL_PAGE).unwrap();
            assert_eq!(rig.read(1), Outcome::Value(2));
            Access::Read(gpa(2))
        } else {
            Access::Write(gpa(2), 1)
        };
        assert_faults(&rig.probe(access));
        assert!(matches!(rig.window.found(&rig.vm, 0, gpa(2)), Some(Found::Placed(_))));
        // The access goes on once it can.
        rig.remove(1, 2);
        rig.probe(access).unwrap();
    }
}

/// What a page of the window is: nothing, or a page of the file or of its own.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Page {
    Gap(u64),
    File(u64),
    Own(u64),
}

#[test]
fn a_guest_finds_what_a_list_of_pages_says() {
    let test = "a_guest_finds_what_a_list_of_pages_says";
    for logged in [false, true] {
        let Some(mut rig) = Rig::new(test, Gap::Scratch) else { return };
        if logged {
            let mut c = Changes::new();
            c.set_log_dirty(rig.region, true);
            rig.vm.apply(c).unwrap();
        }
        let mut random = Random(0x1234_5678_9abc_def1);
        let mut pages = [Page::Gap(0); PAGES as usize];
        let mut in_file: Vec<u64> = (1..=PAGES).collect();
        for round in 0..400 {
            let (from, to) = (random.below(PAGES), random.below(PAGES) + 1);
            if from < to {
                change(&rig, &mut pages[from as usize..to as usize], from, &mut random);
            }
            // A write, and a look at all.
            let written = random.below(PAGES);
            let value = 1_000 + round;
            match &mut pages[written as usize] {
                Page::Gap(word) | Page::Own(word) => *word = value,
                Page::File(page) => in_file[*page as usize] = value,
            }
            let mut accesses = vec![Access::Write(gpa(written), value)];
            accesses.extend((0..PAGES).map(|page| Access::Read(gpa(page))));
            let found = rig.prober.probe(&accesses).unwrap();
            let expected = pages.map(|page| match page {
                Page::Gap(word) | Page::Own(word) => Outcome::Value(word),
                Page::File(page) => Outcome::Value(in_file[page as usize]),
            });
            assert_eq!(found[1..], expected, "round {round}");
            if logged {
                let dirty = rig.vm.dirty_log_of(rig.region, 0..PAGES).unwrap();
                // KVM may count what it maps writable for a read as written, too.
                assert!(dirty.is_dirty(written), "round {round}");
            }
        }
        for (page, value) in (0..).zip(&in_file) {
            let mut word = [0; 8];
            rig.file.read_exact_at(&mut word, page * SMALL_PAGE).unwrap();
            assert_eq!(u64::from_ne_bytes(word), *value, "page {page} of the file");
        }
    }
}

/// Places something in gaps, removes what is none.
fn change(rig: &Rig, pages: &mut [Page], from: u64, random: &mut Random) {
    let (offset, len) = (from * SMALL_PAGE, pages.len() as u64 * SMALL_PAGE);
    let gaps = pages.iter().filter(|page| matches!(page, Page::Gap(_))).count();
    if gaps == pages.len() {
        let file = random.below(PAGES + 1 - gaps as u64);
        if random.below(3) == 0 {
            rig.window.place(offset, len, Contents::anonymous()).unwrap();
            pages.fill(Page::Own(0));
        } else {
            rig.place(from, gaps as u64, file);
            pages.iter_mut().zip(file..).for_each(|(page, file)| *page = Page::File(file));
        }
    } else if gaps == 0 && random.below(2) == 0 {
        // Something else in its place.
        let mut edit = Edit::new();
        edit.remove(offset, len);
        edit.place(offset, len, Contents::anonymous());
        rig.window.apply(&edit).unwrap();
        pages.fill(Page::Own(0));
    } else {
        let removed = rig.window.remove(offset, len);
        assert_eq!(removed.is_ok(), gaps == 0, "{removed:?}");
        if gaps == 0 {
            pages.fill(Page::Gap(0));
        }
    }
}

/// A vCPU on a thread of its own that does `accesses` until it is told to stop.
fn run_beside<T>(
    mut prober: Prober,
    accesses: &[Access],
    mut check: impl FnMut(&dyn Fn() -> u64, &mut dyn FnMut() -> Vec<Outcome>) + Send,
    removed: &AtomicU64,
    work: impl FnOnce() -> T,
) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let vcpu = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let removed = || removed.load(Ordering::SeqCst);
                check(&removed, &mut || prober.probe(accesses).unwrap());
            }
        });
        let done = work();
        stop.store(true, Ordering::Relaxed);
        vcpu.join().unwrap();
        done
    })
}

/// Waits for a vCPU, whose thread a busy machine may leave waiting for long.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
        std::thread::sleep(Duration::from_micros(300));
    }
}

#[test]
fn nothing_that_was_removed_is_seen_or_written_any_more() {
    let test = "nothing_that_was_removed_is_seen_or_written_any_more";
    // Not logged, or from that page on.
    for logged in [None, Some(0), Some(2)] {
        let Some(rig) = Rig::new(test, Gap::Scratch) else { return };
        let Rig { prober, vm, region, window, file, fd } = rig;
        let mut c = Changes::new();
        let part = match logged {
            Some(page) if page > 0 => c.split(region, page * SMALL_PAGE),
            _ => region,
        };
        c.set_log_dirty(part, logged.is_some());
        vm.apply(c).unwrap();
        // What is placed has its number in the first word. The guest writes the
        // second.
        let accesses = [Access::Read(gpa(3)), Access::Write(gpa(3) + 8, 7), Access::Read(gpa(3))];
        let removed = AtomicU64::new(0);
        let seen = Mutex::new(0);
        let check = |removed: &dyn Fn() -> u64, probe: &mut dyn FnMut() -> Vec<Outcome>| {
            let before = removed();
            for found in probe() {
                match found {
                    NOTHING | Outcome::Written => {}
                    Outcome::Value(number) => {
                        assert!(number > before, "{number} was removed: {before}");
                        *seen.lock().unwrap() += 1;
                    }
                    Outcome::Mmio => panic!("no slot"),
                }
            }
        };
        let word = |page: u64| {
            let mut word = [0; 8];
            file.read_exact_at(&mut word, page * SMALL_PAGE + 8).unwrap();
            word
        };
        run_beside(prober, &accesses, check, &removed, || {
            for number in 1..=1_000_u64 {
                let page = number % PAGES;
                file.write_all_at(&number.to_ne_bytes(), page * SMALL_PAGE).unwrap();
                let contents = Contents::file(&file, page * SMALL_PAGE);
                window.place(3 * SMALL_PAGE, SMALL_PAGE, contents).unwrap();
                if number % 8 == 0 {
                    std::thread::sleep(Duration::from_micros(300));
                }
                if number == 1_000 {
                    wait_until("the guest has seen it", || *seen.lock().unwrap() > 0);
                }
                window.remove(3 * SMALL_PAGE, SMALL_PAGE).unwrap();
                removed.store(number, Ordering::SeqCst);
                file.write_all_at(&[0; 8], page * SMALL_PAGE + 8).unwrap();
                if number % 8 == 0 {
                    std::thread::sleep(Duration::from_micros(300));
                    assert_eq!(word(page), [0; 8], "{number} was written after it was removed");
                }
            }
        });
        if let Some(from) = logged {
            let dirty = vm.dirty_log(part).unwrap();
            assert_eq!(dirty.iter().collect::<Vec<_>>(), [3 - from]);
        }
        drop(fd);
    }
}

#[test]
fn code_is_replaced_at_once() {
    let test = "code_is_replaced_at_once";
    for logged in [false, true] {
        let Some(rig) = Rig::new(test, Gap::Fault) else { return };
        code_is_replaced(rig, logged);
    }
}

fn code_is_replaced(rig: Rig, logged: bool) {
    let Rig { prober, vm, region, window, file, fd } = rig;
    let mut c = Changes::new();
    c.set_log_dirty(region, logged);
    vm.apply(c).unwrap();
    let write = |number: u64| {
        let page = number % PAGES * SMALL_PAGE;
        file.write_all_at(&code_returning(number), page).unwrap();
        Contents::file(&file, page).read_only()
    };
    window.place(0, SMALL_PAGE, write(1)).unwrap();
    let removed = AtomicU64::new(0);
    let last = Mutex::new(0);
    let check = |removed: &dyn Fn() -> u64, probe: &mut dyn FnMut() -> Vec<Outcome>| {
        let before = removed();
        for found in probe() {
            let Outcome::Value(number) = found else { panic!("{found:?}") };
            assert!(number > before, "{number} was removed: {before}");
            *last.lock().unwrap() = number;
        }
    };
    run_beside(prober, &[Access::Execute(GPA); 8], check, &removed, || {
        for number in 2..=500 {
            let mut edit = Edit::new();
            edit.remove(0, SMALL_PAGE);
            edit.place(0, SMALL_PAGE, write(number));
            window.apply(&edit).unwrap();
            removed.store(number - 1, Ordering::SeqCst);
        }
        wait_until("the vCPU has run the last of it", || *last.lock().unwrap() == 500);
    });
    drop(fd);
}

#[test]
fn placing_waits_for_no_page_fault_that_sleeps() {
    let test = "placing_waits_for_no_page_fault_that_sleeps";
    let Some(rig) = Rig::new(test, Gap::Scratch) else { return };
    let Rig { mut prober, vm, window, file, fd, .. } = rig;
    let memory = Arc::new(HostMemory::reserve(SMALL_PAGE, Pages::Small).unwrap());
    let (asleep, is_asleep) = channel();
    let (wake, woken) = channel();
    let sleeps = move |_: &HostMemory, _| {
        asleep.send(()).unwrap();
        // Or never, where something hangs that should not.
        let _ = woken.recv_timeout(PATIENCE);
    };
    let faults = match Userfault::start(Arc::clone(&memory), sleeps) {
        Ok(faults) => faults,
        Err(error) => return skip(test, format_args!("no userfaultfd: {error}")),
    };
    let elsewhere = GPA + 0x1000_0000;
    set_slot(&fd, SPARE_SLOT.into(), elsewhere, SMALL_PAGE, &memory, 0);
    std::thread::scope(|scope| {
        let vcpu = scope.spawn(move || prober.probe(&[Access::Read(elsewhere), Access::Read(GPA)]));
        is_asleep.recv_timeout(PATIENCE).unwrap();
        let changed = within_patience(scope, || {
            for _ in 0..100 {
                window.place(0, SMALL_PAGE, Contents::file(&file, 0)).unwrap();
                window.remove(0, SMALL_PAGE).unwrap();
            }
            window.place(0, SMALL_PAGE, Contents::file(&file, SMALL_PAGE)).unwrap();
        });
        let in_time = changed.recv_timeout(PATIENCE / 2).is_ok();
        let still_asleep = !vcpu.is_finished();
        wake.send(()).unwrap();
        assert!(in_time && still_asleep, "{in_time}, {still_asleep}");
        assert_eq!(vcpu.join().unwrap().unwrap(), [NOTHING, Outcome::Value(2)]);
    });
    drop((faults, vm));
}

/// Does `work` on a thread of its own, and says when it is done.
fn within_patience<'s>(
    scope: &'s std::thread::Scope<'s, '_>,
    work: impl FnOnce() + Send + 's,
) -> Receiver<()> {
    let (done, is_done) = channel();
    scope.spawn(move || {
        work();
        let _ = done.send(());
    });
    is_done
}

#[test]
fn a_window_may_go_while_it_is_mapped_and_be_unmapped_while_it_is_changed() {
    let test = "a_window_may_go_while_it_is_mapped_and_be_unmapped_while_it_is_changed";
    let Some(mut rig) = Rig::new(test, Gap::Scratch) else { return };
    rig.place(0, 1, 0);
    // Mapped and unmapped, while somebody else places.
    std::thread::scope(|scope| {
        let window = &rig.window;
        let file = &rig.file;
        let placing = scope.spawn(move || {
            for _ in 0..2_000 {
                window.place(SMALL_PAGE, SMALL_PAGE, Contents::file(file, SMALL_PAGE)).unwrap();
                window.remove(SMALL_PAGE, SMALL_PAGE).unwrap();
            }
        });
        let mut mapped = Some(rig.region);
        while !placing.is_finished() {
            let mut c = Changes::new();
            if let Some(id) = mapped.take() {
                c.unmap(id);
            } else {
                mapped = Some(c.map(window.region()));
            }
            rig.vm.apply(c).unwrap();
            let found = rig.prober.probe(&[Access::Read(gpa(0)), Access::Read(gpa(1))]).unwrap();
            if mapped.is_some() {
                assert_eq!(found[0], Outcome::Value(1));
                assert!([NOTHING, Outcome::Value(2)].contains(&found[1]), "{found:?}");
            } else {
                assert_eq!(found, [Outcome::Mmio; 2]);
            }
        }
        if mapped.is_none() {
            let mut c = Changes::new();
            c.map(window.region());
            rig.vm.apply(c).unwrap();
        }
    });
    // Gone for the VMM, not for the guest.
    let Rig { mut prober, vm, window, file, fd, .. } = rig;
    drop((window, file));
    let read = [Access::Read(gpa(0))];
    assert_eq!(prober.probe(&read).unwrap(), [Outcome::Value(1)]);
    vm.close().unwrap();
    assert_eq!(prober.probe(&read).unwrap(), [Outcome::Mmio]);
    drop(fd);
}
