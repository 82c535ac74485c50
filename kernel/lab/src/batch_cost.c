// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * What memslot changes cost, one by one and in one call of
 * KVM_SET_USER_MEMORY_REGIONS, in the same VM: time, and grace periods as
 * counted by a kprobe on synchronize_srcu_expedited().
 *
 * usage: batch_cost [NR] [spin] [runs]
 *
 * "spin" runs a vCPU in a tight loop meanwhile.  Each figure is the median of
 * RUNS (5) runs, the grace periods are those of the last run.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#ifndef KVM_SET_USER_MEMORY_REGIONS
#define KVM_CAP_USER_MEMORY_REGIONS 0x4d534c54
struct kvm_userspace_memory_regions {
	__u32 nr, flags, as_id, failed;
	__u64 reserved[6];
	struct kvm_userspace_memory_region2 entries[];
};
#define KVM_SET_USER_MEMORY_REGIONS \
	_IOWR(KVMIO, 0xf9, struct kvm_userspace_memory_regions)
#endif

#define TRACING "/sys/kernel/tracing/"
#define PAGE 4096ull
#define FIRST_SLOT 1
#define BASE (1ull << 32)

static int vm;
static char *mem;
static struct kvm_userspace_memory_regions *batch;

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_APPEND);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		err(1, "%s", path);
	close(fd);
}

static unsigned long grace_periods(void)
{
	unsigned long hits = 0;
	char name[64];
	FILE *f = fopen(TRACING "kprobe_profile", "r");

	if (!f || fscanf(f, "%63s %lu", name, &hits) != 2)
		err(1, "kprobe_profile");
	fclose(f);
	return hits;
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1e3 + ts.tv_nsec / 1e6;
}

static void add(unsigned int slot, unsigned int flags, uint64_t gpa, uint64_t size)
{
	batch->entries[batch->nr++] = (struct kvm_userspace_memory_region2) {
		.slot = slot,
		.flags = flags,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (uintptr_t)mem,
	};
}

static void carry_out(int batched)
{
	unsigned int i;

	if (batched) {
		if (ioctl(vm, KVM_SET_USER_MEMORY_REGIONS, batch))
			err(1, "batch, entry %u", batch->failed);
		return;
	}
	for (i = 0; i < batch->nr; i++)
		if (ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &batch->entries[i]))
			err(1, "entry %u", i);
}

enum work { CREATE, LOG_ON, LOG_OFF, REPLACE, DELETE, NR_WORKS };
static const char *const names[] = { "create", "log on", "log off", "replace", "delete" };

/* Slots with a gap of a page between them, so that nothing can be merged. */
static void plan(enum work work, unsigned int nr)
{
	unsigned int i;

	batch->nr = 0;
	for (i = 0; i < nr; i++) {
		uint64_t gpa = BASE + 2 * i * PAGE;

		if (work == REPLACE)
			add(FIRST_SLOT + i, 0, 0, 0);
		add(FIRST_SLOT + i,
		    work == LOG_ON ? KVM_MEM_LOG_DIRTY_PAGES :
		    work == REPLACE ? KVM_MEM_READONLY : 0,
		    gpa, work == DELETE ? 0 : PAGE);
	}
}

static void *spin(void *arg)
{
	int vcpu = *(int *)arg;

	for (;;)
		ioctl(vcpu, KVM_RUN, 0);
	return NULL;
}

static void start_vcpu(void)
{
	struct kvm_userspace_memory_region low = {
		.slot = 0,
		.memory_size = PAGE,
		.userspace_addr = (uintptr_t)mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
						  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
	};
	static int vcpu;
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rflags = 2 };
	pthread_t thread;

	memcpy((void *)(uintptr_t)low.userspace_addr, "\xeb\xfe", 2); /* jmp . */
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &low))
		err(1, "low memory");
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	ioctl(vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs.base = sregs.cs.selector = 0;
	if (vcpu < 0 || ioctl(vcpu, KVM_SET_SREGS, &sregs) ||
	    ioctl(vcpu, KVM_SET_REGS, &regs))
		err(1, "vCPU");
	pthread_create(&thread, NULL, spin, &vcpu);
	usleep(200000);
}

static int compare(const void *a, const void *b)
{
	double d = *(const double *)a - *(const double *)b;

	return (d > 0) - (d < 0);
}

int main(int argc, char **argv)
{
	unsigned int nr = argc > 1 ? atoi(argv[1]) : 9000;
	int spinning = argc > 2 && !strcmp(argv[2], "spin");
	int runs = argc > 3 ? atoi(argv[3]) : 5, run, batched, work;
	static double ms[NR_WORKS][2][99];
	static unsigned long gps[NR_WORKS][2];
	int kvm = open("/dev/kvm", O_RDWR), max;

	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0)
		err(1, "/dev/kvm");
	max = ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY_REGIONS);
	mem = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	batch = calloc(1, sizeof(*batch) + 2ull * nr * sizeof(batch->entries[0]));
	if (runs > 99)
		runs = 99;

	write_file(TRACING "kprobe_events", "p:gp synchronize_srcu_expedited\n");
	write_file(TRACING "events/kprobes/gp/enable", "1");
	if (spinning)
		start_vcpu();

	for (run = 0; run < runs; run++)
		for (batched = 0; batched <= (max > 0); batched++)
			for (work = 0; work < NR_WORKS; work++) {
				unsigned long gp;
				double start;

				plan(work, nr);
				gp = grace_periods();
				start = now();
				carry_out(batched);
				ms[work][batched][run] = now() - start;
				gps[work][batched] = grace_periods() - gp;
			}

	printf("%u regions, %s, median of %d: ms (GPs)\n", nr,
	       spinning ? "vCPU spinning" : "idle", runs);
	for (work = 0; work < NR_WORKS; work++) {
		for (batched = 0; batched < 2; batched++)
			qsort(ms[work][batched], runs, sizeof(double), compare);
		printf("%-8s one by one %10.2f (%lu)  batch %10.2f (%lu)  ratio %.1f\n",
		       names[work], ms[work][0][runs / 2], gps[work][0],
		       ms[work][1][runs / 2], gps[work][1],
		       ms[work][0][runs / 2] / ms[work][1][runs / 2]);
	}
	return 0;
}
