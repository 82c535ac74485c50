//! A vCPU that does the accesses it is given.

use std::sync::Arc;

use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

use super::code::{DOORBELL_GPA, Program, mailbox};
use super::platform::{Platform, died, run_failed};
use crate::guest::{Access, GuestError, MAPPED_END, Mmio, Outcome};
use crate::host::Pages;

/// One vCPU that does the accesses it is given, on the caller's thread, and
/// says for each whether it reached memory.
///
/// ```no_run
/// use kvm_memslots_kit::guest::{Access, Outcome, Prober};
///
/// let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
/// let mut prober = Prober::new(&vm, 0)?;
/// assert_eq!(prober.probe(&[Access::Read(0x1000)])?, [Outcome::Mmio]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Prober {
    // Before the platform, whose memory it runs in.
    vcpu: VcpuFd,
    platform: Arc<Platform>,
    index: usize,
}

impl Prober {
    /// Gives `vm` a vCPU 0 and, under the id `slot`, the guest code's own slot
    /// at [`OWN_GPA`](crate::guest::OWN_GPA).
    ///
    /// # Errors
    /// [`GuestError`]: KVM refused, `EEXIST` where vCPU, slot id or addresses
    /// are taken.
    pub fn new(vm: &VmFd, slot: u16) -> Result<Self, GuestError> {
        Self::on(vm, Arc::new(Platform::install(vm, slot, 1, 0, Pages::Small)?), 0)
    }

    /// vCPU `index` of a platform that is there.
    pub(super) fn on(vm: &VmFd, platform: Arc<Platform>, index: usize) -> Result<Self, GuestError> {
        let vcpu = Platform::vcpu(vm, index, Program::Probe)?;
        Ok(Self { vcpu, platform, index })
    }

    /// Does `accesses` in order; one outcome for each.
    ///
    /// A read that comes out as MMIO is answered with zero, a write is
    /// dropped.
    ///
    /// # Errors
    /// [`GuestError::BadAccess`] before anything is done, else how the guest
    /// died; the prober is of no use then.
    pub fn probe(&mut self, accesses: &[Access]) -> Result<Vec<Outcome>, GuestError> {
        check(accesses)?;
        let mut outcomes = Vec::with_capacity(accesses.len());
        for round in accesses.chunks(mailbox::CAPACITY) {
            self.post(round);
            let mut mmio = vec![false; round.len()];
            self.run_round(round, |index, exit| match exit {
                Mmio::Read(_, data) => {
                    data.fill(0);
                    mmio[index] = true;
                }
                Mmio::Write(..) => mmio[index] = true,
                Mmio::Undecoded(_) => {}
            })?;
            outcomes.extend(round.iter().zip(mmio).enumerate().map(|(index, (access, mmio))| {
                match access {
                    _ if mmio => Outcome::Mmio,
                    Access::Read(_)
                    | Access::Load(..)
                    | Access::Undecodable(_)
                    | Access::Execute(_) => {
                        Outcome::Value(self.platform.memory().read(self.place(index) + 8))
                    }
                    Access::Write(..) | Access::Store(..) => Outcome::Written,
                }
            }));
        }
        Ok(outcomes)
    }

    /// Does `accesses` in order, with `device` behind those that come out as
    /// MMIO or can't be decoded. What each read found, and each write wrote.
    ///
    /// # Errors
    /// As [`probe`](Self::probe).
    pub fn drive(
        &mut self,
        accesses: &[Access],
        mut device: impl FnMut(Mmio<'_>),
    ) -> Result<Vec<u64>, GuestError> {
        check(accesses)?;
        let mut values = Vec::with_capacity(accesses.len());
        for round in accesses.chunks(mailbox::CAPACITY) {
            self.post(round);
            self.run_round(round, |_, exit| device(exit))?;
            let memory = self.platform.memory();
            values.extend((0..round.len()).map(|index| memory.read(self.place(index) + 8)));
        }
        Ok(values)
    }

    /// Where in the slot the access of this index is.
    fn place(&self, index: usize) -> u64 {
        Platform::mailbox(self.index) + mailbox::ACCESSES + index as u64 * mailbox::ACCESS_SIZE
    }

    fn post(&self, round: &[Access]) {
        let memory = self.platform.memory();
        for (index, access) in round.iter().enumerate() {
            let place = self.place(index);
            let (value, write) = match *access {
                Access::Read(_) | Access::Load(..) => (0, 0),
                Access::Write(_, value) | Access::Store(_, _, value) => (value, 1),
                Access::Undecodable(_) => (0, 2),
                Access::Execute(_) => (0, 3),
            };
            memory.write(place, access.gpa());
            memory.write(place + 8, value);
            memory.write(place + 16, write);
            memory.write(place + 24, access.width().into());
        }
        memory.write(Platform::mailbox(self.index) + mailbox::COUNT, round.len() as u64);
    }

    /// Runs the vCPU to the end of the round; `on_mmio` gets each access that
    /// comes out as MMIO, with its index.
    fn run_round(
        &mut self,
        round: &[Access],
        mut on_mmio: impl FnMut(usize, Mmio<'_>),
    ) -> Result<(), GuestError> {
        let current = Platform::mailbox(self.index) + mailbox::CURRENT;
        loop {
            // What happened, and whether the device may have an answer to it.
            let (what, undecoded) = match self.vcpu.run() {
                Ok(VcpuExit::MmioWrite(DOORBELL_GPA, _)) => return Ok(()),
                Ok(exit @ (VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..))) => {
                    let index = self.platform.memory().read(current) as usize;
                    match (exit, round.get(index)) {
                        (
                            VcpuExit::MmioRead(gpa, data),
                            Some(&(Access::Read(wanted) | Access::Load(wanted, _))),
                        ) if gpa == wanted => {
                            on_mmio(index, Mmio::Read(gpa, data));
                            continue;
                        }
                        (
                            VcpuExit::MmioWrite(gpa, data),
                            Some(&(Access::Write(wanted, _) | Access::Store(wanted, ..))),
                        ) if gpa == wanted => {
                            on_mmio(index, Mmio::Write(gpa, data));
                            continue;
                        }
                        (exit, access) => (format!("{exit:x?} while it was at {access:x?}"), false),
                    }
                }
                Ok(VcpuExit::InternalError) => {
                    ("an instruction that KVM can't emulate".to_owned(), true)
                }
                Ok(exit) => (format!("{exit:x?}"), false),
                Err(error) if error.errno() == libc::ENOSYS => {
                    ("an access without a syndrome".to_owned(), true)
                }
                Err(error) => {
                    run_failed(error)?;
                    continue;
                }
            };
            let mut again = false;
            let index = self.platform.memory().read(current) as usize;
            if undecoded {
                on_mmio(index, Mmio::Undecoded(&mut again));
            }
            if !again {
                return Err(died(&self.vcpu, what));
            }
        }
    }
}

/// Whether the guest code does them.
fn check(accesses: &[Access]) -> Result<(), GuestError> {
    let bad = |access: &&Access| {
        let (gpa, width) = (access.gpa(), u64::from(access.width()));
        !matches!(width, 1 | 2 | 4 | 8) || !gpa.is_multiple_of(width) || gpa >= MAPPED_END
    };
    accesses.iter().find(bad).map_or(Ok(()), |&access| Err(GuestError::BadAccess { access }))
}
