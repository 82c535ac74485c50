/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * Devices in C: a running VM gets one, with a doorbell, a vector, ports whose writes
 * wait in a ring, and a blob in a window; and loses it again.
 *
 *	cc devices.c $(pkg-config --cflags --libs kvm_memslots_client)
 *
 * The device comes and goes in one set of changes; the blob comes without KVM.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/kvm.h>

#include <kvm_memslots_client.h>

#define PAGE	 0x1000ull
#define RAM	 (8 * PAGE)	/* at 0 */
#define BLOBS	 0x8000ull
#define DOORBELL 0x10		/* ports */
#define PALETTE	 0x70
#define VECTOR	 0x41

#define TRY(call)                                                              \
	do {                                                                   \
		if ((call) < 0)                                                \
			errx(1, "%s: %s", #call, kvm_memslots_last_error());   \
	} while (0)

static struct kvm_memslots_msi msi = {
	.size = sizeof(msi), .address = 0xfee00000, .data = VECTOR,
};

/* 16-bit code at 0x1000. */
static const unsigned char code[] = {
	0xa0, 0x00, 0x80,			/* mov al, [BLOBS] */
	0xe6, PALETTE, 0xe6, DOORBELL, 0xe6, 0x80, /* out */
};

struct machine {
	struct kvm_memslots_vm *vm;
	struct kvm_memslots_window *blobs;
	struct kvm_memslots_ring *ring;
	struct kvm_memslots_trigger *trigger;
	uint64_t window, device;
	int vcpu, doorbell;
	struct kvm_run *run;
};

static void boot(struct machine *m, int vm_fd)
{
	struct kvm_memslots_backing backing = { .size = sizeof(backing) };
	struct kvm_memslots_spec spec = {
		.size = sizeof(spec), .len = RAM, .backing = &backing, .label = "ram",
		.flags = KVM_MEMSLOTS_PERMANENT,
	};
	struct kvm_memslots_changes *changes = kvm_memslots_changes_new();
	struct kvm_lapic_state apic;
	char *ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	memcpy(ram + 0x1000, code, sizeof(code));
	backing.hva = (uintptr_t)ram;
	TRY(kvm_memslots_open(vm_fd, NULL, &m->vm));
	kvm_memslots_map(changes, &spec, NULL);
	TRY(kvm_memslots_apply(m->vm, changes, NULL));
	m->vcpu = ioctl(vm_fd, KVM_CREATE_VCPU, 0);
	m->run = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
	if (m->run == MAP_FAILED || ioctl(m->vcpu, KVM_GET_LAPIC, &apic))
		err(1, "vCPU");
	apic.regs[0xf1] |= 1;	/* software-enabled */
	ioctl(m->vcpu, KVM_SET_LAPIC, &apic);
	TRY(kvm_memslots_ring_new(m->vm, m->vcpu, &m->ring));
}

static void plug(struct machine *m)
{
	struct kvm_memslots_window_spec blobs = {
		.size = sizeof(blobs), .gpa = BLOBS, .len = 4 * PAGE,
	};
	struct kvm_memslots_doorbell bell = {
		.size = sizeof(bell), .addr = DOORBELL, .len = 1,
		.flags = KVM_MEMSLOTS_DOORBELL_PIO,
	};
	struct kvm_memslots_zone palette = {
		.size = sizeof(palette), .addr = PALETTE, .len = 2,
		.flags = KVM_MEMSLOTS_ZONE_PIO,
	};
	struct kvm_memslots_report report = { .size = sizeof(report) };
	struct kvm_memslots_changes *changes = kvm_memslots_changes_new();
	struct kvm_memslots_device *device;

	m->doorbell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	TRY(kvm_memslots_window_new(&blobs, &m->blobs));
	TRY(kvm_memslots_trigger_new(eventfd(0, EFD_CLOEXEC), &m->trigger));
	TRY(kvm_memslots_device_new("gpu", 0, &device));
	kvm_memslots_device_ioeventfd(device, &bell, m->doorbell);
	kvm_memslots_device_zone(device, &palette);
	kvm_memslots_device_triggered_vector(device, m->trigger, &msi);
	kvm_memslots_attach(changes, device, &m->device);
	kvm_memslots_window_map(changes, m->blobs, NULL, &m->window);
	TRY(kvm_memslots_apply(m->vm, changes, &report));
	printf("plugged: %d ioctls, %d zones, %d irqfds\n", (int)report.ioctls,
	       (int)report.zone_calls, (int)report.irqfd_calls);
}

static void palette_write(void *opaque, const struct kvm_memslots_zone_write *write)
{
	(void)opaque;
	printf("ring: %#x to port %#x\n", write->data[0], (int)write->addr);
}

/* Runs the guest from its start to an exit, which it names. */
static void run(struct machine *m)
{
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };
	struct kvm_sregs sregs;

	ioctl(m->vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs.base = sregs.cs.selector = 0;
	if (ioctl(m->vcpu, KVM_SET_SREGS, &sregs) || ioctl(m->vcpu, KVM_SET_REGS, &regs))
		err(1, "registers");
	while (ioctl(m->vcpu, KVM_RUN, 0) < 0)
		if (errno != EINTR)
			err(1, "KVM_RUN");
	TRY(kvm_memslots_ring_drain(m->ring, palette_write, NULL));
	printf("exit: %s\n", m->run->exit_reason == KVM_EXIT_IO ? "port" : "memory");
}

static int raised(struct machine *m)
{
	struct kvm_lapic_state apic;

	ioctl(m->vcpu, KVM_GET_LAPIC, &apic);
	return apic.regs[0x200 + VECTOR / 32 * 16 + VECTOR % 32 / 8] >> VECTOR % 8 & 1;
}

/* The guest masks the vector, as MSI-X has it, and unmasks it. */
static void interrupt(struct machine *m)
{
	struct kvm_memslots_changes *changes = kvm_memslots_changes_new();
	int pending;

	kvm_memslots_set_vector(changes, m->device, 0, NULL);
	TRY(kvm_memslots_apply(m->vm, changes, NULL));
	TRY(kvm_memslots_trigger_signal(m->trigger));
	TRY(kvm_memslots_trigger_pending(m->trigger, &pending));
	printf("masked: pending %d, raised %d\n", pending, raised(m));
	changes = kvm_memslots_changes_new();
	kvm_memslots_set_vector(changes, m->device, 0, &msi);
	TRY(kvm_memslots_apply(m->vm, changes, NULL));
	printf("unmasked: raised %d\n", raised(m));
}

int main(void)
{
	struct kvm_enable_cap split = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 } };
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int blob = memfd_create("blob", MFD_CLOEXEC);
	int vm_fd = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
	struct kvm_memslots_placement placement = {
		.size = sizeof(placement), .len = PAGE, .fd = blob,
		.contents = KVM_MEMSLOTS_CONTENTS_FILE,
	};
	struct kvm_memslots_changes *changes = kvm_memslots_changes_new();
	struct machine m = { 0 };
	uint64_t rung = 0;

	if (vm_fd < 0 || ioctl(vm_fd, KVM_ENABLE_CAP, &split)) {
		printf("no VM with an interrupt controller: %s\n", strerror(errno));
		return 77;
	}
	boot(&m, vm_fd);
	plug(&m);
	if (ftruncate(blob, PAGE) || write(blob, "b", 1) != 1)
		err(1, "blob");
	TRY(kvm_memslots_window_place(m.blobs, &placement));
	run(&m);
	if (read(m.doorbell, &rung, sizeof(rung)) < 0)
		err(1, "doorbell");
	printf("rung: %d\n", (int)rung);
	interrupt(&m);
	kvm_memslots_detach(changes, m.device);
	kvm_memslots_unmap(changes, m.window);
	TRY(kvm_memslots_apply(m.vm, changes, NULL));
	run(&m);
	kvm_memslots_window_free(m.blobs);
	kvm_memslots_trigger_free(m.trigger);
	kvm_memslots_ring_free(m.ring);
	TRY(kvm_memslots_close(m.vm, NULL));
	return 0;
}
