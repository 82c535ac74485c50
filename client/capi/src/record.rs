//! Structures that begin with their size, so that they can grow: what one side
//! does not have is 0.

use std::ffi::c_char;
use std::ptr::NonNull;

use kvm_memslots::Errno;

use crate::failure::Failure;

/// A structure of the header.
///
/// # Safety
/// `repr(C)`, begins with a `size: usize`, has no padding, and all bytes that C
/// can write are valid, zeroes among them.
pub(crate) unsafe trait Record: Copy {
    /// `struct` what.
    const NAME: &'static str;
    /// The size of its first version.
    const FIRST: usize;
}

/// What C knows of a structure of the header, for a test to compare.
#[derive(Debug, Clone, Copy)]
pub struct Structure {
    /// `struct` what.
    pub name: &'static str,
    /// Its bytes.
    pub size: usize,
    /// Its fields, where each begins, and its bytes.
    pub fields: &'static [(&'static str, usize, usize)],
}

macro_rules! structure {
    ($name:literal pub struct $ty:ident { $(pub $field:ident: $of:ty,)+ }) => {
        #[doc = concat!("`struct ", $name, "`, which the header documents.")]
        #[repr(C)]
        #[derive(Debug, Clone, Copy)]
        #[allow(missing_docs)]
        pub struct $ty {
            $(pub $field: $of,)+
        }

        impl $ty {
            pub(crate) const STRUCTURE: $crate::record::Structure = $crate::record::Structure {
                name: $name,
                size: size_of::<Self>(),
                fields: &[$((
                    stringify!($field),
                    std::mem::offset_of!(Self, $field),
                    size_of::<$of>(),
                )),+],
            };
        }

        // It must not grow into padding, which C need not have written.
        const _: () = assert!(0 $(+ size_of::<$of>())+ == size_of::<$ty>(), "padding");
    };
}
pub(crate) use structure;

macro_rules! record {
    ($name:literal pub struct $ty:ident { pub size: usize, $($rest:tt)+ }) => {
        $crate::record::structure! { $name pub struct $ty { pub size: usize, $($rest)+ } }

        // SAFETY: `repr(C)`, `size` first, no padding; only numbers and pointers that may
        // be null.
        unsafe impl $crate::record::Record for $ty {
            const NAME: &'static str = $name;
            const FIRST: usize = size_of::<Self>();
        }
    };
}
pub(crate) use record;

pub(crate) fn null(what: &str) -> Failure {
    Failure::new(Errno::EINVAL, format!("{what} is NULL"))
}

pub(crate) fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(Errno::EINVAL, message)
}

/// # Safety
/// `from` is null or points to a `T` that stays as it is for `'a`.
pub(crate) unsafe fn get<'a, T>(from: *const T, what: &str) -> Result<&'a T, Failure> {
    // SAFETY: as the caller says.
    unsafe { from.as_ref() }.ok_or_else(|| null(what))
}

/// # Safety
/// `nr` is 0, or `from` is null or points to so many that stay as they are for
/// `'a`.
pub(crate) unsafe fn list<'a, T>(
    from: *const T,
    nr: usize,
    what: &str,
) -> Result<&'a [T], Failure> {
    match (from.is_null(), nr) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(invalid(format!("{what} is NULL, and nr_{what} not 0"))),
        // SAFETY: not null, and so many are there.
        (false, nr) => Ok(unsafe { std::slice::from_raw_parts(from, nr) }),
    }
}

/// The size that the caller has set.
///
/// # Safety
/// `record` points to a number of bytes.
unsafe fn size_of_record<T: Record>(record: NonNull<T>) -> Result<usize, Failure> {
    // SAFETY: it begins with its size, which is aligned as it is.
    let size = unsafe { record.cast::<usize>().read() };
    // What is larger than any was not set.
    if !(T::FIRST..=4096).contains(&size) {
        let name = T::NAME;
        return Err(invalid(format!("{size} is no size of a struct {name}: set it to its sizeof")));
    }
    Ok(size)
}

/// What the caller gave.
///
/// # Safety
/// `from` is null or points to as many bytes as its `size` says.
pub(crate) unsafe fn read<T: Record>(from: *const T) -> Result<T, Failure> {
    let from = NonNull::new(from.cast_mut()).ok_or_else(|| null(T::NAME))?;
    // SAFETY: not null, and as the caller says.
    let size = unsafe { size_of_record(from) }?;
    let known = size.min(size_of::<T>());
    let bytes = from.cast::<u8>();
    // SAFETY: there are `size` bytes, and `known` is no more.
    let rest = unsafe { bytes.add(known) };
    // SAFETY: as above.
    let unknown = unsafe { std::slice::from_raw_parts(rest.as_ptr(), size - known) };
    if unknown.iter().any(|byte| *byte != 0) {
        let message = format!("struct {} has fields that this library does not know", T::NAME);
        return Err(Failure::new(Errno::E2BIG, message));
    }
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: so many bytes are there, and in `value`, which is another object.
    unsafe { bytes.copy_to_nonoverlapping(NonNull::from(&mut value).cast(), known) };
    // SAFETY: all bytes are valid.
    Ok(unsafe { value.assume_init() })
}

/// What the caller gave, if anything.
///
/// # Safety
/// As for [`read`].
pub(crate) unsafe fn read_any<T: Record>(from: *const T) -> Result<Option<T>, Failure> {
    // SAFETY: as the caller says.
    (!from.is_null()).then(|| unsafe { read(from) }).transpose()
}

/// Where a result goes, if the caller wants it.
pub(crate) struct Out<T>(Option<(NonNull<T>, usize)>);

impl<T: Record> Out<T> {
    /// # Safety
    /// `to` is null or points to as many bytes as its `size` says, until it is
    /// written.
    pub(crate) unsafe fn new(to: *mut T) -> Result<Self, Failure> {
        let to = NonNull::new(to);
        // SAFETY: as the caller says.
        let sized = to.map(|to| unsafe { size_of_record(to) }.map(|size| (to, size)));
        Ok(Self(sized.transpose()?))
    }

    /// Writes all but the size.
    pub(crate) fn put(self, value: impl Into<T>) {
        let Some((to, size)) = self.0 else { return };
        let value: T = value.into();
        let (to, from) = (to.cast::<u8>(), NonNull::from(&value).cast::<u8>());
        let (first, known) = (size_of::<usize>(), size.min(size_of::<T>()));
        // SAFETY: there are `known` bytes, which are more than the size takes.
        let fields = unsafe { from.add(first) };
        // SAFETY: as above.
        let into = unsafe { to.add(first) };
        // SAFETY: as above; the two are different objects.
        unsafe { into.copy_from_nonoverlapping(fields, known - first) };
        // SAFETY: there are `size` bytes, as the caller of `new` says.
        let rest = unsafe { to.add(known) };
        // SAFETY: as above.
        unsafe { rest.write_bytes(0, size - known) };
    }
}

/// Writes a number that the caller wants.
///
/// # Safety
/// `to` is null or points to room for a `T`.
pub(crate) unsafe fn put<T>(to: *mut T, value: T) {
    if !to.is_null() {
        // SAFETY: not null, and as the caller says.
        unsafe { to.write(value) }
    }
}

pub(crate) use crate::constants::KVM_MEMSLOTS_LABEL_SIZE as LABEL_SIZE;

/// As much of `text` as fits, with a NUL behind it, cut between characters.
pub(crate) fn label(text: &str) -> [c_char; LABEL_SIZE] {
    let cut = (0..LABEL_SIZE).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let mut label = [0; LABEL_SIZE];
    for (to, from) in label.iter_mut().zip(&text.as_bytes()[..cut]) {
        *to = c_char::from_ne_bytes([*from]);
    }
    label
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(label: &[c_char; LABEL_SIZE]) -> String {
        let bytes: Vec<u8> = label.iter().map(|c| c.to_ne_bytes()[0]).collect();
        let end = bytes.iter().position(|byte| *byte == 0);
        String::from_utf8(bytes[..end.unwrap_or(LABEL_SIZE)].to_vec()).unwrap_or_default()
    }

    #[test]
    fn labels_are_cut_between_characters_and_terminated() {
        assert_eq!(text(&label("")), "");
        assert_eq!(text(&label("vga")), "vga");
        assert_eq!(text(&label(&"x".repeat(63))), "x".repeat(63));
        assert_eq!(text(&label(&"x".repeat(64))), "x".repeat(63));
        // 62 bytes, and a character that would end beyond the 63rd.
        assert_eq!(text(&label(&("x".repeat(62) + "äy"))), "x".repeat(62));
    }

    /// A structure that has grown by one field.
    #[repr(C)]
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Grown {
        size: usize,
        old: u64,
        new: u64,
    }

    // SAFETY: numbers.
    unsafe impl Record for Grown {
        const NAME: &'static str = "grown";
        const FIRST: usize = 16;
    }

    fn read_words(words: &[usize; 4]) -> Result<Grown, Failure> {
        // SAFETY: no size in these tests is larger than the array.
        unsafe { read(words.as_ptr().cast()) }
    }

    #[test]
    fn structures_of_older_and_newer_callers_are_read() {
        let old = read_words(&[16, 1, 99, 99]).ok();
        assert_eq!(old, Some(Grown { size: 16, old: 1, new: 0 }));
        let same = read_words(&[24, 1, 2, 99]).ok();
        assert_eq!(same, Some(Grown { size: 24, old: 1, new: 2 }));
        let newer = read_words(&[32, 1, 2, 0]).ok();
        assert_eq!(newer, Some(Grown { size: 32, old: 1, new: 2 }));
        let asks_for_more = read_words(&[32, 1, 2, 3]).err();
        assert_eq!(asks_for_more.map(|failure| failure.errno), Some(Errno::E2BIG));
        let unset = read_words(&[0, 1, 2, 3]).err();
        assert_eq!(unset.map(|failure| failure.errno), Some(Errno::EINVAL));
    }

    fn written(size: usize) -> Option<[usize; 4]> {
        let mut words = [size, 9, 9, 9];
        // SAFETY: no size in these tests is larger than the array.
        let out = unsafe { Out::<Grown>::new(words.as_mut_ptr().cast()) }.ok()?;
        out.put(Grown { size: 24, old: 1, new: 2 });
        Some(words)
    }

    #[test]
    fn structures_of_older_and_newer_callers_are_written() {
        assert_eq!(written(16), Some([16, 1, 9, 9]));
        assert_eq!(written(24), Some([24, 1, 2, 9]));
        assert_eq!(written(32), Some([32, 1, 2, 0]));
        assert_eq!(written(8), None);
        assert_eq!(written(usize::MAX), None);
    }
}
