/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Opening: a part of <kvm_memslots_client.h>. */
#ifndef KVM_MEMSLOTS_CLIENT_OPEN_H
#define KVM_MEMSLOTS_CLIENT_OPEN_H

#include "memory.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How changes of memory are carried out. */
enum kvm_memslots_executor {
	/* The batch ioctl where the kernel has it, single ones elsewhere. */
	KVM_MEMSLOTS_EXECUTOR_AUTO = 0,
	KVM_MEMSLOTS_EXECUTOR_BATCH = 1,
	KVM_MEMSLOTS_EXECUTOR_PER_REGION = 2,
};

/*
 * What may be unmapped for a moment that is mapped before and after, where
 * changes are made call by call.
 */
enum kvm_memslots_holes {
	/* Regions that the changes name, as in a loop of ioctls. */
	KVM_MEMSLOTS_HOLES_NAMED = 0,
	/* Nothing: such changes are refused with -EPERM. */
	KVM_MEMSLOTS_HOLES_REFUSE = 1,
	/* Anything: no vCPU runs while changes are applied. */
	KVM_MEMSLOTS_HOLES_NO_VCPU_RUNS = 2,
	/* Anything, while the gate has vCPUs paused. */
	KVM_MEMSLOTS_HOLES_GATE = 3,
};

/*
 * Pauses vCPUs.  Called on the thread that applies changes, which may be a
 * vCPU's own: then the gate waits for the others.  May look regions up;
 * applying changes is -EDEADLK.
 */
struct kvm_memslots_gate {
	size_t size;
	/*
	 * Returns 0 once no vCPU is inside KVM_RUN, or a negative errno, with
	 * nothing paused.  committer is what the report of the call says, NULL
	 * without one: the vCPU that needs no pausing, say.
	 */
	int (*pause)(void *opaque, void *committer);
	/* Lets vCPUs in again; once for each pause that returned 0. */
	void (*resume)(void *opaque);
	void *opaque;
};

/*
 * Hears of every region that comes and goes: for DMA maps, memory tables of
 * vhost.  Called on the thread that applies changes.  A region whose addresses,
 * memory or read-only flag change goes and comes again.  May look regions up;
 * applying changes is -EDEADLK.  Each function may be NULL.
 */
struct kvm_memslots_observer {
	size_t size;
	/*
	 * All of the changes have been checked, and none is done.  A negative
	 * errno refuses them: apply fails with -ECANCELED.
	 */
	int (*check)(void *opaque,
		     const struct kvm_memslots_region *const *going,
		     size_t nr_going,
		     const struct kvm_memslots_region *const *coming,
		     size_t nr_coming);
	/* Before KVM is asked.  If it refuses, mapped is called. */
	void (*unmapping)(void *opaque,
			  const struct kvm_memslots_region *region);
	void (*mapped)(void *opaque, const struct kvm_memslots_region *region);
	void *opaque;
};

/* Slot ids, both included. */
struct kvm_memslots_slot_range {
	uint16_t as_id;
	uint16_t first;
	uint16_t last;
};

/* GSIs, both included. */
struct kvm_memslots_gsi_range {
	uint32_t first;
	uint32_t last;
};

/* The VMM enabled KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 on the VM. */
#define KVM_MEMSLOTS_MANUAL_DIRTY_LOG	(1U << 0)
/*
 * /dev/kvm may be opened and another VM made, to find out whether the trap flag
 * is what its capability says.  Without that it is not used.
 */
#define KVM_MEMSLOTS_ALLOW_SCRATCH_VM	(1U << 1)
/* KVM_IRQFD_FLAG_NO_IRQBYPASS is not used. */
#define KVM_MEMSLOTS_ALLOW_BYPASS	(1U << 2)
/* The VM has the routes that KVM_CREATE_IRQCHIP makes on x86. */
#define KVM_MEMSLOTS_X86_ROUTES		(1U << 3)
/*
 * The order of the VM's start is not watched, which takes one KVM_GET_IRQCHIP.
 * (The warning is for programs in Rust.)
 */
#define KVM_MEMSLOTS_NO_ORDER_CHECK	(1U << 4)
/*
 * KVM_X86_QUIRK_SLOT_ZAP_ALL is disabled where the kernel has it: to unmap or
 * move a region drops its own page tables alone.  Not for a VM with assigned
 * devices, nor where KVM shadows page tables.  disabled_quirks is set.
 */
#define KVM_MEMSLOTS_DISABLE_SLOT_ZAP_ALL (1U << 5)

/* When a region that waits for a slot gets one. */
enum kvm_memslots_policy {
	/*
	 * When the exits that were served for it have cost what a slot does: at
	 * most twice what would have been best with hindsight.
	 */
	KVM_MEMSLOTS_POLICY_RENT_OR_BUY = 0,
	/* After so many exits; 0: at once. */
	KVM_MEMSLOTS_POLICY_FIXED = 1,
};

/* Regions are mapped when they are due themselves, not together. */
#define KVM_MEMSLOTS_DEFERRAL_ONLY_DUE	(1U << 0)
/* map_ns, unmap_ns and exit_ns are set, and nothing is measured. */
#define KVM_MEMSLOTS_DEFERRAL_COSTS	(1U << 1)

struct kvm_memslots_deferral {
	size_t size;
	uint32_t policy;	/* enum kvm_memslots_policy */
	uint32_t flags;		/* KVM_MEMSLOTS_DEFERRAL_* */
	uint64_t exits;		/* with KVM_MEMSLOTS_POLICY_FIXED */
	uint64_t map_ns;
	uint64_t unmap_ns;
	uint64_t exit_ns;
};

struct kvm_memslots_options {
	size_t size;
	uint32_t flags;		/* KVM_MEMSLOTS_MANUAL_DIRTY_LOG, ... */
	uint32_t executor;	/* enum kvm_memslots_executor */
	uint32_t holes;		/* enum kvm_memslots_holes */
	/* The first GSI that is handed out; 0: 24. */
	uint32_t first_gsi;
	/* With KVM_MEMSLOTS_HOLES_GATE. */
	const struct kvm_memslots_gate *gate;
	/* Slot ids that the VMM uses itself. */
	const struct kvm_memslots_slot_range *reserved_slots;
	size_t nr_reserved_slots;
	/* Told in this order. */
	const struct kvm_memslots_observer *const *observers;
	size_t nr_observers;
	/*
	 * Called before a logged slot goes, with vCPUs paused if they are at
	 * all: a VMM with a dirty ring empties it here.
	 */
	void (*harvest)(void *opaque, struct kvm_memslots_vm *vm);
	void *harvest_opaque;
	/*
	 * Routes that the VM has now: KVM replaces all at once and can't be
	 * asked, so what is not said here is gone with the first change.
	 */
	const struct kvm_irq_routing_entry *own_routes;
	size_t nr_own_routes;
	/* GSIs that the VMM uses itself. */
	const struct kvm_memslots_gsi_range *reserved_gsis;
	size_t nr_reserved_gsis;
	/* NULL for the defaults. */
	const struct kvm_memslots_deferral *deferral;
	/* Quirks that the VMM has disabled (KVM_CAP_DISABLE_QUIRKS2). */
	uint64_t disabled_quirks;
};

#define KVM_MEMSLOTS_HAS_READONLY	(1U << 0)
#define KVM_MEMSLOTS_HAS_GUEST_MEMFD	(1U << 1)
#define KVM_MEMSLOTS_HAS_TRAP		(1U << 2)
/* What KVM_MEMSLOTS_DISABLE_SLOT_ZAP_ALL came to. */
#define KVM_MEMSLOTS_ZAPS_SLOTS_ONLY	(1U << 3)

/* What the VM allows. */
struct kvm_memslots_limits {
	size_t size;
	uint64_t page_size;
	/* The largest slot, in bytes.  Larger regions have several. */
	uint64_t slot_size;
	/* Slot ids of an address space. */
	uint32_t slots;
	/* Entries of one batch ioctl, 0 where the kernel lacks it. */
	uint32_t batch;
	uint32_t address_spaces;
	uint32_t flags;		/* KVM_MEMSLOTS_HAS_READONLY, ... */
};

/*
 * Opens the VM behind vm_fd, which is duplicated.  options may be NULL for the
 * defaults.  What the callbacks of the options are given stays until the VM is
 * freed.  -EBUSY if this process has the VM open already.
 */
int kvm_memslots_open(int vm_fd, const struct kvm_memslots_options *options,
		      struct kvm_memslots_vm **vm);

/*
 * The same on a model of KVM in memory, for tests and machines without
 * /dev/kvm.  limits may be NULL: what x86 has; so has a field that is 0.
 */
int kvm_memslots_open_model(const struct kvm_memslots_options *options,
			    const struct kvm_memslots_limits *limits,
			    struct kvm_memslots_vm **vm);

struct kvm_memslots_report;

/*
 * Unmaps all regions, detaches all devices and frees the VM.  On failure it is
 * still there, with everything mapped; but -EBUSY, where a call of another
 * thread has not returned, may come when everything was unmapped.
 */
int kvm_memslots_close(struct kvm_memslots_vm *vm,
		       struct kvm_memslots_report *report);

/*
 * Frees the VM and leaves its slots to KVM, but for regions whose backing has a
 * release: they are unmapped.  NULL is allowed.
 */
void kvm_memslots_free(struct kvm_memslots_vm *vm);

/* Says what may be unmapped for a moment, from now on. */
int kvm_memslots_set_holes(struct kvm_memslots_vm *vm, uint32_t holes,
			   const struct kvm_memslots_gate *gate);
/* Marks slot ids as the VMM's own; -EBUSY if one is in use. */
int kvm_memslots_reserve_slots(struct kvm_memslots_vm *vm,
			       const struct kvm_memslots_slot_range *ids);

#ifdef __cplusplus
}
#endif

#endif /* KVM_MEMSLOTS_CLIENT_OPEN_H */
