//! When a map that was put off is worth making: rent or buy.
//!
//! Pure arithmetic without I/O, for whoever defers maps: the deferred regions
//! of this crate, or a library under a VMM that knows nothing of it.
//!
//! Until a region has a slot, each access to it is an exit that userspace
//! serves: *rent*. A slot is paid for when it is made and again when it is taken
//! away: the *price*. Nobody knows how many accesses are still to come before
//! the guest wants the region gone. [`Policy::RentOrBuy`] makes the slot when
//! the exits served since the region was last unmapped have cost as much as the
//! slot does.
//!
//! **What that guarantees.** Between an unmap and the next one, let the exits
//! to come cost `R` and the slot `P`. With hindsight the best is `min(R, P)`.
//! While `R < P` this policy pays `R`, the best there is. Else it pays `P` for
//! the slot and for exits until those have cost `P`: at most `2 P`, and the
//! last exit is counted whole as it can't be taken back. So
//!
//! ```text
//! cost <= 2 * best + (one exit for each slot that was made)
//! ```
//!
//! and `<= 2 * best` where the price is a whole number of exits. No rule that
//! doesn't know the future does better: one that makes the slot earlier or
//! later loses more to a guest that stops there. A property test in this module
//! holds both lines.
//!
//! With hindsight about several regions that are mapped together, the same
//! holds against the better of *all mapped when they were asked for* and *none
//! ever mapped*, chosen anew for each stretch between two commits.

/// What things cost on one VM, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Costs {
    /// Making a slot: one call, with the grace period it waits for.
    pub map_ns: u64,
    /// Taking it away again: one call, with its two.
    pub unmap_ns: u64,
    /// One access without a slot, from the guest to userspace and back. 0 counts
    /// as 1.
    pub exit_ns: u64,
}

impl Costs {
    /// For where nothing has been measured: the price of a slot is 60 exits.
    ///
    /// An exit to userspace and back takes 2 to 10 microseconds on current x86
    /// and arm64 hosts; an expedited grace period tens of microseconds in an
    /// idle VM, and several times that while vCPUs fault memory in.
    pub const UNMEASURED: Self = Self { map_ns: 100_000, unmap_ns: 200_000, exit_ns: 5_000 };

    /// What a slot costs in all, in nanoseconds: it is made once and taken away
    /// once.
    #[must_use]
    pub const fn slot_ns(&self) -> u64 {
        self.map_ns.saturating_add(self.unmap_ns)
    }
}

impl Default for Costs {
    fn default() -> Self {
        Self::UNMEASURED
    }
}

/// When a deferred map is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Policy {
    /// When the exits served have cost as much as the slot does.
    #[default]
    RentOrBuy,
    /// After this many exits, whatever they cost. 0 maps at once; [`u64::MAX`]
    /// waits for an access that can't be served.
    Fixed {
        /// How many exits are served first.
        exits: u64,
    },
}

impl Policy {
    /// How many exits are served before slots worth `price_ns` are made.
    ///
    /// ```
    /// use kvm_memslots::deferred::policy::{Costs, Policy};
    ///
    /// let costs = Costs { map_ns: 40_000, unmap_ns: 60_000, exit_ns: 3_000 };
    /// assert_eq!(Policy::RentOrBuy.exits(costs.slot_ns(), costs.exit_ns), 34);
    /// assert_eq!(Policy::Fixed { exits: 64 }.exits(costs.slot_ns(), costs.exit_ns), 64);
    /// ```
    #[must_use]
    pub fn exits(self, price_ns: u64, exit_ns: u64) -> u64 {
        match self {
            // At least one: a region that nobody touches needs no slot.
            Self::RentOrBuy => price_ns.div_ceil(exit_ns.max(1)).max(1),
            Self::Fixed { exits } => exits,
        }
    }

    /// Whether one slot is worth making after `exits` exits.
    #[must_use]
    pub fn is_due(self, costs: &Costs, exits: u64) -> bool {
        exits >= self.exits(costs.slot_ns(), costs.exit_ns)
    }
}

/// A cost as measured so far: an average in which each new sample weighs an
/// eighth, as a host that gets busy changes what things cost.
///
/// ```
/// use kvm_memslots::deferred::policy::Estimate;
///
/// let mut map = Estimate::default();
/// assert_eq!(map.ns(), None);
/// map.add(8_000);
/// map.add(16_000);
/// assert_eq!(map.ns(), Some(9_000));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Estimate {
    ns: Option<u64>,
}

impl Estimate {
    /// Takes a sample in, in nanoseconds.
    pub fn add(&mut self, sample_ns: u64) {
        let weighed = |ns: u64| ns - ns / 8 + sample_ns / 8;
        self.ns = Some(self.ns.map_or(sample_ns, weighed));
    }

    /// The average, in nanoseconds; `None` before the first sample.
    #[must_use]
    pub const fn ns(&self) -> Option<u64> {
        self.ns
    }
}

/// Whether a slot churns: it keeps being removed and added again, unchanged.
///
/// A slot that merely goes away, or comes back as something else, is none to
/// defer: its next map is a new one, which may be executed from. So the first
/// flips are let through as they are.
///
/// `K` is all that makes two maps the same: slot id, addresses, size, flags.
///
/// ```
/// use kvm_memslots::deferred::policy::Churn;
///
/// let mut flash = Churn::default();
/// for _ in 0..2 {
///     assert!(!flash.added("64 MiB at 0x4000000"));
///     assert!(!flash.removed());
/// }
/// // Added first, then three flips. This is the fourth, and must be carried out.
/// assert!(!flash.added("64 MiB at 0x4000000"));
/// // The fifth: from here on a trap bit or a deferred map will do.
/// assert!(flash.removed());
/// assert!(flash.added("64 MiB at 0x4000000"));
/// // Something else under the same id begins anew.
/// assert!(!flash.added("4 KiB at 0x90a0000"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Churn<K> {
    after: u32,
    flips: u32,
    last: Option<K>,
}

impl<K> Default for Churn<K> {
    fn default() -> Self {
        Self::after(Self::FLIPS)
    }
}

impl<K> Churn<K> {
    /// How many flips [`Churn::default`] lets through. Firmware that boots from
    /// flash flips the slot that it executes from up to four times, when it
    /// probes for the chip (UEFI on QEMU's `virt` machine).
    pub const FLIPS: u32 = 4;

    /// Lets `flips` flips through: each removal counts as one, and so does each
    /// time the same is added again.
    #[must_use]
    pub const fn after(flips: u32) -> Self {
        Self { after: flips, flips: 0, last: None }
    }

    /// The slot was removed. Says whether this flip need not be carried out as
    /// such.
    pub fn removed(&mut self) -> bool {
        if self.last.is_some() {
            self.flips = self.flips.saturating_add(1);
        }
        self.churns()
    }

    /// Whether there were more flips than are let through.
    #[must_use]
    pub const fn churns(&self) -> bool {
        self.flips > self.after
    }

    /// Flips seen of what is there now.
    #[must_use]
    pub const fn flips(&self) -> u32 {
        self.flips
    }

    /// Starts anew: what is there now is no longer what was seen.
    pub fn reset(&mut self) {
        self.flips = 0;
        self.last = None;
    }
}

impl<K: PartialEq> Churn<K> {
    /// `what` was added. Says whether this need not be carried out as such.
    pub fn added(&mut self, what: K) -> bool {
        if self.last.as_ref() == Some(&what) {
            self.flips = self.flips.saturating_add(1);
        } else {
            self.flips = 0;
            self.last = Some(what);
        }
        self.churns()
    }
}

#[cfg(test)]
mod tests;
