//! A window, what it is to be like, and a look at it.

use kvm_memslots::window::{Gap, Window, WindowError, WindowErrorKind, WindowSpec};
use kvm_memslots::{Access, at};
use proptest::prelude::*;

use crate::common::host::page_size;

pub(crate) const PAGES: u64 = 16;
pub(crate) const GPA: u64 = 0x10_0000;

pub(crate) fn window(gap: Gap) -> Window {
    Window::new(WindowSpec::new(at(GPA, PAGES * page_size())).gap(gap)).unwrap()
}

/// One step of a set, in pages; where it wants what is not there it is refused.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    File { page: u64, pages: u64, from: u64, read_only: bool },
    Anonymous { page: u64, pages: u64 },
    Remove { page: u64, pages: u64 },
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let range = || (0..PAGES, 1..6_u64);
    prop_oneof![
        4 => (range(), 0..PAGES, any::<bool>()).prop_map(|((page, pages), from, read_only)| {
            Step::File { page, pages, from, read_only }
        }),
        1 => range().prop_map(|(page, pages)| Step::Anonymous { page, pages }),
        4 => range().prop_map(|(page, pages)| Step::Remove { page, pages }),
    ]
}

/// What a page is: nothing, or what it reads as and what the guest may do.
pub(crate) type Page = Option<(u8, Access)>;

#[derive(Debug, PartialEq)]
pub(crate) enum Refusal {
    Geometry,
    Taken,
    Gap,
}

impl Refusal {
    pub(crate) fn of(error: &WindowError) -> Option<Self> {
        Some(match error.kind() {
            WindowErrorKind::Geometry { .. } => Self::Geometry,
            WindowErrorKind::Taken { .. } => Self::Taken,
            WindowErrorKind::Gap { .. } => Self::Gap,
            _ => return None,
        })
    }
}

/// The pages after a set, or what is wrong and with which step.
pub(crate) fn make(pages: &[Page], steps: &[Step]) -> Result<Vec<Page>, (usize, Refusal)> {
    let range = |step: &Step| match *step {
        Step::File { page, pages, .. }
        | Step::Anonymous { page, pages }
        | Step::Remove { page, pages } => page as usize..(page + pages) as usize,
    };
    let find = |wrong: &dyn Fn(&Step) -> bool| steps.iter().position(wrong);
    if let Some(index) = find(&|step| range(step).end > PAGES as usize) {
        return Err((index, Refusal::Geometry));
    }
    let mut pages = pages.to_vec();
    for (index, step) in steps.iter().enumerate() {
        if let Step::Remove { .. } = step {
            if pages[range(step)].contains(&None) {
                return Err((index, Refusal::Gap));
            }
            pages[range(step)].fill(None);
        }
    }
    for (index, step) in steps.iter().enumerate() {
        let (from, access) = match *step {
            Step::Remove { .. } => continue,
            Step::Anonymous { .. } => (None, Access::ReadWrite),
            Step::File { from, read_only, .. } => {
                (Some(from), if read_only { Access::Read } else { Access::ReadWrite })
            }
        };
        let there = &mut pages[range(step)];
        if there.iter().any(Option::is_some) {
            return Err((index, Refusal::Taken));
        }
        for (page, n) in there.iter_mut().zip(0..) {
            *page = Some((from.map_or(0, |from| (from + n + 1) as u8), access));
        }
    }
    Ok(pages)
}
