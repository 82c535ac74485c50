/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Windows: a part of <kvm_memslots_client.h>. */
#ifndef KVM_MEMSLOTS_CLIENT_WINDOW_H
#define KVM_MEMSLOTS_CLIENT_WINDOW_H

#include "memory.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What the guest finds where nothing is placed. */
enum kvm_memslots_gap {
	/* Nothing: an access ends KVM_RUN, as to memory that is not there. */
	KVM_MEMSLOTS_GAP_FAULT = 0,
	/* Zeroes; a write ends KVM_RUN. */
	KVM_MEMSLOTS_GAP_ZEROES = 1,
	/*
	 * Zeroes, and what the guest wrote.  It can have the host spend as much
	 * memory as the window is large.
	 */
	KVM_MEMSLOTS_GAP_SCRATCH = 2,
};

/* Huge pages for what is placed, where the kernel has them for it. */
#define KVM_MEMSLOTS_WINDOW_HUGE_PAGES	(1U << 0)

struct kvm_memslots_window_spec {
	size_t size;
	/* Where it will be: host addresses are chosen to fit. */
	uint64_t gpa;
	uint64_t len;
	uint32_t gap;		/* enum kvm_memslots_gap */
	uint32_t flags;		/* KVM_MEMSLOTS_WINDOW_* */
};

/*
 * One region, in one slot, in which memory comes and goes without KVM: blobs of
 * virtio-gpu, DAX, virtio-mem.  Reserves host addresses.  May be used from any
 * thread, by several at a time, until it is freed.
 */
int kvm_memslots_window_new(const struct kvm_memslots_window_spec *spec,
			    struct kvm_memslots_window **window);
/* A region that is mapped from it keeps its memory.  NULL is allowed. */
void kvm_memslots_window_free(struct kvm_memslots_window *window);
/*
 * Adds a map of it to a set.  spec is NULL for device memory, alone in its
 * slot, where the window was made for; else its backing is NULL, and a gpa or
 * len of 0 is the window's.
 */
int kvm_memslots_window_map(struct kvm_memslots_changes *changes,
			    struct kvm_memslots_window *window,
			    const struct kvm_memslots_spec *spec, uint64_t *id);

/* What is placed. */
enum kvm_memslots_contents {
	/* Nothing: what is there is removed.  Of an edit. */
	KVM_MEMSLOTS_CONTENTS_NONE = 0,
	/* Zeroes, private to the guest. */
	KVM_MEMSLOTS_CONTENTS_ANONYMOUS = 1,
	/* What is in a file, shared, from file_offset on. */
	KVM_MEMSLOTS_CONTENTS_FILE = 2,
	/*
	 * What else can be mapped: a BAR of VFIO, a dma-buf.  Not what could
	 * have this process's memory written: a ring of io_uring, kvm_run.
	 */
	KVM_MEMSLOTS_CONTENTS_DEVICE = 3,
	/*
	 * What is at hva: shared memory is there twice then, private memory has
	 * moved and reads as zeroes at hva.  It keeps its protection.
	 */
	KVM_MEMSLOTS_CONTENTS_MAPPING = 4,
};

/* The guest may only read it. */
#define KVM_MEMSLOTS_PLACEMENT_READ_ONLY (1U << 0)
/* Of what is placed: it came from a descriptor, and file_offset is set. */
#define KVM_MEMSLOTS_PLACEMENT_FILE	 (1U << 1)

struct kvm_memslots_placement {
	size_t size;
	uint64_t offset;	/* in the window */
	uint64_t len;
	uint64_t file_offset;
	uint64_t hva;
	/* May be closed once it is placed. */
	int fd;
	uint32_t contents;	/* enum kvm_memslots_contents */
	uint64_t flags;		/* KVM_MEMSLOTS_PLACEMENT_* */
};

/* Places where nothing is yet. */
int kvm_memslots_window_place(struct kvm_memslots_window *window,
			      const struct kvm_memslots_placement *placement);
/*
 * Removes len bytes, all of which are something.  When it has returned, no vCPU
 * finds what was there.
 */
int kvm_memslots_window_remove(struct kvm_memslots_window *window,
			       uint64_t offset, uint64_t len);
/*
 * Removes and places, all or nothing.  The change of the last error is the
 * number of the edit.
 */
int kvm_memslots_window_edit(struct kvm_memslots_window *window,
			     const struct kvm_memslots_placement *const *edits,
			     size_t nr_edits);

/* What is at an offset; -ENOENT in a gap.  Not told: fd, hva, contents. */
int kvm_memslots_window_at(struct kvm_memslots_window *window, uint64_t offset,
			   struct kvm_memslots_placement *placement);

typedef void (*kvm_memslots_each_placement)(
	void *opaque, const struct kvm_memslots_placement *placement);
/* All that is placed, by offset. */
int kvm_memslots_window_placed(struct kvm_memslots_window *window,
			       kvm_memslots_each_placement each, void *opaque);
/* Where in the window a guest address is; -ENOENT if it is not. */
int kvm_memslots_window_found(struct kvm_memslots_window *window,
			      struct kvm_memslots_vm *vm, uint16_t as_id,
			      uint64_t gpa, uint64_t *offset);

/*
 * Memory of a device in a window: placed when the device is attached, removed
 * when it is detached, without a call of KVM's, all or nothing with the rest of
 * the set.  It is KVM_MEMSLOTS_CONTENTS_FILE.  The descriptor may be closed
 * after this call, and the window freed.  The VMM maps the window.  Doorbells
 * do not ring in it.  id is not a region's: it is for the call below.
 */
int kvm_memslots_device_in_window(struct kvm_memslots_device *device,
				  struct kvm_memslots_window *window,
				  const struct kvm_memslots_placement *part,
				  uint64_t *id);
/*
 * Moves it to another offset in its window.  Two of one length that swap their
 * places do so without a gap between.
 */
int kvm_memslots_move_in_window(struct kvm_memslots_changes *changes,
				uint64_t id, uint64_t offset);

#ifdef __cplusplus
}
#endif

#endif /* KVM_MEMSLOTS_CLIENT_WINDOW_H */
