//! Parts that go and parts that come, in one window or several: all or nothing.

use std::collections::{HashMap, HashSet};

use kvm_memslots_shim::Errno;

use super::error::{WindowError, WindowErrorKind};
use super::part::WindowPart;
use super::table::Placement;

/// One call, or the few of one place. `W` is whose it is.
#[derive(Debug, Clone)]
struct Step<W> {
    gone: Option<WindowPart>,
    come: Option<WindowPart>,
    whose: W,
}

/// Steps that are taken together.
#[derive(Debug)]
pub(crate) struct Steps<W>(Vec<Step<W>>);

/// What steps that could not be taken back left to be done.
#[derive(Debug)]
pub(crate) struct Astray<W>(Vec<Step<W>>);

/// A step that was refused; those before it were taken back.
pub(crate) struct Refused<W> {
    pub(crate) whose: W,
    /// Whether something was to come with it.
    pub(crate) comes: bool,
    pub(crate) error: WindowError,
    /// Why some could not be taken back.
    pub(crate) undone: Vec<WindowError>,
}

impl<W: Clone> Step<W> {
    fn take(&self) -> Result<(), WindowError> {
        match (&self.gone, &self.come) {
            (None, None) => Ok(()),
            (Some(gone), None) => gone.remove(),
            (None, Some(come)) => come.place(),
            (Some(_), Some(come)) => come.replace(),
        }
    }

    fn inverse(&self) -> Self {
        Self { gone: self.come.clone(), come: self.gone.clone(), whose: self.whose.clone() }
    }

    /// Takes the step as far as it is still to be taken.
    fn repair(&self) -> Result<(), WindowError> {
        if let Some(gone) = self.gone.as_ref().filter(|gone| gone.is_there()) {
            gone.remove()?;
        }
        match self.come.as_ref().filter(|come| !come.is_there()).map(WindowPart::place) {
            // Somebody else has put something there.
            Some(Err(error)) if error.errno() == Errno::EEXIST => Ok(()),
            Some(placed) => placed,
            None => Ok(()),
        }
    }
}

impl<W> Default for Steps<W> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<W: Clone> Steps<W> {
    /// What goes makes room for what comes; what takes the place of just the same
    /// bytes does so at once. Nothing is changed yet.
    ///
    /// # Errors
    /// Whose part has no room: of two that come and overlap, the later one's.
    pub(crate) fn new(
        mut gone: Vec<(W, WindowPart)>,
        come: Vec<(W, WindowPart)>,
    ) -> Result<Self, (W, WindowError)> {
        // Somebody else may have removed it.
        gone.retain(|(_, part)| part.is_there());
        let leaving: Leaving<'_> = gone.iter().map(|(_, part)| (part.key(), part)).collect();
        check(&come, &leaving)?;
        let come = come.into_iter().map(|(whose, part)| {
            let there = leaving.get(&part.key()).filter(|gone| gone.covers(&part));
            Step { gone: there.map(|gone| WindowPart::clone(gone)), come: Some(part), whose }
        });
        let (swaps, new): (Vec<_>, Vec<_>) = come.partition(|step| step.gone.is_some());
        let swapped: HashSet<_> =
            swaps.iter().filter_map(|step| Some(step.gone.as_ref()?.key())).collect();
        gone.retain(|(_, part)| !swapped.contains(&part.key()));
        let gone = gone.into_iter();
        let gone = gone.map(|(whose, part)| Step { gone: Some(part), come: None, whose });
        Ok(Self(gone.chain(swaps).chain(new).collect()))
    }

    /// Takes all steps, or none.
    pub(crate) fn take(&self, astray: &mut Astray<W>) -> Result<(), Refused<W>> {
        for (done, step) in self.0.iter().enumerate() {
            let Err(error) = step.take() else { continue };
            let mut undone = Vec::new();
            if let WindowErrorKind::Stuck { .. } = error.kind() {
                undone.push(error.clone());
                astray.0.push(step.inverse());
            }
            undone.extend(astray.take_back(&self.0[..done]));
            let (whose, comes) = (step.whose.clone(), step.come.is_some());
            return Err(Refused { whose, comes, error, undone });
        }
        Ok(())
    }

    /// Takes them back when all were taken; why some could not be.
    pub(crate) fn take_back(&self, astray: &mut Astray<W>) -> Vec<WindowError> {
        astray.take_back(&self.0)
    }
}

impl<W> Default for Astray<W> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<W: Clone> Astray<W> {
    /// Whether windows have what they should.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts right what could not be taken back; whose could not.
    pub(crate) fn repair(&mut self) -> Result<(), (W, WindowError)> {
        while let Some(step) = self.0.last() {
            step.repair().map_err(|error| (step.whose.clone(), error))?;
            self.0.pop();
        }
        Ok(())
    }

    fn take_back(&mut self, steps: &[Step<W>]) -> Vec<WindowError> {
        let mut refused = Vec::new();
        for step in steps.iter().rev().map(Step::inverse) {
            if let Err(error) = step.take() {
                refused.push(error);
                self.0.push(step);
            }
        }
        refused
    }
}

/// What goes, by window and offset.
type Leaving<'p> = HashMap<(usize, u64), &'p WindowPart>;

/// Whether what comes has room, once what goes has gone.
fn check<W: Clone>(
    come: &[(W, WindowPart)],
    leaving: &Leaving<'_>,
) -> Result<(), (W, WindowError)> {
    let taken = |at: usize, by: Placement| {
        let (whose, part) = &come[at];
        Err((whose.clone(), part.wrong(WindowErrorKind::Taken { by })))
    };
    for (at, (_, part)) in come.iter().enumerate() {
        let (window, _) = part.key();
        let leaves = |there: &Placement| {
            let gone = leaving.get(&(window, there.offset));
            gone.is_some_and(|gone| gone.placement() == *there)
        };
        if let Some(by) = part.in_the_way(leaves) {
            return taken(at, by);
        }
    }
    let mut sorted: Vec<usize> = (0..come.len()).collect();
    sorted.sort_by_key(|at| come[*at].1.key());
    for pair in sorted.windows(2) {
        let (first, second) = (pair[0], pair[1]);
        let (low, high) = (&come[first].1, &come[second].1);
        let (window, offset) = high.key();
        if low.key().0 == window && low.placement().end() > offset {
            return if first > second {
                taken(first, high.placement())
            } else {
                taken(second, low.placement())
            };
        }
    }
    Ok(())
}
