//! What was done, counted.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// A count that any thread adds to.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counts {
    ($($(#[doc = $doc:literal])+ $name:ident),+ $(,)?) => {
        /// The counts of one VM, as they grow. Zeroes are none.
        #[derive(Debug, Default)]
        pub(crate) struct VmCounts {
            $($(#[doc = $doc])+ pub(crate) $name: Count,)+
            /// Nanoseconds of the longest call that KVM got.
            longest_ns: AtomicU64,
        }

        /// The counts, as they are written at the end.
        #[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
        pub(crate) struct Sums {
            $($(#[doc = $doc])+ pub(crate) $name: u64,)+
            /// The longest call that KVM got.
            pub(crate) longest_ns: u64,
        }

        impl VmCounts {
            pub(crate) fn sums(&self) -> Sums {
                Sums {
                    $($name: self.$name.get(),)+
                    longest_ns: self.longest_ns.load(Ordering::Relaxed),
                }
            }
        }

        impl Sums {
            pub(crate) fn add(&mut self, more: &Self) {
                $(self.$name += more.$name;)+
                self.longest_ns = self.longest_ns.max(more.longest_ns);
            }
        }
    };
}

counts! {
    /// Memslot calls that the VMM made.
    asked,
    /// Nanoseconds that the VMM waited for them.
    asked_ns,
    /// Memslot calls that KVM got, flips of the trap bit not counted.
    calls,
    /// Flips of the trap bit.
    flips,
    /// Nanoseconds in calls and flips.
    kvm_ns,
    /// Calls of the VMM's that KVM refused.
    refused,
    /// Slots that were deferred instead of added.
    deferred,
    /// Of these, those that were removed without having been mapped.
    unused,
    /// Of these, those that were mapped.
    mapped,
    /// Times that all deferred slots were mapped: enough exits had been served.
    promoted_by_exits,
    /// An access that KVM can't decode had to be done again.
    promoted_by_undecodable,
    /// Slots that were mapped or deleted so that KVM had what the VMM believed.
    put_right,
    /// Reads served from host memory.
    reads,
    /// Writes served to host memory.
    writes,
}

impl VmCounts {
    /// KVM was called, for so long.
    pub(crate) fn called(&self, ns: u64) {
        self.kvm_ns.add(ns);
        self.longest_ns.fetch_max(ns, Ordering::Relaxed);
    }

    pub(crate) fn calls_and_flips(&self) -> u64 {
        self.calls.get() + self.flips.get()
    }
}

/// The counts of one process. Zeroes are none.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// VMs made.
    pub(crate) vms: Count,
    /// vCPUs made.
    pub(crate) vcpus: Count,
}
