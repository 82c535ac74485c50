//! A kernel's configuration: `tinyconfig` and the lab's fragments.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;

use anyhow::{Context as _, Result};

use super::make::Make;
use super::target::Target;
use crate::run;

/// A hash of the fragments that `target` is configured with.
pub(super) fn hash(target: &Target) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    fragments(target)?.hash(&mut hasher);
    Ok(hasher.finish())
}

/// The fragments, one after the other: of two that set an option, the last
/// counts.
fn fragments(target: &Target) -> Result<String> {
    let mut text = String::new();
    for path in target.fragments() {
        text += &fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    }
    Ok(text)
}

/// Makes `.config`, anew where the fragments are not those it was made of.
pub(super) fn configure(target: &Target, make: &Make) -> Result<()> {
    let stamp = make.build.join("lab.stamp");
    let hash = format!("{:016x}\n", hash(target)?);
    let config = make.build.join(".config");
    let same = fs::read_to_string(&stamp).is_ok_and(|is| is == hash);
    if !config.exists() || !same {
        let _ = fs::remove_file(&config);
        make.run("tinyconfig", &["tinyconfig"])?;
        let tiny = fs::read_to_string(&config).context("tinyconfig made no .config")?;
        fs::write(&config, merged(&tiny, &fragments(target)?)).context(".config")?;
    }
    // Also what a new series adds.
    make.run("olddefconfig", &["olddefconfig"])?;
    for option in refused(&fragments(target)?, &read(&config)?) {
        run::say(&format!("note: this kernel is built without {option}"));
    }
    fs::write(&stamp, hash).context("lab.stamp")
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("{}", path.display()))
}

/// The option that a line sets or unsets.
fn option(line: &str) -> Option<&str> {
    let unset = line.strip_prefix("# ").and_then(|line| line.strip_suffix(" is not set"));
    let name = unset.or_else(|| line.split_once('=').map(|(name, _)| name))?;
    name.starts_with("CONFIG_").then_some(name)
}

/// `config` with the options of `fragments`, each once.
fn merged(config: &str, fragments: &str) -> String {
    let own: Vec<&str> = fragments.lines().filter_map(option).collect();
    let kept = config.lines().filter(|line| option(line).is_none_or(|name| !own.contains(&name)));
    let last = |(nth, line): &(usize, &str)| {
        let rest = fragments.lines().skip(nth + 1);
        option(line).is_some_and(|name| !rest.filter_map(option).any(|other| other == name))
    };
    let set = fragments.lines().enumerate().filter(last).map(|(_, line)| line);
    kept.chain(set).flat_map(|line| [line, "\n"]).collect()
}

/// The options that the last word of `fragments` on them switches on, and that
/// are off in `config`.
fn refused<'a>(fragments: &'a str, config: &str) -> Vec<&'a str> {
    let wanted = fragments.lines().enumerate().filter(|(nth, line)| {
        let Some(name) = line.strip_suffix("=y") else { return false };
        !fragments.lines().skip(nth + 1).filter_map(option).any(|other| other == name)
    });
    let is_on = |line: &str| config.lines().any(|other| other == line);
    wanted.map(|(_, line)| line).filter(|line| !is_on(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        assert_eq!(option("CONFIG_A=y"), Some("CONFIG_A"));
        assert_eq!(option("CONFIG_A=\"x=y\""), Some("CONFIG_A"));
        assert_eq!(option("# CONFIG_A is not set"), Some("CONFIG_A"));
        assert_eq!(option("# a comment"), None);
        assert_eq!(option(""), None);
    }

    #[test]
    fn the_last_word_counts() {
        let tiny = "# head\n# CONFIG_SMP is not set\nCONFIG_SLUB_TINY=y\nCONFIG_HZ=100\n";
        let fragments = "CONFIG_SMP=y\nCONFIG_KVM=n\nCONFIG_KVM=y\n# CONFIG_SLUB_TINY is not set\n";
        let expected =
            "# head\nCONFIG_HZ=100\nCONFIG_SMP=y\nCONFIG_KVM=y\n# CONFIG_SLUB_TINY is not set\n";
        assert_eq!(merged(tiny, fragments), expected);
    }

    #[test]
    fn what_kconfig_does_not_grant_is_told() {
        let fragments = "CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=n\nCONFIG_D=y\n# CONFIG_D is not set\n";
        assert_eq!(refused(fragments, "CONFIG_A=y\n# CONFIG_B is not set\n"), ["CONFIG_B=y"]);
    }
}
