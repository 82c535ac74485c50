//! The kernel's memory model: `linux-kernel.cat`, `linux-kernel.bell` and
//! `lock.cat` of `tools/memory-model` in 6.12, for marked accesses, fences,
//! spinlocks, RCU and SRCU. Names are theirs.

use super::relation::{Relation, Set};

/// What an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The write that a location begins with.
    Initial,
    Read,
    Acquire,
    Write,
    Release,
    LockRead,
    LockWrite,
    Unlock,
    SrcuLock,
    SrcuUnlock,
    SyncSrcu,
    Mb,
    Rmb,
    Wmb,
    AfterSpinlock,
    AfterUnlockLock,
    AfterSrcuReadUnlock,
    RcuLock,
    RcuUnlock,
    SyncRcu,
}

impl Kind {
    pub(super) fn is_read(self) -> bool {
        matches!(self, Self::Read | Self::Acquire | Self::LockRead | Self::SrcuLock)
    }

    pub(super) fn is_write(self) -> bool {
        use Kind::{Initial, LockWrite, Release, SrcuUnlock, Unlock, Write};
        matches!(self, Initial | Write | Release | LockWrite | Unlock | SrcuUnlock)
    }
}

/// An execution of a test: its events and what relates them.
#[derive(Debug)]
pub(super) struct Execution<'a> {
    pub(super) kinds: &'a [Kind],
    /// The thread of each, none of initial writes.
    pub(super) threads: &'a [Option<usize>],
    /// The location of each that has one.
    pub(super) locations: &'a [Option<usize>],
    /// In the order of the program, transitively.
    pub(super) po: &'a Relation,
    pub(super) addr: &'a Relation,
    pub(super) data: &'a Relation,
    pub(super) ctrl: &'a Relation,
    /// From each write to the reads that read it.
    pub(super) rf: Relation,
    /// The order of the writes to each location, transitively.
    pub(super) co: Relation,
}

impl Execution<'_> {
    fn all(&self, is: impl Fn(Kind) -> bool) -> Set {
        let one = |(event, &kind): (usize, &Kind)| u64::from(is(kind)) << event;
        self.kinds.iter().enumerate().map(one).fold(0, |all, one| all | one)
    }

    fn only(&self, kind: Kind) -> Set {
        self.all(|is| is == kind)
    }

    /// Whether the model allows it.
    pub(super) fn is_allowed(&self) -> bool {
        let events = self.kinds.len();
        let on = |set| Relation::on(events, set);
        let (rf, co, po) = (&self.rf, &self.co, self.po);
        let int = Relation::of(events, |from, to| {
            self.threads[from].is_some() && self.threads[from] == self.threads[to]
        });
        let loc = Relation::of(events, |from, to| {
            self.locations[from].is_some() && self.locations[from] == self.locations[to]
        });
        let ext = |all: &Relation| all.without(&int);
        let (reads, writes) = (self.all(Kind::is_read), self.all(Kind::is_write));
        let memory = reads | writes;
        let lock_reads = self.only(Kind::LockRead);
        let releases = self.only(Kind::Release) | self.only(Kind::Unlock);
        let acquires = self.only(Kind::Acquire) | lock_reads;
        let fencerel = |kind| po.then(&on(self.only(kind))).then(po);

        let fr = rf.inverse().then(co);
        let com = &(rf | co) | &fr;
        let rmw = (po & &loc).between(lock_reads, self.only(Kind::LockWrite));
        let rmw = rmw.without(&po.then(po));
        let coherent = (&(po & &loc) | &com).is_acyclic();
        if !coherent || !(&rmw & &ext(&fr).then(&ext(co))).is_empty() {
            return false;
        }

        let acq_po = po.between(acquires, memory);
        let po_rel = po.between(memory, releases);
        let po_unlock_lock_po =
            po.then(&on(self.only(Kind::Unlock))).then(&(po | rf)).then(&on(lock_reads)).then(po);
        let rmb = fencerel(Kind::Rmb).between(reads, reads);
        let wmb = fencerel(Kind::Wmb).between(writes, writes);
        let after = |before: Kind, fence: Kind| {
            po.maybe().then(&on(self.only(before))).then(&fencerel(fence)).between(memory, memory)
        };
        let mb = &(&fencerel(Kind::Mb).between(memory, memory)
            | &after(Kind::LockWrite, Kind::AfterSpinlock))
            | &(&after(Kind::SrcuUnlock, Kind::AfterSrcuReadUnlock)
                | &po_unlock_lock_po
                    .then(&on(self.only(Kind::AfterUnlockLock)))
                    .then(po)
                    .between(memory, memory));
        let syncs = self.only(Kind::SyncRcu) | self.only(Kind::SyncSrcu);
        let gp = po.then(&on(syncs)).then(&po.maybe());
        let strong_fence = &mb | &gp;
        let fence = &(&strong_fence | &(&po_rel | &acq_po)) | &(&wmb | &rmb);

        let rfi = rf & &int;
        let rfe = ext(rf);
        let carry_dep = self.data.between(Set::MAX, !self.only(Kind::SrcuUnlock)).then(&rfi).any();
        let [addr, data, ctrl] = [self.addr, self.data, self.ctrl].map(|deps| carry_dep.then(deps));
        let dep = &addr | &data;
        let overwrite = co | &fr;
        let to_w = &(&dep | &ctrl).between(Set::MAX, writes) | &(&overwrite & &int);
        let to_r = &addr.between(Set::MAX, reads) | &dep.then(&rfi);
        let ppo = &(&to_r | &to_w) | &(&(&fence | &po_unlock_lock_po) & &int);

        let rmw_sequence = rf.then(&rmw).any();
        let cumul_fence =
            &rfe.maybe().then(&(&strong_fence | &po_rel)) | &(&wmb | &po_unlock_lock_po);
        let cumul_fence = cumul_fence.then(&rmw_sequence);
        let prop = ext(&overwrite).maybe().then(&cumul_fence.any()).then(&rfe.maybe());
        let id = on(Set::MAX);
        let hb = &(&ppo | &rfe) | &(&prop.without(&id) & &int);
        let pb = prop.then(&strong_fence).then(&hb.any());
        if !hb.is_acyclic() || !pb.is_acyclic() {
            return false;
        }

        let after_rb = hb.any().then(&pb.any());
        let rcu_link = po.maybe().then(&after_rb).then(&prop).then(po);
        let rcu_order = self.rcu_order(&rcu_link, &loc);
        let rcu_fence = po.then(&rcu_order).then(&po.maybe());
        prop.then(&rcu_fence).then(&after_rb).is_irreflexive()
    }

    /// Sequences with as many grace periods as critical sections, at least.
    fn rcu_order(&self, rcu_link: &Relation, loc: &Relation) -> Relation {
        let events = self.kinds.len();
        let rcu_gp = Relation::on(events, self.only(Kind::SyncRcu));
        let srcu_gp = Relation::on(events, self.only(Kind::SyncSrcu));
        let rcu_rscsi = self.rcu_rscs().inverse();
        let srcu_rscs = self.data.between(self.only(Kind::SrcuLock), self.only(Kind::SrcuUnlock));
        let srcu_rscsi = (&srcu_rscs & loc).inverse();
        let mut order = &rcu_gp | &srcu_gp;
        loop {
            let middle = rcu_link | &rcu_link.then(&order).then(rcu_link);
            let link = |from: &Relation, to: &Relation| from.then(&middle).then(to);
            let rcu = &link(&rcu_gp, &rcu_rscsi) | &link(&rcu_rscsi, &rcu_gp);
            let srcu = &link(&srcu_gp, &srcu_rscsi) | &link(&srcu_rscsi, &srcu_gp);
            let more = &(&order | &rcu) | &(&srcu & loc);
            let more = &more | &more.then(rcu_link).then(&more);
            if more == order {
                return order;
            }
            order = more;
        }
    }

    /// From each `rcu_read_lock()` to its `rcu_read_unlock()`; they may nest.
    fn rcu_rscs(&self) -> Relation {
        let mut pairs = Relation::on(self.kinds.len(), 0);
        let mut open: Vec<usize> = Vec::new();
        for (event, kind) in self.kinds.iter().enumerate() {
            match kind {
                Kind::RcuLock => open.push(event),
                // Events are numbered by threads, in the order of the program.
                Kind::RcuUnlock => {
                    if let Some(lock) = open.pop() {
                        pairs.add(lock, event);
                    }
                }
                _ => {}
            }
        }
        pairs
    }
}
