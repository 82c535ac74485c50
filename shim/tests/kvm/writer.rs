//! Something that writes to guest memory as KVM knows it, and so marks it
//! dirty.

#[cfg(target_arch = "x86_64")]
mod kvm_itself {
    use kvm_bindings::{Msrs, kvm_msr_entry};
    use kvm_ioctls::VcpuFd;

    use crate::machine::Machine;

    const MSR_KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;

    /// KVM itself writes where a vCPU is told to keep a wall clock
    /// (`kvm_write_wall_clock()`): no guest has to run.
    pub(crate) struct Writer(VcpuFd);

    impl Writer {
        pub(crate) fn new(machine: &Machine) -> Self {
            Self(machine.vm.create_vcpu(0).unwrap())
        }

        /// Writes to the page at `gpa`.
        pub(crate) fn write(&mut self, gpa: u64) {
            let entry =
                kvm_msr_entry { index: MSR_KVM_WALL_CLOCK_NEW, data: gpa, ..Default::default() };
            let entries = Msrs::from_entries(&[entry]).unwrap();
            assert_eq!(self.0.set_msrs(&entries).unwrap(), 1);
        }
    }
}
#[cfg(target_arch = "x86_64")]
pub(crate) use kvm_itself::Writer;

#[cfg(target_arch = "aarch64")]
mod guest {
    use kvm_bindings::{KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_SIZE_U64, kvm_vcpu_init};
    use kvm_ioctls::{VcpuExit, VcpuFd};
    use kvm_memslots_shim::memory::Op;

    use crate::machine::{Machine, Ram};

    /// Far from what the tests map.
    const CODE: u64 = 1 << 36;
    const CODE_SLOT: u16 = 2000;
    /// Where no slot is.
    const DOORBELL: u64 = 1 << 37;

    /// `1: str xzr, [x0]; str xzr, [x1]; b 1b`
    const LOOP: [u32; 3] = [0xf900_001f, 0xf900_003f, 0x17ff_fffe];

    /// A vCPU, as it comes out of reset, that writes a word and says so. Nobody
    /// looks at what it wrote, so that its MMU is off, and it goes around the
    /// caches, makes no difference.
    pub(crate) struct Writer {
        vcpu: VcpuFd,
        _code: Ram,
    }

    impl Writer {
        pub(crate) fn new(machine: &Machine) -> Self {
            let code = Ram::new(1);
            code.fill(&LOOP);
            machine.behind_the_back(&Op::Create(code.slot(CODE_SLOT, CODE, 1)));
            let vcpu = machine.vm.create_vcpu(0).unwrap();
            let mut target = kvm_vcpu_init::default();
            machine.vm.get_preferred_target(&mut target).unwrap();
            vcpu.vcpu_init(&target).unwrap();
            let writer = Self { vcpu, _code: code };
            writer.set(8, DOORBELL);
            writer.set(256, CODE);
            writer
        }

        /// Sets the register at `offset` bytes into `struct kvm_regs`.
        fn set(&self, offset: u64, value: u64) {
            let core = u64::from(KVM_REG_ARM_CORE);
            let register = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | core | offset / 4;
            self.vcpu.set_one_reg(register, &value.to_le_bytes()).unwrap();
        }

        /// Writes to the page at `gpa`.
        pub(crate) fn write(&mut self, gpa: u64) {
            self.set(0, gpa);
            let exit = self.vcpu.run().unwrap();
            assert!(matches!(exit, VcpuExit::MmioWrite(DOORBELL, _)), "{exit:?}");
        }
    }
}
#[cfg(target_arch = "aarch64")]
pub(crate) use guest::Writer;
