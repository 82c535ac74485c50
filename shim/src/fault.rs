//! Failing on demand: what a kernel that is out of memory, a signal, or a
//! backend with a bug does at a time of the test's choosing.

use crate::errno::Errno;

/// A failure to come: of calls that would otherwise be carried out, counted
/// from when the fault is handed to a model. A call that fails this way changes
/// nothing. `C` is which calls there are.
///
/// ```
/// use kvm_memslots_shim::memory::model::{Call, Fault, Model};
/// use kvm_memslots_shim::{Errno, Limits};
///
/// let model = Model::new(Limits::x86());
/// // The third change fails, and so does every one after it: undoing the
/// // first two is impossible.
/// model.inject(Fault::from_nth(3, Errno::ENOMEM).only(Call::SetRegion));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault<C> {
    errno: Errno,
    call: Option<C>,
    entry: Option<u32>,
    /// Calls that still pass.
    pass: u64,
    /// Calls that then fail; `None` for all.
    fail: Option<u64>,
    panics: Option<When>,
}

/// When a call panics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Before,
    After,
}

impl<C: Copy + PartialEq> Fault<C> {
    /// The `k`-th call from here fails; the next one is the first.
    #[must_use]
    pub const fn nth(k: u64, errno: Errno) -> Self {
        let pass = k.saturating_sub(1);
        Self { errno, call: None, entry: None, pass, fail: Some(1), panics: None }
    }

    /// The `k`-th call from here fails, and every one after it.
    #[must_use]
    pub const fn from_nth(k: u64, errno: Errno) -> Self {
        Self { fail: None, ..Self::nth(k, errno) }
    }

    /// Every call fails.
    #[must_use]
    pub const fn every(errno: Errno) -> Self {
        Self::from_nth(1, errno)
    }

    /// Counts, and fails, these calls only.
    #[must_use]
    pub fn only(self, call: C) -> Self {
        Self { call: Some(call), ..self }
    }

    /// A batch that fails blames this entry; without this, none.
    #[must_use]
    pub const fn blaming(self, entry: u32) -> Self {
        Self { entry: Some(entry), ..self }
    }

    /// Panics instead of failing; the call is not carried out.
    #[must_use]
    pub const fn panicking(self) -> Self {
        Self { panics: Some(When::Before), ..self }
    }

    /// Panics when the call has been carried out.
    #[must_use]
    pub const fn panicking_after(self) -> Self {
        Self { panics: Some(When::After), ..self }
    }

    /// Counts a call; whether it fails.
    fn strikes(&mut self) -> bool {
        if self.pass > 0 {
            self.pass -= 1;
            return false;
        }
        if let Some(fail) = &mut self.fail {
            *fail -= 1;
        }
        true
    }
}

/// The faults that are still to come.
#[derive(Debug, Clone)]
pub(crate) struct Faults<C> {
    pending: Vec<Fault<C>>,
    panic: bool,
}

impl<C> Default for Faults<C> {
    fn default() -> Self {
        Self { pending: Vec::new(), panic: false }
    }
}

impl<C: Copy + PartialEq> Faults<C> {
    /// Several faults count side by side; where more than one strikes, the one
    /// that was injected first says how.
    pub(crate) fn inject(&mut self, fault: Fault<C>) {
        self.pending.push(fault);
    }

    pub(crate) fn clear(&mut self) {
        self.pending.clear();
    }

    /// Counts `call`; if it fails, with what, and which entry is to blame.
    ///
    /// # Panics
    /// As injected.
    pub(crate) fn strike(&mut self, call: C) -> Result<(), (Errno, Option<u32>)> {
        let mut strikes = None;
        for fault in &mut self.pending {
            let counted = fault.call.is_none_or(|only| only == call);
            if counted && fault.strikes() && strikes.is_none() {
                strikes = Some((fault.errno, fault.entry, fault.panics));
            }
        }
        self.pending.retain(|fault| fault.fail != Some(0));
        match strikes {
            None => Ok(()),
            Some((errno, entry, None)) => Err((errno, entry)),
            Some((_, _, Some(when))) => {
                assert!(when == When::After, "{PANIC}");
                self.panic = true;
                Ok(())
            }
        }
    }

    /// Whether a call that has been carried out panics.
    pub(crate) fn take_panic(&mut self) -> bool {
        std::mem::take(&mut self.panic)
    }
}

/// What an injected panic says.
pub(crate) const PANIC: &str = "an injected panic";

/// What both models are: handles of a VM that counts its calls and fails them.
macro_rules! handle {
    ($model:ident, $vis:vis $vm:ty, $counts:ty, $fault:ty) => {
        impl $model {
            /// Another VM that is as this one is now.
            #[must_use]
            pub fn fork(&self) -> Self {
                Self(std::sync::Arc::new(std::sync::Mutex::new(self.with(|vm| vm.clone()))))
            }

            /// Calls `f` with the VM. No call leaves it half changed, so one that
            /// panicked does no harm to others.
            $vis fn with<T>(&self, f: impl FnOnce(&mut $vm) -> T) -> T {
                let mut vm = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let answer = f(&mut vm);
                let panics = vm.faults.take_panic();
                drop(vm);
                assert!(!panics, "{}", $crate::fault::PANIC);
                answer
            }

            /// Calls so far, and what they would have waited for.
            #[must_use]
            pub fn counts(&self) -> $counts {
                self.with(|vm| <$counts>::clone(&vm.counts))
            }

            /// Counts from zero again.
            pub fn reset_counts(&self) {
                self.with(|vm| vm.counts = <$counts>::default());
            }

            /// Makes calls fail. Several faults count side by side; where more
            /// than one strikes, the one that was injected first gives the errno.
            pub fn inject(&self, fault: $fault) {
                self.with(|vm| vm.faults.inject(fault));
            }

            /// Forgets the faults that are still to come.
            pub fn clear_faults(&self) {
                self.with(|vm| vm.faults.clear());
            }
        }
    };
}

pub(crate) use handle;
