/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Dirty logs: a part of <kvm_memslots_client.h>. */
#ifndef KVM_MEMSLOTS_CLIENT_DIRTY_H
#define KVM_MEMSLOTS_CLIENT_DIRTY_H

#include "base.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * The pages of a region that the guest wrote since the last call: a bit a page,
 * 64 a word, lowest first.  nr_words is the room in words, at least pages / 64
 * rounded up; words beyond that are not written.  With
 * KVM_MEMSLOTS_MANUAL_DIRTY_LOG the log stays as it is until it is cleared.
 */
int kvm_memslots_dirty_log(struct kvm_memslots_vm *vm, uint64_t id,
			   uint64_t *words, size_t nr_words);
/* The same of nr_pages of its pages: bit 0 is first_page. */
int kvm_memslots_dirty_log_of(struct kvm_memslots_vm *vm, uint64_t id,
			      uint64_t first_page, uint64_t nr_pages,
			      uint64_t *words, size_t nr_words);

typedef void (*kvm_memslots_each_dirty_log)(void *opaque, uint64_t id,
					    const uint64_t *words,
					    uint64_t nr_pages);
/*
 * The same of all logged regions that have dirty pages, with one
 * KVM_GET_DIRTY_LOG a slot.  If it fails, what was not handed out is reported
 * by the next call.
 */
int kvm_memslots_dirty_logs(struct kvm_memslots_vm *vm,
			    kvm_memslots_each_dirty_log each, void *opaque);
/* The same of one address space: the slots of others are not read. */
int kvm_memslots_dirty_logs_in(struct kvm_memslots_vm *vm, uint16_t as_id,
			       kvm_memslots_each_dirty_log each, void *opaque);
/*
 * Forgets those of the pages whose bit is set: bit 0 is first_page.  Only with
 * KVM_MEMSLOTS_MANUAL_DIRTY_LOG.
 */
int kvm_memslots_clear_dirty_log(struct kvm_memslots_vm *vm, uint64_t id,
				 uint64_t first_page, uint64_t nr_pages,
				 const uint64_t *words, size_t nr_words);

#ifdef __cplusplus
}
#endif

#endif /* KVM_MEMSLOTS_CLIENT_DIRTY_H */
