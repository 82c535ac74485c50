/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* ROM devices: a part of <kvm_memslots_client.h>. */
#ifndef KVM_MEMSLOTS_CLIENT_ROM_H
#define KVM_MEMSLOTS_CLIENT_ROM_H

#include "apply.h"
#include "memory.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How a ROM device changes its mode. */
enum kvm_memslots_rom_mode {
	/* By a trap where the kernel has that, else deferred. */
	KVM_MEMSLOTS_ROM_MODE_AUTO = 0,
	KVM_MEMSLOTS_ROM_MODE_TRAP = 1,
	/* Once it has flipped after times, its region is deferrable. */
	KVM_MEMSLOTS_ROM_MODE_DEFERRED = 2,
	/* The slot goes and comes with each flip. */
	KVM_MEMSLOTS_ROM_MODE_TOGGLE = 3,
};

/*
 * Maps memory that is read-only in array mode, where it begins, and answered by
 * the device in command mode: flash, say.  spec->id is 0.  To remove it, its
 * region is unmapped, in whatever set, and it is freed.
 */
int kvm_memslots_rom_new(struct kvm_memslots_vm *vm,
			 const struct kvm_memslots_spec *spec, uint32_t mode,
			 uint32_t after, struct kvm_memslots_rom **rom);
/* Leaves its region as it is.  NULL is allowed. */
void kvm_memslots_rom_free(struct kvm_memslots_rom *rom);
/*
 * When it has returned, no vCPU reaches the memory in command mode (on is 0),
 * or all of it is there in array mode.  Where it is in that mode, the report is
 * 0.
 */
int kvm_memslots_rom_set_array_mode(struct kvm_memslots_rom *rom,
				    struct kvm_memslots_vm *vm, int on,
				    struct kvm_memslots_report *report);

struct kvm_memslots_rom_state {
	size_t size;
	uint64_t region;	/* 0: none now */
	uint64_t flips;
	uint32_t mode;		/* what AUTO came to */
	uint32_t array_mode;	/* 0 or 1 */
};

int kvm_memslots_rom_state(struct kvm_memslots_rom *rom,
			   struct kvm_memslots_rom_state *state);

#ifdef __cplusplus
}
#endif

#endif /* KVM_MEMSLOTS_CLIENT_ROM_H */
