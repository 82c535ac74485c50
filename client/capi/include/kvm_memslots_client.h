/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * A VM's memory and devices, changed in sets: the C interface of kvm-memslots.
 * C99 or later, C++11 or later.
 *
 * What a VM is to have is described in regions and devices; KVM's memslots are
 * chosen by the library and need not correspond to regions.  Changes are
 * collected in a value that knows no VM, and applied to one together, all or
 * nothing: in one batch ioctl where the kernel has KVM_SET_USER_MEMORY_REGIONS,
 * and in as few single ones as possible where not.
 *
 * Functions that return int return 0, or a negative errno; then
 * kvm_memslots_last_error() says what is wrong with which region.  Results are
 * written on success only, and where the pointer to them is not NULL.  GPAs,
 * HVAs and lengths are in bytes and multiples of the page size.
 *
 * Structures begin with their size, which the caller sets, for results too:
 *
 *	struct kvm_memslots_region region = { .size = sizeof(region) };
 *
 * Fields that the caller does not have are 0, which is always the default.
 * Flags, and fields beyond the library's, that the library does not know are
 * refused.
 *
 * Threads.  A VM may be used from any thread, by several at a time, until it is
 * freed.  Everything else that a pointer is to (a set of changes, a device that
 * is being described, exits, a ROM device, PCI BARs) is for one thread at a time:
 * a second one gets -EBUSY, as does whoever frees what a call is inside of.
 * Callbacks return: no longjmp() and no C++ exception leaves them.  All calls may
 * be made in the destructor of a pthread key; messages of failures are not kept
 * there.
 *
 * What was freed is not used any more.  A pointer to something else, or to what
 * was freed, is -EBADF as far as that can be told: not where the memory has been
 * given out again, or back to the kernel.
 *
 * In a process that was forked from the one that opened a VM, calls on it are
 * -EIO and take no lock, and freeing it frees what is this process's.  After a
 * fork() in a process with several threads, C allows what is async-signal-safe
 * only, and of this library that is kvm_memslots_version().
 *
 * System calls.  docs/reference/seccomp.md has those that each call makes.
 *
 * Errors.  One errno has one meaning.  Where kvm_memslots_last_error_info() has
 * KVM_MEMSLOTS_ERROR_KVM it is the kernel's, and where it has
 * KVM_MEMSLOTS_ERROR_CALLBACK what a callback returned; else:
 *
 *	EINVAL		an argument can't be: NULL, unaligned, an unknown flag, ...
 *	E2BIG		a structure has fields that the library does not know
 *	EBADF		no descriptor, or no pointer that the library gave
 *	ENOENT		there is none of this name, or at this address
 *	ENODATA		it has none: a vector no message, a region no dirty log
 *	EEXIST		the name, the addresses, the GSI are taken
 *	ENOSPC		no slot, GSI or route is left
 *	EBUSY		in use: the VM is open, the slot is used, see Threads
 *	EPERM		a hole that the hole policy does not allow
 *	EACCES		a writable region of memory that may only be read
 *	EOPNOTSUPP	this kernel, or this VM, can't
 *	EDEADLK		called from a callback of a change
 *	ECANCELED	an observer refused
 *	EPROTO		a callback returned neither 0 nor a negative errno
 *	EIO		the VM is another process's, or dead
 *	ENOTRECOVERABLE	a bug of the library: please report it
 */
#ifndef KVM_MEMSLOTS_CLIENT_H
#define KVM_MEMSLOTS_CLIENT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version that this header is of. */
#define KVM_MEMSLOTS_VERSION_MAJOR	0
#define KVM_MEMSLOTS_VERSION_MINOR	1
#define KVM_MEMSLOTS_VERSION_PATCH	0
#define KVM_MEMSLOTS_VERSION                                                   \
	((KVM_MEMSLOTS_VERSION_MAJOR << 16) |                                  \
	 (KVM_MEMSLOTS_VERSION_MINOR << 8) | KVM_MEMSLOTS_VERSION_PATCH)
/* The version of the library.  The same major and, before 1.0, minor number fits. */
uint32_t kvm_memslots_version(void);

/* A VM: its address spaces, its devices. */
struct kvm_memslots_vm;
/* Changes of a VM. */
struct kvm_memslots_changes;
/* A device that is being described. */
struct kvm_memslots_device;
/* What serves a vCPU thread's exits. */
struct kvm_memslots_exits;
/* A device whose memory is a ROM in one mode. */
struct kvm_memslots_rom;
/* The BARs of PCI functions. */
struct kvm_memslots_pci;
/* <linux/kvm.h> */
struct kvm_irq_routing_entry;

/*
 * Regions, devices and PCI functions are named by numbers that are never 0, and never another
 * one's, in whatever VM.  Not to be made up.
 */

/* ---- Host memory ---- */

/* The guest may only read it: regions of it are read-only. */
#define KVM_MEMSLOTS_BACKING_READ_ONLY	 (1U << 0)
/* guest_memfd and guest_memfd_offset are set. */
#define KVM_MEMSLOTS_BACKING_GUEST_MEMFD (1U << 1)
/* file and file_offset are set. */
#define KVM_MEMSLOTS_BACKING_FILE	 (1U << 2)

/*
 * Host memory behind guest memory.
 *
 * From when a change that maps a part of it is applied, until one that unmaps it
 * has been applied or the VM is gone (its last descriptor closed), it is the
 * guest's: it stays mapped in this process, and is used for nothing else.
 */
struct kvm_memslots_backing {
	size_t size;
	uint64_t hva;
	/* How far a region of it can reach; 0: as far as the one it is for. */
	uint64_t len;
	/* Private memory; the descriptor stays open while the region lives. */
	uint64_t guest_memfd_offset;
	/* Where in a file the memory is: for observers. */
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

/* ---- Regions ---- */

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

/* ---- Opening ---- */

/* How changes of memory are carried out. */
enum kvm_memslots_executor {
	/* The batch ioctl where the kernel has it, single ones elsewhere. */
	KVM_MEMSLOTS_EXECUTOR_AUTO = 0,
	KVM_MEMSLOTS_EXECUTOR_BATCH = 1,
	KVM_MEMSLOTS_EXECUTOR_PER_REGION = 2,
};

/*
 * What may be unmapped for a moment that is mapped before and after, where
 * changes are made call by call.
 */
enum kvm_memslots_holes {
	/* Regions that the changes name, as in a loop of ioctls. */
	KVM_MEMSLOTS_HOLES_NAMED = 0,
	/* Nothing: such changes are refused with -EPERM. */
	KVM_MEMSLOTS_HOLES_REFUSE = 1,
	/* Anything: no vCPU runs while changes are applied. */
	KVM_MEMSLOTS_HOLES_NO_VCPU_RUNS = 2,
	/* Anything, while the gate has vCPUs paused. */
	KVM_MEMSLOTS_HOLES_GATE = 3,
};

/*
 * Pauses vCPUs.  Called on the thread that applies changes, which may be a
 * vCPU's own: then the gate waits for the others.  May look regions up; applying
 * changes is -EDEADLK.
 */
struct kvm_memslots_gate {
	size_t size;
	/*
	 * Returns 0 once no vCPU is inside KVM_RUN, or a negative errno, with
	 * nothing paused.  committer is what the report of the call says, NULL
	 * without one: the vCPU that needs no pausing, say.
	 */
	int (*pause)(void *opaque, void *committer);
	/* Lets vCPUs in again; once for each pause that returned 0. */
	void (*resume)(void *opaque);
	void *opaque;
};

/*
 * Hears of every region that comes and goes: for DMA maps, memory tables of
 * vhost.  Called on the thread that applies changes.  A region whose addresses,
 * memory or read-only flag change goes and comes again.  May look regions up;
 * applying changes is -EDEADLK.  Each function may be NULL.
 */
struct kvm_memslots_observer {
	size_t size;
	/*
	 * All of the changes have been checked, and none is done.  A negative
	 * errno refuses them: apply fails with -ECANCELED.
	 */
	int (*check)(void *opaque,
		     const struct kvm_memslots_region *const *going,
		     size_t nr_going,
		     const struct kvm_memslots_region *const *coming,
		     size_t nr_coming);
	/* Before KVM is asked for anything.  If KVM refuses, mapped is called. */
	void (*unmapping)(void *opaque, const struct kvm_memslots_region *region);
	void (*mapped)(void *opaque, const struct kvm_memslots_region *region);
	void *opaque;
};

/* Slot ids, both included. */
struct kvm_memslots_slot_range {
	uint16_t as_id;
	uint16_t first;
	uint16_t last;
};

/* GSIs, both included. */
struct kvm_memslots_gsi_range {
	uint32_t first;
	uint32_t last;
};

/* The VMM enabled KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 on the VM. */
#define KVM_MEMSLOTS_MANUAL_DIRTY_LOG	(1U << 0)
/*
 * /dev/kvm may be opened and another VM made, to find out whether the trap flag
 * is what its capability says.  Without that it is not used.
 */
#define KVM_MEMSLOTS_ALLOW_SCRATCH_VM	(1U << 1)
/* KVM_IRQFD_FLAG_NO_IRQBYPASS is not used. */
#define KVM_MEMSLOTS_ALLOW_BYPASS	(1U << 2)
/* The VM has the routes that KVM_CREATE_IRQCHIP makes on x86. */
#define KVM_MEMSLOTS_X86_ROUTES		(1U << 3)

/* When a region that waits for a slot gets one. */
enum kvm_memslots_policy {
	/*
	 * When the exits that were served for it have cost what a slot does: at
	 * most twice what would have been best with hindsight.
	 */
	KVM_MEMSLOTS_POLICY_RENT_OR_BUY = 0,
	/* After so many exits; 0: at once. */
	KVM_MEMSLOTS_POLICY_FIXED = 1,
};

/* Regions are mapped when they are due themselves, not together. */
#define KVM_MEMSLOTS_DEFERRAL_ONLY_DUE	(1U << 0)
/* map_ns, unmap_ns and exit_ns are set, and nothing is measured. */
#define KVM_MEMSLOTS_DEFERRAL_COSTS	(1U << 1)

struct kvm_memslots_deferral {
	size_t size;
	uint32_t policy;	/* enum kvm_memslots_policy */
	uint32_t flags;		/* KVM_MEMSLOTS_DEFERRAL_* */
	uint64_t exits;		/* with KVM_MEMSLOTS_POLICY_FIXED */
	uint64_t map_ns;
	uint64_t unmap_ns;
	uint64_t exit_ns;
};

struct kvm_memslots_options {
	size_t size;
	uint32_t flags;		/* KVM_MEMSLOTS_MANUAL_DIRTY_LOG, ... */
	uint32_t executor;	/* enum kvm_memslots_executor */
	uint32_t holes;		/* enum kvm_memslots_holes */
	/* The first GSI that is handed out; 0: 24. */
	uint32_t first_gsi;
	/* With KVM_MEMSLOTS_HOLES_GATE. */
	const struct kvm_memslots_gate *gate;
	/* Slot ids that the VMM uses itself. */
	const struct kvm_memslots_slot_range *reserved_slots;
	size_t nr_reserved_slots;
	/* Told in this order. */
	const struct kvm_memslots_observer *const *observers;
	size_t nr_observers;
	/*
	 * Called before a logged slot goes, with vCPUs paused if they are at
	 * all: a VMM with a dirty ring empties it here.
	 */
	void (*harvest)(void *opaque, struct kvm_memslots_vm *vm);
	void *harvest_opaque;
	/*
	 * Routes that the VM has now: KVM replaces all at once and can't be
	 * asked, so what is not said here is gone with the first change.
	 */
	const struct kvm_irq_routing_entry *own_routes;
	size_t nr_own_routes;
	/* GSIs that the VMM uses itself. */
	const struct kvm_memslots_gsi_range *reserved_gsis;
	size_t nr_reserved_gsis;
	/* NULL for the defaults. */
	const struct kvm_memslots_deferral *deferral;
};

#define KVM_MEMSLOTS_HAS_READONLY	(1U << 0)
#define KVM_MEMSLOTS_HAS_GUEST_MEMFD	(1U << 1)
#define KVM_MEMSLOTS_HAS_TRAP		(1U << 2)

/* What the VM allows. */
struct kvm_memslots_limits {
	size_t size;
	uint64_t page_size;
	/* The largest slot, in bytes.  Larger regions have several. */
	uint64_t slot_size;
	/* Slot ids of an address space. */
	uint32_t slots;
	/* Entries of one batch ioctl, 0 where the kernel lacks it. */
	uint32_t batch;
	uint32_t address_spaces;
	uint32_t flags;		/* KVM_MEMSLOTS_HAS_* */
};

/*
 * Opens the VM behind vm_fd, which is duplicated.  options may be NULL for the
 * defaults.  What the callbacks of the options are given stays until the VM is
 * freed.  -EBUSY if this process has the VM open already.
 */
int kvm_memslots_open(int vm_fd, const struct kvm_memslots_options *options,
		      struct kvm_memslots_vm **vm);

/*
 * The same on a model of KVM in memory, for tests and machines without
 * /dev/kvm.  limits may be NULL: what x86 has; so has a field that is 0.
 */
int kvm_memslots_open_model(const struct kvm_memslots_options *options,
			    const struct kvm_memslots_limits *limits,
			    struct kvm_memslots_vm **vm);

struct kvm_memslots_report;

/*
 * Unmaps all regions, detaches all devices and frees the VM.  On failure it is
 * still there, with everything mapped; but -EBUSY, where a call of another thread
 * has not returned, may come when everything was unmapped.
 */
int kvm_memslots_close(struct kvm_memslots_vm *vm,
		       struct kvm_memslots_report *report);

/*
 * Frees the VM and leaves its slots to KVM, but for regions whose backing has a
 * release: they are unmapped.  NULL is allowed.
 */
void kvm_memslots_free(struct kvm_memslots_vm *vm);

/* Says what may be unmapped for a moment, from now on. */
int kvm_memslots_set_holes(struct kvm_memslots_vm *vm, uint32_t holes,
			   const struct kvm_memslots_gate *gate);
/* Marks slot ids as the VMM's own; -EBUSY if one is in use. */
int kvm_memslots_reserve_slots(struct kvm_memslots_vm *vm,
			       const struct kvm_memslots_slot_range *ids);

/* ---- Changes ---- */

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
/* With the doorbells that are in it. */
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

/* ---- Devices ---- */

/* Hardware may signal the eventfds: the device is VFIO's or vDPA's. */
#define KVM_MEMSLOTS_DEVICE_MAY_BYPASS		(1U << 0)
/* ioeventfds are assigned later, with kvm_memslots_assign_deferred(). */
#define KVM_MEMSLOTS_DEVICE_DEFER_IOEVENTFDS	(1U << 1)

/* Ports, not guest addresses. */
#define KVM_MEMSLOTS_DOORBELL_PIO	(1U << 0)
/* Only for writes of value. */
#define KVM_MEMSLOTS_DOORBELL_VALUE	(1U << 1)

/* Where a guest's writes signal an eventfd instead of exiting, and which. */
struct kvm_memslots_doorbell {
	size_t size;
	/* Not 0: addr is from the start of this region, and moves with it. */
	uint64_t region;
	uint64_t addr;
	uint64_t value;
	uint32_t len;		/* 1, 2, 4 or 8 bytes; 0: any */
	uint32_t flags;		/* KVM_MEMSLOTS_DOORBELL_* */
};

/* devid is set. */
#define KVM_MEMSLOTS_MSI_DEVID		(1U << 0)

struct kvm_memslots_msi {
	size_t size;
	uint64_t address;
	uint32_t data;
	uint32_t devid;
	uint64_t flags;		/* KVM_MEMSLOTS_MSI_* */
};

/* The route is made here, to irqchip and pin; else it is one of the VMM's. */
#define KVM_MEMSLOTS_LINE_PIN		(1U << 0)
/* Level-triggered; resample is signalled when the guest has acknowledged. */
#define KVM_MEMSLOTS_LINE_RESAMPLE	(1U << 1)

struct kvm_memslots_line {
	size_t size;
	uint32_t gsi;
	uint32_t irqchip;
	uint32_t pin;
	uint32_t flags;		/* KVM_MEMSLOTS_LINE_* */
	int eventfd;
	int resample;
};

/*
 * A device without anything.  The name is for errors, and copied.  Eventfds are
 * not duplicated: they stay open until the device has been detached.  If a call
 * below that describes a device fails, attaching it fails as the call did.
 */
int kvm_memslots_device_new(const char *name, uint32_t flags,
			    struct kvm_memslots_device **device);
/* NULL is allowed. */
void kvm_memslots_device_free(struct kvm_memslots_device *device);
int kvm_memslots_device_region(struct kvm_memslots_device *device,
			       const struct kvm_memslots_spec *spec,
			       uint64_t *id);
int kvm_memslots_device_ioeventfd(struct kvm_memslots_device *device,
				  const struct kvm_memslots_doorbell *doorbell,
				  int eventfd);
/* Vectors are numbered from 0.  msi is NULL while the vector is masked. */
int kvm_memslots_device_vector(struct kvm_memslots_device *device, int eventfd,
			       const struct kvm_memslots_msi *msi);
int kvm_memslots_device_line(struct kvm_memslots_device *device,
			     const struct kvm_memslots_line *line);

/* Attaches a device, and frees the description, also on failure. */
int kvm_memslots_attach(struct kvm_memslots_changes *changes,
			struct kvm_memslots_device *device, uint64_t *id);
/* With what is left of its memory. */
int kvm_memslots_detach(struct kvm_memslots_changes *changes, uint64_t device);
/* NULL masks the vector, which keeps its route. */
int kvm_memslots_set_vector(struct kvm_memslots_changes *changes,
			    uint64_t device, size_t vector,
			    const struct kvm_memslots_msi *msi);
/* Another eventfd raises the vector's interrupt from then on. */
int kvm_memslots_set_vector_fd(struct kvm_memslots_changes *changes,
			       uint64_t device, size_t vector, int eventfd);
int kvm_memslots_assign_deferred(struct kvm_memslots_changes *changes);
/* The same for one device: when its driver is there, say. */
int kvm_memslots_assign_deferred_of(struct kvm_memslots_changes *changes,
				    uint64_t device);

/* ---- Applying ---- */

#define KVM_MEMSLOTS_REPORT_VCPUS_PAUSED (1U << 0)
/* On a model: nothing of this really happened. */
#define KVM_MEMSLOTS_REPORT_MODEL	 (1U << 1)

/* What a set of changes cost. */
struct kvm_memslots_report {
	size_t size;
	/* System calls that changed memslots. */
	uint64_t ioctls;
	/* SRCU grace periods that those waited for, by KVM's rules. */
	uint64_t grace_periods;
	uint64_t routing_calls;
	uint64_t irqfd_calls;
	uint64_t ioeventfd_calls;
	/* Grace periods of those, and of the kernel's worker behind KVM_IRQFD. */
	uint64_t event_grace_periods;
	uint64_t irqfd_shutdown_grace_periods;
	/* Regions that share a slot, and so cost no call of their own. */
	uint64_t regions_merged;
	/* Regions whose unmap and map cancelled. */
	uint64_t regions_cancelled;
	/* Regions that wait for a slot. */
	uint64_t regions_deferred;
	/* From the first call to the last. */
	uint64_t elapsed_ns;
	/* Slots of the VM afterwards. */
	uint64_t slots;
	uint32_t executor;	/* BATCH or PER_REGION */
	uint32_t flags;		/* KVM_MEMSLOTS_REPORT_* */
	/*
	 * Set by the caller, or NULL: gets the last dirty pages of each logged
	 * region that was unmapped, a bit a page as kvm_memslots_dirty_log()
	 * has them, when all is done.
	 */
	void (*last_dirty)(void *opaque, uint64_t region, const uint64_t *words,
			   uint64_t pages);
	void *opaque;
	/* Set by the caller, or NULL: who that is, for the gate. */
	void *committer;
};

/*
 * Applies changes, and frees the set, also on failure.  If it fails, everything
 * is what it was, unless the error is KVM_MEMSLOTS_ERROR_STUCK: then KVM also
 * refused to undo the calls before the one it refused, and the next set that is
 * applied, also an empty one, puts it right.
 */
int kvm_memslots_apply(struct kvm_memslots_vm *vm,
		       struct kvm_memslots_changes *changes,
		       struct kvm_memslots_report *report);

/*
 * For callers whose begins nest, as a memory listener's do.  Each begin of a set
 * has one commit, and the last one applies it; the set stays, empty, also on
 * failure.  A commit that is not the last one is a report of nothing.  In between,
 * applying or appending the set is -EBUSY, and frees it.
 */
int kvm_memslots_begin(struct kvm_memslots_changes *changes);
int kvm_memslots_commit(struct kvm_memslots_vm *vm,
			struct kvm_memslots_changes *changes,
			struct kvm_memslots_report *report);

/* What a set of changes would cost. */
struct kvm_memslots_preview {
	size_t size;
	uint64_t ioctls;
	uint64_t grace_periods;
	uint64_t routing_calls;
	uint64_t irqfd_calls;
	uint64_t ioeventfd_calls;
	uint64_t event_grace_periods;
	uint64_t irqfd_shutdown_grace_periods;
	/* Ranges of guest pages that would be unmapped for a moment. */
	uint64_t holes;
	uint64_t slots;
	/* Set by the caller, or NULL: gets each of them. */
	void (*hole)(void *opaque, uint16_t as_id, uint64_t gpa, uint64_t len);
	void *opaque;
};

/* What applying them now would cost.  The set stays. */
int kvm_memslots_preview(struct kvm_memslots_vm *vm,
			 struct kvm_memslots_changes *changes,
			 struct kvm_memslots_preview *preview);

/* ---- Errors ---- */

/* KVM has something else than before: see kvm_memslots_apply(). */
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

/* ---- Lookups ---- */

int kvm_memslots_limits(struct kvm_memslots_vm *vm,
			struct kvm_memslots_limits *limits);
/* -ENOENT if there is none of this name; so below. */
int kvm_memslots_region(struct kvm_memslots_vm *vm, uint64_t id,
			struct kvm_memslots_region *region);
int kvm_memslots_region_at(struct kvm_memslots_vm *vm, uint16_t as_id,
			   uint64_t gpa, struct kvm_memslots_region *region);
/* And how many bytes into it that is. */
int kvm_memslots_region_at_hva(struct kvm_memslots_vm *vm, uint64_t hva,
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

typedef void (*kvm_memslots_each_region)(void *opaque,
					 const struct kvm_memslots_region *region);
/*
 * All regions as they are now, by address space and guest address.  Callbacks of
 * lookups may call the library, for anything but freeing the VM.
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

/* ---- Dirty logs ---- */

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
 * KVM_GET_DIRTY_LOG a slot.  If it fails, what was not handed out is reported by
 * the next call.
 */
int kvm_memslots_dirty_logs(struct kvm_memslots_vm *vm,
			    kvm_memslots_each_dirty_log each, void *opaque);
/*
 * Forgets those of the pages whose bit is set: bit 0 is first_page.  Only with
 * KVM_MEMSLOTS_MANUAL_DIRTY_LOG.
 */
int kvm_memslots_clear_dirty_log(struct kvm_memslots_vm *vm, uint64_t id,
				 uint64_t first_page, uint64_t nr_pages,
				 const uint64_t *words, size_t nr_words);

/* ---- Deferred maps ---- */

/*
 * A region with KVM_MEMSLOTS_DEFERRABLE costs nothing when it is mapped: the
 * guest's accesses exit as MMIO, and are served from its memory, until they have
 * cost what a slot does.  For devices that map and unmap memory again and again.
 *
 * A vCPU thread has exits of its own, and hands every KVM_EXIT_MMIO to
 * kvm_memslots_exits_read() or kvm_memslots_exits_write() first.  Where the answer
 * has KVM_MEMSLOTS_SERVED_DUE it calls kvm_memslots_promote_due().  The VM may be
 * freed before its exits: then everything is the device's.
 */
int kvm_memslots_exits_new(struct kvm_memslots_vm *vm, uint16_t as_id,
			   struct kvm_memslots_exits **exits);
/* NULL is allowed. */
void kvm_memslots_exits_free(struct kvm_memslots_exits *exits);

/* kvm_memslots_promote_due() is worth its while now. */
#define KVM_MEMSLOTS_SERVED_DUE		(1U << 0)
/*
 * The memory at fault can't be accessed (a file that was truncated).  Nothing was
 * served from there on; with a slot, KVM_RUN would have failed with EFAULT.
 */
#define KVM_MEMSLOTS_SERVED_FAULT	(1U << 1)

/* What became of an exit. */
struct kvm_memslots_served {
	size_t size;
	/* Served from memory; the others were the device's. */
	uint64_t bytes;
	uint64_t fault;		/* a guest address, with KVM_MEMSLOTS_SERVED_FAULT */
	uint64_t flags;		/* KVM_MEMSLOTS_SERVED_* */
};

typedef void (*kvm_memslots_device_read)(void *opaque, uint64_t gpa, void *data,
					 size_t len);
typedef void (*kvm_memslots_device_write)(void *opaque, uint64_t gpa,
					  const void *data, size_t len);
/*
 * Answers a read of len bytes.  device is called for what is not in deferrable
 * regions, in ascending order; data is 0 before.  It may change the VM.
 */
int kvm_memslots_exits_read(struct kvm_memslots_exits *exits, uint64_t gpa,
			    void *data, size_t len,
			    kvm_memslots_device_read device, void *opaque,
			    struct kvm_memslots_served *served);
/* The same of a write.  Writes to read-only regions are the device's. */
int kvm_memslots_exits_write(struct kvm_memslots_exits *exits, uint64_t gpa,
			     const void *data, size_t len,
			     kvm_memslots_device_write device, void *opaque,
			     struct kvm_memslots_served *served);

/* Maps the regions that wait, together.  Where none does, the report is 0. */
int kvm_memslots_promote(struct kvm_memslots_vm *vm,
			 struct kvm_memslots_report *report);
/* The same where one is due; with KVM_MEMSLOTS_DEFERRAL_ONLY_DUE those that are. */
int kvm_memslots_promote_due(struct kvm_memslots_vm *vm,
			     struct kvm_memslots_report *report);
/*
 * What to do after an access that KVM could not decode (KVM_EXIT_ARM_NISV, ENOSYS
 * of KVM_RUN, KVM_INTERNAL_ERROR_EMULATION): where *reenter is 1, run the vCPU
 * again, as there is memory now.
 */
int kvm_memslots_undecoded(struct kvm_memslots_vm *vm,
			   struct kvm_memslots_exits *exits, int *reenter);

struct kvm_memslots_deferral_usage {
	size_t size;
	/* Regions that wait for a slot. */
	uint64_t waiting;
	/* What a slot and an exit cost, as far as that was measured. */
	uint64_t slot_ns;
	uint64_t exit_ns;
};

int kvm_memslots_deferral_usage(struct kvm_memslots_vm *vm,
				struct kvm_memslots_deferral_usage *usage);
/* How many exits were served for a region while it waited. */
int kvm_memslots_exits_served(struct kvm_memslots_vm *vm, uint64_t id,
			      uint64_t *served);

/* ---- ROM devices ---- */

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
 * When it has returned, no vCPU reaches the memory in command mode (on is 0), or
 * all of it is there in array mode.  Where it is in that mode, the report is 0.
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

/* ---- PCI BARs ---- */

enum kvm_memslots_bar_kind {
	KVM_MEMSLOTS_BAR_MEMORY32 = 0,
	KVM_MEMSLOTS_BAR_MEMORY64 = 1,
	KVM_MEMSLOTS_BAR_IO = 2,
};

#define KVM_MEMSLOTS_BAR_PREFETCHABLE	(1U << 0)
/* The index of the expansion ROM, which is KVM_MEMSLOTS_BAR_MEMORY32. */
#define KVM_MEMSLOTS_BAR_ROM		6

struct kvm_memslots_bar {
	size_t size;
	uint64_t len;
	/*
	 * Parts of the BAR that are memory: their gpa is the offset in it, their
	 * id 0.  Everything else of the BAR exits.
	 */
	const struct kvm_memslots_spec *const *windows;
	size_t nr_windows;
	uint32_t index;		/* 0 to 5, or KVM_MEMSLOTS_BAR_ROM */
	uint16_t kind;		/* enum kvm_memslots_bar_kind */
	uint16_t flags;		/* KVM_MEMSLOTS_BAR_* */
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
 * BARs that follow the guest's config writes, with as few changes as can be: none
 * while decoding is off, one set when it goes on or off or a BAR moves.  Of one
 * VM, always the same, whose guest physical addresses have address_bits bits.
 * Never NULL.
 */
struct kvm_memslots_pci *kvm_memslots_pci_new(uint32_t address_bits);
/* Leaves what is mapped.  NULL is allowed. */
void kvm_memslots_pci_free(struct kvm_memslots_pci *pci);
/* Adds a function as after a reset. */
int kvm_memslots_pci_add(struct kvm_memslots_pci *pci,
			 struct kvm_memslots_vm *vm,
			 const struct kvm_memslots_function *function,
			 uint64_t *id);
/*
 * Follows a config write.  A window that KVM refuses where the guest has put it is
 * no failure: see kvm_memslots_pci_refusal().  On failure the registers have the
 * new values all the same, and kvm_memslots_pci_sync() tries again.
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
/* Unmaps its windows and forgets it. */
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
/* The regions of a BAR's windows that are mapped, by their number. */
int kvm_memslots_pci_regions(struct kvm_memslots_pci *pci, uint64_t function,
			     uint32_t index, kvm_memslots_each_window each,
			     void *opaque);

#ifdef __cplusplus
}
#endif

#endif /* KVM_MEMSLOTS_CLIENT_H */
