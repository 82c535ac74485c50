//! Commands of the `memslots` tool, made so small that a test can wait for them.

use std::fs::OpenOptions;
use std::ops::Range;

/// An option with the value that it gets.
type Size = (&'static str, &'static str);

const SCENARIOS: &[Size] = &[("--regions", "4"), ("--vcpus", "0"), ("--runs", "1")];
const DEVICES: &[Size] = &[
    ("--devices", "2"),
    ("--bars", "1"),
    ("--ioeventfds", "1"),
    ("--vectors", "2"),
    ("--vcpus", "0"),
    ("--runs", "1"),
];
const START: &[Size] = &[
    ("--devices", "1"),
    ("--vectors", "1"),
    ("--at-once", "1"),
    ("--vcpus", "1"),
    ("--runs", "1"),
];
const WINDOW: &[Size] = &[
    ("--sizes", "4"),
    ("--live", "2"),
    ("--pairs", "2"),
    ("--time", "10"),
    ("--vcpus", "0"),
    ("--sleep", "0"),
    ("--runs", "1"),
];
const FLASH: &[Size] = &[("--cycles", "2"), ("--vcpus", "0"), ("--runs", "1")];
const DENSITY: &[Size] = &[("--background", "0,2"), ("--vms", "1"), ("--rounds", "1")];
const RUNS: &[Size] = &[("--runs", "1")];

/// What is made smaller only where it is asked for, as it asks for something else.
const ASKED: &[Size] = &[("--churn", "65"), ("--hotplug", "1")];

/// `args` of a page with small sizes, something for `NAME` and nothing for `ARGS`.
pub(super) fn args(args: &[String]) -> Vec<String> {
    let mut args: Vec<String> = args.iter().filter(|arg| *arg != "ARGS").cloned().collect();
    if args.iter().any(|arg| arg == "--help") {
        return args;
    }
    for arg in args.iter_mut().filter(|arg| *arg == "NAME") {
        "sparse".clone_into(arg);
    }
    for (option, value) in ASKED {
        if let Some(at) = place(&args, option) {
            args.splice(at, [(*option).to_owned(), (*value).to_owned()]);
        }
    }
    for (option, value) in sizes(&args) {
        let at = place(&args, option).unwrap_or(args.len()..args.len());
        args.splice(at, [(*option).to_owned(), (*value).to_owned()]);
    }
    args
}

/// Where `option` is, with its value.
fn place(args: &[String], option: &str) -> Option<Range<usize>> {
    let at = args.iter().position(|arg| arg == option)?;
    let value = args.get(at + 1).is_some_and(|value| !value.starts_with('-'));
    Some(at..at + 1 + usize::from(value))
}

fn sizes(args: &[String]) -> &'static [Size] {
    let arg = |at: usize| args.get(at).map(String::as_str);
    match (arg(0), arg(1)) {
        (Some("bench"), Some("devices")) => DEVICES,
        (Some("bench"), Some("start")) => START,
        (Some("bench"), Some("window")) => WINDOW,
        (Some("flash"), _) => FLASH,
        (Some("density"), _) => DENSITY,
        (Some("doctor" | "replay"), _) => RUNS,
        (Some("import"), _) => &[],
        _ => SCENARIOS,
    }
}

/// Whether the tool has no model of KVM for these.
pub(super) fn needs_kvm(args: &[String]) -> bool {
    let scenarios = std::ptr::eq(sizes(args), SCENARIOS);
    let reads = args.first().is_some_and(|first| first == "import");
    !scenarios && !reads && !args.iter().any(|arg| arg == "--help")
}

/// Whether this process may use KVM.
pub(super) fn has_kvm() -> bool {
    OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

#[cfg(test)]
mod tests {
    use super::{args, needs_kvm};

    #[test]
    fn sizes_are_small_and_the_rest_is_as_it_was() {
        let small = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            args(&words).join(" ")
        };
        let cases = [
            ("bench NAME ARGS --json", "bench sparse --json --regions 4 --vcpus 0 --runs 1"),
            ("", "--regions 4 --vcpus 0 --runs 1"),
            ("replay --help", "replay --help"),
            ("replay a.trace", "replay a.trace --runs 1"),
            ("import a -o b", "import a -o b"),
            ("density --background 0,400", "density --background 0,2 --vms 1 --rounds 1"),
            ("flash --vcpus", "flash --vcpus 0 --cycles 2 --runs 1"),
        ];
        for (line, expected) in cases {
            let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            // Options may have been put in another order.
            let (mut got, mut want) = (words(&small(line)), words(expected));
            got.sort();
            want.sort();
            assert_eq!(got, want, "{line}");
        }
        assert!(
            small("bench devices --churn 2048 --json")
                .starts_with("bench devices --churn 65 --json")
        );
        assert!(!small("bench devices").contains("--churn"));
    }

    #[test]
    fn the_model_will_do_for_some() {
        let needs =
            |line: &str| needs_kvm(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        assert!(needs("bench devices") && needs("replay a") && needs("doctor") && needs("flash"));
        assert!(!needs("") && !needs("bench pci") && !needs("import a") && !needs("replay --help"));
    }
}
