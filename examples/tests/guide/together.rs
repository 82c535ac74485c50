use std::cell::RefCell;
use std::mem::{forget, take};

use kvm_memslots::{Changes, Vm};

thread_local! {
    /// How many sets are open, one in the other, and what they have come to.
    static SET: RefCell<(u32, Changes)> = const { RefCell::new((0, Changes::new())) };
}

/// Closes a set where what is done in it panics: nothing of the outermost one is applied.
struct Open;

impl Drop for Open {
    fn drop(&mut self) {
        drop(close());
    }
}

/// Closes a set. What is to be applied, where it is the outermost one.
fn close() -> Changes {
    SET.with_borrow_mut(|(depth, changes)| {
        *depth -= 1;
        if *depth == 0 { take(changes) } else { Changes::new() }
    })
}

/// Does what `f` records, here and in all that it calls, at its end.
fn together<T>(vm: &Vm, f: impl FnOnce() -> T) -> Result<T, kvm_memslots::Error> {
    SET.with_borrow_mut(|(depth, _)| *depth += 1);
    let open = Open;
    let done = f();
    forget(open);
    let changes = close();
    if !changes.is_empty() {
        vm.apply(changes)?;
    }
    Ok(done)
}

/// What each callback does: joins the set that is open, or is one by itself.
fn record<T>(vm: &Vm, f: impl FnOnce(&mut Changes) -> T) -> Result<T, kvm_memslots::Error> {
    together(vm, || SET.with_borrow_mut(|(_, changes)| f(changes)))
}
