/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What all parts need: a part of <kvm_memslots_client.h>. */
#ifndef KVM_MEMSLOTS_CLIENT_BASE_H
#define KVM_MEMSLOTS_CLIENT_BASE_H

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
/*
 * The version of the library.  One with the same major and, before 1.0, minor
 * number as this header's fits.
 */
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
/* The ring of the coalesced zones. */
struct kvm_memslots_ring;
/* An eventfd that is signalled here alone. */
struct kvm_memslots_trigger;
/* Memory that comes and goes without KVM. */
struct kvm_memslots_window;
/* <linux/kvm.h> */
struct kvm_irq_routing_entry;

/*
 * Regions, devices and PCI functions are named by numbers that are never 0, and
 * never another one's, in whatever VM.  Not to be made up.
 */

#ifdef __cplusplus
}
#endif

#endif /* KVM_MEMSLOTS_CLIENT_BASE_H */
