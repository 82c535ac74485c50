//! What a device has in a window.

use super::Window;
use super::contents::{CheckedFile, Contents};
use super::edit::Edit;
use super::error::{WindowError, WindowErrorKind};
use super::table::Placement;
use crate::Access;

/// A part of a file that is to be in a window for as long as a device is attached
/// ([`Device::in_window`](crate::device::Device::in_window)). Clones are the same
/// descriptor.
///
/// It is of a file, as what a set of changes removes has to come back where the set
/// fails.
#[derive(Debug, Clone)]
#[must_use]
pub struct WindowPart {
    window: Window,
    offset: u64,
    len: u64,
    access: Access,
    file: CheckedFile,
    file_offset: u64,
}

impl WindowPart {
    /// `len` bytes from `offset` in `window` on, which are those of `file` from
    /// `file_offset` bytes in it on. All are multiples of the page size, and of a file
    /// of huge pages of theirs ([`Contents::file`]).
    pub fn new(
        window: &Window,
        offset: u64,
        len: u64,
        file: &CheckedFile,
        file_offset: u64,
    ) -> Self {
        let (window, file, access) = (window.clone(), file.clone(), Access::ReadWrite);
        Self { window, offset, len, access, file, file_offset }
    }

    /// The guest may only read it. Where it writes, that fails as in a
    /// [`Gap::Fault`](super::Gap::Fault).
    pub fn read_only(mut self) -> Self {
        self.access = Access::Read;
        self
    }

    /// What [`Window::at`] finds while it is placed, unless the VMM itself has
    /// removed a part of it.
    #[must_use]
    pub const fn placement(&self) -> Placement {
        let Self { offset, len, access, file_offset, .. } = *self;
        Placement { offset, len, access, file_offset: Some(file_offset) }
    }

    /// The window.
    #[must_use]
    pub const fn window(&self) -> &Window {
        &self.window
    }

    /// The same at another offset.
    pub(crate) fn moved_to(&self, offset: u64) -> Self {
        Self { offset, ..self.clone() }
    }

    /// Names the window and the place in it.
    pub(crate) fn key(&self) -> (usize, u64) {
        (self.window.identity(), self.offset)
    }

    /// Whether both are the same bytes of the same window.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        self.key() == other.key() && self.len == other.len
    }

    /// Whether both are the same, as far as they were described.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.key() == other.key()
            && self.placement() == other.placement()
            && self.file.is(&other.file)
    }

    /// Whether it is placed, whole.
    pub(crate) fn is_there(&self) -> bool {
        self.window.at(self.offset) == Some(self.placement())
    }

    /// What would be in its way, of what the window has, but for what is `gone`.
    pub(crate) fn in_the_way(&self, gone: impl Fn(&Placement) -> bool) -> Option<Placement> {
        self.window.first_in(self.offset, self.len, gone)
    }

    pub(crate) fn check(&self) -> Result<(), WindowError> {
        self.window.check(self.offset, self.len, self.file.page()).map_err(|kind| self.wrong(kind))
    }

    pub(crate) fn wrong(&self, kind: WindowErrorKind) -> WindowError {
        WindowError::new(kind, self.offset, self.len)
    }

    pub(crate) fn place(&self) -> Result<(), WindowError> {
        let placed = self.window.place(self.offset, self.len, self.contents());
        placed.map_err(WindowError::alone)
    }

    pub(crate) fn remove(&self) -> Result<(), WindowError> {
        self.window.remove(self.offset, self.len).map_err(WindowError::alone)
    }

    /// Takes the place of what [covers](Self::covers) the same bytes.
    pub(crate) fn replace(&self) -> Result<(), WindowError> {
        let mut edit = Edit::new();
        edit.remove(self.offset, self.len);
        edit.place(self.offset, self.len, self.contents());
        self.window.apply(&edit).map_err(WindowError::alone)
    }

    fn contents(&self) -> Contents<'_> {
        let contents = Contents::checked(&self.file, self.file_offset);
        match self.access {
            Access::Read => contents.read_only(),
            Access::ReadWrite => contents,
        }
    }
}
