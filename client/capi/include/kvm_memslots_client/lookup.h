/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Lookups: a part of <kvm_memslots_client.h>. */
#ifndef KVM_MEMSLOTS_CLIENT_LOOKUP_H
#define KVM_MEMSLOTS_CLIENT_LOOKUP_H

#include "open.h"

#ifdef __cplusplus
extern "C" {
#endif

int kvm_memslots_limits(struct kvm_memslots_vm *vm,
			struct kvm_memslots_limits *limits);
/*
 * -ENOENT if there is none of this name; so below.  Lookups see what was
 * applied: what a set maps is found once it is, what it unmaps until then.
 */
int kvm_memslots_region(struct kvm_memslots_vm *vm, uint64_t id,
			struct kvm_memslots_region *region);
int kvm_memslots_region_at(struct kvm_memslots_vm *vm, uint16_t as_id,
			   uint64_t gpa, struct kvm_memslots_region *region);
/*
 * And how many bytes into it that is.  Where several regions of the address
 * space have the memory: the one that starts last.
 */
int kvm_memslots_region_at_hva(struct kvm_memslots_vm *vm, uint16_t as_id,
			       uint64_t hva,
			       struct kvm_memslots_region *region,
			       uint64_t *offset);
/*
 * The region that a page of a slot belongs to, and which page of the region it
 * is: for entries of a dirty ring.
 */
int kvm_memslots_region_at_slot(struct kvm_memslots_vm *vm, uint16_t as_id,
				uint16_t slot, uint64_t slot_page,
				struct kvm_memslots_region *region,
				uint64_t *region_page);

typedef void (*kvm_memslots_each_region)(
	void *opaque, const struct kvm_memslots_region *region);
/*
 * All regions as they are now, by address space and guest address.  Callbacks
 * of lookups may call the library, for anything but freeing the VM.
 */
int kvm_memslots_regions(struct kvm_memslots_vm *vm,
			 kvm_memslots_each_region each, void *opaque);
/* Those with this tag. */
int kvm_memslots_tagged(struct kvm_memslots_vm *vm, uint64_t tag,
			kvm_memslots_each_region each, void *opaque);

/* A slot of KVM's. */
struct kvm_memslots_slot {
	size_t size;
	uint64_t gpa;
	uint64_t len;
	uint64_t hva;
	uint32_t flags;		/* KVM_MEM_* */
	uint16_t id;
	uint16_t as_id;
};

typedef void (*kvm_memslots_each_slot)(void *opaque,
				       const struct kvm_memslots_slot *slot);
/* The slots of an address space, by guest address. */
int kvm_memslots_slots(struct kvm_memslots_vm *vm, uint16_t as_id,
		       kvm_memslots_each_slot each, void *opaque);

struct kvm_memslots_slot_usage {
	size_t size;
	uint64_t used;
	uint64_t available;
	/* KVM's limit less the reserved ids. */
	uint64_t capacity;
};

int kvm_memslots_slot_usage(struct kvm_memslots_vm *vm, uint16_t as_id,
			    struct kvm_memslots_slot_usage *usage);

typedef void (*kvm_memslots_each_id)(void *opaque, uint64_t id);
/* The devices that are attached. */
int kvm_memslots_devices(struct kvm_memslots_vm *vm, kvm_memslots_each_id each,
			 void *opaque);
/* The regions of a device, those that were unmapped among them. */
int kvm_memslots_device_regions(struct kvm_memslots_vm *vm, uint64_t device,
				kvm_memslots_each_id each, void *opaque);
/* The GSI of a vector; -ENODATA before its first message. */
int kvm_memslots_gsi(struct kvm_memslots_vm *vm, uint64_t device, size_t vector,
		     uint32_t *gsi);

#ifdef __cplusplus
}
#endif

#endif /* KVM_MEMSLOTS_CLIENT_LOOKUP_H */
