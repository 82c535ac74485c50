//! The ways and places that a VMM is run in.

use clap::ValueEnum;

/// What a VMM makes its changes with.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub(super) enum Way {
    /// Its own calls
    Today,
    /// This workspace's library, by `kernel/vmm/NAME.patch`
    Ours,
}

impl Way {
    pub(super) const ALL: [Self; 2] = [Self::Today, Self::Ours];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Today => "today",
            Self::Ours => "ours",
        }
    }
}

/// Where a VMM runs.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub(super) enum Kernel {
    /// This machine's
    Host,
    /// The lab's, without any series
    Lab,
    /// The lab's, with all series
    LabPatched,
}

impl Kernel {
    pub(super) const ALL: [Self; 3] = [Self::Host, Self::Lab, Self::LabPatched];

    /// As in the table.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Lab => "lab",
            Self::LabPatched => "lab, patched",
        }
    }

    /// As on the command line.
    pub(super) const fn option(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Lab => "lab",
            Self::LabPatched => "lab-patched",
        }
    }
}
