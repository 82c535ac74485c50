//! What this machine is, as far as it matters for grace periods, and what its
//! KVM offers.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::thread::available_parallelism;

use flate2::read::GzDecoder;
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::{Kvm, VmFd};
use kvm_memslots::backend::{self, KvmOptions, MemoryCalls};
use kvm_memslots::{Limits, vm_fd};
use kvm_memslots_shim::uapi::probe::Support;
use nix::time::{ClockId, clock_getres};

/// What this machine is.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The kernel's release (`uname -r`).
    pub kernel: String,
    /// The architecture that this program was built for.
    pub arch: &'static str,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Whether the machine is a VM itself; `None` where that is not known.
    pub virtual_machine: Option<bool>,
    /// `CONFIG_HZ`. A normal grace period takes some ticks, an expedited one
    /// none.
    pub hz: Option<u32>,
    /// The preemption model, if known.
    pub preemption: Option<String>,
    /// The parameters of `srcutree`, which say how patient SRCU is with readers.
    pub srcu: BTreeMap<String, String>,
    /// What KVM offers, or why there is none.
    pub kvm: Result<KvmOffer, String>,
}

/// What KVM offers.
#[derive(Debug, Clone)]
pub struct KvmOffer {
    /// The module behind it, as `kvm_amd`; `None` where that is not known.
    pub flavour: Option<&'static str>,
    /// What a VM allows.
    pub limits: Limits,
    /// What the probe for the batch ioctl found.
    pub batch: Support,
    /// vCPUs that a VM can have.
    pub max_vcpus: usize,
}

impl Machine {
    /// Looks at this machine.
    #[must_use]
    pub fn look() -> Self {
        let kernel = first_line("/proc/sys/kernel/osrelease").unwrap_or_default();
        let config = kernel_config(&kernel);
        Self {
            arch: std::env::consts::ARCH,
            cpus: available_parallelism().map_or(1, usize::from),
            virtual_machine: is_virtual_machine(),
            hz: hz(),
            preemption: preemption(config.as_deref()),
            srcu: parameters("/sys/module/srcutree/parameters"),
            kvm: KvmOffer::look().map_err(|error| error.to_string()),
            kernel,
        }
    }
}

impl Machine {
    /// What to say of it behind its CPUs.
    #[must_use]
    pub const fn place(&self) -> &'static str {
        match self.virtual_machine {
            Some(true) => ", itself a VM",
            Some(false) => ", bare metal",
            None => "",
        }
    }
}

impl KvmOffer {
    fn look() -> io::Result<Self> {
        let (kvm, vm) = open_kvm()?;
        let slots = backend::Kvm::open(vm_fd(&vm), KvmOptions { scratch_vm: true })
            .map_err(io::Error::other)?;
        Ok(Self {
            flavour: flavour(),
            limits: MemoryCalls::limits(&slots),
            batch: slots.support(),
            max_vcpus: kvm.get_max_vcpus(),
        })
    }
}

/// `/dev/kvm` and a new VM.
///
/// # Errors
/// Why not, by the step that failed.
pub fn open_kvm() -> io::Result<(Kvm, VmFd)> {
    let because = |step: &'static str| {
        move |error: kvm_ioctls::Error| {
            let error = io::Error::from(error);
            io::Error::new(error.kind(), format!("{step}: {error}{}", remedy(error.kind())))
        }
    };
    let kvm = Kvm::new().map_err(because("/dev/kvm"))?;
    let vm = kvm.create_vm().map_err(because("KVM_CREATE_VM on /dev/kvm"))?;
    Ok((kvm, vm))
}

/// What to do about it.
const fn remedy(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::PermissionDenied => {
            "; a user of the group kvm may open it: usermod -aG kvm USER, and log in again"
        }
        io::ErrorKind::NotFound => {
            "; the module is not loaded (modprobe kvm_intel or kvm_amd), or this is a VM or \
             container without KVM"
        }
        _ => "",
    }
}

/// A new VM.
///
/// # Errors
/// As [`open_kvm`].
pub fn new_vm() -> io::Result<VmFd> {
    open_kvm().map(|(_, vm)| vm)
}

/// The calls of a VM without the library.
///
/// # Errors
/// What is wrong with it.
pub fn calls_of(vm: &VmFd) -> io::Result<backend::Kvm> {
    backend::Kvm::open(vm_fd(vm), KvmOptions::default()).map_err(io::Error::other)
}

/// Local APICs in the kernel, pins in the VMM: as Cloud Hypervisor has it.
///
/// # Errors
/// KVM's, with what it takes.
pub fn split_irqchip(vm: &VmFd) -> io::Result<()> {
    let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    cap.args[0] = 24;
    vm.enable_cap(&cap).map_err(|error| {
        let error = io::Error::from(error);
        let what = "an interrupt controller in the kernel (KVM_CAP_SPLIT_IRQCHIP, x86 only)";
        io::Error::new(error.kind(), format!("{what}: {error}"))
    })
}

fn flavour() -> Option<&'static str> {
    let vendors = ["kvm_amd", "kvm_intel", "kvm_pvm"];
    let built = vendors.into_iter().find(|name| Path::new("/sys/module").join(name).exists());
    built.or(cfg!(target_arch = "aarch64").then_some("kvm_arm"))
}

/// x86 says so in a CPU flag.
fn is_virtual_machine() -> Option<bool> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").ok()?;
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    Some(flags.split_whitespace().any(|flag| flag == "hypervisor"))
}

/// The coarse clocks tick with the timer interrupt.
fn hz() -> Option<u32> {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).ok()?;
    let tick = u64::try_from(tick.tv_nsec()).ok().filter(|ns| *ns > 1)?;
    u32::try_from((1_000_000_000 + tick / 2) / tick).ok()
}

fn preemption(config: Option<&str>) -> Option<String> {
    if first_line("/sys/kernel/realtime").as_deref() == Some("1") {
        return Some("realtime".into());
    }
    let chosen = first_line("/sys/kernel/debug/sched/preempt");
    if let Some(model) = chosen.as_deref().and_then(in_parentheses) {
        return Some(model.into());
    }
    let model = config.and_then(built_preemption)?;
    let command_line = first_line("/proc/cmdline").unwrap_or_default();
    let asked = command_line.split(' ').rev().find_map(|word| word.strip_prefix("preempt="));
    Some(asked.unwrap_or(model).into())
}

/// The chosen one of `"none (voluntary) full"`.
fn in_parentheses(choices: &str) -> Option<&str> {
    choices.split(' ').find_map(|word| word.strip_prefix('(')?.strip_suffix(')'))
}

/// The model that a kernel starts with, by its configuration.
fn built_preemption(config: &str) -> Option<&'static str> {
    let models = [
        ("CONFIG_PREEMPT_RT=y", "realtime"),
        ("CONFIG_PREEMPT_NONE=y", "none"),
        ("CONFIG_PREEMPT_VOLUNTARY=y", "voluntary"),
        ("CONFIG_PREEMPT_LAZY=y", "lazy"),
        ("CONFIG_PREEMPT=y", "full"),
    ];
    let set = |option: &str| config.lines().any(|line| line == option);
    models.into_iter().find_map(|(option, model)| set(option).then_some(model))
}

/// The kernel's configuration, where it or the distribution tells.
fn kernel_config(release: &str) -> Option<String> {
    let built_in = File::open("/proc/config.gz").and_then(|file| {
        let mut config = String::new();
        GzDecoder::new(file).read_to_string(&mut config).map(|_| config)
    });
    built_in
        .or_else(|_| fs::read_to_string(format!("/boot/config-{release}")))
        .or_else(|_| fs::read_to_string(format!("/lib/modules/{release}/config")))
        .ok()
}

fn parameters(folder: &str) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let parameter = |entry: fs::DirEntry| {
        let value = fs::read_to_string(entry.path()).ok()?;
        Some((entry.file_name().into_string().ok()?, value.trim().to_owned()))
    };
    entries.filter_map(parameter).collect()
}

fn first_line(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.lines().next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preemption_models_are_recognised() {
        assert_eq!(in_parentheses("none (voluntary) full lazy"), Some("voluntary"));
        assert_eq!(in_parentheses("none voluntary"), None);
        let config = "# CONFIG_PREEMPT_NONE is not set\nCONFIG_PREEMPT_BUILD=y\n\
                      CONFIG_PREEMPT=y\nCONFIG_PREEMPT_DYNAMIC=y\n";
        assert_eq!(built_preemption(config), Some("full"));
        assert_eq!(built_preemption("CONFIG_PREEMPT_NONE=y\n"), Some("none"));
        assert_eq!(built_preemption("CONFIG_HZ=250\n"), None);
    }

    #[test]
    fn a_kernel_has_a_release_and_a_tick() {
        let machine = Machine::look();
        assert!(!machine.kernel.is_empty());
        assert!(machine.cpus > 0);
        assert!(machine.hz.is_none_or(|hz| (24..=10_000).contains(&hz)), "{:?}", machine.hz);
    }
}
