//! Processes that do the same at the same time, each on a VM of its own.
//!
//! A member is this program again, with a hidden subcommand: it prepares itself,
//! says that it is ready, waits for a line, does its work, says in a line of JSON
//! what that took, and keeps what it made until its input ends.

use std::fmt::Display;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};

use serde::Serialize;
use serde::de::DeserializeOwned;

const READY: &str = "ready";

/// Why a fleet has no result.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// A process could not be started.
    #[error("starting a process: {0}")]
    Start(io::Error),
    /// A member failed.
    #[error("VM {index} of those set up at a time: {why}")]
    Member {
        /// Which.
        index: usize,
        /// What it said.
        why: String,
    },
}

/// What a member does: `work` on what `prepare` made. What `work` returns beside
/// what it measured is kept to the end.
#[must_use]
pub(crate) fn member<P, M: Serialize, K, E: Display>(
    prepare: impl FnOnce() -> Result<P, E>,
    work: impl FnOnce(P) -> Result<(M, K), E>,
) -> ExitCode {
    let say = |line: &str| {
        let mut out = io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|error| error.to_string())
    };
    let done = || {
        let prepared = prepare().map_err(|error| error.to_string())?;
        say(READY)?;
        let (mut input, mut line) = (io::stdin().lock(), String::new());
        let heard = |read: io::Result<usize>| read.map_err(|error| error.to_string());
        if heard(input.read_line(&mut line))? == 0 {
            return Ok(());
        }
        let (measured, _kept) = work(prepared).map_err(|error| error.to_string())?;
        say(&serde_json::to_string(&measured).map_err(|error| error.to_string())?)?;
        heard(input.read_to_string(&mut line))?;
        Ok::<_, String>(())
    };
    match done() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // Without it the one who waits for this hears that it ended.
            let _unheard = writeln!(io::stdout(), "{why}");
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
    pub(crate) fn start(count: u32, args: &[String]) -> Result<Self, FleetError> {
        let mut fleet = Self(Vec::new());
        for _ in 0..count {
            fleet.0.push(start(args).map_err(FleetError::Start)?);
        }
        for (index, member) in fleet.0.iter_mut().enumerate() {
            let said = member.line(index)?;
            if said != READY {
                return Err(FleetError::Member { index, why: said });
            }
        }
        Ok(fleet)
    }

    /// Has all of them do their work at the same time; what each one measured.
    pub(crate) fn go<M: DeserializeOwned>(mut self) -> Result<Vec<M>, FleetError> {
        for (index, member) in self.0.iter_mut().enumerate() {
            let go = member.input.as_mut().map(|input| input.write_all(b"go\n"));
            if let Some(Err(error)) = go {
                return Err(FleetError::Member { index, why: error.to_string() });
            }
        }
        let measured = |(index, member): (usize, &mut Member)| {
            let said = member.line(index)?;
            serde_json::from_str(&said).map_err(|_| FleetError::Member { index, why: said })
        };
        self.0.iter_mut().enumerate().map(measured).collect()
    }
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
    fn line(&mut self, index: usize) -> Result<String, FleetError> {
        let mut line = String::new();
        let read = self.output.read_line(&mut line);
        let line = line.trim_end().to_owned();
        match read {
            Ok(1..) => Ok(line),
            Ok(_) => Err(FleetError::Member { index, why: "its process said nothing".to_owned() }),
            Err(error) => Err(FleetError::Member { index, why: error.to_string() }),
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
