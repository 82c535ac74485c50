//! What the guides for VMMs show is what the patches have, and what was recorded.

use crate::workspace;

fn read(path: &str) -> String {
    let path = workspace::root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Lines that say something, however far they are indented.
fn lines<'a>(text: impl IntoIterator<Item = &'a str>) -> String {
    let lines = text.into_iter().map(str::trim).filter(|line| !line.is_empty());
    lines.fold(String::from("\n"), |all, line| all + line + "\n")
}

/// Whether a page says this, wherever its lines end.
fn says(page: &str, sentence: &str) -> bool {
    page.split_whitespace().collect::<Vec<_>>().join(" ").contains(sentence)
}

/// How many lines a patch adds, and how many it removes.
fn size(patch: &str) -> (usize, usize) {
    let count = |sign: &str, header: &str| {
        patch.lines().filter(|line| line.starts_with(sign) && !line.starts_with(header)).count()
    };
    (count("+", "+++"), count("-", "---"))
}

/// A patch is a diff of ours, not a copy of theirs.
#[test]
fn patches_are_small() {
    for (name, most) in [("alioth", 300), ("libkrun", 100), ("qemu", 410)] {
        let patch = read(&format!("kernel/vmm/{name}.patch"));
        let (added, removed) = size(&patch);
        assert!(added < most && removed > 0, "{name}: +{added} -{removed}");
        assert!(patch.lines().all(|line| !line.starts_with("+++ /")), "{name}");
    }
}

#[test]
fn what_the_guide_for_c_shows_is_in_the_patch() {
    let patch = read("kernel/vmm/qemu.patch");
    let new = patch.lines().filter(|line| !line.starts_with("+++"));
    let new = lines(new.filter_map(|line| line.strip_prefix(['+', ' '])));
    let guide = read("docs/guide/adopting-c.md");
    let mut shown = 0;
    for block in guide.split("\n```").skip(1).step_by(2) {
        let (language, code) = block.split_once('\n').unwrap_or_default();
        // That of QEMU 8.0 is not in a patch for 7.2.
        if !["c", "diff"].contains(&language) || code.contains("accel_ioctl_inhibit_begin") {
            continue;
        }
        let code = lines(code.lines().map(|line| match language {
            "diff" => line.strip_prefix(['+', ' ']).unwrap_or(line),
            _ => line,
        }));
        assert!(new.contains(&code), "not in the patch: {code}");
        shown += 1;
    }
    assert!(shown >= 6, "{shown}");
    let (added, removed) = size(&patch);
    assert!(says(&guide, "removes more than twice the lines that it adds"));
    assert!(removed > 2 * added, "+{added} -{removed}");
}

#[test]
fn the_guide_for_rust_says_how_large_the_patch_is() {
    let (added, removed) = size(&read("kernel/vmm/alioth.patch"));
    let said = format!("+{added}/-{removed} lines");
    assert!(says(&read("docs/guide/adopting-rust.md"), &said), "{said}");
}

/// The cells of the rows of a table that begin with one of the kernels.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let rows = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    rows.filter(|row| ["host", "lab", "lab, patched"].contains(&row[0])).collect()
}

#[test]
fn tables_of_guides_are_those_of_records() {
    for (guide, vmm) in [("adopting-c", "vmm-qemu"), ("adopting-rust", "vmm-alioth")] {
        let results = workspace::root().join("kernel/results");
        let results = std::fs::read_dir(&results).unwrap_or_else(|e| panic!("{e}"));
        let names = results.flatten().map(|entry| entry.file_name());
        let names = names.filter_map(|name| name.into_string().ok());
        let recorded: String = names
            .filter(|name| name.starts_with(vmm))
            .map(|name| read(&format!("kernel/results/{name}")))
            .collect();
        let (guide, recorded) = (read(&format!("docs/guide/{guide}.md")), rows(&recorded));
        let shown = rows(&guide);
        assert!(shown.len() > 3, "{vmm}");
        for row in shown {
            let is = recorded.iter().any(|recorded| recorded.starts_with(&row));
            assert!(is, "no record of {vmm} has {row:?}");
        }
    }
}
