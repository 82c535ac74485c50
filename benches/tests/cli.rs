//! The command line tool, as a user runs it.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::{Command, Output, Stdio};

use common::{skip, vm_or_skip};
use serde_json::{Map, Value};

const PROGRAM: &str = env!("CARGO_BIN_EXE_memslots");

fn memslots(args: &str) -> Output {
    Command::new(PROGRAM).args(args.split_whitespace()).stdin(Stdio::null()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    let (code, stderr) = (output.status, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{code}: {stderr}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(args: &str) -> Vec<Map<String, Value>> {
    let output = stdout(&memslots(&format!("{args} --json")));
    output.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text<'a>(row: &'a Map<String, Value>, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_else(|| panic!("{key}: {row:?}"))
}

fn number(row: &Map<String, Value>, key: &str) -> u64 {
    row[key].as_u64().unwrap_or_else(|| panic!("{key}: {row:?}"))
}

#[test]
fn json_has_one_object_a_row_with_the_documented_keys() {
    let rows = json("bench contiguous hotplug --regions 60 --runs 2 --executor model");
    let names: Vec<_> = rows.iter().map(|row| (text(row, "scenario"), text(row, "way"))).collect();
    let strategies = ["per-region", "shim", "batch"];
    let expected: Vec<_> = ["contiguous", "hotplug"]
        .into_iter()
        .flat_map(|scenario| strategies.map(|strategy| (scenario, strategy)))
        .collect();
    assert_eq!(names, expected);
    for row in &rows {
        assert_eq!(text(row, "executor"), "model");
        assert_eq!(text(row, "grace_periods_by"), "plan");
        assert_eq!((number(row, "regions"), number(row, "vcpus")), (60, 0));
        assert!(number(row, "wall_ns") > 0);
        let others = row["ratios"].as_object().unwrap();
        assert_eq!(others.is_empty(), text(row, "way") == "per-region", "{row:?}");
        for ratio in others.values() {
            assert!(ratio["times"].as_f64().unwrap() > 0.0 && ratio["equal"].is_boolean());
            // Of two runs.
            assert_eq!(ratio["spread"], Value::Null);
        }
    }
    let costs: Vec<_> =
        rows.iter().map(|row| (number(row, "ioctls"), number(row, "grace_periods"))).collect();
    assert_eq!(costs, [(60, 60), (1, 1), (1, 1), (120, 180), (60, 90), (20, 30)]);
}

#[test]
fn without_per_region_there_is_no_ratio() {
    let rows = json("bench contiguous --strategy shim --regions 10 --runs 1 --executor model");
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["ratios"], Value::Object(Map::new()));
}

/// `memslots` alone is `memslots bench`, of everything.
#[test]
fn the_table_says_model_in_every_row() {
    let table = stdout(&memslots("--executor model --regions 12 --runs 1"));
    let rows: Vec<_> = table.lines().skip(2).collect();
    assert_eq!(rows.len(), 6 * 3);
    for row in rows {
        assert!(row.contains("| model "), "{row}");
    }
}

#[test]
fn the_progress_bar_is_for_terminals() {
    let args = "bench sparse --executor model --regions 2000 --runs 9 --json";
    assert_eq!(String::from_utf8_lossy(&memslots(args).stderr), "");
    // `script` gives a program a terminal.
    let command = format!("{PROGRAM} {args}");
    let mut script = Command::new("script");
    script.args(["-qec", &command, "/dev/null"]).stdin(Stdio::null());
    match script.output() {
        Err(error) => skip("the_progress_bar_is_for_terminals", error),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("sparse, no vCPU, shim, "), "{said}");
        }
    }
}

#[test]
fn what_cannot_be_understood_goes_to_stderr_with_code_2() {
    for args in [
        "bench spares",
        "--regions 0",
        "--runs 0",
        "--vcpus many",
        "--strategy fast",
        "--executor qemu",
    ] {
        let output = memslots(args);
        assert_eq!(output.status.code(), Some(2), "{args}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args}");
    }
}

#[test]
fn what_does_not_fit_is_a_row_that_says_so() {
    let rows = json("contiguous --regions 40000 --runs 1 --executor model");
    assert!(text(&rows[0], "skipped").contains("40000 slots are needed"), "{:?}", rows[0]);
    assert_eq!((&rows[0]["wall_ns"], &rows[0]["ioctls"]), (&Value::Null, &Value::Null));
    assert_eq!((&rows[1]["skipped"], number(&rows[1], "ioctls")), (&Value::Null, 1));

    let rows = json("contiguous --regions 10 --runs 1 --vcpus 0,1 --executor model");
    let skipped: Vec<_> = rows.iter().map(|row| row["skipped"].is_string()).collect();
    assert_eq!(skipped, [false, false, false, true, true, true]);
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let mut child = Command::new(PROGRAM)
        .args(["--executor", "model", "--regions", "50", "--runs", "1", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn the_plot_is_an_svg_with_every_strategy() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("times.svg");
    let args =
        format!("sparse boot --regions 120 --runs 1 --executor model --plot {}", file.display());
    stdout(&memslots(&args));
    let svg = std::fs::read_to_string(&file).unwrap();
    assert!(svg.starts_with("<svg"), "{svg}");
    for word in [
        "per-region",
        "shim",
        "batch",
        "sparse, no vCPU, 120 regions",
        "boot, no vCPU, 120 regions",
    ] {
        assert!(svg.contains(word), "{word}");
    }
}

#[test]
fn what_cannot_be_done_is_said_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(at("bad.json"), "{\"scenario\":1}\n").unwrap();
    std::fs::write(at("old.html"), "old").unwrap();
    let rows = stdout(&memslots("sparse --regions 4 --runs 1 --executor model --json"));
    std::fs::write(at("rows.json"), &rows).unwrap();
    std::os::unix::fs::symlink(at("old.html"), at("link")).unwrap();
    for (args, says) in [
        ("--plot /nowhere/a.svg".to_owned(), "/nowhere/a.svg: No such file"),
        ("--html /nowhere/a.html".to_owned(), "/nowhere/a.html: No such file"),
        (
            format!("--html {} --baseline /nowhere/b.json", at("new.html")),
            "/nowhere/b.json: No such",
        ),
        (format!("--html {} --baseline {}", at("old.html"), at("bad.json")), "bad.json, line 1: "),
        ("--regions 16777217".to_owned(), "1..=16777216"),
        (format!("--plot {0} --html {0}", at("new")), "/new: --plot and --html need a file each"),
        (
            format!("--plot {} --html {}", at("old.html"), at("link")),
            "/link: --plot and --html need",
        ),
        (
            format!("--html {0} --baseline {0}", at("rows.json")),
            "--html and --baseline need a file each",
        ),
    ] {
        let output = memslots(&format!("sparse --runs 1 --executor model {args}"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args}: {stderr}");
        assert!(output.stdout.is_empty(), "{args}");
        assert!(stderr.contains(says), "{args}: {stderr}");
    }
    assert_eq!(std::fs::read_to_string(at("old.html")).unwrap(), "old");
    assert_eq!(std::fs::read_to_string(at("rows.json")).unwrap(), rows);
    for new in ["new.html", "new"] {
        assert!(!folder.path().join(new).exists());
    }
    let output = memslots(&format!("import {UEFI} -o /nowhere/boot.trace"));
    assert_eq!(output.status.code(), Some(2));
    // What was made for a trace that there is not is gone again.
    let output = memslots(&format!("import {} -o {}", at("bad.json"), at("boot.trace")));
    assert!(!output.status.success() && !folder.path().join("boot.trace").exists());
    if vm_or_skip("what_cannot_be_done_is_said_before_anything_is_measured").is_some() {
        for command in ["bench sparse --regions 4 --runs 1", "bench devices", "flash"] {
            let output = memslots(&format!("{command} --vcpus 1000000"));
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{command}: {stderr}");
            assert!(stderr.contains("KVM_CAP_MAX_VCPUS"), "{command}: {stderr}");
        }
    }
}

/// SMM has an address space of its own, which this machine may not offer.
#[test]
fn two_address_spaces_are_replayed_in_one_when_told_so() {
    let test = "two_address_spaces_are_replayed_in_one_when_told_so";
    if vm_or_skip(test).is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("smm.log");
    let call = |space: u32, gpa: u64| {
        format!(
            "kvm_set_user_memory AddrSpace#{space} Slot#0 flags=0x0 gpa={gpa:#x} size=0x20000 ua=0x7f0000000000 ret=0\n"
        )
    };
    std::fs::write(&file, call(0, 0xa_0000) + &call(1, 0xa_0000)).unwrap();
    let replay = |option: &str| {
        let file = file.display();
        memslots(&format!("replay {file} --runs 1 --strategy per-region,shim --json {option}"))
    };
    let rows = stdout(&replay("--one-address-space"));
    for line in rows.lines() {
        let row: Map<String, Value> = serde_json::from_str(line).unwrap();
        assert_eq!(number(&row, "ioctls"), 2, "{line}");
    }
    let refused = replay("");
    let stderr = String::from_utf8_lossy(&refused.stderr);
    if refused.status.success() {
        return skip(test, "KVM here has two address spaces");
    }
    assert!(
        stderr.contains("address space 1") && stderr.contains("--one-address-space"),
        "{stderr}"
    );
}

#[test]
fn a_trace_of_refusals_is_nothing_to_replay() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("refused.log");
    let call =
        "kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x7f0000000000 ret=-22\n";
    std::fs::write(&file, call).unwrap();
    let replayed = memslots(&format!("replay {}", file.display()));
    let stderr = String::from_utf8_lossy(&replayed.stderr);
    assert!(
        !replayed.status.success() && stderr.contains("all of the trace's 1 calls"),
        "{stderr}"
    );
    assert!(replayed.stdout.is_empty());
}

#[test]
fn on_kvm_the_kernel_confirms_the_plan() {
    let test = "on_kvm_the_kernel_confirms_the_plan";
    if vm_or_skip(test).is_none() {
        return;
    }
    let rows = json(
        "contiguous hotplug resize --regions 48 --runs 1 --vcpus 0,1 --strategy per-region,shim",
    );
    assert_eq!(rows.len(), 3 * 2 * 2);
    let mut uncounted = 0;
    for row in &rows {
        assert_eq!(text(row, "executor"), "kvm");
        if row["skipped"].is_string() {
            assert_eq!(number(row, "vcpus"), 1, "{row:?}");
            skip(test, text(row, "skipped"));
        } else if text(row, "grace_periods_by") == "kernel" {
            assert_eq!(row["grace_periods"], row["grace_periods_planned"], "{row:?}");
        } else {
            uncounted += 1;
        }
    }
    if uncounted > 0 {
        skip(test, format_args!("the kernel did not count in {uncounted} of {} rows", rows.len()));
    }
}

#[test]
fn a_batch_that_the_kernel_lacks_is_skipped_aloud() {
    let test = "a_batch_that_the_kernel_lacks_is_skipped_aloud";
    if vm_or_skip(test).is_none() {
        return;
    }
    let output = memslots("sparse --regions 4 --runs 1 --vcpus 0 --strategy batch --json");
    let rows = stdout(&output);
    let row: Map<String, Value> = serde_json::from_str(&rows).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    if row["skipped"].is_null() {
        return skip(test, "this kernel has the batch ioctl");
    }
    for said in [text(&row, "skipped"), &*stderr] {
        assert!(said.contains("KVM_SET_USER_MEMORY_REGIONS"), "{said}");
    }
}

#[test]
fn doctor_says_what_this_machine_is() {
    let report = stdout(&memslots("doctor --runs 2"));
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(report.contains(release.trim()), "{report}");
    assert!(report.contains("KVM "), "{report}");
    if vm_or_skip("doctor_says_what_this_machine_is").is_some() {
        for part in ["batch ioctl", "grace period", "none running", "32764", "least here: "] {
            assert!(report.contains(part), "{part}: {report}");
        }
    }
}

#[test]
fn doctor_has_the_same_for_programs() {
    let test = "doctor_has_the_same_for_programs";
    let rows = json("doctor --runs 1");
    assert_eq!(text(&rows[0], "table"), "machine");
    if vm_or_skip(test).is_none() {
        assert!(rows.len() == 1 && rows[0]["no_kvm"].is_string(), "{rows:?}");
        return;
    }
    let of = |table: &str| {
        rows.iter().filter(|row| text(row, "table") == table).cloned().collect::<Vec<_>>()
    };
    assert_eq!((of("kvm").len(), of("calls").len()), (1, 3));
    let orders = of("orders");
    let least = orders.iter().filter(|row| row["least"] == Value::Bool(true)).count();
    let measured = |row: &Map<String, Value>| row["wall_ns"].is_u64() || row["skipped"].is_string();
    assert!(least > 0 && orders.iter().all(measured), "{orders:?}");
    // What waits for what is KVM's to say, that a first memslot waits is not.
    let first = of("first_calls");
    let plain = |row: &&Map<String, Value>| {
        text(row, "call") == "memory" && row["after"] == Value::Array(Vec::new())
    };
    let plain = first.iter().find(plain).unwrap();
    if plain["grace_periods_by"] == "kernel" {
        assert_eq!(plain["grace_periods"], 1);
    } else {
        skip(test, "the kernel did not count");
    }
}

const UEFI: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/traces/qemu-7.2-aarch64-uefi-boot.trace.gz");

#[test]
fn a_log_is_imported_and_replayed() {
    let imported = memslots(&format!("import {UEFI}"));
    let said = String::from_utf8_lossy(&imported.stderr);
    assert!(said.contains("894 calls from qemu-log"), "{said}");
    let trace = stdout(&imported);
    assert!(trace.starts_with("{\"format\":\"kvm-memslots-trace\",\"version\":1,"), "{trace}");
    assert_eq!(trace.lines().count(), 895);
    if vm_or_skip("a_log_is_imported_and_replayed").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("boot.trace");
    std::fs::write(&file, trace).unwrap();
    let replay = format!("replay {} --runs 1 --strategy per-region,deferred", file.display());
    let table = stdout(&memslots(&replay));
    for part in ["| per-region |    894 |", "|  >= 13 |", "deferred: a lower bound"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let rows = json(&replay);
    assert_eq!((number(&rows[0], "ioctls"), number(&rows[1], "ioctls")), (894, 13));
    assert!(text(&rows[1], "note").contains("lower bound"));
}

#[test]
fn nothing_of_a_truncated_trace_is_run() {
    let compressed = std::fs::read(UEFI).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cut.gz");
    std::fs::write(&file, &compressed[..compressed.len() / 2]).unwrap();
    for command in ["import", "replay"] {
        let output = memslots(&format!("{command} {}", file.display()));
        assert_eq!(output.status.code(), Some(1), "{command}");
        assert!(output.stdout.is_empty(), "{command}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("cut.gz, line "), "{said}");
    }
}

/// The program in a mount namespace in which `/dev/kvm` is something else.
fn without_kvm(test: &str, args: &str) -> Option<Output> {
    if !std::path::Path::new("/dev/kvm").exists() {
        return Some(memslots(args));
    }
    let hide = "mount --bind /dev/null /dev/kvm";
    let run = |script: &str| Command::new("unshare").args(["--mount", "sh", "-c", script]).output();
    match run(hide) {
        Ok(hidden) if hidden.status.success() => {
            Some(run(&format!("{hide} && exec {PROGRAM} {args}")).unwrap())
        }
        other => {
            skip(test, format_args!("/dev/kvm can't be hidden: {other:?}"));
            None
        }
    }
}

#[test]
fn without_kvm_the_model_takes_over_and_says_so() {
    let test = "without_kvm_the_model_takes_over_and_says_so";
    let Some(output) = without_kvm(test, "--regions 12 --runs 1 --json") else { return };
    let rows = stdout(&output);
    assert_eq!(rows.lines().count(), 6 * 3);
    for line in rows.lines() {
        let row: Map<String, Value> = serde_json::from_str(line).unwrap();
        assert_eq!(text(&row, "executor"), "model");
    }
    assert!(String::from_utf8_lossy(&output.stderr).contains("model"));

    // No time of the model is shown: the library's own work is not what it saves.
    let Some(output) = without_kvm(test, "singly --regions 12 --runs 3") else { return };
    let table = stdout(&output);
    assert!(table.contains("12 planned"), "{table}");
    assert!(![" us ", " ms ", "x ("].iter().any(|time| table.contains(time)), "{table}");

    let Some(output) = without_kvm(test, "doctor") else { return };
    assert!(stdout(&output).contains("none: "));

    let Some(output) = without_kvm(test, "doctor --json") else { return };
    let machine: Map<String, Value> = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(text(&machine, "no_kvm").contains("/dev/kvm"));

    let replay = format!("replay {UEFI}");
    for command in ["--executor kvm", "flash", "bench devices", "bench start", "density", &replay] {
        let Some(output) = without_kvm(test, command) else { return };
        assert_eq!(output.status.code(), Some(2), "{command}");
        assert!(output.stdout.is_empty(), "{command}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.contains("this needs KVM: ") && said.contains("/dev/kvm"),
            "{command}: {said}"
        );
    }
}

/// What a set of whole devices is for, by the counts that do not depend on the machine.
#[cfg(target_arch = "x86_64")]
#[test]
fn devices_cost_what_the_documentation_says() {
    let test = "devices_cost_what_the_documentation_says";
    if vm_or_skip(test).is_none() {
        return;
    }
    let rows = json("bench devices --runs 1 --vcpus 0");
    let row = |pass: &str, way: &str| {
        let wanted =
            |row: &&Map<String, Value>| text(row, "pass") == pass && text(row, "way") == way;
        rows.iter().find(wanted).unwrap_or_else(|| panic!("no {pass} {way}"))
    };
    let costs = |row: &Map<String, Value>| {
        let keys = ["ioctls", "routing_calls", "grace_periods_planned", "in_ioeventfd_deassign"];
        keys.map(|key| number(row, key))
    };
    assert_eq!(costs(row("attach", "cloud-hypervisor")), [624, 256, 304, 0]);
    assert_eq!(costs(row("attach", "together")), [322, 1, 2, 0]);
    assert_eq!(costs(row("detach", "together")), [322, 1, 67, 64]);
    assert_eq!(number(row("detach", "together"), "in_irqfd_shutdown"), 256);
    // Where the kernel counts, it counts the same.
    if row("attach", "together")["grace_periods_by"] == "kernel" {
        let counted = number(row("attach", "together"), "grace_periods");
        // Before Linux 6.18 registering an ioeventfd waited as well.
        assert!([2, 2 + 64].contains(&counted), "{counted}");
    }
}

/// What a start costs, by the counts that do not depend on the machine: the
/// plain loops make a routing call a vector, or one; the library makes as few
/// calls as the better of them, for whatever it is asked.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_start_costs_what_its_way_says() {
    let test = "a_start_costs_what_its_way_says";
    if vm_or_skip(test).is_none() {
        return;
    }
    let vm = kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap();
    if let Err(error) = vm.create_irq_chip() {
        return skip(test, format_args!("KVM_CREATE_IRQCHIP: {error}"));
    }
    drop(vm);
    let costs = |args: &str| {
        let rows = json(&format!("bench start --at-once 1 --runs 1 {args}"));
        let cost = |row: &Map<String, Value>| {
            assert!(number(row, "wall_ns") > 0, "{row:?}");
            let keys = ["ioctls", "routing_calls", "grace_periods_planned"];
            (text(row, "way").to_owned(), keys.map(|key| number(row, key)))
        };
        rows.iter().map(cost).collect::<Vec<_>>()
    };
    let expected = |costs: [[u64; 3]; 5]| {
        let ways = ["cloud-hypervisor", "firecracker", "qemu", "library", "library-split"];
        ways.map(str::to_owned).into_iter().zip(costs).collect::<Vec<_>>()
    };
    // 12 devices of 12 vectors and 4 doorbells, 3 regions, 2 vCPUs.
    let plain = [[344, 144, 147], [202, 1, 5], [345, 144, 148], [202, 1, 5], [201, 1, 4]];
    assert_eq!(costs(""), expected(plain));
    // The BARs of 2 devices, which lie side by side, come with the memory.
    let few = "--devices 2 --vectors 3 --doorbells 1 --vcpus 1 --bars 2";
    let plain = [[25, 6, 13], [21, 1, 9], [26, 6, 14], [18, 1, 6], [17, 1, 5]];
    assert_eq!(costs(few), expected(plain));
}

#[cfg(target_arch = "x86_64")]
#[test]
fn starts_at_once_are_all_measured() {
    let test = "starts_at_once_are_all_measured";
    if vm_or_skip(test).is_none() {
        return;
    }
    let few = "--devices 1 --vectors 1 --doorbells 1 --vcpus 1 --way library-split";
    let rows = json(&format!("bench start {few} --at-once 3,1 --runs 2"));
    let sizes: Vec<_> =
        rows.iter().map(|row| (number(row, "at_once"), number(row, "samples"))).collect();
    assert_eq!(sizes, [(3, 6), (1, 2)]);
    for row in &rows {
        let [p50, p99, max] =
            ["p50", "p99", "max"].map(|of| number(row, &format!("setup_{of}_ns")));
        assert!(0 < p50 && p50 <= p99 && p99 <= max, "{row:?}");
        // Nobody to be compared with.
        assert_eq!(row["ratios"], Value::Object(Map::new()));
    }
}

#[test]
fn density_measures_every_irqfd_of_every_vm() {
    let test = "density_measures_every_irqfd_of_every_vm";
    if vm_or_skip(test).is_none() {
        return;
    }
    if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
        return skip(test, "no interrupt controller for this architecture");
    }
    let rows = json("density --background 3,0 --vms 4 --irqfds 5 --rounds 2");
    let without: Vec<_> =
        rows.iter().filter(|row| row["no_irqbypass"] == Value::Bool(false)).collect();
    let sizes: Vec<u64> = without.iter().map(|row| number(row, "background")).collect();
    assert_eq!(sizes, [0, 3]);
    for row in rows.iter().filter(|row| !row["skipped"].is_string()) {
        assert_eq!(number(row, "samples"), 4 * 5 * 2);
        let [p50, p99, max] =
            ["p50", "p99", "max"].map(|of| number(row, &format!("irqfd_{of}_ns")));
        assert!(0 < p50 && p50 <= p99 && p99 <= max, "{row:?}");
    }
}

#[test]
fn density_says_how_many_descriptors_it_lacks() {
    let test = "density_says_how_many_descriptors_it_lacks";
    if vm_or_skip(test).is_none() {
        return;
    }
    let output = memslots("density --background 100000000 --vms 1");
    assert!(!output.status.success());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("raise the hard limit"), "{stderr}");
}

/// A full disk behind stdout or stderr: what failed is said as far as it can be, and
/// the exit code is the same.
#[test]
fn nobody_hears_and_nothing_panics() {
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let run = |args: &str, out: Stdio, err: Stdio| {
        let args = args.split_whitespace();
        let mut command = Command::new(PROGRAM);
        command.args(args).stdin(Stdio::null()).stdout(out).stderr(err).output().unwrap()
    };
    let works = "bench contiguous --regions 8 --runs 1 --executor model";
    let fails = "replay /no/such/file";
    for (args, code) in [(works, 0), (fails, 1), ("bench no-such-scenario", 2)] {
        let output = run(args, Stdio::piped(), full().into());
        assert_eq!(output.status.code(), Some(code), "{args}: {output:?}");
    }
    let output = run(works, full().into(), Stdio::piped());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with("memslots: writing the output: "), "{stderr}");
    assert_eq!(run(works, full().into(), full().into()).status.code(), Some(1));
}
