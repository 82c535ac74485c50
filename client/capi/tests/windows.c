/* Windows: memory that comes and goes without KVM. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "program.h"

static void add(void *opaque, const struct kvm_memslots_placement *placement)
{
	CHECK(placement->size == sizeof(*placement));
	*(uint64_t *)opaque += placement->len;
}

uint64_t placed(struct kvm_memslots_window *window)
{
	uint64_t sum = 0;

	CHECK(!kvm_memslots_window_placed(window, add, &sum));
	return sum;
}

void windows(void)
{
	struct kvm_memslots_window_spec spec = INIT(kvm_memslots_window_spec);
	struct kvm_memslots_placement file = INIT(kvm_memslots_placement);
	struct kvm_memslots_placement zeroes = INIT(kvm_memslots_placement);
	struct kvm_memslots_placement there = INIT(kvm_memslots_placement);
	struct kvm_memslots_placement gone = INIT(kvm_memslots_placement);
	const struct kvm_memslots_placement *edits[2] = { &gone, &file };
	struct kvm_memslots_spec region_spec = INIT(kvm_memslots_spec);
	struct kvm_memslots_backing backing = INIT(kvm_memslots_backing);
	struct kvm_memslots_region region = INIT(kvm_memslots_region);
	struct kvm_memslots_error error = INIT(kvm_memslots_error);
	struct kvm_memslots_report report = INIT(kvm_memslots_report);
	struct kvm_memslots_changes *c;
	struct kvm_memslots_window *window, *other;
	struct kvm_memslots_vm *vm;
	uint64_t id, offset = 0, again;
	const char *in_it;
	int memfd = memfd_create("blob", MFD_CLOEXEC), pipes[2];

	CHECK(memfd >= 0 && !ftruncate(memfd, 4 * PAGE) && !pipe(pipes));
	CHECK(pwrite(memfd, "blob", 4, PAGE) == 4);
	CHECK(!open_vm(NULL, &vm));
	spec.gpa = 64 * MIB;
	spec.len = MIB;
	spec.gap = 9;
	FAILS(kvm_memslots_window_new(&spec, &window), EINVAL, "9 is no kvm_memslots_gap");
	spec.gap = KVM_MEMSLOTS_GAP_SCRATCH;
	spec.flags = 1U << 4;
	FAILS(kvm_memslots_window_new(&spec, &window), EINVAL, "0x10");
	spec.flags = KVM_MEMSLOTS_WINDOW_HUGE_PAGES;
	spec.len = MIB + 1;
	FAILS(kvm_memslots_window_new(&spec, &window), EINVAL, "whole pages");
	spec.len = MIB;
	FAILS(kvm_memslots_window_new(&spec, NULL), EINVAL, "window is NULL");
	FAILS(kvm_memslots_window_new(NULL, &window), EINVAL, "window_spec is NULL");
	CHECK(!kvm_memslots_window_new(&spec, &window));

	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_window_map(c, window, NULL, &id));
	CHECK(!kvm_memslots_apply(vm, c, &report) && report.slots == 1);
	CHECK(!kvm_memslots_region(vm, id, &region));
	CHECK(region.gpa == spec.gpa && region.len == MIB);
	CHECK(region.kind == KVM_MEMSLOTS_DEVICE && region.flags == KVM_MEMSLOTS_ALONE);
	CHECK_MAPPED(64 * MIB, 1);
	in_it = (const char *)(uintptr_t)region.hva;

	/* From a file, and zeroes. */
	file.offset = 16 * PAGE;
	file.len = 2 * PAGE;
	file.file_offset = PAGE;
	file.fd = memfd;
	file.contents = KVM_MEMSLOTS_CONTENTS_FILE;
	file.flags = KVM_MEMSLOTS_PLACEMENT_READ_ONLY;
	CHECK(!kvm_memslots_window_place(window, &file));
	CHECK(!memcmp(in_it + 16 * PAGE, "blob", 4));
	FAILS(kvm_memslots_window_place(window, &file), EEXIST, "is there");
	zeroes.len = PAGE;
	zeroes.contents = KVM_MEMSLOTS_CONTENTS_ANONYMOUS;
	CHECK(!kvm_memslots_window_place(window, &zeroes));
	CHECK(placed(window) == 3 * PAGE);
	CHECK(!kvm_memslots_window_at(window, 17 * PAGE, &there));
	CHECK(there.offset == 16 * PAGE && there.file_offset == PAGE && there.fd == -1);
	CHECK(there.flags == (KVM_MEMSLOTS_PLACEMENT_READ_ONLY | KVM_MEMSLOTS_PLACEMENT_FILE));
	FAILS(kvm_memslots_window_at(window, 2 * PAGE, &there), ENOENT, "0x2000");
	CHECK(!kvm_memslots_window_found(window, vm, 0, 64 * MIB + 5, &offset) && offset == 5);
	FAILS(kvm_memslots_window_found(window, vm, 0, 0, &offset), ENOENT, "GPA 0x0");

	/* One in the place of another, all or nothing. */
	gone.offset = 16 * PAGE;
	gone.len = 2 * PAGE;
	file.file_offset = 0;
	if (kvm_memslots_window_edit(window, edits, 2)) {
		/* Valgrind does not know MREMAP_DONTUNMAP. */
		CHECK(strstr(kvm_memslots_last_error(), "can't be kept"));
		CHECK(!kvm_memslots_window_remove(window, gone.offset, gone.len));
		CHECK(!kvm_memslots_window_place(window, &file));
	}
	CHECK(!memcmp(in_it + 17 * PAGE, "blob", 4) && !in_it[16 * PAGE]);
	file.fd = pipes[0];
	FAILS(kvm_memslots_window_edit(window, edits, 2), ENODEV,
	      "KVM_MEMSLOTS_CONTENTS_DEVICE");
	CHECK(!kvm_memslots_last_error_info(&error) && error.change == 1);
	file.fd = -1;
	FAILS(kvm_memslots_window_edit(window, edits, 2), EBADF, "change 1: fd -1");
	file.contents = 8;
	FAILS(kvm_memslots_window_edit(window, edits, 2), EINVAL, "8 is no");
	FAILS(kvm_memslots_window_edit(window, NULL, 1), EINVAL, "edits is NULL");
	gone.flags = KVM_MEMSLOTS_PLACEMENT_READ_ONLY;
	FAILS(kvm_memslots_window_edit(window, edits, 1), EINVAL, "flags");
	CHECK(!memcmp(in_it + 17 * PAGE, "blob", 4) && placed(window) == 3 * PAGE);
	FAILS(kvm_memslots_window_remove(window, 15 * PAGE, PAGE), ENOENT, "0xf000");
	CHECK(!kvm_memslots_window_remove(window, 17 * PAGE, PAGE));
	CHECK(placed(window) == 2 * PAGE && !in_it[17 * PAGE]);

	/* As another kind of region, of another window, which may be freed. */
	CHECK(!kvm_memslots_window_new(&spec, &other));
	region_spec.gpa = 128 * MIB;
	region_spec.label = "pmem";
	region_spec.flags = KVM_MEMSLOTS_LOG_DIRTY;
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_window_map(c, other, &region_spec, &again));
	kvm_memslots_window_free(other);
	CHECK(!kvm_memslots_apply(vm, c, NULL));
	CHECK(!kvm_memslots_region(vm, again, &region) && region.len == MIB);
	CHECK(!strcmp(region.label, "pmem") && region.kind == KVM_MEMSLOTS_RAM);
	CHECK_MAPPED(128 * MIB, 1);
	c = kvm_memslots_changes_new();
	region_spec.backing = &backing;
	FAILS(kvm_memslots_window_map(c, window, &region_spec, NULL), EINVAL, "own backing");
	FAILS(kvm_memslots_window_map(c, NULL, NULL, NULL), EINVAL, "window is NULL");
	kvm_memslots_changes_free(c);

	/* Unmapped, it keeps what is in it. */
	CHECK(!kvm_memslots_close(vm, NULL));
	CHECK(placed(window) == 2 * PAGE);
	kvm_memslots_window_free(window);
	kvm_memslots_window_free(NULL);
	CHECK(!close(memfd) && !close(pipes[0]) && !close(pipes[1]));
}

static void see_placed(void *opaque, size_t window,
		       const struct kvm_memslots_placement *placement)
{
	struct kvm_memslots_placement *seen = opaque;

	CHECK(window == 0 && placement->size == sizeof(*placement));
	CHECK(seen->len == 0);
	*seen = *placement;
}

static void no_region(void *opaque, size_t window, uint64_t id)
{
	CHECK(!opaque && !window && !id);
}

/* The guest gives BAR 0, of 64 bits, an address. */
static void give_address(struct kvm_memslots_pci *pci, struct kvm_memslots_vm *vm,
			 uint64_t function, uint64_t gpa)
{
	struct kvm_memslots_report report = INIT(kvm_memslots_report);
	unsigned char bytes[8];
	int i;

	for (i = 0; i < 8; i++)
		bytes[i] = (unsigned char)(gpa >> (8 * i));
	CHECK(!kvm_memslots_pci_config_write(pci, vm, function, 4, "\0", 1, &report));
	CHECK(report.ioctls == 0);
	CHECK(!kvm_memslots_pci_config_write(pci, vm, function, 0x10, bytes, 8, &report));
	CHECK(!kvm_memslots_pci_config_write(pci, vm, function, 4, "\2", 1, &report));
	CHECK(report.ioctls == 0 && report.slots == 0);
}

/* Memory of BARs is placed where a window is mapped: no call of KVM's. */
void bars_in_windows(void)
{
	struct kvm_memslots_window_spec spec = INIT(kvm_memslots_window_spec);
	struct kvm_memslots_placement seen = INIT(kvm_memslots_placement);
	struct kvm_memslots_backing backing = INIT(kvm_memslots_backing);
	struct kvm_memslots_spec part = INIT(kvm_memslots_spec);
	const struct kvm_memslots_spec *parts[1] = { &part };
	struct kvm_memslots_bar bar = INIT(kvm_memslots_bar);
	const struct kvm_memslots_bar *bars[1] = { &bar };
	struct kvm_memslots_function function = INIT(kvm_memslots_function);
	struct kvm_memslots_region region = INIT(kvm_memslots_region);
	struct kvm_memslots_error error = INIT(kvm_memslots_error);
	struct kvm_memslots_changes *c = kvm_memslots_changes_new();
	struct kvm_memslots_pci *pci = kvm_memslots_pci_new(36);
	const uint64_t aperture = 1ull << 32;
	struct kvm_memslots_window *window;
	struct kvm_memslots_vm *vm;
	uint64_t id, other, mapped;
	const char *in_it;
	int memfd = memfd_create("bar", MFD_CLOEXEC);

	CHECK(memfd >= 0 && !ftruncate(memfd, 5 * PAGE));
	CHECK(pwrite(memfd, "bar 0", 5, PAGE) == 5);
	CHECK(!open_vm(NULL, &vm));
	spec.gpa = aperture;
	spec.len = MIB;
	spec.gap = KVM_MEMSLOTS_GAP_SCRATCH;
	CHECK(!kvm_memslots_window_new(&spec, &window));
	CHECK(!kvm_memslots_window_map(c, window, NULL, &mapped));
	CHECK(!kvm_memslots_apply(vm, c, NULL));
	CHECK(!kvm_memslots_region(vm, mapped, &region));
	in_it = (const char *)(uintptr_t)region.hva;
	FAILS(kvm_memslots_pci_in_window(pci, NULL), EINVAL, "window is NULL");
	FAILS(kvm_memslots_pci_in_window(NULL, window), EINVAL, "pci is NULL");
	CHECK(!kvm_memslots_pci_in_window(pci, window));
	CHECK(!kvm_memslots_pci_set_flags(pci, KVM_MEMSLOTS_PCI_WITHOUT_SLOTS));
	kvm_memslots_window_free(window);

	backing.hva = memory;
	backing.file = memfd;
	backing.file_offset = PAGE;
	backing.flags = KVM_MEMSLOTS_BACKING_FILE;
	part.len = 4 * PAGE;
	part.kind = KVM_MEMSLOTS_DEVICE;
	part.backing = &backing;
	bar.len = 4 * PAGE;
	bar.kind = KVM_MEMSLOTS_BAR_MEMORY64;
	bar.flags = KVM_MEMSLOTS_BAR_PREFETCHABLE;
	bar.windows = parts;
	bar.nr_windows = 1;
	function.bars = bars;
	function.nr_bars = 1;
	CHECK(!kvm_memslots_pci_add(pci, vm, &function, &id));
	backing.flags = 0;
	CHECK(!kvm_memslots_pci_add(pci, vm, &function, &other));
	CHECK(!close(memfd));

	give_address(pci, vm, id, aperture + 4 * PAGE);
	CHECK(!memcmp(in_it + 4 * PAGE, "bar 0", 5));
	CHECK(!kvm_memslots_pci_refusal(pci, id, 0));
	CHECK(!kvm_memslots_pci_regions(pci, id, 0, no_region, NULL));
	FAILS(kvm_memslots_pci_placed(pci, id, 0, NULL, NULL), EINVAL, "each is NULL");
	CHECK(!kvm_memslots_pci_placed(pci, id, 0, see_placed, &seen));
	CHECK(seen.offset == 4 * PAGE && seen.len == 4 * PAGE);
	CHECK(seen.file_offset == PAGE && seen.flags == KVM_MEMSLOTS_PLACEMENT_FILE);
	CHECK(!kvm_memslots_pci_placed(pci, other, 0, see_placed, NULL));

	/* What is in no file, and what is put elsewhere, exits. */
	give_address(pci, vm, other, aperture + 8 * PAGE);
	FAILS(kvm_memslots_pci_refusal(pci, other, 0), ENODEV, "set its file");
	give_address(pci, vm, id, 2 * aperture);
	FAILS(kvm_memslots_pci_refusal(pci, id, 0), ENOSPC, "no slot is allowed");
	CHECK(!kvm_memslots_last_error_info(&error) && error.error == ENOSPC);
	CHECK(error.flags == 0);
	CHECK_MAPPED(2 * aperture, 0);
	CHECK(!in_it[4 * PAGE]);
	CHECK(!kvm_memslots_pci_placed(pci, id, 0, see_placed, NULL));

	CHECK(!kvm_memslots_pci_remove(pci, vm, id, NULL));
	kvm_memslots_pci_free(pci);
	CHECK(!kvm_memslots_close(vm, NULL));
}

void ways_to_open(void)
{
	struct kvm_memslots_options options = INIT(kvm_memslots_options);
	struct kvm_memslots_limits limits = INIT(kvm_memslots_limits);
	struct kvm_memslots_backing backing = INIT(kvm_memslots_backing);
	struct kvm_memslots_spec spec = INIT(kvm_memslots_spec);
	struct kvm_memslots_changes *c = kvm_memslots_changes_new();
	struct kvm_memslots_vm *vm;

	options.disabled_quirks = 1;
	FAILS(open_vm(&options, &vm), EINVAL, "disabled_quirks");
	options.disabled_quirks = 0;
	options.flags = KVM_MEMSLOTS_NO_ORDER_CHECK | KVM_MEMSLOTS_DISABLE_SLOT_ZAP_ALL;
	CHECK(!open_vm(&options, &vm));
	CHECK(!kvm_memslots_limits(vm, &limits));
	if (vm_fd < 0)
		CHECK(!(limits.flags & KVM_MEMSLOTS_ZAPS_SLOTS_ONLY));
	backing.hva = memory;
	backing.flags = KVM_MEMSLOTS_BACKING_NEVER_FAULTS;
	spec.len = PAGE;
	spec.backing = &backing;
	spec.flags = KVM_MEMSLOTS_DEFERRABLE;
	CHECK(!kvm_memslots_map(c, &spec, NULL));
	CHECK(!kvm_memslots_apply(vm, c, NULL));
	CHECK(!kvm_memslots_close(vm, NULL));
}
