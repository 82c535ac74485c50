//! The page of the reference, held against the lists.

use std::collections::BTreeSet;

use kvm_memslots::seccomp::{
    APPLY, Call, DIRTY_LOG, DROP, OPEN, ORDER_CHECK, RING, RUNTIME, SCRATCH_VM, SERVE,
    SLOT_ZAP_ALL, TWINS, WINDOW,
};

#[test]
fn the_page_has_the_lists() {
    let lists: [(&str, &[Call]); 12] = [
        ("OPEN", OPEN),
        ("ORDER_CHECK", ORDER_CHECK),
        ("SLOT_ZAP_ALL", SLOT_ZAP_ALL),
        ("WINDOW", WINDOW),
        ("TWINS", TWINS),
        ("RING", RING),
        ("SCRATCH_VM", SCRATCH_VM),
        ("APPLY", APPLY),
        ("DIRTY_LOG", DIRTY_LOG),
        ("SERVE", SERVE),
        ("DROP", DROP),
        ("RUNTIME", RUNTIME),
    ];
    let page = include_str!("../../../docs/reference/seccomp.md");
    let table = page.split("\n\n").find(|part| part.starts_with("| operation |")).unwrap();
    let rows: Vec<Vec<&str>> = table.lines().skip(2).map(|row| row.split('|').collect()).collect();
    assert_eq!(rows.len(), lists.len());
    for (name, list) in lists {
        let row = rows.iter().find(|row| row[2].trim() == format!("`{name}`"));
        let row = row.unwrap_or_else(|| panic!("no row of {name}"));
        let quoted = row[3..5].iter().flat_map(|cell| cell.split('`').skip(1).step_by(2));
        // Another list is no call.
        let quoted: BTreeSet<&str> = quoted.filter(|name| *name != "APPLY").collect();
        let names = list.iter().map(|call| call.name.strip_prefix("SYS_").unwrap_or(call.name));
        let names: BTreeSet<&str> = names.collect();
        let is_x86s = name == "ORDER_CHECK" && !cfg!(target_arch = "x86_64");
        assert!(quoted == names || is_x86s, "{name}: {quoted:?} on the page, not {names:?}");
    }
}
