//! The handle that C holds: an address space, and the transaction that is open
//! on it.

use std::ptr::NonNull;

use kvm_memslots::backend::Errno;
use kvm_memslots::{AddressSpace, CommitReport, Error, Transaction};

use crate::failure::Failure;

/// `struct kvm_memslots_space`
pub struct Space {
    /// Borrows what `memory` points to, exclusively: while there is one, `memory`
    /// is not used.
    transaction: Option<Transaction<'static>>,
    /// From `Box::into_raw`, owned.
    memory: NonNull<AddressSpace>,
    /// A call panicked: what it left is not to be relied upon.
    pub(crate) broken: bool,
}

impl Space {
    pub(crate) fn new(space: AddressSpace) -> Self {
        let memory = NonNull::from(Box::leak(Box::new(space)));
        Self { transaction: None, memory, broken: false }
    }

    /// The address space, while no transaction borrows it.
    pub(crate) fn idle(&mut self) -> Result<&mut AddressSpace, Failure> {
        if self.transaction.is_some() {
            let message = "a transaction is open; commit or abort it first";
            return Err(Failure::new(Errno::EBUSY, message));
        }
        // SAFETY: the pointer is owned and valid, and no transaction borrows
        // what it points to.
        Ok(unsafe { self.memory.as_mut() })
    }

    pub(crate) fn begin(&mut self) -> Result<(), Failure> {
        if self.transaction.is_some() {
            return Err(Failure::new(Errno::EALREADY, "a transaction is open already"));
        }
        // SAFETY: the pointer is owned and valid, nothing else borrows what it
        // points to, and nothing does until the transaction is gone: `idle` and
        // this function look for it, and dropping `self` drops it first.
        let space: &'static mut AddressSpace = unsafe { self.memory.as_mut() };
        self.transaction = Some(space.begin());
        Ok(())
    }

    /// The transaction that is open.
    pub(crate) fn transaction(&mut self) -> Result<&mut Transaction<'static>, Failure> {
        self.transaction.as_mut().ok_or_else(none_open)
    }

    pub(crate) fn commit(&mut self) -> Result<CommitReport, Failure> {
        let transaction = self.transaction.take().ok_or_else(none_open)?;
        Ok(transaction.commit()?)
    }

    pub(crate) fn abort(&mut self) -> Result<(), Failure> {
        self.transaction.take().map(drop).ok_or_else(none_open)
    }

    /// Unmaps everything; where that fails the space is as it was.
    pub(crate) fn unmap_all(&mut self) -> Result<(), Failure> {
        self.transaction = None;
        let space = self.idle()?;
        let ids: Vec<_> = space.regions().map(|region| region.id).collect();
        let mut transaction = space.begin();
        for id in ids {
            transaction.unmap(id)?;
        }
        transaction.commit().map(drop).map_err(Error::into)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.transaction = None;
        // SAFETY: the pointer came from a box, is not used again, and the only
        // borrow of what it points to is gone.
        drop(unsafe { Box::from_raw(self.memory.as_ptr()) });
    }
}

fn none_open() -> Failure {
    Failure::new(Errno::EINVAL, "no transaction is open; begin one first")
}
