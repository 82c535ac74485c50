//! A vCPU that does the accesses it is given.

use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

use super::code::{DOORBELL_GPA, Program, mailbox};
use super::platform::{Platform, died, run_failed};
use crate::guest::{Access, GuestError, MAPPED_END, Outcome};
use crate::host::Pages;

/// One vCPU that does the accesses it is given, on the caller's thread, and
/// says for each whether it reached memory.
///
/// ```no_run
/// use kvm_memslots_bench::guest::{Access, Outcome, Prober};
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
    platform: Platform,
}

impl Prober {
    /// Gives `vm` a vCPU 0 and, under the id `slot`, the guest code's own slot
    /// at [`OWN_GPA`](crate::guest::OWN_GPA).
    ///
    /// # Errors
    /// [`GuestError`]: KVM refused, `EEXIST` where vCPU, slot id or addresses
    /// are taken.
    pub fn new(vm: &VmFd, slot: u16) -> Result<Self, GuestError> {
        let platform = Platform::install(vm, slot, 1, 0, Pages::Small)?;
        let vcpu = Platform::vcpu(vm, 0, Program::Probe)?;
        Ok(Self { vcpu, platform })
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
        let bad = |access: &&Access| !access.gpa().is_multiple_of(8) || access.gpa() >= MAPPED_END;
        if let Some(&access) = accesses.iter().find(bad) {
            return Err(GuestError::BadAccess { access });
        }
        let mut outcomes = Vec::with_capacity(accesses.len());
        for round in accesses.chunks(mailbox::CAPACITY) {
            self.post(round);
            let mmio = self.run_round(round)?;
            outcomes.extend(round.iter().zip(mmio).enumerate().map(|(index, (access, mmio))| {
                match access {
                    _ if mmio => Outcome::Mmio,
                    Access::Read(_) => {
                        Outcome::Value(self.platform.memory().read(Self::place(index) + 8))
                    }
                    Access::Write(..) => Outcome::Written,
                }
            }));
        }
        Ok(outcomes)
    }

    /// Where in the slot the access of this index is.
    fn place(index: usize) -> u64 {
        Platform::mailbox(0) + mailbox::ACCESSES + index as u64 * mailbox::ACCESS_SIZE
    }

    fn post(&self, round: &[Access]) {
        let memory = self.platform.memory();
        for (index, access) in round.iter().enumerate() {
            let place = Self::place(index);
            let (value, write) = match *access {
                Access::Read(_) => (0, 0),
                Access::Write(_, value) => (value, 1),
            };
            memory.write(place, access.gpa());
            memory.write(place + 8, value);
            memory.write(place + 16, write);
        }
        memory.write(Platform::mailbox(0) + mailbox::COUNT, round.len() as u64);
    }

    /// Runs the vCPU to the end of the round; which accesses came out as MMIO.
    fn run_round(&mut self, round: &[Access]) -> Result<Vec<bool>, GuestError> {
        let mut mmio = vec![false; round.len()];
        let current = Platform::mailbox(0) + mailbox::CURRENT;
        loop {
            let unexpected = match self.vcpu.run() {
                Ok(VcpuExit::MmioWrite(DOORBELL_GPA, _)) => return Ok(mmio),
                Ok(exit @ (VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..))) => {
                    let index = self.platform.memory().read(current) as usize;
                    match (exit, round.get(index)) {
                        (VcpuExit::MmioRead(gpa, data), Some(&Access::Read(wanted)))
                            if gpa == wanted =>
                        {
                            data.fill(0);
                            mmio[index] = true;
                            continue;
                        }
                        (VcpuExit::MmioWrite(gpa, _), Some(&Access::Write(wanted, _)))
                            if gpa == wanted =>
                        {
                            mmio[index] = true;
                            continue;
                        }
                        (exit, access) => format!("{exit:x?} while it was at {access:x?}"),
                    }
                }
                Ok(exit) => format!("{exit:x?}"),
                Err(error) => {
                    run_failed(error)?;
                    continue;
                }
            };
            return Err(died(&self.vcpu, unexpected));
        }
    }
}
