/* Flags that the library does not know are refused, wherever there are flags. */
#define _GNU_SOURCE
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "program.h"

/* None of them is known; each kind of flags has 16 bits at least. */
#define UNKNOWN 0x4000u
#define REFUSED(call) FAILS(call, EINVAL, "unknown flags 0x4000 of ")

static void of_opening(void)
{
	struct kvm_memslots_options options = INIT(kvm_memslots_options);
	struct kvm_memslots_deferral deferral = INIT(kvm_memslots_deferral);
	struct kvm_memslots_limits limits = INIT(kvm_memslots_limits);
	struct kvm_memslots_vm *vm;

	options.flags = UNKNOWN;
	REFUSED(open_vm(&options, &vm));
	options.flags = 0;
	options.deferral = &deferral;
	deferral.flags = UNKNOWN;
	REFUSED(open_vm(&options, &vm));
	limits.flags = UNKNOWN;
	REFUSED(kvm_memslots_open_model(NULL, &limits, &vm));
}

static void of_memory(void)
{
	struct kvm_memslots_backing backing = INIT(kvm_memslots_backing);
	struct kvm_memslots_spec spec = INIT(kvm_memslots_spec);
	struct kvm_memslots_changes *c = kvm_memslots_changes_new();

	backing.hva = memory;
	backing.len = PAGE;
	spec.len = PAGE;
	spec.backing = &backing;
	spec.flags = UNKNOWN;
	REFUSED(kvm_memslots_map(c, &spec, NULL));
	spec.flags = 0;
	backing.flags = UNKNOWN;
	REFUSED(kvm_memslots_map(c, &spec, NULL));
	REFUSED(kvm_memslots_replace(c, 1, &backing));
	kvm_memslots_changes_free(c);
}

static void of_devices(int fd)
{
	struct kvm_memslots_doorbell doorbell = INIT(kvm_memslots_doorbell);
	struct kvm_memslots_zone zone = INIT(kvm_memslots_zone);
	struct kvm_memslots_msi msi = INIT(kvm_memslots_msi);
	struct kvm_memslots_line line = INIT(kvm_memslots_line);
	struct kvm_memslots_changes *c = kvm_memslots_changes_new();
	struct kvm_memslots_device *device;

	REFUSED(kvm_memslots_device_new("flags", UNKNOWN, &device));
	CHECK(!kvm_memslots_device_new("flags", 0, &device));
	doorbell.flags = UNKNOWN;
	REFUSED(kvm_memslots_device_ioeventfd(device, &doorbell, fd));
	zone.len = 1;
	zone.flags = UNKNOWN;
	REFUSED(kvm_memslots_device_zone(device, &zone));
	msi.flags = UNKNOWN;
	REFUSED(kvm_memslots_device_vector(device, fd, &msi));
	REFUSED(kvm_memslots_set_vector(c, 1, 0, &msi));
	line.eventfd = fd;
	line.flags = UNKNOWN;
	REFUSED(kvm_memslots_device_line(device, &line));
	kvm_memslots_device_free(device);
	kvm_memslots_changes_free(c);
}

static void of_windows(void)
{
	struct kvm_memslots_window_spec spec = INIT(kvm_memslots_window_spec);
	struct kvm_memslots_placement placement = INIT(kvm_memslots_placement);
	const struct kvm_memslots_placement *edit = &placement;
	struct kvm_memslots_device *device;
	struct kvm_memslots_window *window;
	uint64_t id;

	spec.gpa = 64 * MIB;
	spec.len = MIB;
	spec.flags = UNKNOWN;
	REFUSED(kvm_memslots_window_new(&spec, &window));
	spec.flags = 0;
	CHECK(!kvm_memslots_window_new(&spec, &window));
	placement.len = PAGE;
	placement.contents = KVM_MEMSLOTS_CONTENTS_ANONYMOUS;
	placement.flags = UNKNOWN;
	REFUSED(kvm_memslots_window_place(window, &placement));
	REFUSED(kvm_memslots_window_edit(window, &edit, 1));
	CHECK(!kvm_memslots_device_new("flags", 0, &device));
	placement.fd = memfd_create("flags", MFD_CLOEXEC);
	placement.contents = KVM_MEMSLOTS_CONTENTS_FILE;
	CHECK(placement.fd >= 0 && !ftruncate(placement.fd, PAGE));
	REFUSED(kvm_memslots_device_in_window(device, window, &placement, &id));
	close(placement.fd);
	kvm_memslots_device_free(device);
	kvm_memslots_window_free(window);
}

static void of_bars(int fd)
{
	struct kvm_memslots_bar_doorbell bell = INIT(kvm_memslots_bar_doorbell);
	struct kvm_memslots_bar bar = INIT(kvm_memslots_bar);
	struct kvm_memslots_function function = INIT(kvm_memslots_function);
	const struct kvm_memslots_bar_doorbell *bells = &bell;
	const struct kvm_memslots_bar *bars = &bar;
	struct kvm_memslots_pci *pci = kvm_memslots_pci_new(36);
	struct kvm_memslots_vm *vm;
	uint64_t id;

	CHECK(!open_vm(NULL, &vm));
	REFUSED(kvm_memslots_pci_set_flags(pci, UNKNOWN));
	function.bars = &bars;
	function.nr_bars = 1;
	function.flags = UNKNOWN;
	bar.len = PAGE;
	REFUSED(kvm_memslots_pci_add(pci, vm, &function, &id));
	function.flags = 0;
	bar.flags = UNKNOWN;
	REFUSED(kvm_memslots_pci_add(pci, vm, &function, &id));
	bar.flags = 0;
	bar.doorbells = &bells;
	bar.nr_doorbells = 1;
	bell.eventfd = fd;
	bell.flags = UNKNOWN;
	REFUSED(kvm_memslots_pci_add(pci, vm, &function, &id));
	/* That was all that was wrong with it. */
	bell.flags = 0;
	CHECK(!kvm_memslots_pci_add(pci, vm, &function, &id));
	kvm_memslots_pci_free(pci);
	CHECK(!kvm_memslots_close(vm, NULL));
}

void unknown_flags_are_refused(void)
{
	int fd = eventfd(0, EFD_CLOEXEC);

	CHECK(fd >= 0);
	of_opening();
	of_memory();
	of_devices(fd);
	of_windows();
	of_bars(fd);
	close(fd);
}
