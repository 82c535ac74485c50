/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Errors: a part of <kvm_memslots_client.h>. */
#ifndef KVM_MEMSLOTS_CLIENT_ERROR_H
#define KVM_MEMSLOTS_CLIENT_ERROR_H

#include "memory.h"

#ifdef __cplusplus
extern "C" {
#endif

/* KVM or a window has something else than before: see kvm_memslots_apply(). */
#define KVM_MEMSLOTS_ERROR_STUCK	(1U << 0)
/* The errno is the kernel's. */
#define KVM_MEMSLOTS_ERROR_KVM		(1U << 1)
/* A gate or an observer said no; of a gate it is its errno. */
#define KVM_MEMSLOTS_ERROR_CALLBACK	(1U << 2)

/* A part of a device. */
enum kvm_memslots_part {
	KVM_MEMSLOTS_PART_NONE = 0,
	KVM_MEMSLOTS_PART_IOEVENTFD = 1,	/* index: in order of adding */
	KVM_MEMSLOTS_PART_VECTOR = 2,		/* index: its number */
	KVM_MEMSLOTS_PART_LINE = 3,		/* index: its GSI */
	KVM_MEMSLOTS_PART_ROUTES = 4,
	KVM_MEMSLOTS_PART_ZONE = 5,		/* index: in order of adding */
	KVM_MEMSLOTS_PART_IN_WINDOW = 6,	/* index: in order of adding */
};

struct kvm_memslots_error {
	size_t size;
	/* Which change of the set, counted from 0; -1: none. */
	int64_t change;
	/* The region to blame; 0: none. */
	uint64_t region;
	int error;		/* the errno, positive; 0: none failed */
	uint32_t flags;		/* KVM_MEMSLOTS_ERROR_* */
	uint32_t part;		/* enum kvm_memslots_part */
	uint32_t index;
	/* The name of the device, "" where it is about none. */
	char device[KVM_MEMSLOTS_LABEL_SIZE];
};

/*
 * The message of the last call on this thread that failed; "" before the first.
 * Valid until the next call on this thread fails.  Never NULL.
 */
const char *kvm_memslots_last_error(void);
/* The rest of what is known about it.  Does not count as a call itself. */
int kvm_memslots_last_error_info(struct kvm_memslots_error *error);

#ifdef __cplusplus
}
#endif

#endif /* KVM_MEMSLOTS_CLIENT_ERROR_H */
