/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * A VMM in C, as small as can be: RAM, a device with a doorbell and a BAR that
 * waits for its slot, dirty pages, and a guest that uses all of it.
 *
 *	cc vmm.c $(pkg-config --cflags --libs kvm_memslots_client)
 *
 * What to look at: memory is described in setup() and applied once; at exits only
 * the library knows whether an address is memory or the device's.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/kvm.h>

#include <kvm_memslots_client.h>

#define PAGE	 0x1000ull
#define RAM	 (8 * PAGE)	/* at 0 */
#define BAR	 0x8000ull
#define DOORBELL 0x10		/* a port */

#define TRY(call)                                                              \
	do {                                                                   \
		if ((call) < 0)                                                \
			errx(1, "%s: %s", #call, kvm_memslots_last_error());   \
	} while (0)

/* 16-bit code at 0x1000. */
static const unsigned char code[] = {
	0xb0, 0x42,		/* mov al, 0x42 */
	0xa2, 0x00, 0x30,	/* mov [0x3000], al */
	0xe6, DOORBELL,		/* out DOORBELL, al */
	0xa0, 0x04, 0x80,	/* mov al, [BAR + 4]: an exit */
	0xa2, 0x01, 0x30,	/* mov [0x3001], al */
	0xa0, 0x05, 0x80,	/* mov al, [BAR + 5]: none any more */
	0xa2, 0x00, 0x90,	/* mov [0x9000], al: nothing is there */
	0xf4,			/* hlt */
};

static void *memory(size_t size)
{
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		err(1, "mmap");
	return at;
}

struct machine {
	struct kvm_memslots_vm *vm;
	struct kvm_memslots_exits *exits;
	unsigned char *ram, *bar;
	uint64_t ram_id, bar_id;
	int doorbell;
};

/* Everything that the VM has, in one set of changes. */
static void setup(struct machine *m, int vm_fd)
{
	struct kvm_memslots_deferral at_once = {
		.size = sizeof(at_once), .policy = KVM_MEMSLOTS_POLICY_FIXED, .exits = 1,
	};
	struct kvm_memslots_options options = {
		.size = sizeof(options), .deferral = &at_once,
	};
	struct kvm_memslots_backing ram = { .size = sizeof(ram) };
	struct kvm_memslots_backing bar = { .size = sizeof(bar) };
	struct kvm_memslots_spec ram_spec = {
		.size = sizeof(ram_spec), .len = RAM, .backing = &ram, .label = "ram",
		.flags = KVM_MEMSLOTS_PERMANENT | KVM_MEMSLOTS_LOG_DIRTY,
	};
	struct kvm_memslots_spec bar_spec = {
		.size = sizeof(bar_spec), .gpa = BAR, .len = PAGE, .backing = &bar,
		.label = "bar", .kind = KVM_MEMSLOTS_DEVICE,
		.flags = KVM_MEMSLOTS_DEFERRABLE,
	};
	struct kvm_memslots_doorbell doorbell = {
		.size = sizeof(doorbell), .addr = DOORBELL, .len = 1,
		.flags = KVM_MEMSLOTS_DOORBELL_PIO,
	};
	struct kvm_memslots_report report = { .size = sizeof(report) };
	struct kvm_memslots_changes *changes = kvm_memslots_changes_new();
	struct kvm_memslots_device *device;

	m->ram = memory(RAM);
	m->bar = memory(PAGE);
	m->doorbell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	memcpy(m->ram + 0x1000, code, sizeof(code));
	memcpy(m->bar + 4, "\x11\x22", 2);
	ram.hva = (uintptr_t)m->ram;
	bar.hva = (uintptr_t)m->bar;

	/* What goes wrong on the way, applying says. */
	TRY(kvm_memslots_open(vm_fd, &options, &m->vm));
	kvm_memslots_map(changes, &ram_spec, &m->ram_id);
	TRY(kvm_memslots_device_new("toy", 0, &device));
	kvm_memslots_device_region(device, &bar_spec, &m->bar_id);
	kvm_memslots_device_ioeventfd(device, &doorbell, m->doorbell);
	kvm_memslots_attach(changes, device, NULL);
	TRY(kvm_memslots_apply(m->vm, changes, &report));
	TRY(kvm_memslots_exits_new(m->vm, 0, &m->exits));
	printf("set up: %d slots, %d deferred, %d ioeventfds\n", (int)report.slots,
	       (int)report.regions_deferred, (int)report.ioeventfd_calls);
}

static void device_read(void *opaque, uint64_t gpa, void *data, size_t len)
{
	(void)opaque;
	memset(data, 0xff, len);
	printf("device: read of %#llx\n", (unsigned long long)gpa);
}

static void device_write(void *opaque, uint64_t gpa, const void *data, size_t len)
{
	(void)opaque;
	(void)len;
	printf("device: %#x to %#llx\n", *(const unsigned char *)data,
	       (unsigned long long)gpa);
}

/* Runs the guest until it halts. */
static void run(struct machine *m, int vcpu, struct kvm_run *run)
{
	struct kvm_memslots_served served = { .size = sizeof(served) };

	for (;;) {
		if (ioctl(vcpu, KVM_RUN, 0) < 0) {
			if (errno == EINTR)	/* no exit: the last one is over */
				continue;
			err(1, "KVM_RUN");
		}
		if (run->exit_reason == KVM_EXIT_HLT)
			return;
		if (run->exit_reason != KVM_EXIT_MMIO)
			errx(1, "exit %u", run->exit_reason);
		if (run->mmio.is_write)
			TRY(kvm_memslots_exits_write(m->exits, run->mmio.phys_addr,
						     run->mmio.data, run->mmio.len,
						     device_write, m, &served));
		else
			TRY(kvm_memslots_exits_read(m->exits, run->mmio.phys_addr,
						    run->mmio.data, run->mmio.len,
						    device_read, m, &served));
		if (served.bytes)
			printf("served: %d bytes\n", (int)served.bytes);
		if (served.flags & KVM_MEMSLOTS_SERVED_DUE)
			TRY(kvm_memslots_promote_due(m->vm, NULL));
	}
}

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm_fd = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
	struct machine m = { 0 };
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };
	struct kvm_sregs sregs;
	struct kvm_run *shared;
	uint64_t dirty, rung = 0;
	int vcpu, size;

	if (vm_fd < 0) {
		printf("no VM from /dev/kvm: %s\n", strerror(errno));
		return 77;
	}
	setup(&m, vm_fd);
	vcpu = ioctl(vm_fd, KVM_CREATE_VCPU, 0);
	size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (vcpu < 0 || shared == MAP_FAILED || ioctl(vcpu, KVM_GET_SREGS, &sregs))
		err(1, "vCPU");
	sregs.cs.base = sregs.cs.selector = 0;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) || ioctl(vcpu, KVM_SET_REGS, &regs))
		err(1, "registers");
	run(&m, vcpu, shared);

	TRY(kvm_memslots_dirty_log(m.vm, m.ram_id, &dirty, 1));
	printf("wrote: %#x %#x, dirty pages %#llx\n", m.ram[0x3000], m.ram[0x3001],
	       (unsigned long long)dirty);
	if (read(m.doorbell, &rung, sizeof(rung)) < 0)
		err(1, "doorbell");
	printf("rung: %d\n", (int)rung);
	kvm_memslots_exits_free(m.exits);
	TRY(kvm_memslots_close(m.vm, NULL));
	return 0;
}
