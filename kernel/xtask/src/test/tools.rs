//! What the checks use beside Rust, installed where that is allowed.

use std::process::{Command, Stdio};

use crate::{apt, run};

/// A program that some test uses and skips without.
struct Tool {
    /// The names it goes by; one will do.
    names: &'static [&'static str],
    /// The Debian package.
    package: &'static str,
}

const TOOLS: [Tool; 5] = [
    Tool { names: &["cc", "gcc", "clang"], package: "gcc" },
    Tool { names: &["c++", "g++", "clang++"], package: "g++" },
    Tool { names: &["make"], package: "make" },
    Tool { names: &["pkg-config", "pkgconf"], package: "pkgconf" },
    Tool { names: &["valgrind"], package: "valgrind" },
];

/// Components of a Rust toolchain that are no part of its minimal profile.
const COMPONENTS: [(&str, &str); 2] = [("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")];

/// Installs what is missing, or says what to install. Whatever is missing
/// afterwards, the checks that use it skip.
pub(super) fn install() {
    let missing: Vec<&str> = TOOLS
        .iter()
        .filter(|tool| !tool.names.iter().any(|name| run::exists(name)))
        .map(|tool| tool.package)
        .collect();
    if !missing.is_empty() {
        if apt::available() && apt::may_install() {
            if let Err(e) = apt::install(&missing) {
                run::say(&format!("note: {e:#}"));
            }
        } else {
            run::say(&format!("note: as root: apt-get install {}", missing.join(" ")));
        }
    }
    let missing = COMPONENTS.iter().filter(|(program, _)| !run::exists(program));
    let missing: Vec<&str> = missing.map(|(_, component)| *component).collect();
    if !missing.is_empty() && run::exists("rustup") {
        let mut add = Command::new("rustup");
        add.args(["component", "add"]).args(&missing).stdin(Stdio::null());
        match run::streamed(&mut add, run::say) {
            Ok(status) if status.success() => {}
            Ok(status) => run::say(&format!("note: rustup component add ended with {status}")),
            Err(e) => run::say(&format!("note: {e:#}")),
        }
    }
}
