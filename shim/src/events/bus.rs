//! How KVM finds the ioeventfd or the zone for a write, mistakes included
//! (`kvm_io_bus_register_dev()`, `kvm_io_bus_get_first_dev()`).

use super::part::Part;
use super::types::Ioeventfd;
use super::zone::Zone;

/// A device on a bus, in KVM's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Device {
    addr: u64,
    len: u64,
    /// `None`: a device of KVM's own.
    part: Option<Part>,
}

/// `NR_IOBUS_DEVS`
const DEVICES: usize = 1000;

/// One bus of a VM.
#[derive(Debug, Clone, Default)]
pub(super) struct IoBus(Vec<Device>);

impl IoBus {
    /// A bus with devices of KVM's own.
    pub(super) fn with(own: &[(u64, u64)]) -> Self {
        let device = |&(addr, len)| Device { addr, len, part: None };
        Self(own.iter().map(device).collect())
    }

    /// Whether there is no room for one more that is no ioeventfd.
    pub(super) fn is_full(&self) -> bool {
        let counted = |there: &&Device| !matches!(there.part, Some(Part::Ioeventfd(_)));
        self.0.iter().filter(counted).count() > DEVICES - 1
    }

    pub(super) fn register(&mut self, part: Part) {
        let (addr, len) = match part {
            Part::Irqfd(_) => return,
            Part::Ioeventfd(Ioeventfd { addr, len, .. }) | Part::Zone(Zone { addr, len, .. }) => {
                // An `int` to KVM.
                let sign = if len > Zone::MAX_LEN { u64::MAX << 32 } else { 0 };
                (addr, sign | u64::from(len))
            }
        };
        let place = self.0.iter().position(|there| compare((there.addr, there.len), addr, len) > 0);
        let place = place.unwrap_or(self.0.len());
        self.0.insert(place, Device { addr, len, part: Some(part) });
    }

    pub(super) fn unregister(&mut self, part: Part) {
        self.0.retain(|there| there.part != Some(part));
    }

    /// What a write goes to: the first that takes it. `ring` is whether the ring
    /// of the zones has room.
    ///
    /// KVM's order is not always sorted: a device that ends where one of length 0
    /// is, and was registered after it, comes behind it. The binary search may then
    /// miss the latter, and a zone that others are in.
    pub(super) fn write(&self, addr: u64, len: u32, value: u64, ring: bool) -> Option<Part> {
        let matches = |there: &Device| compare((addr, len.into()), there.addr, there.len);
        let mut index = self.search(matches)?;
        while index > 0 && matches(&self.0[index - 1]) == 0 {
            index -= 1;
        }
        let candidates = self.0[index..].iter().take_while(|there| matches(there) == 0);
        candidates.filter_map(|there| there.part).find(|part| match part {
            Part::Ioeventfd(ioeventfd) => ioeventfd.fires_for(ioeventfd.bus, addr, len, value),
            Part::Zone(zone) => ring && zone.has(addr, len),
            Part::Irqfd(_) => false,
        })
    }

    /// `__inline_bsearch()`: which of several that match is found depends on
    /// how it goes about it.
    fn search(&self, compare: impl Fn(&Device) -> i32) -> Option<usize> {
        let (mut base, mut left) = (0, self.0.len());
        while left > 0 {
            let pivot = base + left / 2;
            match compare(&self.0[pivot]) {
                0 => return Some(pivot),
                1.. => {
                    base = pivot + 1;
                    left -= 1;
                }
                _ => {}
            }
            left /= 2;
        }
        None
    }
}

/// `kvm_io_bus_cmp()`.
fn compare((addr1, len1): (u64, u64), addr2: u64, len2: u64) -> i32 {
    if addr1 < addr2 {
        return -1;
    }
    let ends = if len2 == 0 { (0, 0) } else { (len1, len2) };
    i32::from(addr1.wrapping_add(ends.0) > addr2.wrapping_add(ends.1))
}
