//! Processes that do the same at the same time, each on a VM of its own.
//!
//! A member is this program again, with a hidden subcommand: it prepares itself,
//! says that it is ready, waits for a line, does its work, says in a line of JSON
//! what that took, and keeps what it made until its input ends.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

const READY: &str = "ready";

/// What a member does: `work` on what `prepare` made. What `work` returns beside
/// what it measured is kept to the end.
#[must_use]
pub(crate) fn member<P, M: Serialize, K>(
    prepare: impl FnOnce() -> Result<P>,
    work: impl FnOnce(P) -> Result<(M, K)>,
) -> ExitCode {
    let say = |line: &str| {
        let mut out = io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush())
    };
    let done = || -> Result<()> {
        let prepared = prepare()?;
        say(READY)?;
        let (mut input, mut line) = (io::stdin().lock(), String::new());
        if input.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let (measured, _kept) = work(prepared)?;
        say(&serde_json::to_string(&measured)?)?;
        input.read_to_string(&mut line)?;
        Ok(())
    };
    match done() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // Without it the one who waits for this hears that it ended.
            let _unheard = writeln!(io::stdout(), "{why:#}");
            ExitCode::FAILURE
        }
    }
}

/// Members that are ready.
#[derive(Debug)]
pub(crate) struct Fleet(Vec<Member>);

#[derive(Debug)]
struct Member {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Fleet {
    /// Starts `count` of them with these arguments, and waits until all are ready.
    pub(crate) fn start(count: u32, args: &[String]) -> Result<Self> {
        let mut fleet = Self(Vec::new());
        for _ in 0..count {
            fleet.0.push(start(args).context("starting a process")?);
        }
        for (index, member) in fleet.0.iter_mut().enumerate() {
            let said = member.line().with_context(|| failed(index))?;
            if said != READY {
                bail!("{}: {said}", failed(index));
            }
        }
        Ok(fleet)
    }

    /// Has all of them do their work at the same time; what each one measured.
    pub(crate) fn go<M: DeserializeOwned>(mut self) -> Result<Vec<M>> {
        for (index, member) in self.0.iter_mut().enumerate() {
            let go = member.input.as_mut().map(|input| input.write_all(b"go\n"));
            go.transpose().with_context(|| failed(index))?;
        }
        let measured = |(index, member): (usize, &mut Member)| {
            let said = member.line().with_context(|| failed(index))?;
            serde_json::from_str(&said).ok().with_context(|| format!("{}: {said}", failed(index)))
        };
        self.0.iter_mut().enumerate().map(measured).collect()
    }
}

fn failed(index: usize) -> String {
    format!("VM {index} of those set up at a time")
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // All VMs go before the next are measured.
        self.0.iter_mut().for_each(|member| member.input = None);
        for member in &mut self.0 {
            let _ = member.process.wait();
        }
    }
}

impl Member {
    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.output.read_line(&mut line)? {
            0 => Err(io::Error::other("its process said nothing")),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

fn start(args: &[String]) -> io::Result<Member> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(args);
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (input, output) = (process.stdin.take(), process.stdout.take());
    let output = output.ok_or_else(|| io::Error::other("no pipe"))?;
    Ok(Member { process, input, output: BufReader::new(output) })
}
