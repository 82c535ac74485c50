//! The ways in which UEFI is booted, and what is wanted of them.

/// What is preloaded, on which kernel.
#[derive(Debug, PartialEq)]
pub(super) struct Way {
    /// In the guest and in its JSON.
    pub(super) name: &'static str,
    /// In the table.
    pub(super) title: &'static str,
    /// Whether the kernel is without the series.
    pub(super) vanilla: bool,
    /// `KVM_MEMSLOTS_PRELOAD`; `None` without the library.
    pub(super) mode: Option<&'static str>,
}

/// What the others are compared with.
pub(super) const PLAIN: &str = "count";

pub(super) static WAYS: [Way; 4] = [
    Way { name: "bare", title: "as it is", vanilla: true, mode: None },
    Way { name: PLAIN, title: "as it is, counted", vanilla: true, mode: Some("count") },
    Way { name: "defer", title: "deferred", vanilla: true, mode: Some("defer") },
    Way { name: "trap", title: "trap bit", vanilla: false, mode: Some("trap") },
];

/// What is wanted of a way.
#[derive(Debug, PartialEq)]
pub(super) struct Wanted {
    pub(super) name: &'static str,
    /// Grace periods at most.
    pub(super) grace_periods: Option<u64>,
    /// Memslot calls at most.
    pub(super) calls: Option<u64>,
    /// How many times less time in them than as it is.
    pub(super) ratio: f64,
    /// Whether the shell is to be there as early as with every call made.
    pub(super) no_slower: bool,
}

static WANTED: [Wanted; 2] = [
    Wanted { name: "defer", grace_periods: None, calls: Some(240), ratio: 1.0, no_slower: true },
    Wanted { name: "trap", grace_periods: Some(40), calls: None, ratio: 10.0, no_slower: true },
];

/// With grace periods of 16 ms.
static WANTED_SLOW: [Wanted; 2] = [
    Wanted { name: "defer", grace_periods: None, calls: Some(240), ratio: 3.0, no_slower: true },
    Wanted { name: "trap", grace_periods: Some(40), calls: None, ratio: 20.0, no_slower: true },
];

/// What is wanted of the way called `name`, if anything.
pub(super) fn wanted(name: &str, slow_gp: bool) -> Option<&'static Wanted> {
    let all = if slow_gp { &WANTED_SLOW } else { &WANTED };
    all.iter().find(|wanted| wanted.name == name)
}
