/* Coalesced zones, triggers, and what KVM has of a VM's events. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/kvm.h>

#include "program.h"

#define BAR (32 * MIB)

struct state {
	int routes, irqfds, ioeventfds, zones;
	struct kvm_memslots_irqfd irqfd;
	struct kvm_memslots_ioeventfd ioeventfd;
	struct kvm_memslots_zone zone;
};

static void route(void *opaque, const struct kvm_irq_routing_entry *route)
{
	CHECK(route->type == KVM_IRQ_ROUTING_MSI && route->gsi >= 24);
	((struct state *)opaque)->routes++;
}

static void irqfd(void *opaque, const struct kvm_memslots_irqfd *irqfd)
{
	((struct state *)opaque)->irqfds++;
	((struct state *)opaque)->irqfd = *irqfd;
}

static void ioeventfd(void *opaque, const struct kvm_memslots_ioeventfd *at)
{
	((struct state *)opaque)->ioeventfds++;
	((struct state *)opaque)->ioeventfd = *at;
}

static void zone(void *opaque, const struct kvm_memslots_zone *zone)
{
	((struct state *)opaque)->zones++;
	((struct state *)opaque)->zone = *zone;
}

static struct state state_of(struct kvm_memslots_vm *vm)
{
	struct kvm_memslots_event_state each = INIT(kvm_memslots_event_state);
	struct state state = { 0 };

	CHECK(!kvm_memslots_event_state(vm, &each));
	each.route = route;
	each.irqfd = irqfd;
	each.ioeventfd = ioeventfd;
	each.zone = zone;
	each.opaque = &state;
	CHECK(!kvm_memslots_event_state(vm, &each));
	return state;
}

static void none(void *opaque, const struct kvm_memslots_zone_write *write)
{
	(void)opaque;
	(void)write;
	CHECK(0);
}

void a_device_with_zones(void)
{
	struct kvm_memslots_backing backing = INIT(kvm_memslots_backing);
	struct kvm_memslots_spec bar = INIT(kvm_memslots_spec);
	struct kvm_memslots_zone in_bar = INIT(kvm_memslots_zone);
	struct kvm_memslots_zone ports = INIT(kvm_memslots_zone);
	struct kvm_memslots_doorbell bell = INIT(kvm_memslots_doorbell);
	struct kvm_memslots_event_limits limits = INIT(kvm_memslots_event_limits);
	struct kvm_memslots_report report = INIT(kvm_memslots_report);
	struct kvm_memslots_preview preview = INIT(kvm_memslots_preview);
	struct kvm_memslots_error error = INIT(kvm_memslots_error);
	struct kvm_memslots_changes *c;
	struct kvm_memslots_device *device;
	struct kvm_memslots_ring *ring;
	struct kvm_memslots_vm *vm;
	struct state state;
	uint64_t mem, id;
	int fd = eventfd(0, EFD_CLOEXEC);

	CHECK(fd >= 0);
	CHECK(!open_vm(NULL, &vm));
	CHECK(!kvm_memslots_event_limits(vm, &limits));
	CHECK(limits.routes >= 24 && limits.flags & KVM_MEMSLOTS_HAS_ZONES);
	backing.hva = memory;
	bar.gpa = BAR;
	bar.len = 2 * PAGE;
	bar.kind = KVM_MEMSLOTS_DEVICE;
	bar.backing = &backing;
	CHECK(!kvm_memslots_device_new("vga", 0, &device));
	CHECK(!kvm_memslots_device_region(device, &bar, &mem));
	in_bar.region = mem;
	in_bar.addr = 2 * PAGE;
	in_bar.len = PAGE;
	CHECK(!kvm_memslots_device_zone(device, &in_bar));
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_attach(c, device, &id));
	CHECK(!kvm_memslots_apply(vm, c, &report));
	CHECK(report.zone_calls == 1 && report.ioctls == 1);
	state = state_of(vm);
	CHECK(state.zones == 1 && state.zone.addr == BAR + 2 * PAGE);
	CHECK(state.zone.len == PAGE && !state.zone.flags && !state.zone.region);

	/* It moves with its region. */
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_move_to(c, mem, 2 * BAR));
	CHECK(!kvm_memslots_preview(vm, c, &preview));
	CHECK(preview.zone_calls == 2 && preview.event_grace_periods == 1);
	CHECK(!kvm_memslots_apply(vm, c, &report) && report.zone_calls == 2);
	CHECK(state_of(vm).zone.addr == 2 * BAR + 2 * PAGE);

	/* What would take another's writes. */
	CHECK(!kvm_memslots_device_new("net", 0, &device));
	bell.addr = 2 * BAR + 2 * PAGE + 8;
	CHECK(!kvm_memslots_device_ioeventfd(device, &bell, fd));
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_attach(c, device, NULL));
	FAILS(kvm_memslots_apply(vm, c, NULL), EEXIST, "zone 0 of device \"vga\"");
	CHECK(!kvm_memslots_device_new("cga", 0, &device));
	ports.addr = 0x3d4;
	ports.len = 2;
	ports.flags = KVM_MEMSLOTS_ZONE_PIO;
	CHECK(!kvm_memslots_device_zone(device, &ports));
	CHECK(!kvm_memslots_device_zone(device, &ports));
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_attach(c, device, NULL));
	FAILS(kvm_memslots_apply(vm, c, NULL), EEXIST, "port 0x3d4");
	CHECK(!kvm_memslots_last_error_info(&error));
	CHECK(error.part == KVM_MEMSLOTS_PART_ZONE && error.index == 1);

	/* What can't be one. */
	CHECK(!kvm_memslots_device_new("bad", 0, &device));
	FAILS(kvm_memslots_device_zone(device, NULL), EINVAL, "zone is NULL");
	ports.flags = 1U << 3;
	FAILS(kvm_memslots_device_zone(device, &ports), EINVAL, "0x8");
	ports.flags = KVM_MEMSLOTS_ZONE_PIO;
	ports.region = mem;
	FAILS(kvm_memslots_device_zone(device, &ports), EINVAL, "not at a port");
	kvm_memslots_device_free(device);

	/* The ring is behind a vCPU's descriptor. */
	FAILS(kvm_memslots_ring_new(vm, -1, &ring), EBADF, "vcpu_fd -1");
	FAILS(kvm_memslots_ring_new(vm, 0, NULL), EINVAL, "ring is NULL");
	FAILS(kvm_memslots_ring_new(vm, open("/dev/null", O_RDWR | O_CLOEXEC), &ring),
	      EINVAL, "vCPU");
	FAILS(kvm_memslots_ring_drain(NULL, none, NULL), EINVAL, "ring is NULL");
	kvm_memslots_ring_free(NULL);

	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_detach(c, id));
	CHECK(!kvm_memslots_apply(vm, c, &report) && report.zone_calls == 1);
	CHECK(!state_of(vm).zones);
	CHECK(!kvm_memslots_close(vm, NULL));
	CHECK(!close(fd));
}

static void keep(void *opaque, const struct kvm_memslots_zone_write *write)
{
	struct kvm_memslots_zone_write *to = opaque;

	CHECK(write->size == sizeof(*write) && write->len == 1);
	FAILS(kvm_memslots_ring_drain(NULL, none, NULL), EINVAL, "ring");
	if (to[0].size)
		to[1] = *write;
	else
		to[0] = *write;
}

/* A guest writes to a zone of ports and one of memory, and stops at its end. */
void the_ring_is_drained(void)
{
	static const unsigned char code[] = {
		0xb0, 0x42,			/* mov al, 0x42 */
		0xe6, 0x70,			/* out 0x70, al */
		0xa2, 0x00, 0x80,		/* mov [0x8000], al */
		0xf4,				/* hlt */
	};
	struct kvm_memslots_zone_write writes[2] = { { 0 }, { 0 } };
	struct kvm_memslots_zone ports = INIT(kvm_memslots_zone);
	struct kvm_memslots_zone mmio = INIT(kvm_memslots_zone);
	struct kvm_memslots_device *device;
	struct kvm_memslots_changes *c;
	struct kvm_memslots_ring *ring;
	struct kvm_memslots_vm *vm;
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };
	struct kvm_sregs sregs;
	struct kvm_run *run;
	uint64_t id;
	int kvm, own, vcpu, reason;

	if (vm_fd < 0)
		return;
	/* Without an interrupt controller in the kernel, hlt ends KVM_RUN. */
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	own = ioctl(kvm, KVM_CREATE_VM, 0);
	CHECK(own >= 0 && !kvm_memslots_open(own, NULL, &vm));
	memcpy((void *)(uintptr_t)(memory + 0x1000), code, sizeof(code));
	c = mapping(0, 8 * PAGE, memory, 0, &id);
	CHECK(!kvm_memslots_device_new("cga", 0, &device));
	ports.addr = 0x70;
	ports.len = 2;
	ports.flags = KVM_MEMSLOTS_ZONE_PIO;
	CHECK(!kvm_memslots_device_zone(device, &ports));
	mmio.addr = 0x8000;
	mmio.len = PAGE;
	CHECK(!kvm_memslots_device_zone(device, &mmio));
	CHECK(!kvm_memslots_attach(c, device, NULL));
	CHECK(!kvm_memslots_apply(vm, c, NULL));
	vcpu = ioctl(own, KVM_CREATE_VCPU, 0);
	CHECK(vcpu >= 0 && !ioctl(vcpu, KVM_GET_SREGS, &sregs));
	sregs.cs.base = sregs.cs.selector = 0;
	CHECK(!ioctl(vcpu, KVM_SET_SREGS, &sregs) && !ioctl(vcpu, KVM_SET_REGS, &regs));
	CHECK(!kvm_memslots_ring_new(vm, vcpu, &ring));
	CHECK(!kvm_memslots_ring_drain(ring, none, NULL));
	FAILS(kvm_memslots_ring_drain(ring, NULL, NULL), EINVAL, "each is NULL");

	while (ioctl(vcpu, KVM_RUN, 0) < 0)
		CHECK(errno == EINTR);
	run = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, vcpu, 0);
	CHECK(run != MAP_FAILED);
	reason = run->exit_reason;
	CHECK(reason == KVM_EXIT_HLT);
	CHECK(!munmap(run, PAGE) && !close(vcpu));
	CHECK(!kvm_memslots_ring_drain(ring, keep, writes));
	CHECK(writes[0].addr == 0x70 && writes[0].flags == KVM_MEMSLOTS_ZONE_PIO);
	CHECK(writes[1].addr == 0x8000 && !writes[1].flags);
	CHECK(writes[0].data[0] == 0x42 && writes[1].data[0] == 0x42);
	CHECK(!writes[0].data[1] && !kvm_memslots_ring_drain(ring, none, NULL));
	kvm_memslots_ring_free(ring);
	CHECK(!kvm_memslots_close(vm, NULL));
	CHECK(!close(own) && !close(kvm));
}

/* Of a VM that has an interrupt controller. */
void triggers_hold_back(void)
{
	struct kvm_memslots_report report = INIT(kvm_memslots_report);
	struct kvm_memslots_msi msi = INIT(kvm_memslots_msi);
	struct kvm_memslots_changes *c;
	struct kvm_memslots_trigger *trigger;
	struct kvm_memslots_device *device;
	struct kvm_memslots_vm *vm;
	struct state state;
	uint64_t id;
	int pending, fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	CHECK(!open_vm(NULL, &vm));
	FAILS(kvm_memslots_trigger_new(-1, &trigger), EBADF, "eventfd -1");
	FAILS(kvm_memslots_trigger_signal(NULL), EINVAL, "trigger is NULL");
	CHECK(!kvm_memslots_trigger_new(fd, &trigger));
	msi.address = 0xfee00000;
	msi.data = 0x41;
	CHECK(!kvm_memslots_device_new("net", 0, &device));
	FAILS(kvm_memslots_device_triggered_vector(device, NULL, &msi), EINVAL, "NULL");
	kvm_memslots_device_free(device);
	CHECK(!kvm_memslots_device_new("net", 0, &device));
	CHECK(!kvm_memslots_device_triggered_vector(device, trigger, &msi));
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_attach(c, device, &id));
	CHECK(!kvm_memslots_apply(vm, c, NULL));
	state = state_of(vm);
	CHECK(state.routes == 1 && state.irqfds == 1 && state.irqfd.eventfd == fd);
	CHECK(state.irqfd.resample == -1);

	/* Masking costs no call, and holds back. */
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_set_vector(c, id, 0, NULL));
	CHECK(!kvm_memslots_apply(vm, c, &report));
	CHECK(!report.irqfd_calls && !report.routing_calls);
	CHECK(!kvm_memslots_trigger_signal(trigger));
	CHECK(!kvm_memslots_trigger_pending(trigger, &pending) && pending == 1);
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_set_vector(c, id, 0, &msi));
	CHECK(!kvm_memslots_apply(vm, c, &report) && !report.irqfd_calls);
	CHECK(!kvm_memslots_trigger_pending(trigger, &pending) && pending == 0);
	/* The device has it still. */
	kvm_memslots_trigger_free(trigger);
	kvm_memslots_trigger_free(NULL);
	CHECK(!kvm_memslots_close(vm, NULL));
	CHECK(!close(fd));
}

/* The doorbells of a BAR, and what of it exits though it is memory. */
void bars_with_doorbells(void)
{
	const struct kvm_memslots_bar_range table = { PAGE, 16 };
	struct kvm_memslots_bar_doorbell bell = INIT(kvm_memslots_bar_doorbell);
	const struct kvm_memslots_bar_doorbell *bells[1] = { &bell };
	struct kvm_memslots_backing backing = INIT(kvm_memslots_backing);
	struct kvm_memslots_spec window = INIT(kvm_memslots_spec);
	const struct kvm_memslots_spec *windows[1] = { &window };
	struct kvm_memslots_bar bar = INIT(kvm_memslots_bar);
	const struct kvm_memslots_bar *bars[1] = { &bar };
	struct kvm_memslots_function function = INIT(kvm_memslots_function);
	struct kvm_memslots_report report = INIT(kvm_memslots_report);
	struct kvm_memslots_pci *pci = kvm_memslots_pci_new(36);
	struct kvm_memslots_changes *c;
	struct kvm_memslots_vm *vm;
	struct state state;
	uint64_t id;
	int fd = eventfd(0, EFD_CLOEXEC);

	CHECK(!open_vm(NULL, &vm));
	backing.hva = memory;
	window.len = 3 * PAGE;
	window.kind = KVM_MEMSLOTS_DEVICE;
	window.backing = &backing;
	bar.len = 4 * PAGE;
	bar.windows = windows;
	bar.nr_windows = 1;
	bar.doorbells = bells;
	bar.nr_doorbells = 1;
	bar.exits = &table;
	bar.nr_exits = 1;
	bell.offset = 3 * PAGE;
	bell.len = 2;
	bell.value = 7;
	bell.flags = 1U << 5;
	bell.eventfd = fd;
	function.bars = bars;
	function.nr_bars = 1;
	FAILS(kvm_memslots_pci_set_flags(pci, 1U << 3), EINVAL, "0x8");
	CHECK(!kvm_memslots_pci_set_flags(pci, KVM_MEMSLOTS_PCI_KEEP_IOEVENTFDS |
						       KVM_MEMSLOTS_PCI_DEFER_IOEVENTFDS));
	FAILS(kvm_memslots_pci_add(pci, vm, &function, &id), EINVAL, "0x20");
	bell.flags = KVM_MEMSLOTS_DOORBELL_VALUE;
	CHECK(!kvm_memslots_pci_add(pci, vm, &function, &id));
	CHECK(!kvm_memslots_pci_config_write(pci, vm, id, 0x10, "\0\0\0\xe0", 4, NULL));
	CHECK(!kvm_memslots_pci_config_write(pci, vm, id, 4, "\2", 1, &report));
	CHECK(report.ioeventfd_calls == 0);
	CHECK_MAPPED(0xe0000000, 1);
	CHECK_MAPPED(0xe0001000, 0);
	CHECK_MAPPED(0xe0002000, 1);
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_assign_deferred(c));
	CHECK(!kvm_memslots_apply(vm, c, &report) && report.ioeventfd_calls == 1);
	state = state_of(vm);
	CHECK(state.ioeventfds == 1 && state.ioeventfd.addr == 0xe0003000);
	CHECK(state.ioeventfd.len == 2 && state.ioeventfd.value == 7);
	CHECK(state.ioeventfd.flags == KVM_MEMSLOTS_DOORBELL_VALUE);
	CHECK(state.ioeventfd.eventfd == fd);
	/* It stays while the BAR does not decode. */
	CHECK(!kvm_memslots_pci_config_write(pci, vm, id, 4, "\0", 1, &report));
	CHECK(report.ioeventfd_calls == 0 && report.ioctls);
	CHECK(!kvm_memslots_pci_remove(pci, vm, id, NULL));
	kvm_memslots_pci_free(pci);
	CHECK(!kvm_memslots_close(vm, NULL));
	CHECK(!close(fd));
}
