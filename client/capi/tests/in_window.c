/* Memory of devices in a window: it comes, moves and goes with the rest of the set. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "program.h"

/* A file of two pages, "bar 0" and "bar 1". */
static int bars(unsigned int seals)
{
	int fd = memfd_create("bars", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	CHECK(fd >= 0 && !ftruncate(fd, 2 * PAGE));
	CHECK(pwrite(fd, "bar 0", 5, 0) == 5 && pwrite(fd, "bar 1", 5, PAGE) == 5);
	CHECK(!fcntl(fd, F_ADD_SEALS, seals));
	return fd;
}

static struct kvm_memslots_error last(void)
{
	struct kvm_memslots_error error = INIT(kvm_memslots_error);

	CHECK(!kvm_memslots_last_error_info(&error));
	return error;
}

/* What can't be described, and so not be attached. */
static void bad_parts(struct kvm_memslots_window *window, int file)
{
	struct kvm_memslots_placement part = INIT(kvm_memslots_placement);
	struct kvm_memslots_changes *c = kvm_memslots_changes_new();
	struct kvm_memslots_device *device;
	uint64_t id = 7;
	int pipes[2];

	CHECK(!pipe(pipes));
	part.len = PAGE;
	part.fd = file;
	part.contents = KVM_MEMSLOTS_CONTENTS_FILE;
	FAILS(kvm_memslots_device_in_window(NULL, window, &part, &id), EINVAL,
	      "device is NULL");
	CHECK(!kvm_memslots_device_new("none", 0, &device));
	part.flags = 1U << 5;
	FAILS(kvm_memslots_device_in_window(device, window, &part, &id), EINVAL, "0x20");
	/* Lookups have this one, nobody asks for it. */
	part.flags = KVM_MEMSLOTS_PLACEMENT_FILE;
	FAILS(kvm_memslots_device_in_window(device, window, &part, &id), EINVAL, "0x2");
	part.flags = 0;
	FAILS(kvm_memslots_device_in_window(device, NULL, &part, &id), EINVAL,
	      "window is NULL");
	FAILS(kvm_memslots_device_in_window(device, window, NULL, &id), EINVAL,
	      "kvm_memslots_placement is NULL");
	part.contents = KVM_MEMSLOTS_CONTENTS_ANONYMOUS;
	FAILS(kvm_memslots_device_in_window(device, window, &part, &id), EINVAL,
	      "KVM_MEMSLOTS_CONTENTS_FILE");
	part.contents = KVM_MEMSLOTS_CONTENTS_FILE;
	part.fd = -1;
	FAILS(kvm_memslots_device_in_window(device, window, &part, &id), EBADF, "fd -1");
	CHECK(last().flags == 0);
	part.fd = 1000000;
	FAILS(kvm_memslots_device_in_window(device, window, &part, &id), EBADF,
	      "not open");
	CHECK(last().flags == KVM_MEMSLOTS_ERROR_KVM);
	part.fd = pipes[0];
	FAILS(kvm_memslots_device_in_window(device, window, &part, &id), ENODEV,
	      "is no file's");
	CHECK(id == 7);
	FAILS(kvm_memslots_attach(c, device, NULL), EINVAL, "0x20");
	FAILS(kvm_memslots_move_in_window(NULL, 1, 0), EINVAL, "changes is NULL");
	kvm_memslots_changes_free(c);
	CHECK(!close(pipes[0]) && !close(pipes[1]));
}

/* What the host or KVM refuses when a part is there takes that away again. */
static void refused_devices(struct kvm_memslots_vm *vm,
			    struct kvm_memslots_window *window, int file)
{
	struct kvm_memslots_placement part = INIT(kvm_memslots_placement);
	struct kvm_memslots_doorbell bell = INIT(kvm_memslots_doorbell);
	struct kvm_memslots_changes *c = kvm_memslots_changes_new();
	struct kvm_memslots_device *device;
	const uint64_t before = placed(window);
	int sealed = bars(F_SEAL_WRITE);

	part.len = PAGE;
	part.fd = file;
	part.contents = KVM_MEMSLOTS_CONTENTS_FILE;
	CHECK(!kvm_memslots_device_new("sealed", 0, &device));
	CHECK(!kvm_memslots_device_in_window(device, window, &part, NULL));
	part.offset = PAGE;
	part.fd = sealed;
	CHECK(!kvm_memslots_device_in_window(device, window, &part, NULL));
	CHECK(!kvm_memslots_attach(c, device, NULL));
	FAILS(kvm_memslots_apply(vm, c, NULL), EPERM, "sealed against writing");
	CHECK(!strcmp(last().device, "sealed") && last().change == 0);
	CHECK(last().part == KVM_MEMSLOTS_PART_IN_WINDOW && last().index == 1);
	CHECK(last().flags == KVM_MEMSLOTS_ERROR_KVM);
	CHECK(placed(window) == before);
	CHECK(!close(sealed));
	if (vm_fd < 0)
		return;

	/* A file is no eventfd. */
	part.fd = file;
	bell.addr = 0x530;
	bell.flags = KVM_MEMSLOTS_DOORBELL_PIO;
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_device_new("mute", 0, &device));
	CHECK(!kvm_memslots_device_in_window(device, window, &part, NULL));
	CHECK(!kvm_memslots_device_ioeventfd(device, &bell, file));
	CHECK(!kvm_memslots_attach(c, device, NULL));
	FAILS(kvm_memslots_apply(vm, c, NULL), EINVAL, "KVM refused");
	CHECK(last().part == KVM_MEMSLOTS_PART_IOEVENTFD && last().index == 0);
	CHECK(placed(window) == before);
}

void devices_in_windows(void)
{
	struct kvm_memslots_window_spec spec = INIT(kvm_memslots_window_spec);
	struct kvm_memslots_placement part = INIT(kvm_memslots_placement);
	struct kvm_memslots_placement there = INIT(kvm_memslots_placement);
	struct kvm_memslots_region region = INIT(kvm_memslots_region);
	struct kvm_memslots_report report = INIT(kvm_memslots_report);
	struct kvm_memslots_changes *c = kvm_memslots_changes_new();
	struct kvm_memslots_device *device;
	struct kvm_memslots_window *window;
	struct kvm_memslots_vm *vm;
	uint64_t id, mapped, bar0 = 0, bar1 = 0;
	int file = bars(F_SEAL_SEAL);
	const char *in_it;

	CHECK(!open_vm(NULL, &vm));
	spec.gpa = 64 * MIB;
	spec.len = MIB;
	spec.gap = KVM_MEMSLOTS_GAP_SCRATCH;
	CHECK(!kvm_memslots_window_new(&spec, &window));
	CHECK(!kvm_memslots_window_map(c, window, NULL, &mapped));
	CHECK(!kvm_memslots_apply(vm, c, NULL));
	CHECK(!kvm_memslots_region(vm, mapped, &region));
	in_it = (const char *)(uintptr_t)region.hva;
	bad_parts(window, file);

	/* The descriptor is the caller's to close. */
	CHECK(!kvm_memslots_device_new("gpu", 0, &device));
	part.offset = 4 * PAGE;
	part.len = PAGE;
	part.fd = fcntl(file, F_DUPFD_CLOEXEC, 0);
	part.contents = KVM_MEMSLOTS_CONTENTS_FILE;
	CHECK(!kvm_memslots_device_in_window(device, window, &part, &bar0));
	part.offset = 8 * PAGE;
	part.file_offset = PAGE;
	part.flags = KVM_MEMSLOTS_PLACEMENT_READ_ONLY;
	CHECK(!kvm_memslots_device_in_window(device, window, &part, &bar1));
	CHECK(!close(part.fd) && bar0 && bar1 && bar0 != bar1);
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_attach(c, device, &id));
	CHECK(placed(window) == 0);
	CHECK(!kvm_memslots_apply(vm, c, &report));
	CHECK(report.ioctls == 0 && report.slots == 1 && placed(window) == 2 * PAGE);
	CHECK(!memcmp(in_it + 4 * PAGE, "bar 0", 5));
	CHECK(!memcmp(in_it + 8 * PAGE, "bar 1", 5));
	CHECK(!kvm_memslots_window_at(window, 8 * PAGE, &there));
	CHECK(there.file_offset == PAGE && there.offset == 8 * PAGE);
	CHECK(there.flags == (KVM_MEMSLOTS_PLACEMENT_READ_ONLY | KVM_MEMSLOTS_PLACEMENT_FILE));
	FAILS(kvm_memslots_region(vm, bar0, NULL), ENOENT, "not mapped");
	refused_devices(vm, window, file);

	/* The guest moves one; not to where the other is, or beyond. */
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_move_in_window(c, bar0, 16 * PAGE));
	CHECK(!kvm_memslots_apply(vm, c, &report) && report.ioctls == 0);
	CHECK(!memcmp(in_it + 16 * PAGE, "bar 0", 5) && !in_it[4 * PAGE]);
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_move_in_window(c, bar0, 8 * PAGE));
	FAILS(kvm_memslots_apply(vm, c, NULL), EEXIST, "is there");
	CHECK(last().part == KVM_MEMSLOTS_PART_IN_WINDOW && last().index == 0);
	CHECK(!strcmp(last().device, "gpu") && last().flags == 0);
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_move_in_window(c, bar1, MIB));
	FAILS(kvm_memslots_apply(vm, c, NULL), EINVAL, "whole pages");
	CHECK(last().part == KVM_MEMSLOTS_PART_IN_WINDOW && last().index == 1);
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_move_in_window(c, mapped, 0));
	FAILS(kvm_memslots_apply(vm, c, NULL), ENOENT, "not mapped");
	CHECK(placed(window) == 2 * PAGE && !memcmp(in_it + 16 * PAGE, "bar 0", 5));

	/* It goes with the device, whoever has freed the window. */
	kvm_memslots_window_free(window);
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_detach(c, id));
	CHECK(!kvm_memslots_apply(vm, c, &report) && report.ioctls == 0);
	CHECK(!in_it[16 * PAGE] && !in_it[8 * PAGE]);
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_move_in_window(c, bar0, 0));
	FAILS(kvm_memslots_apply(vm, c, NULL), ENOENT, "not mapped");
	CHECK(!kvm_memslots_close(vm, NULL));
	CHECK(!close(file));
}
