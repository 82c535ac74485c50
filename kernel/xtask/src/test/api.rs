//! Whether the published crates offer what the repository says they do.

use anyhow::{Result, bail};

use crate::api::{self, Api};
use crate::log::{Log, Outcome};

/// Fails where a crate's list is not of what the crate is.
pub(super) fn check(log: &mut Log) -> Result<Outcome> {
    let published = api::published()?;
    let mut lists = Vec::new();
    for package in &published {
        match Api::of(package, &published, &mut |command| log.command(command))? {
            Ok(api) => lists.push(api.compare()?),
            Err(unreadable) => return Ok(Outcome::Skipped(unreadable.to_string())),
        }
    }
    for line in lists.iter().flat_map(|list| &list.lines) {
        log.say(line);
    }
    let differ = lists.iter().filter(|list| !list.same).count();
    if differ > 0 {
        bail!("{differ} of {} crates are not as listed; {}", lists.len(), api::accept());
    }
    Ok(Outcome::Done)
}
