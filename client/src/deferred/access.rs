//! Guest memory, read and written while others do the same.

use std::ptr::with_exposed_provenance_mut;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

/// The largest piece, 8 bytes at most, of an access to `left` bytes at `hva`
/// that is naturally aligned: what a vCPU would do in one go stays whole.
const fn piece(hva: u64, left: usize) -> usize {
    let mut size = 8;
    while size > left || hva % size as u64 != 0 {
        size /= 2;
    }
    size
}

macro_rules! atomic {
    ($at:expr, $atomic:ty) => {
        // SAFETY: the caller vouches for the bytes; `piece` saw to the
        // alignment. They are accessed in no other way than this one.
        unsafe { <$atomic>::from_ptr($at.cast()) }
    };
}

/// Whether memory that may fault can be served at all. Not on a kernel without
/// `CONFIG_CROSS_MEMORY_ATTACH`, which answers `ENOSYS`, nor where a filter forbids it.
pub(super) fn can_try(pid: libc::pid_t) -> bool {
    let here = [1_u8];
    try_read(pid, here.as_ptr().expose_provenance() as u64, &mut [0]) == 1
}

/// Reads the bytes from `hva` of this process, `pid`, on, which may fault. How many
/// were read: those before the page that can't be.
///
/// The kernel copies in words where address and length are aligned: what a vCPU
/// would do in one go stays whole, as far as `copy_to_user` does.
pub(super) fn try_read(pid: libc::pid_t, hva: u64, data: &mut [u8]) -> usize {
    let own = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    let theirs = libc::iovec { iov_base: with_exposed_provenance_mut(hva as usize), ..own };
    // SAFETY: the kernel writes `data`, whatever is at `hva`.
    let copied = unsafe { libc::process_vm_readv(pid, &raw const own, 1, &raw const theirs, 1, 0) };
    usize::try_from(copied).unwrap_or(0)
}

/// Writes `data` to the bytes from `hva` on, which may fault. How many were
/// written, as in [`try_read`].
///
/// # Safety
/// As [`write`], but for being mapped and writable: what is not is left alone.
pub(super) unsafe fn try_write(pid: libc::pid_t, hva: u64, data: &[u8]) -> usize {
    let own = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let theirs = libc::iovec { iov_base: with_exposed_provenance_mut(hva as usize), ..own };
    // SAFETY: the kernel reads `data`, and writes what the caller vouched for.
    let copied =
        unsafe { libc::process_vm_writev(pid, &raw const own, 1, &raw const theirs, 1, 0) };
    usize::try_from(copied).unwrap_or(0)
}

/// Reads the bytes from `hva` on.
///
/// # Safety
/// They are mapped, readable, and accessed as those of
/// [`HostMemory`](crate::HostMemory) are.
pub(super) unsafe fn read(hva: u64, data: &mut [u8]) {
    let mut done = 0;
    while done < data.len() {
        let from = hva + done as u64;
        let at = with_exposed_provenance_mut::<u8>(from as usize);
        let size = piece(from, data.len() - done);
        let into = &mut data[done..done + size];
        match size {
            8 => into.copy_from_slice(&atomic!(at, AtomicU64).load(Relaxed).to_ne_bytes()),
            4 => into.copy_from_slice(&atomic!(at, AtomicU32).load(Relaxed).to_ne_bytes()),
            2 => into.copy_from_slice(&atomic!(at, AtomicU16).load(Relaxed).to_ne_bytes()),
            _ => into[0] = atomic!(at, AtomicU8).load(Relaxed),
        }
        done += size;
    }
}

/// Writes `data` to the bytes from `hva` on.
///
/// # Safety
/// As [`read`], and writable.
pub(super) unsafe fn write(hva: u64, data: &[u8]) {
    let mut done = 0;
    while done < data.len() {
        let to = hva + done as u64;
        let at = with_exposed_provenance_mut::<u8>(to as usize);
        let size = piece(to, data.len() - done);
        let from = &data[done..done + size];
        match size {
            8 => atomic!(at, AtomicU64).store(u64::from_ne_bytes(whole(from)), Relaxed),
            4 => atomic!(at, AtomicU32).store(u32::from_ne_bytes(whole(from)), Relaxed),
            2 => atomic!(at, AtomicU16).store(u16::from_ne_bytes(whole(from)), Relaxed),
            _ => atomic!(at, AtomicU8).store(from[0], Relaxed),
        }
        done += size;
    }
}

/// `piece`, which has `N` bytes.
fn whole<const N: usize>(piece: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(piece);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_aligned_and_as_large_as_can_be() {
        assert_eq!(piece(0x1000, 8), 8);
        assert_eq!(piece(0x1000, 64), 8);
        assert_eq!(piece(0x1000, 7), 4);
        assert_eq!(piece(0x1004, 8), 4);
        assert_eq!(piece(0x1002, 8), 2);
        assert_eq!(piece(0x1001, 8), 1);
        assert_eq!(piece(0x1002, 1), 1);
    }

    #[test]
    fn any_width_at_any_alignment() {
        let mut memory = [0_u64; 6];
        let base = memory.as_mut_ptr().expose_provenance() as u64;
        for offset in 0..16 {
            for len in 0..=24 {
                let data: Vec<u8> = (0..len).map(|n| n + offset + 1).collect();
                let hva = base + 8 + u64::from(offset);
                let (mut back, mut before, mut after) = (vec![0; data.len()], [7], [7]);
                // SAFETY: within `memory`, which nobody else refers to.
                unsafe { write(base, &[0; 48]) };
                // SAFETY: as above.
                unsafe { write(hva, &data) };
                // SAFETY: as above.
                unsafe { read(hva, &mut back) };
                // SAFETY: as above.
                unsafe { read(hva - 1, &mut before) };
                // SAFETY: as above.
                unsafe { read(hva + u64::from(len), &mut after) };
                assert_eq!((back, before, after), (data, [0], [0]), "{len} at {offset}");
            }
        }
    }
}
