//! A process with one VM that is set up when it is told to.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::table::Samples;
use super::vm::Machine;
use super::{DensityError, Flag};

/// The hidden subcommand that this is.
pub(crate) const SUBCOMMAND: &str = "density-worker";

/// What a worker measured.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Measured {
    /// VM, interrupt controller and eventfds.
    create_ns: u64,
    /// Each `KVM_IRQFD`.
    irqfd_ns: Vec<u64>,
}

/// A worker's process: says that it is ready, waits for a line, sets its VM up,
/// says what that took, and keeps the VM until its input ends.
#[must_use]
pub fn worker(irqfds: u32, flag: Flag) -> ExitCode {
    match work(irqfds, flag) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn work(irqfds: u32, flag: Flag) -> Result<(), DensityError> {
    let io = |what| DensityError::vm(what);
    let mut input = io::stdin().lock();
    let say = |line: &str| {
        let mut out = io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush())
    };
    say("ready").map_err(io("writing"))?;
    let mut line = String::new();
    input.read_line(&mut line).map_err(io("reading"))?;

    let start = Instant::now();
    let mut machine = Machine::new()?;
    machine.prepare(irqfds)?;
    let create_ns = start.elapsed().as_nanos() as u64;
    let mut irqfd_ns = Vec::with_capacity(irqfds as usize);
    for index in 0..irqfds as usize {
        let start = Instant::now();
        machine.assign(index, flag)?;
        irqfd_ns.push(start.elapsed().as_nanos() as u64);
    }
    let measured = serde_json::to_string(&Measured { create_ns, irqfd_ns });
    let measured = measured.map_err(|error| io("writing")(error.into()))?;
    say(&measured).map_err(io("writing"))?;
    input.read_to_string(&mut line).map_err(io("reading"))?;
    Ok(())
}

/// Several of them.
#[derive(Debug)]
pub(super) struct Workers(Vec<Worker>);

#[derive(Debug)]
struct Worker {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Workers {
    /// Starts them, and waits until all are ready.
    pub(super) fn start(count: u32, irqfds: u32, flag: Flag) -> Result<Self, DensityError> {
        let mut workers = Self(Vec::new());
        for _ in 0..count {
            let started = start(irqfds, flag).map_err(DensityError::vm("starting a process"))?;
            workers.0.push(started);
        }
        for (index, worker) in workers.0.iter_mut().enumerate() {
            let said = worker.line(index)?;
            if said != "ready" {
                return Err(DensityError::Worker { index, why: said });
            }
        }
        Ok(workers)
    }

    /// Has all of them set up their VMs at the same time.
    pub(super) fn measure(mut self, samples: &mut Samples) -> Result<(), DensityError> {
        for (index, worker) in self.0.iter_mut().enumerate() {
            let go = worker.input.as_mut().map(|input| input.write_all(b"go\n"));
            if let Some(Err(error)) = go {
                return Err(DensityError::Worker { index, why: error.to_string() });
            }
        }
        for (index, worker) in self.0.iter_mut().enumerate() {
            let said = worker.line(index)?;
            let Ok(measured) = serde_json::from_str::<Measured>(&said) else {
                return Err(DensityError::Worker { index, why: said });
            };
            samples.add(measured.create_ns, &measured.irqfd_ns);
        }
        Ok(())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        // All VMs go before the next are measured.
        self.0.iter_mut().for_each(|worker| worker.input = None);
        for worker in &mut self.0 {
            let _ = worker.process.wait();
        }
    }
}

impl Worker {
    fn line(&mut self, index: usize) -> Result<String, DensityError> {
        let mut line = String::new();
        let read = self.output.read_line(&mut line);
        let line = line.trim_end().to_owned();
        match read {
            Ok(1..) => Ok(line),
            Ok(_) => {
                Err(DensityError::Worker { index, why: "its process said nothing".to_owned() })
            }
            Err(error) => Err(DensityError::Worker { index, why: error.to_string() }),
        }
    }
}

fn start(irqfds: u32, flag: Flag) -> io::Result<Worker> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(SUBCOMMAND).arg("--irqfds").arg(irqfds.to_string());
    if flag.0 {
        command.arg("--no-irqbypass");
    }
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (input, output) = (process.stdin.take(), process.stdout.take());
    let output = output.ok_or_else(|| io::Error::other("no pipe"))?;
    Ok(Worker { process, input, output: BufReader::new(output) })
}
