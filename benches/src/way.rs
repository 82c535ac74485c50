//! Ways of doing something, by their names on the command line.

/// A way of doing something.
pub trait Way: Copy + PartialEq {
    /// Its name, as on the command line where it can be asked for.
    fn name(self) -> String;
}

impl<W: clap::ValueEnum + Copy + PartialEq> Way for W {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// The ways that were asked for, each once and in their own order; all if none
/// was.
#[must_use]
pub fn ways<W: clap::ValueEnum + Copy + Ord>(asked: &[W]) -> Vec<W> {
    let mut ways = if asked.is_empty() { W::value_variants() } else { asked }.to_vec();
    ways.sort_unstable();
    ways.dedup();
    ways
}

/// Shows a type's values by their names.
macro_rules! shown_by_name {
    ($type:ty) => {
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&$crate::way::Way::name(*self))
            }
        }
    };
}

pub(crate) use shown_by_name;
