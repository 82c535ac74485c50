/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Changes: a part of <kvm_memslots_client.h>. */
#ifndef KVM_MEMSLOTS_CLIENT_CHANGES_H
#define KVM_MEMSLOTS_CLIENT_CHANGES_H

#include "memory.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * A set without changes.  Never NULL.
 *
 * Changes take effect as if one after the other.  Addresses and names are
 * checked when they are applied.  A call below that fails adds nothing, and the
 * set can't be applied any more: applying it fails as the call did.  So it is
 * enough to look at what applying returns.
 */
struct kvm_memslots_changes *kvm_memslots_changes_new(void);
/* NULL is allowed. */
void kvm_memslots_changes_free(struct kvm_memslots_changes *changes);
/* Adds the changes of other behind these, and frees other, also on failure. */
int kvm_memslots_changes_append(struct kvm_memslots_changes *changes,
				struct kvm_memslots_changes *other);
/* How many there are; 0 for NULL. */
size_t kvm_memslots_changes_len(struct kvm_memslots_changes *changes);

int kvm_memslots_map(struct kvm_memslots_changes *changes,
		     const struct kvm_memslots_spec *spec, uint64_t *id);
int kvm_memslots_unmap(struct kvm_memslots_changes *changes, uint64_t id);
/* The start stays where it is.  The backing must reach as far. */
int kvm_memslots_resize(struct kvm_memslots_changes *changes, uint64_t id,
			uint64_t len);
/* id keeps what is below offset, the rest is upper. */
int kvm_memslots_split(struct kvm_memslots_changes *changes, uint64_t id,
		       uint64_t offset, uint64_t *upper);
/* Puts a region that is in several slots into as few as can be. */
int kvm_memslots_join(struct kvm_memslots_changes *changes, uint64_t id);
/* With the doorbells and zones that are in it. */
int kvm_memslots_move_to(struct kvm_memslots_changes *changes, uint64_t id,
			 uint64_t gpa);
/* Puts other host memory behind a region; backing->len is not 0. */
int kvm_memslots_replace(struct kvm_memslots_changes *changes, uint64_t id,
			 const struct kvm_memslots_backing *backing);
/* on is 0, or not. */
int kvm_memslots_set_log_dirty(struct kvm_memslots_changes *changes,
			       uint64_t id, int on);
int kvm_memslots_set_read_only(struct kvm_memslots_changes *changes,
			       uint64_t id, int on);
int kvm_memslots_set_trap(struct kvm_memslots_changes *changes, uint64_t id,
			  int on);
/* Replaces the VMM's own routes. */
int kvm_memslots_set_own_routes(struct kvm_memslots_changes *changes,
				const struct kvm_irq_routing_entry *routes,
				size_t nr_routes);

#ifdef __cplusplus
}
#endif

#endif /* KVM_MEMSLOTS_CLIENT_CHANGES_H */
