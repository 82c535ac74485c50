/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * A VM's memory in one transaction: the C interface of kvm-memslots.
 *
 * A space is one KVM address space of one VM.  Its memory is described in
 * regions; KVM's memslots are chosen by the library and need not correspond to
 * them.  Changes are collected between begin and commit, and become one batch
 * ioctl where the kernel has KVM_SET_USER_MEMORY_REGIONS, and as few single
 * ones as possible where not.
 *
 * Functions that return int return 0, or a negative errno; then
 * kvm_memslots_last_error() says what is wrong with which region.  Results are
 * written on success only, and where the pointer to them is not NULL, unless
 * said otherwise.  GPAs, HVAs, sizes and offsets are in bytes and multiples of
 * the page size.
 *
 * A space may be used from any thread, but by one at a time.
 */
#ifndef KVM_MEMSLOTS_CLIENT_H
#define KVM_MEMSLOTS_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One KVM address space of one VM. */
struct kvm_memslots_space;

/*
 * Names a region of one space until the region is unmapped; never names
 * another one afterwards.  Not to be made up.
 */
struct kvm_memslots_region_id {
	uint32_t space;
	uint32_t index;
	uint32_t generation;
};

/* How commits are carried out. */
enum kvm_memslots_executor {
	/* The batch ioctl where the kernel has it, single ones elsewhere. */
	KVM_MEMSLOTS_EXECUTOR_AUTO = 0,
	KVM_MEMSLOTS_EXECUTOR_BATCH = 1,
	KVM_MEMSLOTS_EXECUTOR_PER_REGION = 2,
};

/*
 * What to do about a commit that, made of single ioctls, would unmap guest
 * pages for a moment that are mapped before and after.
 */
enum kvm_memslots_holes {
	/* Refuse it, with -EBUSY. */
	KVM_MEMSLOTS_HOLES_REFUSE = 0,
	/* No vCPU runs during commits. */
	KVM_MEMSLOTS_HOLES_NO_VCPU_RUNS = 1,
	/* Pause vCPUs with the gate. */
	KVM_MEMSLOTS_HOLES_GATE = 2,
};

/*
 * Pauses vCPUs.  Called by the thread that commits; not to call the library with
 * the same space.
 */
struct kvm_memslots_gate {
	/*
	 * Returns 0 once no vCPU is inside KVM_RUN, or a negative errno,
	 * with nothing paused.
	 */
	int (*pause)(void *opaque);
	/* Lets vCPUs in again; once for each pause that returned 0. */
	void (*resume)(void *opaque);
	void *opaque;
};

/* Slot ids, both included. */
struct kvm_memslots_slot_range {
	uint16_t first;
	uint16_t last;
};

/* All zero is the default. */
struct kvm_memslots_options {
	/* 0, or 1 for SMM on x86. */
	uint16_t address_space;
	/* The VMM enabled KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 on the VM. */
	bool manual_dirty_log;
	uint32_t executor;	/* enum kvm_memslots_executor */
	uint32_t holes;		/* enum kvm_memslots_holes */
	struct kvm_memslots_gate gate;
	/* Slot ids that the VMM uses itself in this address space. */
	const struct kvm_memslots_slot_range *reserved;
	size_t nr_reserved;
};

/* What a region is to the VM.  Kinds never share a slot. */
enum kvm_memslots_kind {
	KVM_MEMSLOTS_RAM = 0,
	KVM_MEMSLOTS_ROM = 1,
	KVM_MEMSLOTS_DEVICE = 2,
};

/* Flags of a region, with the values of KVM_MEM_*. */
#define KVM_MEMSLOTS_LOG_DIRTY	(1U << 0)
#define KVM_MEMSLOTS_READONLY	(1U << 1)
#define KVM_MEMSLOTS_GUEST_MEMFD	(1U << 2)

/* A region to be mapped. */
struct kvm_memslots_spec {
	uint64_t gpa;
	uint64_t size;
	uint64_t hva;
	uint32_t kind;		/* enum kvm_memslots_kind; ROMs are read-only */
	uint32_t flags;		/* KVM_MEMSLOTS_LOG_DIRTY, ... */
	/* With KVM_MEMSLOTS_GUEST_MEMFD. */
	uint64_t guest_memfd_offset;
	int guest_memfd;
	/* The region will change alone: it keeps a slot of its own. */
	bool alone;
	/* A name for errors and traces, UTF-8, or NULL.  Copied. */
	const char *label;
};

#define KVM_MEMSLOTS_LABEL_SIZE	64

/* A region as it is. */
struct kvm_memslots_region {
	struct kvm_memslots_region_id id;
	uint32_t kind;
	uint64_t gpa;
	uint64_t size;
	uint64_t hva;
	uint64_t guest_memfd_offset;
	int guest_memfd;	/* -1 without KVM_MEMSLOTS_GUEST_MEMFD */
	uint32_t flags;
	bool alone;
	/* NUL-terminated; cut where it is longer. */
	char label[KVM_MEMSLOTS_LABEL_SIZE];
};

/* What a commit cost. */
struct kvm_memslots_report {
	/* System calls that changed memslots. */
	uint64_t ioctls;
	/* SRCU grace periods that those waited for, by KVM's rules. */
	uint64_t grace_periods;
	/* Regions that share a slot, and so cost no call of their own. */
	uint64_t regions_merged;
	/* Regions whose unmap and map cancelled. */
	uint64_t regions_cancelled;
	/* From the first call to the last. */
	uint64_t elapsed_ns;
	/* Slots in the address space afterwards. */
	uint64_t slots;
	uint32_t executor;	/* BATCH or PER_REGION */
	bool vcpus_paused;
};

/* What a commit would cost. */
struct kvm_memslots_preview {
	uint64_t ioctls;
	uint64_t grace_periods;
	/* Ranges of guest pages that would be unmapped for a moment. */
	uint64_t holes;
	uint64_t slots;
};

/* What the VM allows. */
struct kvm_memslots_limits {
	uint64_t page_size;
	/* The largest region. */
	uint64_t region_size;
	/* Slot ids of the address space. */
	uint32_t slots;
	/* Entries of one batch ioctl, 0 where the kernel lacks it. */
	uint32_t batch;
};

/*
 * The message of the last call on this thread that failed; "" before the first.
 * Valid until the next call on this thread fails.  Never NULL.
 */
const char *kvm_memslots_last_error(void);

/*
 * Opens an address space of the VM behind vm_fd, which is duplicated.  options
 * may be NULL for the defaults.
 */
int kvm_memslots_open(int vm_fd, const struct kvm_memslots_options *options,
		      struct kvm_memslots_space **space);

/*
 * The same on a model of KVM in memory, for tests and machines without
 * /dev/kvm.
 */
int kvm_memslots_open_model(const struct kvm_memslots_options *options,
			    struct kvm_memslots_space **space);

/*
 * Unmaps everything and frees the space.  On failure the space is still there,
 * with everything mapped.  An open transaction is aborted.
 */
int kvm_memslots_close(struct kvm_memslots_space *space);

/*
 * Frees the space and leaves its slots to the VM, which frees them when it goes.
 * NULL is allowed.
 */
void kvm_memslots_free(struct kvm_memslots_space *space);

/*
 * Begins a transaction; -EALREADY if there is one.  Until commit or abort, the
 * calls that ask a space something fail with -EBUSY.
 */
int kvm_memslots_begin(struct kvm_memslots_space *space);

/*
 * Steps of the transaction that is open, -EINVAL if none is.  A step that fails
 * has not happened; the transaction can go on.
 *
 * From the commit of a map until the commit of its unmap, or until the VM is
 * gone, the host memory behind the region is the guest's: it stays mapped in
 * this process, and is not used for anything else.
 */
int kvm_memslots_map(struct kvm_memslots_space *space,
		     const struct kvm_memslots_spec *spec,
		     struct kvm_memslots_region_id *id);
int kvm_memslots_unmap(struct kvm_memslots_space *space,
		       struct kvm_memslots_region_id id);
/* The host memory behind what is new is as for a map. */
int kvm_memslots_resize(struct kvm_memslots_space *space,
			struct kvm_memslots_region_id id, uint64_t size);
/* id keeps what is below offset, the rest is upper. */
int kvm_memslots_split(struct kvm_memslots_space *space,
		       struct kvm_memslots_region_id id, uint64_t offset,
		       struct kvm_memslots_region_id *upper);
/* Sets KVM_MEMSLOTS_LOG_DIRTY and KVM_MEMSLOTS_READONLY to those in flags. */
int kvm_memslots_set_flags(struct kvm_memslots_space *space,
			   struct kvm_memslots_region_id id, uint32_t flags);
/* What committing now would cost. */
int kvm_memslots_dry_run(struct kvm_memslots_space *space,
			 struct kvm_memslots_preview *preview);

/*
 * Ends the transaction.  If commit fails, nothing has changed; except with
 * -ENOTRECOVERABLE: then KVM also refused to undo the calls before the one it
 * refused, and the next commit, also an empty one, puts it right.
 */
int kvm_memslots_commit(struct kvm_memslots_space *space,
			struct kvm_memslots_report *report);
int kvm_memslots_abort(struct kvm_memslots_space *space);

/*
 * The pages of a region that the guest wrote since the last call: a bit a page,
 * 64 a word, lowest first.  nr_words is the room in words, at least pages / 64
 * rounded up; words beyond that are not written.  With manual_dirty_log the log
 * stays as it is until it is cleared.
 */
int kvm_memslots_dirty_log(struct kvm_memslots_space *space,
			   struct kvm_memslots_region_id id,
			   uint64_t *words, size_t nr_words);
/* Forgets those pages of a region whose bit is set. */
int kvm_memslots_clear_dirty_log(struct kvm_memslots_space *space,
				 struct kvm_memslots_region_id id,
				 const uint64_t *words, size_t nr_words);

int kvm_memslots_region(struct kvm_memslots_space *space,
			struct kvm_memslots_region_id id,
			struct kvm_memslots_region *region);
/* The region at a guest address; -ENOENT if there is none. */
int kvm_memslots_region_at(struct kvm_memslots_space *space, uint64_t gpa,
			   struct kvm_memslots_region *region);
/*
 * The region that a page of a slot belongs to, and which page of the region it
 * is: for entries of a dirty ring.  -ENOENT if there is none.
 */
int kvm_memslots_region_at_slot(struct kvm_memslots_space *space, uint16_t slot,
				uint64_t slot_page,
				struct kvm_memslots_region *region,
				uint64_t *region_page);

int kvm_memslots_limits(struct kvm_memslots_space *space,
			struct kvm_memslots_limits *limits);

#ifdef __cplusplus
}
#endif

#endif /* KVM_MEMSLOTS_CLIENT_H */
