/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Coalesced zones, triggers, event state: a part of <kvm_memslots_client.h>. */
#ifndef KVM_MEMSLOTS_CLIENT_EVENT_H
#define KVM_MEMSLOTS_CLIENT_EVENT_H

#include "device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Coalesced zones ---- */

/* A write to a zone, as the ring has kept it. */
struct kvm_memslots_zone_write {
	size_t size;
	uint64_t addr;
	unsigned char data[8];	/* as the guest's bytes are; 0 behind len */
	uint32_t len;		/* 1 to 8 */
	uint32_t flags;		/* KVM_MEMSLOTS_ZONE_PIO */
};

typedef void (*kvm_memslots_each_zone_write)(
	void *opaque, const struct kvm_memslots_zone_write *write);

/*
 * The ring of a VM, which keeps the writes to all of its zones, through the
 * descriptor of any of its vCPUs; that need not stay open.  Each write is for
 * whoever takes it first: a VM has one of these, behind the lock of its
 * devices.
 */
int kvm_memslots_ring_new(struct kvm_memslots_vm *vm, int vcpu_fd,
			  struct kvm_memslots_ring **ring);
/* NULL is allowed. */
void kvm_memslots_ring_free(struct kvm_memslots_ring *ring);
/*
 * Hands out what is in it, in order: before an exit is handled, and before the
 * state of a device is shown.  Makes no system call.  As many as the ring holds
 * at most, so that a guest that goes on writing does not keep the VMM in here.
 */
int kvm_memslots_ring_drain(struct kvm_memslots_ring *ring,
			    kvm_memslots_each_zone_write each, void *opaque);

/* ---- Triggers ---- */

/*
 * The eventfd of a vector that this process alone signals, and through its
 * trigger alone.  It holds events back while the vector is masked, so that
 * masking and unmasking cost no call.  Masked until a device that has it is
 * attached with a message.  May be used from any thread; freed, the device
 * still has it.
 */
int kvm_memslots_trigger_new(int eventfd,
			     struct kvm_memslots_trigger **trigger);
/* NULL is allowed. */
void kvm_memslots_trigger_free(struct kvm_memslots_trigger *trigger);
/* Raises the interrupt, now or when the vector is unmasked. */
int kvm_memslots_trigger_signal(struct kvm_memslots_trigger *trigger);
/* *pending is 1 if an event is held back: the vector's pending bit. */
int kvm_memslots_trigger_pending(struct kvm_memslots_trigger *trigger,
				 int *pending);
/* kvm_memslots_device_vector() with a trigger. */
int kvm_memslots_device_triggered_vector(struct kvm_memslots_device *device,
					 struct kvm_memslots_trigger *trigger,
					 const struct kvm_memslots_msi *msi);

/* ---- Event state ---- */

#define KVM_MEMSLOTS_HAS_NO_IRQBYPASS	(1U << 0)
#define KVM_MEMSLOTS_HAS_MSI_DEVID	(1U << 1)
#define KVM_MEMSLOTS_HAS_ZONES		(1U << 2)
#define KVM_MEMSLOTS_HAS_PIO_ZONES	(1U << 3)

/* What the VM allows of routes, irqfds and zones. */
struct kvm_memslots_event_limits {
	size_t size;
	/* GSIs are below this, and there are at most so many routes. */
	uint32_t routes;
	uint32_t flags;		/* KVM_MEMSLOTS_HAS_NO_IRQBYPASS, ... */
};

int kvm_memslots_event_limits(struct kvm_memslots_vm *vm,
			      struct kvm_memslots_event_limits *limits);

#define KVM_MEMSLOTS_IRQFD_RESAMPLE	(1U << 0)
#define KVM_MEMSLOTS_IRQFD_NO_IRQBYPASS	(1U << 1)

struct kvm_memslots_irqfd {
	size_t size;
	uint32_t gsi;
	uint32_t flags;		/* KVM_MEMSLOTS_IRQFD_* */
	int eventfd;
	int resample;		/* -1: none */
};

struct kvm_memslots_ioeventfd {
	size_t size;
	uint64_t addr;
	uint64_t value;
	uint64_t flags;		/* KVM_MEMSLOTS_DOORBELL_* */
	uint32_t len;		/* 0: any */
	int eventfd;
};

/* Who is told of what KVM has of a VM's events; each function may be NULL. */
struct kvm_memslots_event_state {
	size_t size;
	void (*route)(void *opaque, const struct kvm_irq_routing_entry *route);
	void (*irqfd)(void *opaque, const struct kvm_memslots_irqfd *irqfd);
	void (*ioeventfd)(void *opaque,
			  const struct kvm_memslots_ioeventfd *ioeventfd);
	/* region is 0. */
	void (*zone)(void *opaque, const struct kvm_memslots_zone *zone);
	void *opaque;
};

/*
 * Tells of all, as they were at one moment, as far as they are known.  Waits
 * for changes that are being applied; -EDEADLK from their callbacks.
 */
int kvm_memslots_event_state(struct kvm_memslots_vm *vm,
			     const struct kvm_memslots_event_state *each);

#ifdef __cplusplus
}
#endif

#endif /* KVM_MEMSLOTS_CLIENT_EVENT_H */
