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
 * written on success only.  NULL in place of one is allowed, unless it is what
 * a function makes.  Addresses and lengths are in bytes; those of regions are
 * multiples of the page size.
 *
 * Structures, but for ranges, begin with their size, which the caller sets, for
 * results too:
 *
 *	struct kvm_memslots_region region = { .size = sizeof(region) };
 *
 * Fields that the caller does not have are 0, which is always the default.
 * Flags, and fields beyond the library's, that the library does not know are
 * refused.
 *
 * Threads.  A VM, a window and a trigger may be used from any thread, by
 * several at a time, until they are freed.  Everything else that a pointer is
 * to (a set of changes, a device that is being described, exits, a ROM device,
 * PCI BARs, a ring) is for one thread at a time: a second one gets -EBUSY, as
 * does whoever frees what a call is inside of.  Callbacks return: no longjmp()
 * and no C++ exception leaves them.  All calls may be made in the destructor of
 * a pthread key; messages of failures are not kept there.
 *
 * What was freed is not used any more.  A pointer to something else, or to what
 * was freed, is -EBADF as far as that can be told: not where the memory has
 * been given out again, or back to the kernel.
 *
 * In a process that was forked from the one that opened a VM, calls on it are
 * -EIO and take no lock, and freeing it frees what is this process's.  After a
 * fork() in a process with several threads, C allows what is async-signal-safe
 * only, and of this library that is kvm_memslots_version().
 *
 * System calls.  kvm_memslots_syscalls() has those that each call makes, for
 * filters; docs/reference/seccomp.md says which when.
 *
 * Errors.  One errno has one meaning.  Where kvm_memslots_last_error_info() has
 * KVM_MEMSLOTS_ERROR_KVM it is the kernel's, and where it has
 * KVM_MEMSLOTS_ERROR_CALLBACK what a callback returned; else:
 *
 *	EINVAL		an argument can't be: NULL, unaligned, unknown, ...
 *	E2BIG		a structure has fields that the library does not know
 *	EBADF		no descriptor, or no pointer that the library gave
 *	ENOENT		there is none of this name, or at this address
 *	ENODATA		it has none: a vector no message, a region no dirty log
 *	ENODEV		no file, where it has to be one
 *	EEXIST		the name, the addresses, the GSI are taken
 *	ENOSPC		no slot, GSI or route is left, or none is allowed
 *	ENOMEM		the dirty log of a region takes more than there is
 *	EBUSY		in use: the VM is open, a set was begun, see Threads
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

#include "kvm_memslots_client/base.h"
#include "kvm_memslots_client/memory.h"
#include "kvm_memslots_client/open.h"
#include "kvm_memslots_client/changes.h"
#include "kvm_memslots_client/device.h"
#include "kvm_memslots_client/apply.h"
#include "kvm_memslots_client/error.h"
#include "kvm_memslots_client/lookup.h"
#include "kvm_memslots_client/dirty.h"
#include "kvm_memslots_client/event.h"
#include "kvm_memslots_client/window.h"
#include "kvm_memslots_client/deferred.h"
#include "kvm_memslots_client/rom.h"
#include "kvm_memslots_client/pci.h"
#include "kvm_memslots_client/seccomp.h"

#endif /* KVM_MEMSLOTS_CLIENT_H */
