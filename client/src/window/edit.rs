//! Several places and removals as one.

use kvm_memslots_shim::Errno;

use super::contents::{Contents, What};
use super::error::{WindowError, WindowErrorKind};
use super::host::{self, Failed, Named, Reservation, Scratch};
use super::spare::Spare;
use super::table::{Cut, Placement, Table};

/// Places and removals that are done together, or not at all:
/// [`Window::apply`](super::Window::apply). What is removed makes room for what
/// is placed, whatever their order; what takes its place does so at once, with no
/// gap between.
///
/// While a set with removals is done, what is removed is set aside, so that it
/// can be put back: two calls more each. A set of two, which puts something in the
/// place of what it removes, is one call where the place alone would be one.
#[derive(Debug, Clone, Default)]
pub struct Edit<'fd>(pub(super) Vec<Step<'fd>>);

#[derive(Debug, Clone, Copy)]
pub(super) struct Step<'fd> {
    pub(super) offset: u64,
    pub(super) len: u64,
    /// `None`: to be removed.
    pub(super) contents: Option<Contents<'fd>>,
}

impl<'fd> Edit<'fd> {
    /// Nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// As [`Window::place`](super::Window::place).
    pub fn place(&mut self, offset: u64, len: u64, contents: Contents<'fd>) {
        self.0.push(Step { offset, len, contents: Some(contents) });
    }

    /// As [`Window::remove`](super::Window::remove).
    pub fn remove(&mut self, offset: u64, len: u64) {
        self.0.push(Step { offset, len, contents: None });
    }

    /// How many places and removals.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether that is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Step<'_> {
    fn refused(&self, index: usize, failed: Failed) -> WindowError {
        let (call, errno) = failed;
        self.wrong(index, WindowErrorKind::Refused { call, errno })
    }

    pub(super) fn wrong(&self, index: usize, kind: WindowErrorKind) -> WindowError {
        WindowError::new(kind, self.offset, self.len).of(index)
    }

    fn placement(&self, contents: &Contents<'_>) -> Placement {
        let Self { offset, len, .. } = *self;
        Placement { offset, len, access: contents.access, file_offset: contents.file_offset() }
    }

    /// Does what may fail or take its time, and changes nothing: maps the
    /// descriptor somewhere, unless it can be placed directly.
    pub(super) fn prepare(
        &self,
        index: usize,
        host: &Reservation,
    ) -> Result<Option<Scratch>, WindowError> {
        let Some(contents) = &self.contents else { return Ok(None) };
        let What::File { fd, offset, named } = contents.what else { return Ok(None) };
        let named = match named {
            Some(named) => named,
            None => match host::named(fd).map_err(|failed| self.refused(index, failed))? {
                Some(named) => named,
                None => return Err(self.wrong(index, WindowErrorKind::NoFile)),
            },
        };
        let page = match named {
            Named::Memory => return Ok(None),
            Named::File { page } => page,
            Named::Device => host::page_of(fd).map_err(|failed| self.refused(index, failed))?,
        };
        let whole = host.check_whole(self.offset, self.len, page);
        whole.map_err(|kind| self.wrong(index, kind))?;
        let mapped = Scratch::of_file(fd, offset, self.len, contents.protection());
        mapped.map(Some).map_err(|failed| self.refused(index, failed))
    }
}

/// What is placed, and where nothing is mapped at all, though there should be.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) table: Table,
    pub(super) holes: Vec<(u64, u64)>,
    /// From the first set on that may have to be undone.
    spare: Option<Spare>,
}

/// A set that is being applied.
pub(super) struct Applying<'a> {
    pub(super) host: &'a Reservation,
    pub(super) huge: bool,
    pub(super) state: &'a mut State,
    pub(super) steps: &'a [Step<'a>],
}

/// What is to be put back if the set fails.
#[derive(Default)]
struct Undo {
    aside: Vec<(Placement, Scratch)>,
    /// The ranges that were placed; of a mapping, where that was.
    placed: Vec<(Placement, Option<u64>)>,
    /// What nothing can put back.
    gone: Vec<Placement>,
}

impl Applying<'_> {
    /// `scratches`: what [`Step::prepare`] made of each.
    pub(super) fn apply(&mut self, mut scratches: Vec<Option<Scratch>>) -> Result<(), WindowError> {
        self.mend_holes()?;
        let cuts = self.enter()?;
        let mut undo = Undo::default();
        let done = self.execute(&cuts, &mut scratches, &mut undo);
        match done {
            Ok(()) => {
                undo.aside.into_iter().for_each(|(_, scratch)| scratch.discard());
                Ok(())
            }
            Err((index, kind)) => {
                self.state.spare = None;
                self.leave(&cuts);
                let step = self.steps[index];
                Err(step.wrong(index, self.undo(undo, scratches, kind)))
            }
        }
    }

    /// What an earlier call left unmapped.
    fn mend_holes(&mut self) -> Result<(), WindowError> {
        while let Some((offset, len)) = self.state.holes.last().copied() {
            self.host.mend(offset, len).map_err(|(call, errno)| {
                WindowError::new(WindowErrorKind::Refused { call, errno }, offset, len)
            })?;
            self.state.holes.pop();
        }
        Ok(())
    }

    /// Makes the table say what is to be; on an error it says what it did.
    fn enter(&mut self) -> Result<Vec<Cut>, WindowError> {
        let table = &mut self.state.table;
        let mut cuts: Vec<Cut> = Vec::new();
        let mut wrong = None;
        let mut entered = 0;
        for (index, step) in self.steps.iter().enumerate().filter(|(_, s)| s.contents.is_none()) {
            match table.cut(step.offset, step.len) {
                Ok(cut) => cuts.push(cut),
                Err(at) => {
                    wrong = Some(step.wrong(index, WindowErrorKind::Gap { at }));
                    break;
                }
            }
        }
        for (index, step) in self.steps.iter().enumerate() {
            let Some(contents) = &step.contents else { continue };
            if wrong.is_some() {
                break;
            }
            if let Some(by) = table.first_in(step.offset, step.len) {
                wrong = Some(step.wrong(index, WindowErrorKind::Taken { by }));
                break;
            }
            table.insert(step.placement(contents));
            entered = index + 1;
        }
        let Some(wrong) = wrong else { return Ok(cuts) };
        for step in self.steps[..entered].iter().filter(|step| step.contents.is_some()) {
            table.forget(step.offset);
        }
        cuts.iter().rev().for_each(|cut| table.undo(cut));
        Err(wrong)
    }

    /// Takes back what [`enter`](Self::enter) did.
    fn leave(&mut self, cuts: &[Cut]) {
        let table = &mut self.state.table;
        let places = self.steps.iter().filter(|step| step.contents.is_some());
        places.for_each(|step| table.forget(step.offset));
        cuts.iter().rev().for_each(|cut| table.undo(cut));
    }

    fn execute(
        &mut self,
        cuts: &[Cut],
        scratches: &mut [Option<Scratch>],
        undo: &mut Undo,
    ) -> Result<(), (usize, WindowErrorKind)> {
        let refused = |index, (call, errno)| (index, WindowErrorKind::Refused { call, errno });
        // One call leaves everything as it was by itself.
        let is_one = self.steps.len() == 1 || self.is_swap(scratches);
        if self.state.spare.is_none() && !(is_one && self.takes_nothing()) {
            self.state.spare = Some(Spare::new().map_err(|failed| refused(0, failed))?);
        }
        if !is_one {
            let removals = self.steps.iter().enumerate().filter(|(_, s)| s.contents.is_none());
            for ((index, _), cut) in removals.zip(cuts) {
                for what in cut.pieces.iter().copied() {
                    let aside = self.host.set_aside(what.offset, what.len);
                    let aside = aside.map_err(|(_, errno)| {
                        (index, WindowErrorKind::CannotBeKept { what, errno })
                    })?;
                    undo.aside.push((what, aside));
                }
            }
        }
        for (index, step) in self.steps.iter().enumerate() {
            if let Some(What::Mapping { hva }) = step.contents.map(|contents| contents.what) {
                // SAFETY: whoever made the contents vouched for the addresses.
                let taken = unsafe { Scratch::taken_from(hva, step.len) };
                scratches[index] = Some(taken.map_err(|failed| refused(index, failed))?);
            }
        }
        for (index, step) in self.steps.iter().enumerate() {
            let Some(contents) = &step.contents else { continue };
            let (offset, len) = (step.offset, step.len);
            let protection = contents.protection();
            let placed = match (scratches[index].take(), contents.what) {
                (Some(scratch), _) => self.host.place(offset, scratch).map_err(|(failed, back)| {
                    scratches[index] = Some(back);
                    failed
                }),
                (None, What::File { fd, offset: from, .. }) => {
                    self.host.place_memory(offset, len, protection, (fd, from))
                }
                (None, _) => self.host.place_anonymous(offset, len, protection),
            };
            if let Err(failed) = placed {
                if self.mend(offset, len) && is_one {
                    undo.gone.extend(cuts.iter().flat_map(|cut| cut.pieces.iter().copied()));
                }
                return Err(refused(index, failed));
            }
            let from = match contents.what {
                What::Mapping { hva } => Some(hva),
                _ => None,
            };
            undo.placed.push((step.placement(contents), from));
            if self.huge {
                self.host.advise_huge(offset, len);
            }
        }
        let removals = self.steps.iter().enumerate().filter(|(_, s)| s.contents.is_none());
        for (index, step) in removals {
            for (offset, len) in gaps(step, &undo.placed) {
                let cleared = self.host.clear(offset, len);
                if let Some(failed) = cleared.err().filter(|_| !self.mend(offset, len)) {
                    return Err(refused(index, failed));
                }
            }
        }
        Ok(())
    }

    /// Whether nothing is taken from elsewhere, where it may have to go back.
    fn takes_nothing(&self) -> bool {
        let taken = |what| matches!(what, What::Mapping { .. });
        !self.steps.iter().filter_map(|step| step.contents).any(|contents| taken(contents.what))
    }

    /// Whether one call puts something in the place of all that is removed.
    fn is_swap(&self, scratches: &[Option<Scratch>]) -> bool {
        let direct = |contents: Contents<'_>| !matches!(contents.what, What::Mapping { .. });
        let (one, other) = match self.steps {
            [one, other] if one.contents.is_none() => (one, other),
            [other, one] => (one, other),
            _ => return false,
        };
        let same = (one.offset, one.len) == (other.offset, other.len);
        let places = one.contents.is_none() && other.contents.is_some_and(direct);
        same && places && scratches.iter().all(Option::is_none)
    }

    /// Whether nothing was mapped there any more: then there is a gap now, if that
    /// can be.
    fn mend(&mut self, offset: u64, len: u64) -> bool {
        self.host.mend(offset, len).unwrap_or_else(|_| {
            self.state.holes.push((offset, len));
            true
        })
    }

    fn undo(
        &mut self,
        undo: Undo,
        mut scratches: Vec<Option<Scratch>>,
        kind: WindowErrorKind,
    ) -> WindowErrorKind {
        // What takes the most room comes last.
        scratches.retain(|scratch| scratch.as_ref().is_some_and(Scratch::is_taken));
        let (mut lost, mut gone, mut left) = (undo.gone.clone(), undo.gone, Vec::new());
        let (moved, new): (Vec<_>, Vec<_>) =
            undo.placed.into_iter().partition(|(_, from)| from.is_some());
        for (placement, from) in new.into_iter().chain(moved) {
            let Placement { offset, len, .. } = placement;
            let back = from.map(|home| self.host.take_back(offset, len, home));
            if self.host.clear(offset, len).is_err() && !self.mend(offset, len) {
                left.push(placement);
            }
            drop(back);
        }
        drop(scratches);
        for (what, scratch) in undo.aside {
            if scratch.go_home().is_err() {
                if self.host.clear(what.offset, what.len).is_ok()
                    || self.mend(what.offset, what.len)
                {
                    gone.push(what);
                }
                lost.push(what);
            }
        }
        let table = &mut self.state.table;
        // It was there before the set: all of it. (Where no gap could be made there
        // is what is left when memory is set aside, to be removed.)
        for what in gone {
            let _ = table.cut(what.offset, what.len);
        }
        // What went back took the place of some.
        left.retain(|what| table.first_in(what.offset, what.len).is_none());
        for what in &left {
            table.insert(*what);
        }
        if lost.is_empty() && left.is_empty() {
            return kind;
        }
        let (call, errno) = match kind {
            WindowErrorKind::Refused { call, errno } => (call, errno),
            WindowErrorKind::CannotBeKept { errno, .. } => ("mremap", errno),
            _ => ("mmap", Errno::ENOMEM),
        };
        WindowErrorKind::Stuck { call, errno, lost, left }
    }
}

/// What of a removal nothing takes the place of.
fn gaps(step: &Step<'_>, placed: &[(Placement, Option<u64>)]) -> Vec<(u64, u64)> {
    let end = step.offset + step.len;
    let placed = placed.iter().map(|(placement, _)| placement);
    let mut placed: Vec<&Placement> =
        placed.filter(|p| p.offset < end && p.end() > step.offset).collect();
    placed.sort_unstable_by_key(|placement| placement.offset);
    let mut gaps = Vec::new();
    let mut at = step.offset;
    for placement in placed {
        if at < placement.offset {
            gaps.push((at, placement.offset - at));
        }
        at = placement.end();
    }
    if at < end {
        gaps.push((at, end - at));
    }
    gaps
}
