/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* System calls, for filters: a part of <kvm_memslots_client.h>. */
#ifndef KVM_MEMSLOTS_CLIENT_SECCOMP_H
#define KVM_MEMSLOTS_CLIENT_SECCOMP_H

#include "base.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * What a thread calls.  A filter lets through the lists of all that its thread
 * calls, and KVM_MEMSLOTS_SYSCALLS_RUNTIME with each.  No call makes a thread;
 * what a callback does is the caller's.
 */
enum kvm_memslots_syscalls_of {
	/* All calls: allocation, locks, the clock.  Enough for lookups. */
	KVM_MEMSLOTS_SYSCALLS_RUNTIME = 0,
	KVM_MEMSLOTS_SYSCALLS_OPEN = 1,		/* kvm_memslots_open() */
	/*
	 * Beside OPEN, without KVM_MEMSLOTS_NO_ORDER_CHECK and where warnings are
	 * heard (tracing, a library of Rust's; not in a program that is all C);
	 * with KVM_MEMSLOTS_DISABLE_SLOT_ZAP_ALL; with
	 * KVM_MEMSLOTS_ALLOW_SCRATCH_VM.
	 */
	KVM_MEMSLOTS_SYSCALLS_ORDER_CHECK = 2,
	KVM_MEMSLOTS_SYSCALLS_SLOT_ZAP_ALL = 3,
	KVM_MEMSLOTS_SYSCALLS_SCRATCH_VM = 4,
	/* kvm_memslots_apply(), _preview(), _commit(), _close(), _promote(); ROM
	   devices, PCI BARs. */
	KVM_MEMSLOTS_SYSCALLS_APPLY = 5,
	KVM_MEMSLOTS_SYSCALLS_DIRTY_LOG = 6,	/* kvm_memslots_*dirty_log*() */
	KVM_MEMSLOTS_SYSCALLS_SERVE = 7,	/* kvm_memslots_exits_read(), _write() */
	/* kvm_memslots_free(); with APPLY where regions have a release. */
	KVM_MEMSLOTS_SYSCALLS_DROP = 8,
	/* Windows, until they are freed; BARs and devices in them, with APPLY. */
	KVM_MEMSLOTS_SYSCALLS_WINDOW = 9,
	KVM_MEMSLOTS_SYSCALLS_RING = 10,	/* kvm_memslots_ring_new(), until freed */
};

/* Of ioctl: with this request only. */
#define KVM_MEMSLOTS_SYSCALL_REQUEST	(1U << 0)

/* A system call. */
struct kvm_memslots_syscall {
	size_t size;
	/* SYS_close, or of ioctl KVM_IRQFD.  Lives as long as the library. */
	const char *name;
	int64_t number;		/* on this architecture */
	uint32_t flags;		/* KVM_MEMSLOTS_SYSCALL_* */
	/* The low half of the second argument; the upper is the C library's. */
	uint32_t request;
};

typedef void (*kvm_memslots_each_syscall)(
	void *opaque, const struct kvm_memslots_syscall *syscall);
/*
 * The system calls of one list (enum kvm_memslots_syscalls_of).  A list has what
 * any kernel and any VM takes: docs/reference/seccomp.md says what only some do.
 */
int kvm_memslots_syscalls(uint32_t of, kvm_memslots_each_syscall each,
			  void *opaque);

#ifdef __cplusplus
}
#endif

#endif /* KVM_MEMSLOTS_CLIENT_SECCOMP_H */
