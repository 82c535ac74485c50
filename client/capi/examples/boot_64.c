/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * A 64-bit guest in C, from its memory to its last instruction.
 *
 *	cc boot_64.c $(pkg-config --cflags --libs kvm_memslots_client)
 *
 * What to look at: all memory is one set of changes, made before there is a vCPU.
 * It is the library's to give back: it does when KVM maps it no more.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/kvm.h>

#include <kvm_memslots_client.h>

#define MIB   (1ull << 20)
#define CODE  0x1000
#define HIGH  (4ull << 30)	/* what 32 bits don't reach */
#define VALUE 0x0123456789abcdefull
/* Page tables: one of each upper level, then one for each GiB. */
#define PML4  0x9000ull
#define PDPT  0xa000ull
#define PD    0xb000ull
#define GIBS  5

#define TRY(call)                                                              \
	do {                                                                   \
		if ((call) < 0)                                                \
			errx(1, "%s: %s", #call, kvm_memslots_last_error());   \
	} while (0)

static const unsigned char code[] = {
	0x48, 0xb8, 0, 0, 0, 0, 1, 0, 0, 0,	/* mov rax, HIGH */
	0x48, 0x8b, 0x08,			/* mov rcx, [rax] */
	0x48, 0x89, 0x48, 0x08,			/* mov [rax + 8], rcx */
	0xe6, 0x80,				/* out 0x80, al */
	0xf4,					/* hlt */
};

static int released;

static void release(void *at)
{
	munmap(at, 2 * MIB);
	released++;
}

/* Adds a map of new memory to a set. */
static unsigned char *add(struct kvm_memslots_changes *changes, uint64_t gpa,
			  const char *label)
{
	unsigned char *at = mmap(NULL, 2 * MIB, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kvm_memslots_backing backing = {
		.size = sizeof(backing), .hva = (uintptr_t)at, .release = release,
		.opaque = at,
	};
	/* It stays for as long as the VM lives, and may share a slot. */
	struct kvm_memslots_spec spec = {
		.size = sizeof(spec), .gpa = gpa, .len = 2 * MIB, .backing = &backing,
		.flags = KVM_MEMSLOTS_PERMANENT, .label = label,
	};

	if (at == MAP_FAILED)
		err(1, "mmap");
	TRY(kvm_memslots_map(changes, &spec, NULL));
	return at;
}

/* Guest addresses and physical ones are the same, in pages of 2 MiB. */
static void page_tables(unsigned char *ram)
{
	uint64_t *pdpt = (uint64_t *)(ram + PDPT), *pd = (uint64_t *)(ram + PD), i;

	/* Present, writable; the last ones map memory themselves. */
	*(uint64_t *)(ram + PML4) = PDPT | 3;
	for (i = 0; i < GIBS; i++)
		pdpt[i] = (PD + i * 0x1000) | 3;
	for (i = 0; i < GIBS * 512; i++)
		pd[i] = i << 21 | 1 << 7 | 3;
}

/* A vCPU in 64-bit mode, about to run the code. */
static int long_mode(int kvm, int vm_fd)
{
	const struct kvm_segment data = {
		.limit = UINT32_MAX, .selector = 0x18, .type = 3, .present = 1, .db = 1,
		.s = 1, .g = 1,
	};
	struct kvm_regs regs = { .rip = CODE, .rflags = 2 };
	int vcpu = ioctl(vm_fd, KVM_CREATE_VCPU, 0), entries = 256;
	struct kvm_cpuid2 *cpuid;
	struct kvm_sregs sregs;

	cpuid = calloc(1, sizeof(*cpuid) + entries * sizeof(cpuid->entries[0]));
	if (!cpuid || vcpu < 0)
		err(1, "vCPU");
	/* Without it the guest has a processor that knows no 64 bits. */
	cpuid->nent = entries;
	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) ||
	    ioctl(vcpu, KVM_SET_CPUID2, cpuid) || ioctl(vcpu, KVM_GET_SREGS, &sregs))
		err(1, "CPUID");
	free(cpuid);
	sregs.cs = sregs.ds = sregs.es = sregs.ss = data;
	sregs.cs.selector = 0x10;
	sregs.cs.type = 11;
	sregs.cs.db = 0;
	sregs.cs.l = 1;
	sregs.cr0 = 1u << 31 | 1 << 4 | 1;	/* paging, protection, as there is an FPU */
	sregs.cr3 = PML4;
	sregs.cr4 |= 1 << 5;			/* PAE */
	sregs.efer |= 1 << 10 | 1 << 8;		/* long mode, active and enabled */
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) || ioctl(vcpu, KVM_SET_REGS, &regs))
		err(1, "registers");
	return vcpu;
}

/* Until the guest comes out, for this reason. */
static void run(int vcpu, const struct kvm_run *shared, uint32_t reason)
{
	while (ioctl(vcpu, KVM_RUN, 0) < 0)
		if (errno != EINTR)
			err(1, "KVM_RUN");
	if (shared->exit_reason != reason)
		errx(1, "exit %u", shared->exit_reason);
}

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm_fd = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0), vcpu;
	struct kvm_memslots_report cost = { .size = sizeof(cost) };
	struct kvm_memslots_changes *boot = kvm_memslots_changes_new();
	const uint64_t value = VALUE;
	struct kvm_memslots_vm *vm;
	unsigned char *low, *high;
	const struct kvm_run *shared;

	if (vm_fd < 0) {
		printf("no VM from /dev/kvm: %s\n", strerror(errno));
		return 77;
	}
	low = add(boot, 0, "low memory");
	high = add(boot, HIGH, "high memory");
	memcpy(low + CODE, code, sizeof(code));
	memcpy(high, &value, sizeof(value));
	page_tables(low);
	TRY(kvm_memslots_open(vm_fd, NULL, &vm));
	TRY(kvm_memslots_apply(vm, boot, &cost));
	printf("memory: %d slots\n", (int)cost.slots);

	vcpu = long_mode(kvm, vm_fd);
	shared = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE,
		      MAP_SHARED, vcpu, 0);
	if (shared == MAP_FAILED)
		err(1, "mmap");
	run(vcpu, shared, KVM_EXIT_IO);
	run(vcpu, shared, KVM_EXIT_HLT);
	printf("copied above 4 GiB: %s\n", memcmp(high + 8, &value, 8) ? "another" : "the same");
	TRY(kvm_memslots_close(vm, NULL));
	printf("given back: %d\n", released);
	return 0;
}
