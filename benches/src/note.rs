//! What is said beside the output.

use std::fmt::Display;
use std::io::{self, Write};

/// Says it on stderr. That nobody can hear it is no reason to stop.
pub(crate) fn note(what: impl Display) {
    let _unheard = writeln!(io::stderr(), "{what}");
}
