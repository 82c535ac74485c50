use super::*;
use kvm_memslots_shim::Range;
use kvm_memslots_shim::memory::model::{GuestAccess, Piece};

const fn ram(hfn: u64) -> GuestAccess {
    GuestAccess::Ram { hva: hfn * PAGE }
}

fn pieces(pieces: Vec<Piece>) -> Vec<(u64, u64, GuestAccess)> {
    let page = |piece: Piece| (piece.range.gpa() / PAGE, piece.range.size() / PAGE, piece.access);
    pieces.into_iter().map(page).collect()
}

#[test]
fn an_access_ends_where_slots_do() {
    let model = model();
    set(&model, region(0, 4, 4, 100)).unwrap();
    set(&model, Region { flags: READONLY, ..region(1, 8, 2, 200) }).unwrap();
    set(&model, region(2, 12, 4, 300)).unwrap();

    let read = model.guest_read(0, 2 * PAGE, 12 * PAGE);
    assert_eq!(
        pieces(read),
        [
            (2, 2, GuestAccess::Mmio),
            (4, 4, ram(100)),
            (8, 2, ram(200)),
            (10, 2, GuestAccess::Mmio),
            (12, 2, ram(300)),
        ]
    );
    let write = model.guest_write(0, 7 * PAGE, 3 * PAGE);
    assert_eq!(pieces(write), [(7, 1, ram(103)), (8, 2, GuestAccess::RomWrite)]);
    assert_eq!(model.guest_at(0, 9 * PAGE + 5), GuestAccess::Ram { hva: 201 * PAGE + 5 });
}

#[test]
fn address_spaces_are_apart() {
    let model = model();
    set(&model, region(1 << 16, 4, 4, 100)).unwrap();
    assert_eq!(model.guest_at(0, 4 * PAGE), GuestAccess::Mmio);
    assert_eq!(model.guest_at(1, 4 * PAGE), ram(100));
    assert_eq!(model.guest_at(7, 4 * PAGE), GuestAccess::Mmio);
}

#[test]
fn the_last_address() {
    let model = model();
    let read = model.guest_read(0, u64::MAX - 7, 8);
    let range = Range::between(u64::MAX - 7, u64::MAX).unwrap();
    assert_eq!(read, [Piece { range, access: GuestAccess::Mmio }]);
}

#[test]
fn layout_by_address() {
    let model = model();
    for (id, gfn) in [(0, 40), (1, 8), (2, 24)] {
        set(&model, region(id, gfn, 4, 100)).unwrap();
    }
    set(&model, region(0, 0, 4, 100)).unwrap();
    let slots = model.slots(0);
    let layout = slots.iter().map(|slot| (slot.id, slot.mapping.range().gpa() / PAGE));
    assert!(layout.eq([(0, 0), (1, 8), (2, 24)]));
    assert!(model.slots(1).is_empty());
}
