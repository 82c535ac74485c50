/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* PCI BARs: a part of <kvm_memslots_client.h>. */
#ifndef KVM_MEMSLOTS_CLIENT_PCI_H
#define KVM_MEMSLOTS_CLIENT_PCI_H

#include "apply.h"
#include "device.h"
#include "window.h"

#ifdef __cplusplus
extern "C" {
#endif

enum kvm_memslots_bar_kind {
	KVM_MEMSLOTS_BAR_MEMORY32 = 0,
	KVM_MEMSLOTS_BAR_MEMORY64 = 1,
	KVM_MEMSLOTS_BAR_IO = 2,
};

#define KVM_MEMSLOTS_BAR_PREFETCHABLE	(1U << 0)
/* The index of the expansion ROM, which is KVM_MEMSLOTS_BAR_MEMORY32. */
#define KVM_MEMSLOTS_BAR_ROM		6

/* Writes that signal an eventfd while the BAR decodes. */
struct kvm_memslots_bar_doorbell {
	size_t size;
	uint64_t offset;	/* in the BAR */
	uint64_t value;
	uint64_t flags;		/* KVM_MEMSLOTS_DOORBELL_VALUE */
	uint32_t len;		/* 1, 2, 4 or 8 bytes; 0: any */
	int eventfd;
};

struct kvm_memslots_bar_range {
	uint64_t offset;
	uint64_t len;
};

struct kvm_memslots_bar {
	size_t size;
	uint64_t len;
	/*
	 * Parts of the BAR that are memory: their gpa is the offset in it,
	 * their id 0.  Everything else of the BAR exits.
	 */
	const struct kvm_memslots_spec *const *windows;
	size_t nr_windows;
	uint32_t index;		/* 0 to 5, or KVM_MEMSLOTS_BAR_ROM */
	uint16_t kind;		/* enum kvm_memslots_bar_kind */
	uint16_t flags;		/* KVM_MEMSLOTS_BAR_* */
	const struct kvm_memslots_bar_doorbell *const *doorbells;
	size_t nr_doorbells;
	/*
	 * What exits though windows cover it: an MSI-X table, say.  Windows are
	 * cut around the pages that it is in.
	 */
	const struct kvm_memslots_bar_range *exits;
	size_t nr_exits;
};

/* The header is that of a bridge. */
#define KVM_MEMSLOTS_FUNCTION_BRIDGE	(1U << 0)

struct kvm_memslots_function {
	size_t size;
	const struct kvm_memslots_bar *const *bars;
	size_t nr_bars;
	uint64_t flags;		/* KVM_MEMSLOTS_FUNCTION_* */
};

/*
 * BARs that follow the guest's config writes, with as few changes as can be:
 * none while decoding is off, one set when it goes on or off or a BAR moves.
 * Of one VM, always the same, whose guest physical addresses have address_bits
 * bits.  Never NULL.
 */
struct kvm_memslots_pci *kvm_memslots_pci_new(uint32_t address_bits);
/* Leaves what is mapped.  NULL is allowed. */
void kvm_memslots_pci_free(struct kvm_memslots_pci *pci);
/* ioeventfds of a BAR that stops decoding stay until it is somewhere else. */
#define KVM_MEMSLOTS_PCI_KEEP_IOEVENTFDS  (1U << 0)
/* ioeventfds of BARs wait for kvm_memslots_assign_deferred(). */
#define KVM_MEMSLOTS_PCI_DEFER_IOEVENTFDS (1U << 1)
/*
 * Memory that the guest puts outside of the windows gets no slot, and exits:
 * its refusal says so.
 */
#define KVM_MEMSLOTS_PCI_WITHOUT_SLOTS	  (1U << 2)
/* Switches these on.  Before functions are added. */
int kvm_memslots_pci_set_flags(struct kvm_memslots_pci *pci, uint32_t flags);
/*
 * Memory of BARs that the guest puts in this window is placed there, without a
 * call of KVM's, where its backing has KVM_MEMSLOTS_BACKING_FILE; the
 * descriptor may be closed once the function is added.  Other memory and
 * doorbells in it are refused.  Before functions are added.  The VMM maps the
 * window; it may be freed before the BARs.
 */
int kvm_memslots_pci_in_window(struct kvm_memslots_pci *pci,
			       struct kvm_memslots_window *window);
/* Adds a function as after a reset. */
int kvm_memslots_pci_add(struct kvm_memslots_pci *pci,
			 struct kvm_memslots_vm *vm,
			 const struct kvm_memslots_function *function,
			 uint64_t *id);
/*
 * Follows a config write.  Memory that can't be where the guest has put it is
 * no failure: see kvm_memslots_pci_refusal().  On failure the registers have
 * the new values all the same, and kvm_memslots_pci_sync() tries again.
 */
int kvm_memslots_pci_config_write(struct kvm_memslots_pci *pci,
				  struct kvm_memslots_vm *vm, uint64_t function,
				  uint16_t offset, const void *data, size_t len,
				  struct kvm_memslots_report *report);
/* Only notes it, until kvm_memslots_pci_sync() maps all BARs together. */
int kvm_memslots_pci_note_write(struct kvm_memslots_pci *pci, uint64_t function,
				uint16_t offset, const void *data, size_t len);
/* Fills in what is of BARs; other bytes, which have been written, stay. */
int kvm_memslots_pci_config_read(struct kvm_memslots_pci *pci,
				 uint64_t function, uint16_t offset, void *data,
				 size_t len);
int kvm_memslots_pci_sync(struct kvm_memslots_pci *pci,
			  struct kvm_memslots_vm *vm,
			  struct kvm_memslots_report *report);
int kvm_memslots_pci_reset(struct kvm_memslots_pci *pci,
			   struct kvm_memslots_vm *vm, uint64_t function,
			   struct kvm_memslots_report *report);
/* Unmaps its memory and forgets it. */
int kvm_memslots_pci_remove(struct kvm_memslots_pci *pci,
			    struct kvm_memslots_vm *vm, uint64_t function,
			    struct kvm_memslots_report *report);
/* Where a BAR decodes; -ENOENT if nowhere. */
int kvm_memslots_pci_base(struct kvm_memslots_pci *pci, uint64_t function,
			  uint32_t index, uint64_t *base);
/* Which BAR an exit is for. */
int kvm_memslots_pci_decode(struct kvm_memslots_pci *pci, uint64_t gpa,
			    uint64_t *function, uint32_t *index,
			    uint64_t *offset);
/* Fails as KVM did where a BAR is not mapped although it decodes; else 0. */
int kvm_memslots_pci_refusal(struct kvm_memslots_pci *pci, uint64_t function,
			     uint32_t index);

typedef void (*kvm_memslots_each_window)(void *opaque, size_t window,
					 uint64_t id);
/* The regions of a BAR's windows that have slots, by their number. */
int kvm_memslots_pci_regions(struct kvm_memslots_pci *pci, uint64_t function,
			     uint32_t index, kvm_memslots_each_window each,
			     void *opaque);

typedef void (*kvm_memslots_each_placed)(
	void *opaque, size_t window,
	const struct kvm_memslots_placement *placement);
/* Those that are placed in a window of kvm_memslots_pci_in_window(). */
int kvm_memslots_pci_placed(struct kvm_memslots_pci *pci, uint64_t function,
			    uint32_t index, kvm_memslots_each_placed each,
			    void *opaque);

#ifdef __cplusplus
}
#endif

#endif /* KVM_MEMSLOTS_CLIENT_PCI_H */
