/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Host memory and regions: a part of <kvm_memslots_client.h>. */
#ifndef KVM_MEMSLOTS_CLIENT_MEMORY_H
#define KVM_MEMSLOTS_CLIENT_MEMORY_H

#include "base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The guest may only read it: regions of it are read-only. */
#define KVM_MEMSLOTS_BACKING_READ_ONLY	 (1U << 0)
/* guest_memfd and guest_memfd_offset are set. */
#define KVM_MEMSLOTS_BACKING_GUEST_MEMFD (1U << 1)
/* file and file_offset are set. */
#define KVM_MEMSLOTS_BACKING_FILE	 (1U << 2)
/*
 * No access by this process faults: no file that may be truncated, no access
 * that is taken away.  What waits for a slot is then served without a system
 * call.
 */
#define KVM_MEMSLOTS_BACKING_NEVER_FAULTS (1U << 3)

/*
 * Host memory behind guest memory.
 *
 * From when a change that maps a part of it is applied, until one that unmaps
 * it has been applied or the VM is gone (its last descriptor closed), it is the
 * guest's: it stays mapped in this process, and is used for nothing else.
 */
struct kvm_memslots_backing {
	size_t size;
	uint64_t hva;
	/* How far a region of it can reach; 0: as far as the one it is for. */
	uint64_t len;
	/* Private memory; the descriptor stays open while the region lives. */
	uint64_t guest_memfd_offset;
	/*
	 * Where in a file the memory is: for observers, and for BARs in windows.
	 * It is open until the changes have been applied, or the function added.
	 */
	uint64_t file_offset;
	int guest_memfd;
	int file;
	/*
	 * Where not NULL, the memory may go when KVM maps it no more and nobody
	 * can have it mapped again: then this is called, once, on any thread.
	 * Not if the call that this structure is given to fails.
	 */
	void (*release)(void *opaque);
	void *opaque;
	uint64_t flags;		/* KVM_MEMSLOTS_BACKING_* */
};

/* What a region is to the VM.  Kinds never share a slot. */
enum kvm_memslots_kind {
	KVM_MEMSLOTS_RAM = 0,
	KVM_MEMSLOTS_ROM = 1,	/* read-only */
	KVM_MEMSLOTS_DEVICE = 2,
};

/* Flags of a region, with the values of KVM_MEM_*. */
#define KVM_MEMSLOTS_LOG_DIRTY	 (1U << 0)
#define KVM_MEMSLOTS_READONLY	 (1U << 1)
/* Of a region as it is; a new one has it from its backing. */
#define KVM_MEMSLOTS_GUEST_MEMFD (1U << 2)
/* Accesses exit as MMIO, as if it were not mapped.  Alone. */
#define KVM_MEMSLOTS_TRAP	 (1U << 15)
/* The region will change alone: it has a slot of its own. */
#define KVM_MEMSLOTS_ALONE	 (1U << 16)
/*
 * The region stays as long as the VM: it may share a slot with others that do,
 * also where the kernel has no batch ioctl.
 */
#define KVM_MEMSLOTS_PERMANENT	 (1U << 17)
/* tag is set. */
#define KVM_MEMSLOTS_TAGGED	 (1U << 18)
/*
 * The region may wait for a slot until it is worth one; see kvm_memslots_exits.
 * Not for memory that the guest executes from, or synchronises vCPUs through.
 */
#define KVM_MEMSLOTS_DEFERRABLE	 (1U << 19)
/* Of a region as it is: it waits for a slot. */
#define KVM_MEMSLOTS_DEFERRED	 (1U << 20)

/* A region to be mapped. */
struct kvm_memslots_spec {
	size_t size;
	/* 0: the region gets a new name. */
	uint64_t id;
	uint64_t gpa;
	uint64_t len;
	const struct kvm_memslots_backing *backing;
	/* A name for errors and traces, UTF-8, or NULL.  Copied. */
	const char *label;
	/* The VMM's own name, which several regions may have. */
	uint64_t tag;
	uint32_t flags;		/* KVM_MEMSLOTS_LOG_DIRTY, ... */
	uint16_t kind;		/* enum kvm_memslots_kind */
	/* The address space: 0, or 1 for SMM on x86. */
	uint16_t as_id;
};

#define KVM_MEMSLOTS_LABEL_SIZE	64

/* A region as it is. */
struct kvm_memslots_region {
	size_t size;
	uint64_t id;
	uint64_t tag;		/* with KVM_MEMSLOTS_TAGGED */
	uint64_t gpa;
	uint64_t len;
	uint64_t hva;
	uint64_t guest_memfd_offset;
	uint64_t file_offset;
	int guest_memfd;	/* -1: none */
	int file;		/* -1: none */
	uint32_t flags;
	uint16_t kind;
	uint16_t as_id;
	/* NUL-terminated; cut where it is longer. */
	char label[KVM_MEMSLOTS_LABEL_SIZE];
};

#ifdef __cplusplus
}
#endif

#endif /* KVM_MEMSLOTS_CLIENT_MEMORY_H */
