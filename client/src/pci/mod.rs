//! PCI BARs that follow a guest's config writes with as few memslot changes as
//! there can be.
//!
//! A guest sizes a BAR, gives it an address, enables memory decoding, switches
//! it off again to size once more: each a config write with an exit of its own.
//! Most of them change nothing that a vCPU could see.
//!
//! 1. Each function of a device is described by a [`FunctionSpec`]: its BARs,
//!    and which parts of them ([`BarSpec::window`]) are host memory. The rest of
//!    a BAR (registers, MSI-X tables: [`BarSpec::exits`]) exits as MMIO, as
//!    ever.
//! 2. The VMM hands every config write of a function to
//!    [`PciBars::config_write`], and fills what the guest reads of BARs from
//!    [`PciBars::config_read`].
//! 3. [`PciBars`] maps and unmaps the windows, and assigns and deassigns the
//!    doorbells ([`BarSpec::ioeventfd`]) in the same sets:
//!
//! | write | memslot changes |
//! | --- | --- |
//! | anything while decoding (bit 1 of the command register) is off | none |
//! | decoding goes on or off | one set for all BARs of the function |
//! | another address of a BAR that decodes | one set |
//! | all ones, or the old address again, to a BAR that decodes | none |
//! | anything else | none |
//!
//! With windows that are [`deferrable`](crate::RegionSpec::deferrable), going
//! on costs no call either: BARs of many devices, enabled one after the other,
//! are mapped together by [`Vm::promote`].
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # #[cfg(feature = "model")] {
//! use kvm_memslots::pci::{BarSpec, FunctionSpec, PciBars};
//! use kvm_memslots::{Access, Backing, RegionSpec, Vm, at};
//! # use std::sync::Arc;
//! # use kvm_memslots::{Limits, backend::{EventModel, Irqchip, MemoryModel}};
//! # let memory = Arc::new(MemoryModel::new(Limits::x86()));
//! # let events = Arc::new(EventModel::new(Irqchip::Split));
//!
//! let vm = Vm::builder().open_on(memory, events)?;
//! let mut bars = PciBars::new(40);
//! // 64 KiB, all but the first page of which is memory.
//! // SAFETY: the model touches no memory.
//! let memory = unsafe { Backing::borrowed(0x7f00_0000_1000, 0xf000, Access::ReadWrite) };
//! let window = RegionSpec::device(at(0x1000, 0xf000), memory);
//! let bar = BarSpec::memory64(0x1_0000).prefetchable().window(window);
//! let gpu = bars.add(&vm, FunctionSpec::new().bar(0, bar))?;
//!
//! let mut write = |offset, data: &[u8]| bars.config_write(&vm, gpu, offset, data);
//! assert!(write(0x10, &[0xff; 4])?.is_none());
//! assert!(write(0x10, &0xe000_0000_u32.to_le_bytes())?.is_none());
//! assert!(write(0x14, &[0; 4])?.is_none());
//! let report = write(0x04, &[0b10, 0])?.expect("changes");
//! assert_eq!(report.ioctls, 1);
//! assert!(vm.region_at(0, 0xe000_1000).is_some());
//! # }
//! # Ok(())
//! # }
//! ```
//!
//! # Where a BAR is
//! As QEMU has it (`pci_bar_address()`), a BAR that decodes is nowhere if its
//! address is 0; if it would wrap; if it has 32 bits and ends at 4 GiB or
//! beyond; if it has 64 and ends beyond the guest physical addresses; or, for
//! an expansion ROM, if its enable bit is off. Address bits below the size are
//! read-only, so no address is unaligned.
//!
//! As Cloud Hypervisor has it (and unlike QEMU, which moves the BAR out of
//! sight and back, in two steps), all ones in a BAR that decodes are taken for
//! what they are, a question about its size: it stays where it was until
//! something else is written. All ones that are still there when decoding goes
//! on are no address.
//!
//! A 64-bit BAR has two registers. A guest that moves it with decoding on, past
//! 4 GiB, goes through an address that it does not mean; that is followed, too,
//! as on hardware. (Linux and EDK II switch decoding off for that.)
//!
//! # What overlaps
//! Two claims on the same guest addresses are a guest's mistake, and have to be
//! survived:
//! - Regions that others mapped come before all BARs, as RAM does in QEMU.
//! - Of windows, the function that was added first comes first, then the lower
//!   BAR, the expansion ROM last. What is mapped depends on the registers
//!   alone, not on how they came to be so.
//! - A window or a doorbell that comes later and overlaps is not there at all:
//!   accesses to it exit, and [`PciBars::refusal`] is [`PciError::Taken`]. Once what was in its way has gone, it is mapped in the same
//!   set ([`PciBars::sync`], where that was not a BAR).
//!
//! # What KVM refuses
//! A BAR above the addresses that KVM has, over a memslot of KVM's own, where an
//! [observer](crate::Observer) does not want it, or whose doorbell another device has,
//! is not mapped or not all of it, and its accesses
//! exit: that is a guest's mistake, too, and nobody else's trouble. All other BARs are followed as if it were not there,
//! [`PciBars::refusal`] says why it is not, and it comes right by itself when the
//! guest moves it. One that there is no slot for comes with the next write that
//! changes anything, if there is one then.
//!
//! # What shares a slot
//! A guest moves each BAR by itself. So that it can, windows that are
//! [permanent](crate::RegionSpec::permanent) share slots only where one of them can
//! leave: with the batch ioctl, a [gate](crate::HolePolicy::Gate), or
//! [no vCPU running](crate::HolePolicy::NoVcpuRuns), when they are mapped.
//!
//! # BARs in windows
//! A VMM that keeps a range of guest addresses for memory (the 64-bit aperture of
//! a root bus, which guests give to prefetchable BARs) makes it a
//! [`Window`](crate::window::Window), maps that once, and hands it to
//! [`PciBars::in_window`]. Memory of BARs that the guest puts there comes, goes and
//! moves by `mmap`: no call of KVM's, no grace period. It is the file that the
//! window's [backing](crate::Backing::with_file) is in, mapped shared; what its
//! slot would have been asked for (logging, say) is the window's to have.
//!
//! | where the guest puts it | memory in a file | other memory | a doorbell |
//! | --- | --- | --- | --- |
//! | in a window | placed | refused | refused: KVM sees memory there |
//! | outside | a slot, or refused ([`without_slots`](PciBars::without_slots)) | the same | as ever |
//! | across an end | nowhere, as over any region of others | the same | as ever |
//!
//! What a BAR has beside memory does not exit in a window: registers, an MSI-X
//! table and doorbells belong in a BAR of their own, which is not prefetchable.
//! A guest that puts one there all the same finds the window's gap, so that
//! [`Gap::Scratch`](crate::window::Gap::Scratch) is what no guest can end itself
//! with.
//!
//! # What is not followed
//! Windows of bridges: a function behind a bridge is taken to be reachable. A
//! function whose bus is off is one whose decoding the VMM switches off, with
//! [`PciBars::reset`]. I/O BARs have registers here and no memory.

mod bars;
mod bells;
mod claims;
mod error;
mod id;
mod layout;
mod moves;
mod places;
mod refusals;
mod registers;
mod shelf;
mod spec;
mod wanted;

pub use bars::{Decoded, PciBars};
pub use error::PciError;
pub use id::FunctionId;
pub use spec::{BarSpec, FunctionSpec};

#[cfg(doc)]
use crate::Vm;
