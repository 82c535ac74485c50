//! That something goes on, where a terminal is looked at.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Progress of what does not say how far it is; gone when it is dropped.
pub(super) struct Spinner(ProgressBar);

impl Spinner {
    /// What is being done.
    pub(super) fn say(&self, what: &str) {
        self.0.set_message(what.to_owned());
    }

    /// Does something that writes to the terminal.
    pub(super) fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        self.0.suspend(write)
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// None where nobody looks.
pub(super) fn spinner(what: &'static str) -> Spinner {
    if !io::stderr().is_terminal() {
        return Spinner(ProgressBar::hidden());
    }
    let style = ProgressStyle::with_template("{spinner} {msg}, {elapsed}");
    let bar = ProgressBar::new_spinner()
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
        .with_message(what);
    bar.enable_steady_tick(Duration::from_millis(200));
    Spinner(bar)
}
