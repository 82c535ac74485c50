//! What the environment says.

use std::sync::OnceLock;

use kvm_memslots::deferred::policy::Policy;

use crate::sys;

pub(crate) const MODE: &str = "KVM_MEMSLOTS_PRELOAD";
pub(crate) const FLIPS: &str = "KVM_MEMSLOTS_PRELOAD_FLIPS";
pub(crate) const POLICY: &str = "KVM_MEMSLOTS_PRELOAD_POLICY";
pub(crate) const WRITABLE: &str = "KVM_MEMSLOTS_PRELOAD_WRITABLE";
pub(crate) const STATS: &str = "KVM_MEMSLOTS_PRELOAD_STATS";

/// What is done at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Nothing.
    Off,
    /// Calls are counted.
    Count,
    /// Slots that churn are flipped, where the kernel can do that.
    Trap,
    /// Slots that churn are deferred.
    Defer,
    /// Flipped where the kernel can do that, else deferred.
    Auto,
}

impl Mode {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Count => "count",
            Self::Trap => "trap",
            Self::Defer => "defer",
            Self::Auto => "auto",
        }
    }
}

/// What the environment said when the process began.
static SETTINGS: OnceLock<Settings> = OnceLock::new();

/// As read; `None` before that, where nothing is to be done.
pub(crate) fn settings() -> Option<&'static Settings> {
    SETTINGS.get().filter(|settings| settings.mode != Mode::Off)
}

/// When deferred slots are mapped.
pub(crate) fn policy() -> Policy {
    settings().map_or_else(Policy::default, |settings| settings.policy)
}

/// Reads the environment: once, before `main`, when there is one thread. A program
/// that runs with more rights than who started it (`AT_SECURE`) is left alone.
pub(crate) fn read_environment() {
    // SAFETY: has no preconditions.
    let secure = unsafe { libc::getauxval(libc::AT_SECURE) } != 0;
    let settings =
        if secure { Ok(Settings::OFF) } else { Settings::read(|name| std::env::var(name).ok()) };
    let settings = settings.unwrap_or_else(|wrong| {
        let line = format!("kvm-memslots-preload: switched off: {wrong}\n");
        // SAFETY: these bytes are only read. That nobody can hear it is no error.
        let _ = unsafe { sys::transfer(true, 2, line.as_ptr() as u64, line.len()) };
        Settings::OFF
    });
    let _ = SETTINGS.set(settings);
}

/// Where statistics go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stats {
    /// As text, to stderr.
    Stderr,
    /// To this file: JSON if it is called `*.json`, else text.
    File(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) mode: Mode,
    /// How many flips of a slot are let through before it counts as churning, if
    /// not as many as usual.
    pub(crate) flips: Option<u32>,
    pub(crate) policy: Policy,
    /// Whether slots that the guest may write to are treated alike.
    pub(crate) writable: bool,
    pub(crate) stats: Vec<Stats>,
}

impl Settings {
    const OFF: Self = Self {
        mode: Mode::Off,
        flips: None,
        policy: Policy::RentOrBuy,
        writable: false,
        stats: Vec::new(),
    };

    /// From variables that `variable` knows.
    ///
    /// # Errors
    /// What is wrong with one.
    pub(crate) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let of = |name: &str| variable(name).filter(|value| !value.is_empty());
        let mode = match of(MODE).as_deref() {
            Some("off" | "0") => Mode::Off,
            Some("count") => Mode::Count,
            Some("trap") => Mode::Trap,
            Some("defer") => Mode::Defer,
            None | Some("auto") => Mode::Auto,
            Some(other) => return Err(wrong(MODE, other, "off, count, trap, defer or auto")),
        };
        let flips = of(FLIPS).map(|flips| {
            flips.parse().map_err(|_| wrong(FLIPS, &flips, "a number of flips, e.g. 4"))
        });
        let flips = flips.transpose()?;
        let policy = match of(POLICY) {
            None => Policy::default(),
            Some(policy) => parse_policy(&policy)
                .ok_or_else(|| wrong(POLICY, &policy, "rent-or-buy or fixed:EXITS"))?,
        };
        let writable = match of(WRITABLE).as_deref() {
            None | Some("0") => false,
            Some("1") => true,
            Some(other) => return Err(wrong(WRITABLE, other, "0 or 1")),
        };
        let stats = of(STATS).unwrap_or_default();
        let stats = stats.split(',').filter(|file| !file.is_empty()).map(|file| match file {
            "-" => Stats::Stderr,
            file => Stats::File(file.to_owned()),
        });
        Ok(Self { mode, flips, policy, writable, stats: stats.collect() })
    }
}

fn parse_policy(value: &str) -> Option<Policy> {
    if value == "rent-or-buy" {
        return Some(Policy::RentOrBuy);
    }
    let exits = value.strip_prefix("fixed:")?.parse().ok()?;
    Some(Policy::Fixed { exits })
}

fn wrong(name: &str, value: &str, known: &str) -> String {
    format!("{name}={value}: it can be {known}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::read(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn nothing_said() {
        let settings = Settings {
            mode: Mode::Auto,
            flips: None,
            policy: Policy::RentOrBuy,
            writable: false,
            stats: Vec::new(),
        };
        assert_eq!(read(&[]), Ok(settings.clone()));
        assert_eq!(read(&[(MODE, ""), (STATS, "")]), Ok(settings));
    }

    #[test]
    fn all_said() {
        let settings = Settings {
            mode: Mode::Defer,
            flips: Some(0),
            policy: Policy::Fixed { exits: 64 },
            writable: true,
            stats: vec![Stats::Stderr, Stats::File("a.json".to_owned())],
        };
        let said = [
            (MODE, "defer"),
            (FLIPS, "0"),
            (POLICY, "fixed:64"),
            (WRITABLE, "1"),
            (STATS, "-,a.json"),
        ];
        assert_eq!(read(&said), Ok(settings));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (name, value) in
            [(MODE, "on"), (FLIPS, "-1"), (POLICY, "fixed"), (POLICY, "fixed:x"), (WRITABLE, "yes")]
        {
            let said = read(&[(name, value)]).err().unwrap_or_default();
            assert!(said.starts_with(&format!("{name}={value}: ")), "{said}");
        }
    }
}
