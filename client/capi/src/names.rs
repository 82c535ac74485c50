//! Rust's names in a message, as C has them.

/// A phrase of `kvm-memslots`, and what C reads.
const NAMES: [(&str, &str); 15] = [
    ("a Vm on this VM already; share that one (Arc<Vm>)", "this VM open already; share that"),
    ("Executor::Auto", "KVM_MEMSLOTS_EXECUTOR_AUTO"),
    ("HolePolicy::Gate", "KVM_MEMSLOTS_HOLES_GATE"),
    ("HolePolicy::NoVcpuRuns", "KVM_MEMSLOTS_HOLES_NO_VCPU_RUNS"),
    ("Access::Read", "KVM_MEMSLOTS_BACKING_READ_ONLY"),
    ("Builder::allow_scratch_vm was called", "KVM_MEMSLOTS_ALLOW_SCRATCH_VM was set"),
    ("Builder::reserve_slots", "reserved_slots, kvm_memslots_reserve_slots()"),
    ("Changes::set_log_dirty", "kvm_memslots_set_log_dirty()"),
    ("Vm::dirty_log_of", "kvm_memslots_dirty_log_of()"),
    ("say where in a file it is (Backing::with_file)", "set its file and file_offset"),
    ("PciBars::without_slots allows no slot", "no slot is allowed"),
    ("; unmap the region instead, or let RomDevice choose", "; unmap the region instead"),
    ("is another PciBars'", "is of another kvm_memslots_pci"),
    ("placing it is unsafe: Contents::device", "it is KVM_MEMSLOTS_CONTENTS_DEVICE"),
    ("map it alone()", "map it with KVM_MEMSLOTS_ALONE"),
];

/// The message as C reads it.
pub(crate) fn in_c(message: String) -> String {
    let rust = |message: &String| NAMES.iter().any(|(rust, _)| message.contains(rust));
    if !rust(&message) {
        return message;
    }
    NAMES.iter().fold(message, |message, (rust, c)| message.replace(rust, c))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The string literals of a source, with lines that are continued put
    /// together.
    fn literals(source: &str) -> Vec<String> {
        let code: Vec<_> =
            source.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let joined = code.join("\n").replace("\\\"", "'");
        let strings = joined.split('"').skip(1).step_by(2);
        strings
            .map(|string| {
                let mut lines = string.split("\\\n");
                let first = lines.next().unwrap_or_default().to_owned();
                lines.fold(first, |all, line| all + line.trim_start())
            })
            .collect()
    }

    #[test]
    fn no_message_has_a_name_of_rusts() {
        let mut all = literals(include_str!("../../src/error/kind.rs"));
        all.extend(literals(include_str!("../../src/error/advice.rs")));
        all.extend(literals(include_str!("../../src/error/described.rs")));
        all.extend(literals(include_str!("../../src/pci/error.rs")));
        all.extend(literals(include_str!("../../src/window/error.rs")));
        assert!(all.iter().any(|message| message.contains("HolePolicy::Gate")), "{all:?}");
        for message in all {
            let in_c = in_c(message);
            let words = in_c.split(' ').filter(|word| !word.contains("kvm_memslots_"));
            let left = words.collect::<Vec<_>>().join(" ");
            for rust in ["::", "()", "Arc<", "RomDevice", "PciBars", " Vm "] {
                assert!(!left.contains(rust), "{in_c}");
            }
        }
    }
}
