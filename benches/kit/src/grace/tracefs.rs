//! The part of tracefs that counting needs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MsFlags, mount};

/// Where the kernel makes a mount point for tracefs.
const USUAL_PLACE: &str = "/sys/kernel/tracing";

/// Instances are called this, the process id and a number.
const PREFIX: &str = "kvm-memslots";

/// Buffers are per CPU, and what they have lost is counted too, so they need
/// not be large.
const BUFFER_KB: &str = "64";

/// A mounted tracefs.
#[derive(Debug, Clone)]
pub(super) struct TraceFs {
    root: PathBuf,
}

impl TraceFs {
    /// The tracefs that is mounted, or, for root, mounted now, where it always
    /// is.
    pub(super) fn find() -> io::Result<Self> {
        if let Some(root) = mounted(&fs::read_to_string("/proc/self/mounts")?) {
            return Ok(Self { root });
        }
        let none: Option<&str> = None;
        mount(Some("tracefs"), USUAL_PLACE, Some("tracefs"), MsFlags::empty(), none)?;
        Ok(Self { root: USUAL_PLACE.into() })
    }

    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.root.join(file)
    }

    /// Removes what processes left behind that are gone. (An instance that is
    /// in use can't be removed: its owner holds a file in it open.)
    pub(super) fn remove_stale(&self) {
        let instances = fs::read_dir(self.path("instances"));
        for name in instances.into_iter().flatten().flatten().map(|entry| entry.file_name()) {
            if name.to_str().and_then(owner).is_some_and(|pid| !is_alive(pid)) {
                let _ = fs::remove_dir(self.path("instances").join(name));
            }
        }
        let probes = fs::read_to_string(self.path("kprobe_events")).unwrap_or_default();
        for (group, pid) in probes.lines().filter_map(probe_owner) {
            if !is_alive(pid) {
                let _ = append(&self.path("kprobe_events"), &format!("-:{group}/"));
            }
        }
    }
}

fn mounted(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "tracefs").then(|| PathBuf::from(place.replace("\\040", " ")))
    })
}

/// The process id in an instance's name.
fn owner(instance: &str) -> Option<u32> {
    instance.strip_prefix(PREFIX)?.strip_prefix('-')?.split('-').next()?.parse().ok()
}

/// Group and process id of a line of `kprobe_events` that is ours.
fn probe_owner(line: &str) -> Option<(&str, u32)> {
    let group = line.split_once(':')?.1.split('/').next()?;
    Some((group, group.strip_prefix(probe_prefix().as_str())?.parse().ok()?))
}

/// A group's name may hold no dashes.
fn probe_prefix() -> String {
    PREFIX.replace('-', "_") + "_"
}

/// The group of this process's kprobe events.
pub(super) fn probe_group() -> String {
    format!("{}{}", probe_prefix(), std::process::id())
}

fn is_alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Writes `text` as one `write`, as tracefs wants it.
pub(super) fn put(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).truncate(true).open(path)?.write_all(text.as_bytes())
}

/// [`put`] for files in which truncation clears what others have set.
pub(super) fn append(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().append(true).open(path)?.write_all(text.as_bytes())
}

/// A trace buffer of our own: other tracing on the machine neither sees it nor
/// fills it.
#[derive(Debug)]
pub(super) struct Instance {
    path: PathBuf,
    /// Open, so that nobody else removes the instance as stale.
    in_use: Option<File>,
}

impl Instance {
    /// A new instance with tracing off.
    pub(super) fn new(tracefs: &TraceFs) -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}-{}-{number}", std::process::id());
        let path = tracefs.path("instances").join(name);
        fs::create_dir(&path)?;
        let mut instance = Self { path, in_use: None };
        instance.in_use = Some(File::open(instance.file("tracing_on"))?);
        instance.put("tracing_on", "0")?;
        instance.put("buffer_size_kb", BUFFER_KB)?;
        Ok(instance)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn put(&self, file: &str, text: &str) -> io::Result<()> {
        put(&self.file(file), text)
    }

    /// How many records were ever written, on all CPUs, lost ones included.
    pub(super) fn records(&self) -> io::Result<u64> {
        let mut sum = 0;
        for cpu in fs::read_dir(self.file("per_cpu"))? {
            sum += records_of(&fs::read_to_string(cpu?.path().join("stats"))?);
        }
        Ok(sum)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.in_use = None;
        // The kernel switches the instance's events and tracer off with it.
        let _ = fs::remove_dir(&self.path);
    }
}

/// The records that a `stats` file tells of: those in the buffer, and those
/// that were overwritten, read or dropped.
fn records_of(stats: &str) -> u64 {
    const COUNTS: [&str; 4] = ["entries", "overrun", "read events", "dropped events"];
    let count = |line: &str| {
        let (name, value) = line.split_once(": ")?;
        COUNTS.contains(&name).then(|| value.trim().parse::<u64>().ok())?
    };
    stats.lines().filter_map(count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read() {
        let mounts = "proc /proc proc rw 0 0\n\
                      tracefs /mnt/with\\040blank tracefs rw 0 0\n";
        assert_eq!(mounted(mounts), Some("/mnt/with blank".into()));
        assert_eq!(mounted("tracefs /tracefs tmpfs rw 0 0\n"), None);
    }

    #[test]
    fn only_our_own_leftovers_are_recognised() {
        assert_eq!(owner("kvm-memslots-17-3"), Some(17));
        assert_eq!(owner("kvm-memslots-x-3"), None);
        assert_eq!(owner("perf-17-3"), None);
        let ours = "p:kvm_memslots_17/grace synchronize_srcu_expedited";
        assert_eq!(probe_owner(ours), Some(("kvm_memslots_17", 17)));
        assert_eq!(probe_owner("p:kprobes/p_vfs_read_0 vfs_read"), None);
    }

    #[test]
    fn lost_records_count() {
        let stats = "entries: 3\noverrun: 40\ncommit overrun: 7\nbytes: 900\n\
                     oldest event ts:  0.1\nnow ts: 12.0\ndropped events: 5\nread events: 600\n";
        assert_eq!(records_of(stats), 648);
    }
}
