//! `cargo xtask pages`: the reports and the book, looked at in a browser at a phone's
//! and a desk's width, and printed.
//!
//! `check.js` finds text that lies over text, pages that scroll sideways, and on paper
//! what is cut off. It is held against `broken.html` first, which has all of that.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::log::Outcome;
use crate::workspace::{cargo, root, target};
use crate::{apt, run};

/// What to look at.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also write each page as pictures and, printed, as PDF into target/pages
    #[arg(long)]
    pictures: bool,
}

/// Reports that are looked at: a name and the arguments of `memslots`. Where there is
/// no KVM, those of it are left out.
const REPORTS: [(&str, bool, &[&str]); 4] = [
    (
        "model",
        false,
        &["bench", "sparse", "boot", "--regions", "4,40,300", "--runs", "3", "--executor", "model"],
    ),
    ("bench", true, &["bench", "sparse", "--regions", "4,40", "--runs", "5", "--vcpus", "0"]),
    ("devices", true, &["bench", "devices", "--devices", "2", "--runs", "3", "--vcpus", "0"]),
    ("doctor", true, &["doctor", "--runs", "3"]),
];

/// What the check has to find in `broken.html`, by place.
const BROKEN: [(&str, &str); 5] = [
    ("phone", "too wide"),
    ("phone", "\"one label\" over \"another\""),
    ("desktop", "\"one label\" over \"another\""),
    ("print", "\"The line above.\" over"),
    ("print", "px of text off: pre"),
];

const CHECK: &str = include_str!("check.js");
const BROKEN_PAGE: &str = include_str!("broken.html");

/// A page, as the check found it in a place.
#[derive(Debug, Deserialize)]
struct Found {
    page: String,
    place: String,
    said: Vec<String>,
    texts: usize,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    match look(args) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Skipped(why)) => {
            run::say(&format!("SKIPPED pages: {why}"));
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn look(args: &Args) -> Result<Outcome> {
    let Some(browser) = browser() else {
        return Ok(Outcome::Skipped("no Chromium (as root: apt-get install chromium)".to_owned()));
    };
    let dir = target().join("pages");
    fs::create_dir_all(&dir).with_context(|| format!("{}", dir.display()))?;
    let (mut pages, mut skipped) = (reports(&dir)?, 0);
    if !Path::new("/dev/kvm").exists() {
        skipped += REPORTS.iter().filter(|(_, needs_kvm, _)| *needs_kvm).count();
        run::say("SKIPPED pages: reports of this machine's KVM: no /dev/kvm");
    }
    if let Some(mdbook) = mdbook() {
        pages.extend(book(&mdbook)?);
    } else {
        skipped += 1;
        run::say("SKIPPED pages: the book: no mdbook (cargo install mdbook)");
    }
    if pages.is_empty() {
        bail!("there is no page to look at");
    }
    let found = check(browser, &dir, &pages)?;
    let mut faults = 0;
    for Found { page, place, said, texts } in &found {
        let short = page.rsplit("/target/").next().unwrap_or(page);
        if *texts == 0 {
            faults += 1;
            run::say(&format!("FAILED pages: {short}, {place}: no text"));
        }
        for fault in said {
            faults += 1;
            run::say(&format!("FAILED pages: {short}, {place}: {fault}"));
        }
    }
    if args.pictures {
        pictures(browser, &dir, &pages)?;
    }
    let looks = found.len();
    run::say(&format!("{} pages, {looks} looks: {faults} faults, {skipped} skipped", pages.len()));
    if faults > 0 {
        bail!("{faults} faults in pages");
    }
    Ok(Outcome::Done)
}

/// A Chromium, installed where that is allowed.
fn browser() -> Option<&'static str> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let there = || names.into_iter().find(|name| run::exists(name));
    there().or_else(|| {
        if apt::available()
            && apt::may_install()
            && let Err(e) = apt::install(&["chromium"])
        {
            run::say(&format!("note: {e:#}"));
        }
        there()
    })
}

/// The program that makes the book, built under `target/` where there is none.
fn mdbook() -> Option<PathBuf> {
    let tools = target().join("tools");
    let own = tools.join("bin/mdbook");
    if run::exists("mdbook") {
        return Some("mdbook".into());
    }
    if !own.exists() {
        run::say("building mdbook: 3 minutes");
        let mut install = cargo();
        install.args(["install", "mdbook", "--locked", "--quiet", "--no-default-features"]);
        install.args(["--features", "search", "--root"]).arg(&tools);
        match run::streamed(&mut install, run::say) {
            Ok(status) if !status.success() => {
                run::say(&format!("note: cargo install mdbook ended with {status}"));
            }
            Err(e) => run::say(&format!("note: {e:#}")),
            Ok(_) => {}
        }
    }
    own.exists().then_some(own)
}

/// The reports, made by the tool.
fn reports(dir: &Path) -> Result<Vec<PathBuf>> {
    let build = ["build", "--quiet", "--package", "kvm-memslots-bench", "--bin", "memslots"];
    succeed(cargo().args(build))?;
    let has_kvm = Path::new("/dev/kvm").exists();
    let mut pages = Vec::new();
    for (name, _, args) in REPORTS.iter().filter(|(_, needs_kvm, _)| has_kvm || !needs_kvm) {
        let page = dir.join(format!("{name}.html"));
        let mut memslots = Command::new(target().join("debug/memslots"));
        succeed(memslots.args(*args).arg("--html").arg(&page))?;
        pages.push(page);
    }
    Ok(pages)
}

/// All pages of the book but those that are others once more.
fn book(mdbook: &Path) -> Result<Vec<PathBuf>> {
    let dir = target().join("book");
    succeed(Command::new(mdbook).arg("build").arg("--dest-dir").arg(&dir).arg(root()))?;
    let text = fs::read_to_string(root().join("docs/SUMMARY.md")).context("docs/SUMMARY.md")?;
    let linked = text.split("](").skip(1).filter_map(|rest| rest.split_once(".md)"));
    let page = |(name, _): (&str, &str)| match name.strip_suffix("README") {
        Some(parent) => dir.join(format!("{parent}index.html")),
        None => dir.join(format!("{name}.html")),
    };
    Ok(linked.map(page).collect())
}

/// Runs `command`, whose output is shown only if it fails.
fn succeed(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("can't run {}", run::shown(command)))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    bail!("{} ended with {}: {}", run::shown(command), output.status, said.trim())
}

/// What the check finds in `pages`, once it has found what is wrong with the broken one.
fn check(browser: &str, dir: &Path, pages: &[PathBuf]) -> Result<Vec<Found>> {
    let broken = dir.join("broken.html");
    fs::write(&broken, BROKEN_PAGE).context("writing the broken page")?;
    let urls: Vec<String> =
        [&broken].into_iter().chain(pages).map(|page| url(page)).collect::<Result<_>>()?;
    let script = format!("const PAGES = {};\n{CHECK}", serde_json::to_string(&urls)?);
    let frame = dir.join("check.html");
    let text = format!(
        "<!DOCTYPE html><meta charset=\"utf-8\"/><iframe></iframe><pre></pre>\
         <script>{script}</script>"
    );
    fs::write(&frame, text).context("writing the page that checks")?;
    let mut command = chromium(browser, dir);
    // Of time that passes as fast as pages allow.
    command.args(["--virtual-time-budget=600000", "--window-size=1400,1000", "--dump-dom"]);
    let output = command.arg(url(&frame)?).output().context("can't run Chromium")?;
    let dom = String::from_utf8_lossy(&output.stdout);
    let said = dom.split_once("<pre>").and_then(|(_, rest)| rest.split_once("</pre>"));
    let (said, _) = said.context("Chromium printed no page")?;
    let said = said.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    let found = serde_json::from_str(&said).with_context(|| format!("the check said {said:?}"))?;
    sound(found, &urls)
}

/// What was found but in the broken page, if all was looked at.
fn sound(found: Vec<Found>, urls: &[String]) -> Result<Vec<Found>> {
    let (broken, found): (Vec<Found>, Vec<Found>) =
        found.into_iter().partition(|found| Some(&found.page) == urls.first());
    for (place, fault) in BROKEN {
        let seen = broken.iter().filter(|found| found.place == place);
        if !seen.flat_map(|found| &found.said).any(|said| said.contains(fault)) {
            bail!("the check is blind: it does not see {fault} ({place}) in {broken:?}");
        }
    }
    let places: BTreeSet<&str> = BROKEN.iter().map(|(place, _)| *place).collect();
    for url in &urls[1..] {
        let looks = found.iter().filter(|found| found.page == *url).count();
        if looks != places.len() {
            bail!("{url} was looked at {looks} times");
        }
    }
    Ok(found)
}

fn chromium(browser: &str, dir: &Path) -> Command {
    let mut command = Command::new(browser);
    command.args(["--headless", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]);
    // Its pages are ours, and root has no sandbox.
    command.args(["--no-sandbox", "--allow-file-access-from-files"]);
    command.arg(format!("--user-data-dir={}", dir.join("profile").display()));
    command.stdin(Stdio::null());
    command
}

fn url(page: &Path) -> Result<String> {
    let page = fs::canonicalize(page).with_context(|| format!("{}", page.display()))?;
    Ok(format!("file://{}", page.display()))
}

/// Pictures of each page, and what a printer gets.
fn pictures(browser: &str, dir: &Path, pages: &[PathBuf]) -> Result<()> {
    for page in pages {
        let name = page.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let url = url(page)?;
        for width in [390, 1280] {
            // A window is no narrower than 500 pixels.
            let frame = dir.join("frame.html");
            let style = "margin:0;border:0;background:#fff";
            let text = format!(
                "<!DOCTYPE html><body style=\"margin:0\"><iframe style=\"{style}\" src=\"{url}\" \
                 width=\"{width}\" height=\"3000\"></iframe></body>"
            );
            fs::write(&frame, text).context("writing the page with a frame")?;
            let picture = dir.join(format!("{name}-{width}.png"));
            let mut command = chromium(browser, dir);
            command.arg(format!("--window-size={},3000", width.max(500)));
            command.arg(format!("--screenshot={}", picture.display()));
            succeed(command.arg(self::url(&frame)?))?;
        }
        let pdf = dir.join(format!("{name}.pdf"));
        let mut command = chromium(browser, dir);
        succeed(command.arg(format!("--print-to-pdf={}", pdf.display())).arg(&url))?;
    }
    run::say(&format!("pictures are in {}", dir.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(page: &str, place: &str, said: &[&str]) -> Found {
        let said = said.iter().map(|said| (*said).to_owned()).collect();
        Found { page: page.to_owned(), place: place.to_owned(), said, texts: 1 }
    }

    #[test]
    fn a_check_that_sees_nothing_is_no_check() {
        let urls = ["file:///broken", "file:///a"].map(str::to_owned);
        let broken = |label| {
            vec![
                found(&urls[0], "phone", &["is 9 px too wide: p.", label]),
                found(&urls[0], "desktop", &[label]),
                found(
                    &urls[0],
                    "print",
                    &["has \"The line above.\" over \"it\"", "cuts 9 px of text off: pre"],
                ),
            ]
        };
        let label = "has \"one label\" over \"another\"";
        let places = || ["phone", "desktop", "print"].map(|place| found(&urls[1], place, &[]));
        let all = broken(label).into_iter().chain(places()).collect();
        assert_eq!(sound(all, &urls).expect("all was seen").len(), 3);
        let blind = broken("").into_iter().chain(places()).collect();
        assert!(sound(blind, &urls).is_err_and(|e| e.to_string().contains("blind")));
        assert!(sound(broken(label), &urls).is_err_and(|e| e.to_string().contains("0 times")));
    }
}
