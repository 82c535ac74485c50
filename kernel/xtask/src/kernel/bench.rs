//! `memslots bench` in a guest.

use std::process::ExitCode;

use anyhow::Result;

use super::boot::{Guest, Job};
use super::initrd::Command;
use super::programs::{self, Source};
use super::target::Target;
use crate::run;

const MEMSLOTS: Source = Source { package: "kvm-memslots-bench", kind: "bin", name: "memslots" };

/// What is run where nothing else is asked for: all in one boot, which is
/// what makes times of an emulated machine comparable.
const DEFAULT: [&[&str]; 3] = [
    &["sparse", "--regions", "9000", "--vcpus", "0", "--runs", "3"],
    &["sparse", "--regions", "1000", "--vcpus", "1", "--runs", "3"],
    &["dirty-log", "--regions", "256", "--vcpus", "0", "--runs", "5"],
];

/// Runs `memslots bench` as `args` says.
pub(super) fn run(target: &Target, guest: &Guest, args: &super::Bench) -> Result<ExitCode> {
    let programs = programs::build(&[MEMSLOTS], target.arch)?;
    let command = Command { words: words(&args.args), env: args.qemu.env.clone() };
    let programs = programs.iter().collect();
    let ended = guest.run(&Job { name: "bench", command, programs, append: "" }, run::say)?;
    run::say(&format!("exit status {} after {:.1} s", ended.status, ended.took.as_secs_f64()));
    Ok(u8::try_from(ended.status).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn words(args: &[String]) -> Vec<String> {
    let bench = |args: &[&str]| {
        let words: Vec<String> = args.iter().map(|arg| run::quoted(arg)).collect();
        format!("/bin/memslots bench {}", words.join(" "))
    };
    let script = if args.is_empty() {
        let echoed = |args: &&[&str]| format!("echo '$ {0}' && {0}", bench(args));
        DEFAULT.iter().map(echoed).collect::<Vec<_>>().join(" && ")
    } else {
        bench(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    ["sh", "-c", &script].map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_those_of_memslots() {
        let args = ["sparse", "--regions", "a b"].map(str::to_owned);
        assert_eq!(words(&args), ["sh", "-c", "/bin/memslots bench sparse --regions 'a b'"]);
    }

    #[test]
    fn the_default_ends_with_the_first_failure() {
        let script = words(&[]).pop().unwrap_or_default();
        assert_eq!(script.matches(" && ").count(), 2 * DEFAULT.len() - 1);
        assert!(script.contains("sparse --regions 9000"));
    }
}
