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
    placement: Placement,
    file: CheckedFile,
    file_offset: u64,
}

impl WindowPart {
    /// `len` bytes from `offset` in `window` on, which are those of `file` from
    /// `file_offset` bytes in it on. All are multiples of the page size.
    pub fn new(
        window: &Window,
        offset: u64,
        len: u64,
        file: &CheckedFile,
        file_offset: u64,
    ) -> Self {
        let access = Access::ReadWrite;
        let placement = Placement { offset, len, access, file_offset: Some(file_offset) };
        Self { window: window.clone(), placement, file: file.clone(), file_offset }
    }

    /// The guest may only read it. Where it writes, that fails as in a
    /// [`Gap::Fault`](super::Gap::Fault).
    pub fn read_only(mut self) -> Self {
        self.placement.access = Access::Read;
        self
    }

    /// What [`Window::at`] finds while it is placed, unless the VMM itself has
    /// removed a part of it.
    #[must_use]
    pub const fn placement(&self) -> Placement {
        self.placement
    }

    /// The window.
    #[must_use]
    pub const fn window(&self) -> &Window {
        &self.window
    }

    /// The same at another offset.
    pub(crate) fn moved_to(&self, offset: u64) -> Self {
        Self { placement: Placement { offset, ..self.placement }, ..self.clone() }
    }

    /// Names the window and the place in it.
    pub(crate) fn key(&self) -> (usize, u64) {
        (self.window.identity(), self.placement.offset)
    }

    /// Whether both are the same bytes of the same window.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        self.key() == other.key() && self.placement.len == other.placement.len
    }

    /// Whether both are the same, as far as they were described.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.key() == other.key() && self.placement == other.placement && self.file.is(&other.file)
    }

    /// Whether it is placed, whole.
    pub(crate) fn is_there(&self) -> bool {
        self.window.at(self.placement.offset) == Some(self.placement)
    }

    /// What would be in its way, of what the window has, but for what is `gone`.
    pub(crate) fn in_the_way(&self, gone: impl Fn(&Placement) -> bool) -> Option<Placement> {
        let Placement { offset, len, .. } = self.placement;
        self.window.first_in(offset, len, gone)
    }

    pub(crate) fn check(&self) -> Result<(), WindowError> {
        let Placement { offset, len, .. } = self.placement;
        self.window.check(offset, len).map_err(|kind| self.wrong(kind))
    }

    pub(crate) fn wrong(&self, kind: WindowErrorKind) -> WindowError {
        WindowError::new(kind, self.placement.offset, self.placement.len)
    }

    pub(crate) fn place(&self) -> Result<(), WindowError> {
        let Placement { offset, len, .. } = self.placement;
        self.window.place(offset, len, self.contents()).map_err(WindowError::alone)
    }

    pub(crate) fn remove(&self) -> Result<(), WindowError> {
        let Placement { offset, len, .. } = self.placement;
        self.window.remove(offset, len).map_err(WindowError::alone)
    }

    /// Takes the place of what [covers](Self::covers) the same bytes.
    pub(crate) fn replace(&self) -> Result<(), WindowError> {
        let Placement { offset, len, .. } = self.placement;
        let mut edit = Edit::new();
        edit.remove(offset, len);
        edit.place(offset, len, self.contents());
        self.window.apply(&edit).map_err(WindowError::alone)
    }

    fn contents(&self) -> Contents<'_> {
        let contents = Contents::checked(&self.file, self.file_offset);
        match self.placement.access {
            Access::Read => contents.read_only(),
            Access::ReadWrite => contents,
        }
    }
}
