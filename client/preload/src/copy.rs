//! Bytes between host memory and the data of an exit.

use crate::decide::slots::Piece;

/// Copies them: each piece at once where its length and its alignment permit, as
/// a guest may read a word that another vCPU writes.
///
/// # Safety
/// The pieces are mapped memory that nothing in this process borrows; `data` has
/// as many bytes as they have together.
pub(crate) unsafe fn copy(pieces: &[Piece], data: *mut u8, write: bool) {
    let mut done = 0;
    for &Piece { hva, bytes } in pieces {
        let (ours, theirs) = (data.wrapping_add(done), hva as *mut u8);
        let (from, to) = if write { (ours, theirs) } else { (theirs, ours) };
        // SAFETY: both sides have this many bytes.
        unsafe { move_piece(from, to, bytes) };
        done += bytes;
    }
}

/// # Safety
/// Both sides have `bytes` bytes.
unsafe fn move_piece(from: *const u8, to: *mut u8, bytes: usize) {
    let whole = match bytes {
        // SAFETY: as many bytes as there are.
        8 => unsafe { move_whole::<u64>(from, to) },
        // SAFETY: the same.
        4 => unsafe { move_whole::<u32>(from, to) },
        // SAFETY: the same.
        2 => unsafe { move_whole::<u16>(from, to) },
        _ => false,
    };
    for at in (0..bytes).filter(|_| !whole) {
        // SAFETY: one of the bytes.
        unsafe { move_whole::<u8>(from.wrapping_add(at), to.wrapping_add(at)) };
    }
}

/// Moves it at once, if it is aligned on both sides; whether it is.
///
/// # Safety
/// Both sides have the bytes of a `T`, an integer.
unsafe fn move_whole<T: Copy>(from: *const u8, to: *mut u8) -> bool {
    let (from, to) = (from.cast::<T>(), to.cast::<T>());
    if !from.is_aligned() || !to.is_aligned() {
        return false;
    }
    // SAFETY: there and aligned; any bytes are an integer.
    let value = unsafe { from.read_volatile() };
    // SAFETY: there and aligned.
    unsafe { to.write_volatile(value) };
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_width_are_copied_both_ways() {
        let mut memory: Vec<u8> = (0..32).collect();
        let hva = memory.as_mut_ptr() as u64;
        for (offset, bytes) in [(0, 8), (1, 8), (3, 4), (4, 4), (6, 2), (7, 2), (9, 1), (5, 3)] {
            let mut data = [0xff; 8];
            let pieces = [Piece { hva: hva + offset, bytes }];
            // SAFETY: all within the two.
            unsafe { copy(&pieces, data.as_mut_ptr(), false) };
            let expected: Vec<u8> = (offset as u8..).take(bytes).collect();
            assert_eq!(data[..bytes], expected);
            assert!(data[bytes..].iter().all(|byte| *byte == 0xff));
        }
        let data = [0xaa_u8, 0xbb, 0xcc, 0xdd];
        let pieces = [Piece { hva: hva + 7, bytes: 1 }, Piece { hva: hva + 16, bytes: 3 }];
        // SAFETY: all within the two.
        unsafe { copy(&pieces, data.as_ptr().cast_mut(), true) };
        assert_eq!((memory[7], &memory[16..20]), (0xaa, &[0xbb, 0xcc, 0xdd, 19][..]));
    }
}
