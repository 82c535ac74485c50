//! The structures of the header.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Arc;

use kvm_memslots::backend::Errno;
use kvm_memslots::{
    Builder, CommitReport, Executor, GateError, HolePolicy, Kind, Limits, MemFlags, Preview,
    Region, RegionId, RegionSpec, VcpuGate,
};

use crate::failure::Failure;

/// `struct kvm_memslots_region_id`
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct CRegionId {
    pub space: u32,
    pub index: u32,
    pub generation: u32,
}

impl From<RegionId> for CRegionId {
    fn from(id: RegionId) -> Self {
        let (space, index, generation) = id.to_raw();
        Self { space, index, generation }
    }
}

impl From<CRegionId> for RegionId {
    fn from(id: CRegionId) -> Self {
        Self::from_raw(id.space, id.index, id.generation)
    }
}

/// `struct kvm_memslots_gate`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct CGate {
    pub pause: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
    pub resume: Option<unsafe extern "C" fn(*mut c_void)>,
    pub opaque: *mut c_void,
}

/// `struct kvm_memslots_slot_range`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct CSlotRange {
    pub first: u16,
    pub last: u16,
}

/// `struct kvm_memslots_options`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct COptions {
    pub address_space: u16,
    pub manual_dirty_log: bool,
    pub executor: u32,
    pub holes: u32,
    pub gate: CGate,
    pub reserved: *const CSlotRange,
    pub nr_reserved: usize,
}

/// `struct kvm_memslots_spec`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct CSpec {
    pub gpa: u64,
    pub size: u64,
    pub hva: u64,
    pub kind: u32,
    pub flags: u32,
    pub guest_memfd_offset: u64,
    pub guest_memfd: c_int,
    pub alone: bool,
    pub label: *const c_char,
}

/// `KVM_MEMSLOTS_LABEL_SIZE`
pub const LABEL_SIZE: usize = 64;

/// `struct kvm_memslots_region`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct CRegion {
    pub id: CRegionId,
    pub kind: u32,
    pub gpa: u64,
    pub size: u64,
    pub hva: u64,
    pub guest_memfd_offset: u64,
    pub guest_memfd: c_int,
    pub flags: u32,
    pub alone: bool,
    pub label: [c_char; LABEL_SIZE],
}

/// `struct kvm_memslots_report`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct CReport {
    pub ioctls: u64,
    pub grace_periods: u64,
    pub regions_merged: u64,
    pub regions_cancelled: u64,
    pub elapsed_ns: u64,
    pub slots: u64,
    pub executor: u32,
    pub vcpus_paused: bool,
}

/// `struct kvm_memslots_preview`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct CPreview {
    pub ioctls: u64,
    pub grace_periods: u64,
    pub holes: u64,
    pub slots: u64,
}

/// `struct kvm_memslots_limits`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct CLimits {
    pub page_size: u64,
    pub region_size: u64,
    pub slots: u32,
    pub batch: u32,
}

/// What `pause` of a gate returned.
#[derive(Debug)]
pub(crate) struct GateErrno(pub(crate) Errno);

impl std::fmt::Display for GateErrno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the gate's pause returned -{}", self.0)
    }
}

impl std::error::Error for GateErrno {}

/// A gate that has both its functions.
struct Gate {
    pause: unsafe extern "C" fn(*mut c_void) -> c_int,
    resume: unsafe extern "C" fn(*mut c_void),
    opaque: *mut c_void,
}

// SAFETY: the functions are called by the thread that commits, and the header
// says that this may be any.
unsafe impl Send for Gate {}
// SAFETY: as above; a space is used by one thread at a time.
unsafe impl Sync for Gate {}

impl VcpuGate for Gate {
    fn pause(&self) -> Result<(), GateError> {
        // SAFETY: the caller of `open` gave the function to be called with
        // this pointer.
        match unsafe { (self.pause)(self.opaque) } {
            0 => Ok(()),
            errno => Err(GateError::new(GateErrno(Errno::from_raw(errno.saturating_abs())))),
        }
    }

    fn resume(&self) {
        // SAFETY: as for `pause`.
        unsafe { (self.resume)(self.opaque) }
    }
}

fn invalid(message: String) -> Failure {
    Failure::new(Errno::EINVAL, message)
}

impl COptions {
    /// # Safety
    /// `reserved` points to `nr_reserved` ranges, unless that is 0.
    pub(crate) unsafe fn builder(&self) -> Result<Builder, Failure> {
        let executor = match self.executor {
            0 => Executor::Auto,
            1 => Executor::Batch,
            2 => Executor::PerRegion,
            other => return Err(invalid(format!("{other} is no kvm_memslots_executor"))),
        };
        let builder = kvm_memslots::AddressSpace::builder()
            .address_space(self.address_space)
            .manual_dirty_log(self.manual_dirty_log)
            .executor(executor)
            .holes(self.hole_policy()?);
        let reserved: &[CSlotRange] = match (self.reserved.is_null(), self.nr_reserved) {
            (_, 0) => &[],
            (true, _) => return Err(invalid("reserved is NULL, and nr_reserved not 0".into())),
            // SAFETY: not null, and the caller says that so many are there.
            (false, nr) => unsafe { std::slice::from_raw_parts(self.reserved, nr) },
        };
        Ok(reserved.iter().fold(builder, |builder, r| builder.reserve_slots(r.first..=r.last)))
    }

    fn hole_policy(&self) -> Result<HolePolicy, Failure> {
        match (self.holes, self.gate) {
            (0, _) => Ok(HolePolicy::Refuse),
            (1, _) => Ok(HolePolicy::NoVcpuRuns),
            (2, CGate { pause: Some(pause), resume: Some(resume), opaque }) => {
                Ok(HolePolicy::Gate(Arc::new(Gate { pause, resume, opaque })))
            }
            (2, _) => Err(invalid("the gate needs both pause and resume".into())),
            (other, _) => Err(invalid(format!("{other} is no kvm_memslots_holes"))),
        }
    }
}

impl CSpec {
    /// # Safety
    /// `label` is null or points to a NUL-terminated string.
    pub(crate) unsafe fn spec(&self) -> Result<RegionSpec, Failure> {
        let mut spec = match self.kind {
            0 => RegionSpec::ram(self.gpa, self.size, self.hva),
            1 => RegionSpec::rom(self.gpa, self.size, self.hva),
            2 => RegionSpec::device(self.gpa, self.size, self.hva),
            other => return Err(invalid(format!("{other} is no kvm_memslots_kind"))),
        };
        let flags = flags(self.flags)?;
        if flags.contains(MemFlags::LOG_DIRTY_PAGES) {
            spec = spec.log_dirty();
        }
        if flags.contains(MemFlags::READONLY) {
            spec = spec.read_only();
        }
        if flags.contains(MemFlags::GUEST_MEMFD) {
            spec = spec.guest_memfd(self.guest_memfd, self.guest_memfd_offset);
        }
        if self.alone {
            spec = spec.alone();
        }
        if !self.label.is_null() {
            // SAFETY: not null, and the caller says that it is a string.
            let label = unsafe { CStr::from_ptr(self.label) };
            spec = spec.label(label.to_string_lossy());
        }
        Ok(spec)
    }
}

pub(crate) fn flags(bits: u32) -> Result<MemFlags, Failure> {
    MemFlags::from_bits(bits).ok_or_else(|| invalid(format!("unknown flags in {bits:#x}")))
}

impl From<Region<'_>> for CRegion {
    fn from(region: Region<'_>) -> Self {
        Self {
            id: region.id.into(),
            kind: match region.kind {
                Kind::Ram => 0,
                Kind::Rom => 1,
                Kind::Device => 2,
            },
            gpa: region.range.gpa,
            size: region.range.size,
            hva: region.hva,
            guest_memfd_offset: region.guest_memfd.map_or(0, |memfd| memfd.offset),
            guest_memfd: region.guest_memfd.map_or(-1, |memfd| memfd.fd),
            flags: region.flags.bits(),
            alone: region.alone,
            label: label(region.label.unwrap_or_default()),
        }
    }
}

/// As much of `text` as fits, with a NUL behind it, cut between characters.
fn label(text: &str) -> [c_char; LABEL_SIZE] {
    let cut = (0..LABEL_SIZE).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let mut label = [0; LABEL_SIZE];
    for (to, from) in label.iter_mut().zip(&text.as_bytes()[..cut]) {
        *to = c_char::from_ne_bytes([*from]);
    }
    label
}

impl From<CommitReport> for CReport {
    fn from(report: CommitReport) -> Self {
        Self {
            ioctls: report.ioctls,
            grace_periods: report.grace_periods,
            regions_merged: report.regions_merged as u64,
            regions_cancelled: report.regions_cancelled as u64,
            elapsed_ns: report.elapsed.as_nanos() as u64,
            slots: report.slots as u64,
            executor: match report.executor {
                Executor::Auto => 0,
                Executor::Batch => 1,
                Executor::PerRegion => 2,
            },
            vcpus_paused: report.vcpus_paused,
        }
    }
}

impl From<Preview> for CPreview {
    fn from(preview: Preview) -> Self {
        Self {
            ioctls: preview.ioctls,
            grace_periods: preview.grace_periods,
            holes: preview.holes.len() as u64,
            slots: preview.slots as u64,
        }
    }
}

impl From<&Limits> for CLimits {
    fn from(limits: &Limits) -> Self {
        Self {
            page_size: limits.page_size,
            region_size: limits.slot_bytes(),
            slots: limits.slots,
            batch: limits.batch.unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(label: &[c_char; LABEL_SIZE]) -> String {
        let bytes: Vec<u8> = label.iter().map(|c| c.to_ne_bytes()[0]).collect();
        let end = bytes.iter().position(|byte| *byte == 0);
        String::from_utf8(bytes[..end.unwrap_or(LABEL_SIZE)].to_vec()).unwrap_or_default()
    }

    #[test]
    fn labels_are_cut_between_characters_and_terminated() {
        assert_eq!(text(&label("")), "");
        assert_eq!(text(&label("vga")), "vga");
        assert_eq!(text(&label(&"x".repeat(63))), "x".repeat(63));
        assert_eq!(text(&label(&"x".repeat(64))), "x".repeat(63));
        // 62 bytes, and a character that would end beyond the 63rd.
        assert_eq!(text(&label(&("x".repeat(62) + "äy"))), "x".repeat(62));
    }
}
