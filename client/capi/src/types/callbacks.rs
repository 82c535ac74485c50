//! Functions of C's that changes call.

use std::ffi::{c_int, c_void};
use std::ptr::from_ref;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use kvm_memslots::{Errno, GateError, Observer, Region, VcpuGate, Vm};

use super::CRegion;
use crate::committer::committer;
use crate::failure::Failure;
use crate::handles::Handle;
use crate::last::MAX_ERRNO;
use crate::record::{invalid, record};

/// `opaque` of a callback.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opaque(pub(crate) *mut c_void);

// SAFETY: it is handed back to C only, and the header says that the functions
// are called on any thread.
unsafe impl Send for Opaque {}
// SAFETY: as above.
unsafe impl Sync for Opaque {}

record! {
    "kvm_memslots_gate" pub struct CGate {
        pub size: usize,
        pub pause: Option<unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int>,
        pub resume: Option<unsafe extern "C" fn(*mut c_void)>,
        pub opaque: *mut c_void,
    }
}

/// A gate that has both its functions.
struct Gate {
    pause: unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int,
    resume: unsafe extern "C" fn(*mut c_void),
    opaque: Opaque,
}

impl CGate {
    pub(crate) fn gate(self) -> Result<Arc<dyn VcpuGate>, Failure> {
        match self {
            Self { pause: Some(pause), resume: Some(resume), opaque, .. } => {
                Ok(Arc::new(Gate { pause, resume, opaque: Opaque(opaque) }))
            }
            _ => Err(invalid("the gate needs both pause and resume")),
        }
    }
}

/// What C returned: 0, or a negative errno. Whatever else it is, it is no yes.
fn answer(what: &str, returned: c_int) -> Result<(), (Errno, String)> {
    let errno = returned.checked_neg().filter(|errno| (1..=MAX_ERRNO).contains(errno));
    match (returned, errno.map(Errno::from_raw)) {
        (0, _) => Ok(()),
        (_, Some(errno)) => Err((errno, format!("{what} returned {errno}"))),
        (other, None) => {
            let message = format!("{what} returned {other}, which is neither 0 nor -errno");
            Err((Errno::EPROTO, message))
        }
    }
}

impl VcpuGate for Gate {
    fn pause(&self) -> Result<(), GateError> {
        // SAFETY: C gave the function to be called with this.
        let returned = unsafe { (self.pause)(self.opaque.0, committer()) };
        answer("the gate's pause", returned)
            .map_err(|(errno, message)| GateError::new(message).with_errno(errno))
    }

    fn resume(&self) {
        // SAFETY: as for `pause`.
        unsafe { (self.resume)(self.opaque.0) }
    }
}

type Check = unsafe extern "C" fn(
    *mut c_void,
    *const *const CRegion,
    usize,
    *const *const CRegion,
    usize,
) -> c_int;

record! {
    "kvm_memslots_observer" pub struct CObserver {
        pub size: usize,
        pub check: Option<Check>,
        pub unmapping: Option<unsafe extern "C" fn(*mut c_void, *const CRegion)>,
        pub mapped: Option<unsafe extern "C" fn(*mut c_void, *const CRegion)>,
        pub opaque: *mut c_void,
    }
}

/// An observer whose functions may be called from here.
pub(crate) struct Told(pub(crate) CObserver);

// SAFETY: as `Opaque`.
unsafe impl Send for Told {}
// SAFETY: as above.
unsafe impl Sync for Told {}

impl Observer for Told {
    fn check(
        &self,
        going: &[Region],
        coming: &[Region],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let Some(check) = self.0.check else { return Ok(()) };
        let regions = |all: &[Region]| Vec::from_iter(all.iter().map(CRegion::from));
        let (going, coming) = (regions(going), regions(coming));
        // Pointers, as C's idea of a region's size may be another one.
        let pointers = |all: &[CRegion]| Vec::from_iter(all.iter().map(from_ref));
        let (from, to) = (pointers(&going), pointers(&coming));
        // SAFETY: C gave the function to be called with these.
        let returned =
            unsafe { check(self.0.opaque, from.as_ptr(), from.len(), to.as_ptr(), to.len()) };
        answer("check", returned).map_err(|(_, message)| message.into())
    }

    fn unmapping(&self, region: &Region) {
        if let Some(unmapping) = self.0.unmapping {
            // SAFETY: C gave the function to be called with these.
            unsafe { unmapping(self.0.opaque, &region.into()) }
        }
    }

    fn mapped(&self, region: &Region) {
        if let Some(mapped) = self.0.mapped {
            // SAFETY: C gave the function to be called with these.
            unsafe { mapped(self.0.opaque, &region.into()) }
        }
    }
}

/// `harvest` of `struct kvm_memslots_options`
pub type CHarvest = unsafe extern "C" fn(*mut c_void, *mut Handle<Vm>);

/// Where a VM's handle will be, once it is open: for its harvest.
#[derive(Debug, Clone, Default)]
pub(crate) struct Opened(Arc<AtomicPtr<Handle<Vm>>>);

impl Opened {
    pub(crate) fn set(&self, vm: *mut Handle<Vm>) {
        self.0.store(vm, Ordering::Release);
    }
}

/// What the library calls for it.
pub(crate) fn harvest(
    harvest: CHarvest,
    opaque: *mut c_void,
    opened: Opened,
) -> impl Fn(&Vm) + Send + Sync {
    let opaque = Opaque(opaque);
    move |_| {
        let (Opaque(opaque), Opened(vm)) = ({ opaque }, &opened);
        // SAFETY: C gave the function to be called with these. It has the VM
        // for lookups, which share it; it is open, as it is being changed.
        unsafe { harvest(opaque, vm.load(Ordering::Acquire)) }
    }
}
