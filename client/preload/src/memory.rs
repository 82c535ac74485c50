//! Memory of the VMM's: read and written by system calls, which answer `EFAULT`
//! where a load would be a signal.
//!
//! By `process_vm_readv` and `..._writev`, whose descriptors are none; on a
//! kernel without them through a pipe that is there for the one call.

use std::ffi::c_int;

use crate::{process, sys};

/// Reads `into.len()` bytes.
///
/// # Errors
/// `EFAULT` where there are none.
pub(crate) fn read(from: u64, into: &mut [u8]) -> Result<(), c_int> {
    // SAFETY: as many bytes as there are.
    unsafe { copy(false, into.as_mut_ptr(), from, into.len()) }
}

/// Writes all of `bytes`.
///
/// # Errors
/// `EFAULT` where there is nothing, or nothing that can be written to.
pub(crate) fn write(to: u64, bytes: &[u8]) -> Result<(), c_int> {
    // SAFETY: as many bytes as there are, only read.
    unsafe { copy(true, bytes.as_ptr().cast_mut(), to, bytes.len()) }
}

/// Reads what another thread may be writing: until two reads in turn find the
/// same, as the call does not say that it reads a word at once.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_steady(from: u64, into: &mut [u8]) -> Result<(), c_int> {
    read(from, into)?;
    // One byte can't be torn.
    if into.len() < 2 {
        return Ok(());
    }
    let mut again = [0; 8];
    let again = &mut again[..into.len()];
    for _ in 0..8 {
        read(from, again)?;
        if again == into {
            break;
        }
        into.copy_from_slice(again);
    }
    Ok(())
}

/// A structure of the VMM's, all of whose bits mean something.
///
/// # Safety
/// Any bytes are a `T`.
pub(crate) unsafe fn load<T>(from: u64) -> Result<T, c_int> {
    // SAFETY: the caller's.
    unsafe { load_start(from, size_of::<T>()) }
}

/// The first `bytes` bytes of such a structure; the others are zeroes.
///
/// # Safety
/// Any bytes are a `T`.
pub(crate) unsafe fn load_start<T>(from: u64, bytes: usize) -> Result<T, c_int> {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: as many bytes as it has, or fewer.
    unsafe { copy(false, value.as_mut_ptr().cast(), from, bytes.min(size_of::<T>())) }?;
    // SAFETY: all bytes are there, and any are a `T`.
    Ok(unsafe { value.assume_init() })
}

/// # Safety
/// There are `bytes` bytes at `ours`.
unsafe fn copy(write: bool, ours: *mut u8, theirs: u64, bytes: usize) -> Result<(), c_int> {
    // SAFETY: the caller's.
    match unsafe { sys::process_vm(process::id(), write, ours, theirs, bytes) } {
        Ok(moved) if moved == bytes => Ok(()),
        // The second page of two is not there.
        Ok(_) => Err(libc::EFAULT),
        Err(libc::ENOSYS | libc::EPERM) => {
            // SAFETY: the caller's.
            unsafe { through_a_pipe(write, ours, theirs, bytes) }
        }
        Err(errno) => Err(errno),
    }
}

/// # Safety
/// There are `bytes` bytes at `ours`.
unsafe fn through_a_pipe(
    write: bool,
    ours: *mut u8,
    theirs: u64,
    bytes: usize,
) -> Result<(), c_int> {
    let [out, into] = sys::pipe()?;
    let (from, to) = if write { (ours as u64, theirs) } else { (theirs, ours as u64) };
    // SAFETY: only reads from memory.
    let put = unsafe { sys::transfer(true, into, from, bytes) };
    let got = match put {
        // SAFETY: the bytes of `ours`, or the VMM's.
        Ok(put) if put == bytes => unsafe { sys::transfer(false, out, to, bytes) },
        Ok(_) => Err(libc::EFAULT),
        Err(errno) => Err(errno),
    };
    for end in [out, into] {
        // SAFETY: made above.
        unsafe { sys::close(end) };
    }
    match got {
        Ok(got) if got == bytes => Ok(()),
        Ok(_) => Err(libc::EFAULT),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const NOWHERE: u64 = 8;

    #[test]
    fn memory_is_moved_and_nothing_is_an_errno() {
        let mut memory = *b"0123456789";
        let at = memory.as_mut_ptr() as u64;
        let mut two = [0; 2];
        assert_eq!((read(at + 3, &mut two), two), (Ok(()), *b"34"));
        assert_eq!((read_steady(at + 4, &mut two), two), (Ok(()), *b"45"));
        assert_eq!(write(at + 1, b"xy"), Ok(()));
        assert_eq!(std::hint::black_box(&mut memory), b"0xy3456789");
        assert_eq!(read(NOWHERE, &mut two), Err(libc::EFAULT));
        assert_eq!(write(NOWHERE, &two), Err(libc::EFAULT));
        // SAFETY: any bytes are a number.
        assert_eq!(unsafe { load::<u64>(NOWHERE) }, Err(libc::EFAULT));
    }

    #[test]
    fn a_pipe_does_the_same() {
        let mut memory = *b"0123456789";
        let at = memory.as_mut_ptr() as u64;
        let mut two = [0; 2];
        let here = two.as_mut_ptr();
        // SAFETY: two bytes, here and in the following.
        assert_eq!(unsafe { through_a_pipe(false, here, at + 3, 2) }, Ok(()));
        assert_eq!(&two, b"34");
        // SAFETY: as above.
        assert_eq!(unsafe { through_a_pipe(true, here, at, 2) }, Ok(()));
        assert_eq!(std::hint::black_box(&mut memory), b"3423456789");
        for write in [false, true] {
            // SAFETY: as above.
            assert_eq!(unsafe { through_a_pipe(write, here, NOWHERE, 2) }, Err(libc::EFAULT));
        }
    }

    /// The end of a mapping.
    #[test]
    fn half_of_it_is_not_there() {
        let map = sys::map(8192).unwrap();
        // SAFETY: the second of its pages, which nothing uses.
        unsafe { sys::unmap(map.wrapping_byte_add(4096), 4096) };
        let mut eight = [0; 8];
        assert_eq!(read(map as u64 + 4088, &mut eight), Ok(()));
        assert_eq!(read(map as u64 + 4092, &mut eight), Err(libc::EFAULT));
        // A structure of which the start is there.
        assert_eq!(write(map as u64 + 4088, &[7; 8]), Ok(()));
        // SAFETY: any bytes are numbers, here and below.
        let start = unsafe { load_start::<[u8; 12]>(map as u64 + 4088, 8) };
        assert_eq!(start, Ok([7, 7, 7, 7, 7, 7, 7, 7, 0, 0, 0, 0]));
        // SAFETY: as above.
        assert_eq!(unsafe { load::<[u8; 12]>(map as u64 + 4088) }, Err(libc::EFAULT));
        // SAFETY: nothing uses it any more.
        unsafe { sys::unmap(map, 4096) };
    }
}
