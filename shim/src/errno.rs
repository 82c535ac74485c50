//! Error numbers of the kernel's.

use std::fmt;
use std::io;

/// An error number of the kernel's.
///
/// ```
/// use kvm_memslots_shim::Errno;
///
/// assert_eq!(format!("{:?}", Errno::EINVAL), "EINVAL");
/// assert_eq!(Errno::EINVAL.to_string(), "EINVAL: Invalid argument");
/// assert_eq!(Errno::from_raw(Errno::EINVAL.raw()), Errno::EINVAL);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($name:ident)*) => {
        impl Errno {
            $(
                #[doc = concat!("`", stringify!($name), "`.")]
                pub const $name: Self = Self(libc::$name);
            )*

            /// Its name, of those that have a constant here.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $(libc::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT
    ENOTBLK EBUSY EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG
    ENOSPC ESPIPE EROFS EMLINK EPIPE EDOM ERANGE EDEADLK ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP
    ENODATA ETIME EPROTO EBADMSG EOVERFLOW EBADFD EILSEQ EUSERS EOPNOTSUPP EADDRINUSE ENOBUFS
    EISCONN ENOTCONN ETIMEDOUT ECONNREFUSED ECONNRESET EALREADY EINPROGRESS ESTALE EDQUOT ECANCELED
    EOWNERDEAD ENOTRECOVERABLE EHWPOISON
}

impl Errno {
    /// The error with this number.
    #[must_use]
    pub const fn from_raw(errno: i32) -> Self {
        Self(errno)
    }

    /// Its number.
    #[must_use]
    pub const fn raw(self) -> i32 {
        self.0
    }

    /// That of the last call of this thread that failed.
    #[must_use]
    pub fn last() -> Self {
        Self::of(&io::Error::last_os_error())
    }

    /// That of an error; 0 where it is not the kernel's.
    pub(crate) fn of(error: &io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or_default())
    }

    pub(crate) const fn from_nix(errno: nix::errno::Errno) -> Self {
        Self(errno as i32)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)?;
        write!(f, ": {}", nix::errno::Errno::from_raw(self.0).desc())
    }
}

impl std::error::Error for Errno {}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_without_a_name_is_its_number() {
        let errno = Errno::from_raw(4000);
        assert_eq!((errno.name(), errno.raw()), (None, 4000));
        assert_eq!(format!("{errno:?} {errno}"), "errno 4000 errno 4000: Unknown errno");
        assert_eq!(io::Error::from(Errno::ENXIO).raw_os_error(), Some(libc::ENXIO));
    }

    #[test]
    fn the_last_one_is_the_thread_s() {
        // SAFETY: closes nothing.
        assert_eq!(unsafe { libc::close(-1) }, -1);
        assert_eq!(Errno::last(), Errno::EBADF);
    }
}
