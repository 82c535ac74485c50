/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Applying: a part of <kvm_memslots_client.h>. */
#ifndef KVM_MEMSLOTS_CLIENT_APPLY_H
#define KVM_MEMSLOTS_CLIENT_APPLY_H

#include "memory.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KVM_MEMSLOTS_REPORT_VCPUS_PAUSED (1U << 0)
/* On a model: nothing of this really happened. */
#define KVM_MEMSLOTS_REPORT_MODEL	 (1U << 1)
/* A set was applied: not by a commit that others are to follow. */
#define KVM_MEMSLOTS_REPORT_APPLIED	 (1U << 2)

/* What a set of changes cost. */
struct kvm_memslots_report {
	size_t size;
	/* System calls that changed memslots. */
	uint64_t ioctls;
	/* SRCU grace periods that those waited for, by KVM's rules. */
	uint64_t grace_periods;
	uint64_t routing_calls;
	uint64_t irqfd_calls;
	uint64_t ioeventfd_calls;
	uint64_t zone_calls;
	/* Grace periods of those, and of the kernel's worker of KVM_IRQFD. */
	uint64_t event_grace_periods;
	uint64_t irqfd_shutdown_grace_periods;
	/* Regions that share a slot, and so cost no call of their own. */
	uint64_t regions_merged;
	/* Regions whose unmap and map cancelled. */
	uint64_t regions_cancelled;
	/* Regions that wait for a slot. */
	uint64_t regions_deferred;
	/* From the first call to the last. */
	uint64_t elapsed_ns;
	/* Slots of the VM afterwards. */
	uint64_t slots;
	uint32_t executor;	/* BATCH or PER_REGION */
	uint32_t flags;		/* KVM_MEMSLOTS_REPORT_* */
	/*
	 * Set by the caller, or NULL: gets the last dirty pages of each logged
	 * region that was unmapped, a bit a page as kvm_memslots_dirty_log()
	 * has them, when all is done.  The region is as it was: lookups do not
	 * find it any more.  So of what was cut off a region, and of what a
	 * region had before it got other memory.  words is NULL, and nr_pages
	 * 0, where there was no memory for so many bits: then all of its pages
	 * may be dirty.
	 */
	void (*last_dirty)(void *opaque,
			   const struct kvm_memslots_region *region,
			   const uint64_t *words, uint64_t nr_pages);
	void *opaque;
	/* Set by the caller, or NULL: who that is, for the gate. */
	void *committer;
};

/*
 * Applies changes, and frees the set, also on failure.  If it fails, everything
 * is what it was, unless the error is KVM_MEMSLOTS_ERROR_STUCK: then the kernel
 * also refused to undo the calls before the one it refused, and the next set
 * that is applied, also an empty one, puts it right.
 */
int kvm_memslots_apply(struct kvm_memslots_vm *vm,
		       struct kvm_memslots_changes *changes,
		       struct kvm_memslots_report *report);

/*
 * For callers whose begins nest, as a memory listener's do.  Each begin of a
 * set has one commit, and the last one applies it; the set stays, empty, also
 * on failure.  The report of the last one has KVM_MEMSLOTS_REPORT_APPLIED, also
 * of an empty set; that of the others is 0.  Only the last one fails, but where
 * it is not of a set that was begun.  In between, applying or appending the set
 * is -EBUSY, and frees it.
 */
int kvm_memslots_begin(struct kvm_memslots_changes *changes);
int kvm_memslots_commit(struct kvm_memslots_vm *vm,
			struct kvm_memslots_changes *changes,
			struct kvm_memslots_report *report);

/* What a set of changes would cost. */
struct kvm_memslots_preview {
	size_t size;
	uint64_t ioctls;
	uint64_t grace_periods;
	uint64_t routing_calls;
	uint64_t irqfd_calls;
	uint64_t ioeventfd_calls;
	uint64_t zone_calls;
	uint64_t event_grace_periods;
	uint64_t irqfd_shutdown_grace_periods;
	/* Ranges of guest pages that would be unmapped for a moment. */
	uint64_t holes;
	uint64_t slots;
	/* Set by the caller, or NULL: gets each of them. */
	void (*hole)(void *opaque, uint16_t as_id, uint64_t gpa, uint64_t len);
	void *opaque;
};

/* What applying them now would cost.  The set stays. */
int kvm_memslots_preview(struct kvm_memslots_vm *vm,
			 struct kvm_memslots_changes *changes,
			 struct kvm_memslots_preview *preview);

#ifdef __cplusplus
}
#endif

#endif /* KVM_MEMSLOTS_CLIENT_APPLY_H */
