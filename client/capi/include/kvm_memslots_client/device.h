/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Devices: a part of <kvm_memslots_client.h>. */
#ifndef KVM_MEMSLOTS_CLIENT_DEVICE_H
#define KVM_MEMSLOTS_CLIENT_DEVICE_H

#include "memory.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Hardware may signal the eventfds: the device is VFIO's or vDPA's. */
#define KVM_MEMSLOTS_DEVICE_MAY_BYPASS		(1U << 0)
/* ioeventfds and zones come later, with kvm_memslots_assign_deferred(). */
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

/* Ports, not guest addresses. */
#define KVM_MEMSLOTS_ZONE_PIO		(1U << 0)

/*
 * Addresses where the guest's writes wait in the VM's ring instead of exiting
 * (coalesced MMIO): see kvm_memslots_ring_new().  Reads exit, and writes while
 * the ring is full.  Zones overlap neither with each other nor with doorbells.
 */
struct kvm_memslots_zone {
	size_t size;
	/* Not 0: addr is from the start of this region, and moves with it. */
	uint64_t region;
	uint64_t addr;
	uint32_t len;		/* 1 to INT_MAX */
	uint32_t flags;		/* KVM_MEMSLOTS_ZONE_* */
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
int kvm_memslots_device_zone(struct kvm_memslots_device *device,
			     const struct kvm_memslots_zone *zone);
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

#ifdef __cplusplus
}
#endif

#endif /* KVM_MEMSLOTS_CLIENT_DEVICE_H */
