//! The ways in which tracefs can count grace periods.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::tracefs::{Instance, TraceFs, append, probe_group};

/// What one memslot swap calls.
const WAIT: &str = "synchronize_srcu_expedited";

/// A timer that fires while the thread runs is recorded as the thread's; the
/// record's flags (`TRACE_FLAG_HARDIRQ`, `TRACE_FLAG_SOFTIRQ`) tell them apart.
const NOT_INTERRUPTED: &str = "!(common_flags & 0x18)";

/// How grace periods are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// A kprobe event on `synchronize_srcu_expedited()`, filtered by thread.
    /// Needs `CONFIG_KPROBE_EVENTS`, and no lockdown.
    Kprobe,
    /// The function tracer on the same function, filtered by thread. Needs
    /// `CONFIG_FUNCTION_TRACER`, and no lockdown.
    Function,
    /// The event `workqueue_queue_work` for `process_srcu()`, filtered by
    /// thread. Where no grace period is in progress, a synchronize call starts
    /// one by queueing `process_srcu()` from its own context
    /// (`srcu_funnel_gp_start()`), without delay if it is expedited;
    /// `process_srcu()` queues itself again from a kworker or, after a delay,
    /// from a timer, which are not counted.
    QueueWork,
    /// The event `workqueue_execute_start` for `srcu_invoke_callbacks()`, which
    /// runs once a grace period on the CPU that waits for it. It runs in a
    /// kworker, so it can't be filtered by thread: all of the machine's SRCU
    /// users are counted.
    InvokeCallbacks,
}

impl Method {
    /// All, the most direct first.
    pub const ALL: [Self; 4] =
        [Self::Kprobe, Self::Function, Self::QueueWork, Self::InvokeCallbacks];

    /// Sets the method up in `instance`, not enabled yet.
    pub(super) fn arm(self, tracefs: &TraceFs, instance: Instance) -> io::Result<Armed> {
        let mut armed = Armed { method: self, instance, event: None, probe: None };
        match self {
            Self::Kprobe => {
                let group = probe_group();
                let list = tracefs.path("kprobe_events");
                append(&list, &format!("p:{group}/grace {WAIT}"))?;
                armed.probe = Some((list, group.clone()));
                armed.use_event(&format!("events/{group}/grace"), &this_thread())?;
            }
            Self::Function => {
                armed.instance.put("set_ftrace_filter", WAIT)?;
                armed.instance.put("set_ftrace_pid", &thread_id().to_string())?;
                // Refused here rather than in the middle of a count.
                armed.enable(true)?;
                armed.enable(false)?;
            }
            Self::QueueWork => {
                let event = "events/workqueue/workqueue_queue_work";
                let also = [&*this_thread(), NOT_INTERRUPTED];
                armed.use_function_event(event, "process_srcu", &also)?;
            }
            Self::InvokeCallbacks => {
                let event = "events/workqueue/workqueue_execute_start";
                armed.use_function_event(event, "srcu_invoke_callbacks", &[])?;
            }
        }
        Ok(armed)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kprobe => "kprobe on synchronize_srcu_expedited",
            Self::Function => "function tracer on synchronize_srcu_expedited",
            Self::QueueWork => "event workqueue_queue_work of process_srcu",
            Self::InvokeCallbacks => "event workqueue_execute_start of srcu_invoke_callbacks",
        })
    }
}

/// A method that is set up in its instance.
#[derive(Debug)]
pub(super) struct Armed {
    method: Method,
    instance: Instance,
    /// The event's folder in the instance.
    event: Option<String>,
    /// The list of kprobe events and the group of ours.
    probe: Option<(PathBuf, String)>,
}

impl Armed {
    pub(super) const fn method(&self) -> Method {
        self.method
    }

    pub(super) fn instance(&self) -> &Path {
        self.instance.path()
    }

    fn use_event(&mut self, event: &str, filter: &str) -> io::Result<()> {
        self.instance.put(&format!("{event}/filter"), filter)?;
        self.event = Some(event.to_owned());
        Ok(())
    }

    /// An event with a field `function`, for one function only: named where
    /// the kernel can do that (6.6), else by its address.
    fn use_function_event(&mut self, event: &str, function: &str, also: &[&str]) -> io::Result<()> {
        let filter = |first: String| [&[first.as_str()], also].concat().join(" && ");
        let by_name = self.use_event(event, &filter(format!("function.function == {function}")));
        by_name.or_else(|error| match address_of(function) {
            Some(address) => self.use_event(event, &filter(format!("function == {address}"))),
            None => Err(error),
        })
    }

    /// Switches recording on or off.
    pub(super) fn enable(&self, on: bool) -> io::Result<()> {
        let switch = if on { "1" } else { "0" };
        if let Some(event) = &self.event {
            self.instance.put(&format!("{event}/enable"), switch)?;
        }
        if self.method == Method::Function {
            self.instance.put("current_tracer", if on { "function" } else { "nop" })?;
        }
        self.instance.put("tracing_on", switch)
    }

    /// What the count stands at.
    pub(super) fn records(&self) -> io::Result<u64> {
        self.instance.records()
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        let _ = self.enable(false);
        if let Some((list, group)) = &self.probe {
            let _ = append(list, &format!("-:{group}/grace"));
        }
    }
}

/// The filter for what this thread does. In a PID namespace the kernel's id is
/// another one; the method then counts nothing, and calibration rejects it.
fn this_thread() -> String {
    format!("common_pid == {}", thread_id())
}

fn thread_id() -> i32 {
    nix::unistd::gettid().as_raw()
}

/// The address of a kernel function, where `/proc/kallsyms` tells.
fn address_of(function: &str) -> Option<String> {
    let symbols = std::fs::read_to_string("/proc/kallsyms").ok()?;
    let line = symbols.lines().find(|line| line.split(' ').nth(2) == Some(function))?;
    let address = line.split(' ').next()?;
    address.contains(|digit| digit != '0').then(|| format!("0x{address}"))
}
