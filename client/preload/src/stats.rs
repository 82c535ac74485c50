//! What was done, counted for the whole process.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// A count that any thread adds to.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counts {
    ($($(#[doc = $doc:literal])+ $name:ident),+ $(,)?) => {
        /// The counts, as they grow.
        pub(crate) struct Counts {
            $($(#[doc = $doc])+ pub(crate) $name: Count,)+
            switched_off: Mutex<Vec<String>>,
        }

        /// The counts, as they are written at the end.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
        pub(crate) struct Totals {
            pub(crate) mode: &'static str,
            $($(#[doc = $doc])+ pub(crate) $name: u64,)+
            /// Why it was switched off, for each VM that it was.
            pub(crate) switched_off: Vec<String>,
        }

        impl Counts {
            const fn new() -> Self {
                Self { $($name: Count::new(),)+ switched_off: Mutex::new(Vec::new()) }
            }

            /// What they stand at.
            pub(crate) fn totals(&self, mode: &'static str) -> Totals {
                // Also while another thread, which may never go on, has it.
                let switched_off = self.switched_off.try_lock();
                Totals {
                    mode,
                    $($name: self.$name.get(),)+
                    switched_off: switched_off.map(|why| why.clone()).unwrap_or_default(),
                }
            }
        }
    };
}

counts! {
    /// VMs made.
    vms,
    /// vCPUs made.
    vcpus,
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
    /// The longest of them.
    longest_ns,
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

impl Counts {
    /// A VM is left alone from now on.
    pub(crate) fn switched_off(&self, why: &str) {
        if let Ok(mut all) = self.switched_off.lock() {
            all.push(why.to_owned());
        }
    }

    /// KVM was called, for so long.
    pub(crate) fn called(&self, ns: u64) {
        self.kvm_ns.add(ns);
        self.longest_ns.0.fetch_max(ns, Ordering::Relaxed);
    }
}

/// Those of this process.
pub(crate) static COUNTS: Counts = Counts::new();

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |ns: u64| format!("{}.{:03} ms", ns / 1_000_000, ns / 1000 % 1000);
        writeln!(f, "{} VMs, {} vCPUs, mode {}", self.vms, self.vcpus, self.mode)?;
        writeln!(
            f,
            "memslot calls of the VMM: {} in {}, {} refused",
            self.asked,
            ms(self.asked_ns),
            self.refused
        )?;
        writeln!(
            f,
            "KVM got: {} calls and {} flips in {}, the longest took {}",
            self.calls,
            self.flips,
            ms(self.kvm_ns),
            ms(self.longest_ns)
        )?;
        writeln!(
            f,
            "deferred: {}, of these removed unused {}, mapped {} (at {} times for the exits \
             served, at {} for an access that KVM can't decode)",
            self.deferred,
            self.unused,
            self.mapped,
            self.promoted_by_exits,
            self.promoted_by_undecodable
        )?;
        write!(
            f,
            "exits served: {} reads, {} writes; slots put right: {}",
            self.reads, self.writes, self.put_right
        )?;
        self.switched_off.iter().try_for_each(|why| write!(f, "\nswitched off: {why}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn totals_as_text_and_as_json() {
        let counts = Counts::new();
        counts.asked.add(3);
        counts.calls.add(2);
        counts.called(1_234_567);
        counts.called(1_000);
        counts.switched_off("a move");
        let totals = counts.totals("defer");
        let text = totals.to_string();
        assert!(text.contains("of the VMM: 3 in 0.000 ms"), "{text}");
        assert!(text.contains("2 calls and 0 flips in 1.235 ms, the longest took 1.234"), "{text}");
        assert!(text.ends_with("switched off: a move"), "{text}");
        let json = serde_json::to_value(&totals).unwrap();
        assert_eq!(json["kvm_ns"], 1_235_567);
        assert_eq!(json["switched_off"][0], "a move");
        assert_eq!(json["mode"], "defer");
    }
}
