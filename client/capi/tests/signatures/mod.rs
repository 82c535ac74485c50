//! What functions take and return, as C declares them and as Rust defines them.

use std::collections::BTreeMap;
use std::fs;

use crate::common::file;

/// The functions that `code` declares, with what they take and return.
pub(crate) fn prototypes(code: &str) -> BTreeMap<String, String> {
    let is_one = |text: &&str| text.contains("kvm_memslots_") && text.ends_with(')');
    let plain = code.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join(" ");
    let statements = plain.split(['{', '}', ';']).map(str::trim);
    let declared = statements.filter(is_one).filter(|text| !text.contains("(*"));
    declared
        .map(|text| {
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let words = words.trim_start_matches("extern \"C\" ").to_owned();
            let (before, arguments) = words.split_once('(').unwrap();
            let at = before.rfind([' ', '*']).unwrap() + 1;
            let arguments = arguments.trim_end_matches(')').split(',').map(|argument| {
                let argument = argument.trim();
                // Without the name, if it has one.
                match argument.rfind([' ', '*']) {
                    Some(at) => argument[..=at].trim().to_owned(),
                    None => argument.to_owned(),
                }
            });
            let arguments: Vec<String> = arguments.collect();
            let returned = before[..at].trim();
            (before[at..].to_owned(), format!("{returned} ({})", arguments.join(", ")))
        })
        .collect()
}

/// What C calls a type of Rust's.
fn in_c(rust: &str) -> String {
    let rust = rust.trim();
    for (pointer, c) in [("*mut ", "*"), ("*const ", "const *")] {
        if let Some(to) = rust.strip_prefix(pointer) {
            let to = in_c(to);
            return match c {
                "*" if to.ends_with('*') => format!("{to}*"),
                "*" => format!("{to} *"),
                _ if to.ends_with('*') => format!("{to}const *"),
                _ => format!("const {to} *"),
            };
        }
    }
    let inner =
        |text: &str| text.split_once('<').map(|(_, inner)| inner.trim_end_matches('>').to_owned());
    match rust {
        "u64" => "uint64_t".to_owned(),
        "u32" => "uint32_t".to_owned(),
        "u16" => "uint16_t".to_owned(),
        "usize" => "size_t".to_owned(),
        "c_int" => "int".to_owned(),
        "c_char" => "char".to_owned(),
        "CoalescedRing" => "struct kvm_memslots_ring".to_owned(),
        "Window" => "struct kvm_memslots_window".to_owned(),
        "" | "c_void" => "void".to_owned(),
        "kvm_irq_routing_entry" => "struct kvm_irq_routing_entry".to_owned(),
        "Vm" => "struct kvm_memslots_vm".to_owned(),
        "Deferred" => "struct kvm_memslots_exits".to_owned(),
        "RomDevice" => "struct kvm_memslots_rom".to_owned(),
        "PciBars" => "struct kvm_memslots_pci".to_owned(),
        "Each<*const CRegion>" => "kvm_memslots_each_region".to_owned(),
        "Each<*const CSlot>" => "kvm_memslots_each_slot".to_owned(),
        "Each<u64>" => "kvm_memslots_each_id".to_owned(),
        text if text.starts_with("Option<") || text.starts_with("Handle<") => {
            in_c(&inner(text).map_or_else(String::new, |inner| close(&inner)))
        }
        // CSlotRange, struct kvm_memslots_slot_range; or a function.
        name => {
            let function = [
                "EachDirtyLog",
                "EachWindow",
                "EachPlacement",
                "EachPlaced",
                "EachZoneWrite",
                "EachSyscall",
                "DeviceRead",
                "DeviceWrite",
            ];
            let is_function = function.contains(&name);
            let stem = if is_function { name } else { name.strip_prefix('C').unwrap_or(name) };
            let mut snake = String::new();
            for letter in stem.chars() {
                if letter.is_uppercase() {
                    snake.push('_');
                }
                snake.extend(letter.to_lowercase());
            }
            let before = if is_function { "" } else { "struct " };
            format!("{before}kvm_memslots{snake}")
        }
    }
}

/// Gives a type back the bracket that was taken with another.
fn close(inner: &str) -> String {
    let open = inner.matches('<').count() - inner.matches('>').count();
    inner.to_owned() + &">".repeat(open)
}

/// The functions that Rust defines, as C would declare them.
pub(crate) fn defined() -> BTreeMap<String, String> {
    let calls = fs::read_dir(file("src/calls")).unwrap().map(|entry| entry.unwrap().path());
    let sources = calls.chain([file("src/last.rs")]);
    let sources: String = sources.map(|path| fs::read_to_string(path).unwrap()).collect();
    let mut all = BTreeMap::new();
    for part in sources.split("extern \"C\" fn ").skip(1) {
        let Some((name, rest)) = part.split_once('(').filter(|(name, _)| !name.is_empty()) else {
            continue;
        };
        let (arguments, rest) = rest.split_once(')').unwrap();
        let returned = rest.split('{').next().unwrap().trim().trim_start_matches("->");
        let types = arguments.split(',').filter_map(|argument| argument.split_once(':'));
        let mut types: Vec<String> = types.map(|(_, of)| in_c(of)).collect();
        if types.is_empty() {
            types.push("void".to_owned());
        }
        all.insert(name.to_owned(), format!("{} ({})", in_c(returned), types.join(", ")));
    }
    all
}
