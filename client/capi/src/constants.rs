//! The numbers of the header, under its names.

macro_rules! constants {
    ($($name:ident: $ty:ty = $value:expr;)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "`, which the header documents.")]
            pub const $name: $ty = $value;
        )*

        /// All of them, with their names.
        pub const CONSTANTS: &[(&str, u64)] = &[$((stringify!($name), $name as u64)),*];
    };
}

constants! {
    KVM_MEMSLOTS_VERSION_MAJOR: u32 = number(env!("CARGO_PKG_VERSION_MAJOR"));
    KVM_MEMSLOTS_VERSION_MINOR: u32 = number(env!("CARGO_PKG_VERSION_MINOR"));
    KVM_MEMSLOTS_VERSION_PATCH: u32 = number(env!("CARGO_PKG_VERSION_PATCH"));
    KVM_MEMSLOTS_VERSION: u32 = KVM_MEMSLOTS_VERSION_MAJOR << 16
        | KVM_MEMSLOTS_VERSION_MINOR << 8
        | KVM_MEMSLOTS_VERSION_PATCH;

    KVM_MEMSLOTS_LABEL_SIZE: usize = 64;

    KVM_MEMSLOTS_BACKING_READ_ONLY: u64 = 1 << 0;
    KVM_MEMSLOTS_BACKING_GUEST_MEMFD: u64 = 1 << 1;
    KVM_MEMSLOTS_BACKING_FILE: u64 = 1 << 2;

    KVM_MEMSLOTS_RAM: u16 = 0;
    KVM_MEMSLOTS_ROM: u16 = 1;
    KVM_MEMSLOTS_DEVICE: u16 = 2;

    KVM_MEMSLOTS_LOG_DIRTY: u32 = 1 << 0;
    KVM_MEMSLOTS_READONLY: u32 = 1 << 1;
    KVM_MEMSLOTS_GUEST_MEMFD: u32 = 1 << 2;
    KVM_MEMSLOTS_TRAP: u32 = 1 << 15;
    KVM_MEMSLOTS_ALONE: u32 = 1 << 16;
    KVM_MEMSLOTS_PERMANENT: u32 = 1 << 17;
    KVM_MEMSLOTS_TAGGED: u32 = 1 << 18;
    KVM_MEMSLOTS_DEFERRABLE: u32 = 1 << 19;
    KVM_MEMSLOTS_DEFERRED: u32 = 1 << 20;

    KVM_MEMSLOTS_EXECUTOR_AUTO: u32 = 0;
    KVM_MEMSLOTS_EXECUTOR_BATCH: u32 = 1;
    KVM_MEMSLOTS_EXECUTOR_PER_REGION: u32 = 2;

    KVM_MEMSLOTS_HOLES_NAMED: u32 = 0;
    KVM_MEMSLOTS_HOLES_REFUSE: u32 = 1;
    KVM_MEMSLOTS_HOLES_NO_VCPU_RUNS: u32 = 2;
    KVM_MEMSLOTS_HOLES_GATE: u32 = 3;

    KVM_MEMSLOTS_POLICY_RENT_OR_BUY: u32 = 0;
    KVM_MEMSLOTS_POLICY_FIXED: u32 = 1;
    KVM_MEMSLOTS_DEFERRAL_ONLY_DUE: u32 = 1 << 0;
    KVM_MEMSLOTS_DEFERRAL_COSTS: u32 = 1 << 1;

    KVM_MEMSLOTS_MANUAL_DIRTY_LOG: u32 = 1 << 0;
    KVM_MEMSLOTS_ALLOW_SCRATCH_VM: u32 = 1 << 1;
    KVM_MEMSLOTS_ALLOW_BYPASS: u32 = 1 << 2;
    KVM_MEMSLOTS_X86_ROUTES: u32 = 1 << 3;

    KVM_MEMSLOTS_HAS_READONLY: u32 = 1 << 0;
    KVM_MEMSLOTS_HAS_GUEST_MEMFD: u32 = 1 << 1;
    KVM_MEMSLOTS_HAS_TRAP: u32 = 1 << 2;

    KVM_MEMSLOTS_DEVICE_MAY_BYPASS: u32 = 1 << 0;
    KVM_MEMSLOTS_DEVICE_DEFER_IOEVENTFDS: u32 = 1 << 1;
    KVM_MEMSLOTS_DOORBELL_PIO: u32 = 1 << 0;
    KVM_MEMSLOTS_DOORBELL_VALUE: u32 = 1 << 1;
    KVM_MEMSLOTS_MSI_DEVID: u64 = 1 << 0;
    KVM_MEMSLOTS_LINE_PIN: u32 = 1 << 0;
    KVM_MEMSLOTS_LINE_RESAMPLE: u32 = 1 << 1;

    KVM_MEMSLOTS_REPORT_VCPUS_PAUSED: u32 = 1 << 0;
    KVM_MEMSLOTS_REPORT_MODEL: u32 = 1 << 1;

    KVM_MEMSLOTS_ERROR_STUCK: u32 = 1 << 0;
    KVM_MEMSLOTS_ERROR_KVM: u32 = 1 << 1;
    KVM_MEMSLOTS_ERROR_CALLBACK: u32 = 1 << 2;
    KVM_MEMSLOTS_PART_NONE: u32 = 0;
    KVM_MEMSLOTS_PART_IOEVENTFD: u32 = 1;
    KVM_MEMSLOTS_PART_VECTOR: u32 = 2;
    KVM_MEMSLOTS_PART_LINE: u32 = 3;
    KVM_MEMSLOTS_PART_ROUTES: u32 = 4;

    KVM_MEMSLOTS_SERVED_DUE: u32 = 1 << 0;
    KVM_MEMSLOTS_SERVED_FAULT: u32 = 1 << 1;

    KVM_MEMSLOTS_ROM_MODE_AUTO: u32 = 0;
    KVM_MEMSLOTS_ROM_MODE_TRAP: u32 = 1;
    KVM_MEMSLOTS_ROM_MODE_DEFERRED: u32 = 2;
    KVM_MEMSLOTS_ROM_MODE_TOGGLE: u32 = 3;

    KVM_MEMSLOTS_BAR_MEMORY32: u16 = 0;
    KVM_MEMSLOTS_BAR_MEMORY64: u16 = 1;
    KVM_MEMSLOTS_BAR_IO: u16 = 2;
    KVM_MEMSLOTS_BAR_PREFETCHABLE: u16 = 1 << 0;
    KVM_MEMSLOTS_BAR_ROM: u32 = 6;
    KVM_MEMSLOTS_FUNCTION_BRIDGE: u64 = 1 << 0;
}

/// A part of a version.
const fn number(text: &str) -> u32 {
    let digits = text.as_bytes();
    let (mut number, mut at) = (0, 0);
    while at < digits.len() {
        number = number * 10 + (digits[at] - b'0') as u32;
        at += 1;
    }
    number
}
