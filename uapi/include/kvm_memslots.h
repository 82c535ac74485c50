/* SPDX-License-Identifier: ((GPL-2.0 WITH Linux-syscall-note) OR MIT) */
/*
 * KVM_SET_USER_MEMORY_REGIONS: many memslot changes in one ioctl.
 *
 * For userspace built against a linux/kvm.h that lacks it.  What linux/kvm.h
 * defines itself is left alone, so this header can stay in a program that is
 * built against both older and newer ones.  Include it instead of, or before,
 * or after linux/kvm.h.
 */
#ifndef _KVM_MEMSLOTS_H
#define _KVM_MEMSLOTS_H

#include <linux/ioctl.h>
#include <linux/types.h>
#include <linux/kvm.h>

/* The entry of a batch, since Linux 6.8. */
#ifndef KVM_SET_USER_MEMORY_REGION2
struct kvm_userspace_memory_region2 {
	__u32 slot;
	__u32 flags;
	__u64 guest_phys_addr;
	__u64 memory_size;		/* bytes, 0 deletes the slot */
	__u64 userspace_addr;
	__u64 guest_memfd_offset;
	__u32 guest_memfd;
	__u32 pad1;
	__u64 pad2[14];
};

#define KVM_SET_USER_MEMORY_REGION2 \
	_IOW(KVMIO, 0x49, struct kvm_userspace_memory_region2)
#endif

#ifndef KVM_MEM_GUEST_MEMFD
#define KVM_MEM_GUEST_MEMFD	(1UL << 2)
#endif

#ifndef KVM_CAP_USER_MEMORY2
#define KVM_CAP_USER_MEMORY2	231
#endif

/*
 * On the VM fd: the largest nr that KVM_SET_USER_MEMORY_REGIONS takes, 0 if
 * there is no such ioctl.  Not to be believed alone: see docs/reference/abi.md.
 */
#ifndef KVM_CAP_USER_MEMORY_REGIONS
#define KVM_CAP_USER_MEMORY_REGIONS	0x4d534c54	/* "MSLT" */
#endif

/*
 * For the flags of a slot: it stays, and to vCPUs it is as if it were not
 * there.  Setting or clearing nothing but this waits for no grace period.
 */
#ifndef KVM_MEM_TRAP
#define KVM_MEM_TRAP	(1UL << 15)
#endif

/* On the VM fd: KVM_MEM_TRAP if slots can have it, else 0.  As above. */
#ifndef KVM_CAP_MEM_TRAP
#define KVM_CAP_MEM_TRAP	0x4d535450	/* "MSTP" */
#endif

/*
 * On the VM fd: KVM_MEM_READONLY if KVM_ENABLE_CAP, with that in args[0] and before
 * there are vCPUs, lets it be changed in a live slot, else 0.  As above.
 */
#ifndef KVM_CAP_MEM_READONLY_FLIP
#define KVM_CAP_MEM_READONLY_FLIP	0x4d53524f	/* "MSRO" */
#endif

#ifndef KVM_SET_USER_MEMORY_REGIONS
/* For kvm_userspace_memory_regions.flags: validate, change nothing. */
#define KVM_MEMORY_REGIONS_DRY_RUN	(1U << 0)

struct kvm_userspace_memory_regions {
	__u32 nr;		/* in: entries that follow */
	__u32 flags;		/* in: KVM_MEMORY_REGIONS_* */
	__u32 as_id;		/* in: the address space of every entry */
	__u32 failed;		/* out: index of the entry refused, or nr */
	__u64 reserved[6];	/* in: must be 0 */
	__extension__ struct kvm_userspace_memory_region2 entries[];
};

#define KVM_SET_USER_MEMORY_REGIONS \
	_IOWR(KVMIO, 0xf9, struct kvm_userspace_memory_regions)
#endif

/*
 * On the VM fd: KVM_IRQFD_FLAG_NO_IRQBYPASS, 0 if there is no such flag.  Not to
 * be believed alone: see docs/guide/devices.md.
 */
#ifndef KVM_CAP_IRQFD_NO_IRQBYPASS
#define KVM_CAP_IRQFD_NO_IRQBYPASS	0x4d534e42	/* "MSNB" */
#endif

/* For kvm_irqfd.flags: no VFIO or vDPA device will ever signal this eventfd. */
#ifndef KVM_IRQFD_FLAG_NO_IRQBYPASS
#define KVM_IRQFD_FLAG_NO_IRQBYPASS	(1U << 15)
#endif

#endif /* _KVM_MEMSLOTS_H */
