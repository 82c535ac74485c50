/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Deferred maps: a part of <kvm_memslots_client.h>. */
#ifndef KVM_MEMSLOTS_CLIENT_DEFERRED_H
#define KVM_MEMSLOTS_CLIENT_DEFERRED_H

#include "apply.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * A region with KVM_MEMSLOTS_DEFERRABLE costs nothing when it is mapped: the
 * guest's accesses exit as MMIO, and are served from its memory, until they
 * have cost what a slot does.  For devices that map and unmap memory again and
 * again.
 *
 * A vCPU thread has exits of its own, and hands every KVM_EXIT_MMIO to
 * kvm_memslots_exits_read() or kvm_memslots_exits_write() first.  Where the
 * answer has KVM_MEMSLOTS_SERVED_DUE it calls kvm_memslots_promote_due().  The
 * VM may be freed before its exits: then everything is the device's.
 */
int kvm_memslots_exits_new(struct kvm_memslots_vm *vm, uint16_t as_id,
			   struct kvm_memslots_exits **exits);
/* NULL is allowed. */
void kvm_memslots_exits_free(struct kvm_memslots_exits *exits);

/* kvm_memslots_promote_due() is worth its while now. */
#define KVM_MEMSLOTS_SERVED_DUE		(1U << 0)
/*
 * The memory at fault can't be accessed (a file that was truncated), or this
 * process is a fork of the one that opened the VM.  Nothing was served from
 * there on; with a slot, KVM_RUN would have failed with EFAULT.
 */
#define KVM_MEMSLOTS_SERVED_FAULT	(1U << 1)

/* What became of an exit. */
struct kvm_memslots_served {
	size_t size;
	/* Served from memory; the others were the device's. */
	uint64_t bytes;
	/* A guest address, with KVM_MEMSLOTS_SERVED_FAULT. */
	uint64_t fault;
	uint64_t flags;		/* KVM_MEMSLOTS_SERVED_* */
};

typedef void (*kvm_memslots_device_read)(void *opaque, uint64_t gpa, void *data,
					 size_t len);
typedef void (*kvm_memslots_device_write)(void *opaque, uint64_t gpa,
					  const void *data, size_t len);
/*
 * Answers a read of len bytes.  device is called for what is not in deferrable
 * regions, in ascending order; data is 0 before.  It may change the VM.
 */
int kvm_memslots_exits_read(struct kvm_memslots_exits *exits, uint64_t gpa,
			    void *data, size_t len,
			    kvm_memslots_device_read device, void *opaque,
			    struct kvm_memslots_served *served);
/* The same of a write.  Writes to read-only regions are the device's. */
int kvm_memslots_exits_write(struct kvm_memslots_exits *exits, uint64_t gpa,
			     const void *data, size_t len,
			     kvm_memslots_device_write device, void *opaque,
			     struct kvm_memslots_served *served);

/* Maps the regions that wait, together.  Where none does, the report is 0. */
int kvm_memslots_promote(struct kvm_memslots_vm *vm,
			 struct kvm_memslots_report *report);
/*
 * The same where one is due; with KVM_MEMSLOTS_DEFERRAL_ONLY_DUE only those
 * that are.
 */
int kvm_memslots_promote_due(struct kvm_memslots_vm *vm,
			     struct kvm_memslots_report *report);
/*
 * What to do after an access that KVM could not decode (KVM_EXIT_ARM_NISV,
 * ENOSYS of KVM_RUN, KVM_INTERNAL_ERROR_EMULATION): where *reenter is 1, run
 * the vCPU again, as there is memory now.
 */
int kvm_memslots_undecoded(struct kvm_memslots_vm *vm,
			   struct kvm_memslots_exits *exits, int *reenter);

struct kvm_memslots_deferral_usage {
	size_t size;
	/* Regions that wait for a slot. */
	uint64_t waiting;
	/* What a slot and an exit cost, as far as that was measured. */
	uint64_t slot_ns;
	uint64_t exit_ns;
};

int kvm_memslots_deferral_usage(struct kvm_memslots_vm *vm,
				struct kvm_memslots_deferral_usage *usage);
/* How many exits were served for a region while it waited. */
int kvm_memslots_exits_served(struct kvm_memslots_vm *vm, uint64_t id,
			      uint64_t *served);

#ifdef __cplusplus
}
#endif

#endif /* KVM_MEMSLOTS_CLIENT_DEFERRED_H */
