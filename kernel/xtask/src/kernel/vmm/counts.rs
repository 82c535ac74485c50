//! Which ioctls of a VM were made, and how often.

use std::collections::BTreeMap;

/// Requests by their numbers in `linux/kvm.h`; of those with a direction and a
/// size, as x86 and arm64 encode them.
const KINDS: [(u32, Kind); 9] = [
    (0x4020_ae46, Kind::Memslot),
    (0x40a0_ae49, Kind::Memslot),
    (0xc040_aef9, Kind::Batch),
    (0x4040_ae79, Kind::Ioeventfd),
    (0x4020_ae76, Kind::Irqfd),
    (0x4008_ae6a, Kind::Routes),
    (0x4020_aea5, Kind::Msi),
    (0x4010_ae42, Kind::DirtyLog),
    (0xc018_aec0, Kind::ClearDirtyLog),
];

/// What an ioctl is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// `KVM_SET_USER_MEMORY_REGION`, also the one with a `guest_memfd`.
    Memslot,
    /// `KVM_SET_USER_MEMORY_REGIONS`.
    Batch,
    /// `KVM_IOEVENTFD`.
    Ioeventfd,
    /// `KVM_IRQFD`.
    Irqfd,
    /// `KVM_SET_GSI_ROUTING`.
    Routes,
    /// `KVM_SIGNAL_MSI`.
    Msi,
    /// `KVM_GET_DIRTY_LOG`.
    DirtyLog,
    /// `KVM_CLEAR_DIRTY_LOG`.
    ClearDirtyLog,
}

/// How often each was made.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Counts(BTreeMap<Kind, u64>);

impl Counts {
    /// Counts `request`, so often, if it is one of these.
    pub(super) fn add(&mut self, request: u32, times: u64) {
        if let Some((_, kind)) = KINDS.iter().find(|(number, _)| *number == request) {
            *self.0.entry(*kind).or_default() += times;
        }
    }

    pub(super) fn of(&self, kind: Kind) -> u64 {
        self.0.get(&kind).copied().unwrap_or_default()
    }

    /// Counts what `strace -X raw` says: `17 ioctl(0x4, 0x4020ae46, 0x7ffc) = 0`.
    pub(super) fn strace(&mut self, line: &str) {
        let request = line.split_once("ioctl(").and_then(|(_, args)| args.split(", ").nth(1));
        if let Some(request) = request.and_then(hexadecimal) {
            self.add(request, 1);
        }
    }
}

/// A number as in `0x4020ae46`.
pub(super) fn hexadecimal(text: &str) -> Option<u32> {
    u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_strace() {
        let mut counts = Counts::default();
        for line in [
            "100 ioctl(0x4, 0x4020ae46, 0x7ffc) = 0",
            "101 ioctl(0x4, 0x4020ae46, 0x7ffc <unfinished ...>",
            "101 <... ioctl resumed>) = 0",
            "100 ioctl(0x5, 0xae80, 0) = 0",
            "100 ioctl(0x4, 0xc018aec0, 0x7ffc) = 0",
            "100 +++ exited with 0 +++",
        ] {
            counts.strace(line);
        }
        assert_eq!((counts.of(Kind::Memslot), counts.of(Kind::Irqfd)), (2, 0));
        assert_eq!((counts.of(Kind::ClearDirtyLog), counts.of(Kind::DirtyLog)), (1, 0));
    }

    #[test]
    fn numbers() {
        assert_eq!(hexadecimal(" 0xae80"), Some(0xae80));
        assert_eq!(hexadecimal("ae80"), None);
        let mut counts = Counts::default();
        counts.add(0xc040_aef9, 3);
        assert_eq!(counts.of(Kind::Batch), 3);
    }
}
