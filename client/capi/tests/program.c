/*
 * What a VMM in C does, on KVM or on the model: program kvm|model [careful].  Ends
 * with 0 if all is well, and with 77 where there is no KVM.  A careful one touches
 * nothing that was freed.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/kvm.h>

#include "program.h"

int vm_fd = -1;
uint64_t memory;

int open_vm(const struct kvm_memslots_options *options,
	    struct kvm_memslots_vm **vm)
{
	if (vm_fd < 0)
		return kvm_memslots_open_model(options, NULL, vm);
	return kvm_memslots_open(vm_fd, options, vm);
}

uint64_t map(struct kvm_memslots_changes *changes, uint64_t gpa, uint64_t len,
	     uint64_t hva, uint32_t flags, const char *label)
{
	struct kvm_memslots_backing backing = INIT(kvm_memslots_backing);
	struct kvm_memslots_spec spec = INIT(kvm_memslots_spec);
	uint64_t id = 0;

	backing.hva = hva;
	spec.gpa = gpa;
	spec.len = len;
	spec.flags = flags;
	spec.label = label;
	spec.backing = &backing;
	CHECK(!kvm_memslots_map(changes, &spec, &id) && id);
	return id;
}

struct kvm_memslots_changes *mapping(uint64_t gpa, uint64_t len, uint64_t hva,
				     uint32_t flags, uint64_t *id)
{
	struct kvm_memslots_changes *changes = kvm_memslots_changes_new();

	*id = map(changes, gpa, len, hva, flags, NULL);
	return changes;
}

int kvm_has(uint64_t gpa)
{
	struct kvm_userspace_memory_region region = {
		.slot = 500, .guest_phys_addr = gpa, .memory_size = PAGE,
		.userspace_addr = memory,
	};

	if (!ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &region)) {
		region.memory_size = 0;
		CHECK(!ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &region));
		return 0;
	}
	CHECK(errno == EEXIST);
	return 1;
}

static void a_vm_is_set_up_and_changed(void)
{
	struct kvm_memslots_changes *c = kvm_memslots_changes_new();
	struct kvm_memslots_preview preview = INIT(kvm_memslots_preview);
	struct kvm_memslots_region region = INIT(kvm_memslots_region);
	struct kvm_memslots_report report = INIT(kvm_memslots_report);
	struct kvm_memslots_vm *vm;
	uint64_t low, high, middle, page;

	CHECK(!open_vm(NULL, &vm));
	low = map(c, 0, MIB, memory, KVM_MEMSLOTS_PERMANENT, "low");
	high = map(c, MIB, MIB, memory + MIB, KVM_MEMSLOTS_PERMANENT, "high");
	CHECK(low != high && kvm_memslots_changes_len(c) == 2);
	CHECK(!kvm_memslots_preview(vm, c, &preview));
	CHECK(preview.ioctls == 1 && preview.slots == 1 && preview.holes == 0);
	CHECK_MAPPED(0, 0);
	CHECK(!kvm_memslots_apply(vm, c, &report));
	CHECK(report.size == sizeof(report));
	CHECK(report.ioctls == 1 && report.grace_periods == 1);
	CHECK(report.regions_merged == 1 && report.slots == 1);
	CHECK(report.flags == (KVM_MEMSLOTS_REPORT_APPLIED |
			       (vm_fd < 0 ? KVM_MEMSLOTS_REPORT_MODEL : 0)));
	CHECK_MAPPED(0, 1);
	CHECK_MAPPED(2 * MIB - PAGE, 1);
	CHECK_MAPPED(2 * MIB, 0);

	/* Merged, and it does not show. */
	CHECK(!kvm_memslots_region_at(vm, 0, MIB + PAGE, &region));
	CHECK(region.id == high && region.gpa == MIB && region.len == MIB);
	CHECK(region.hva == memory + MIB && region.kind == KVM_MEMSLOTS_RAM);
	CHECK(region.guest_memfd == -1 && region.file == -1);
	CHECK(region.flags == KVM_MEMSLOTS_PERMANENT && region.as_id == 0);
	CHECK(!strcmp(region.label, "high"));
	CHECK(!kvm_memslots_region_at_slot(vm, 0, 0, MIB / PAGE + 3, &region, &page));
	CHECK(region.id == high && page == 3);

	/* Apart again for whoever changes one of them. */
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_split(c, low, 4 * PAGE, &middle));
	CHECK(!kvm_memslots_apply(vm, c, &report));
	CHECK(report.ioctls == 0 && report.slots == 1);
	CHECK(!kvm_memslots_region(vm, low, &region));
	CHECK(region.len == 4 * PAGE);
	CHECK(!kvm_memslots_region(vm, middle, &region));
	CHECK(region.gpa == 4 * PAGE && region.len == MIB - 4 * PAGE);
	CHECK(!strcmp(region.label, "low"));

	CHECK(!kvm_memslots_close(vm, &report));
	CHECK(report.slots == 0);
	CHECK_MAPPED(0, 0);
	CHECK_MAPPED(MIB, 0);
}

static void what_is_not_applied_changes_nothing(void)
{
	struct kvm_memslots_region region = INIT(kvm_memslots_region);
	struct kvm_memslots_changes *c, *more;
	struct kvm_memslots_vm *vm;
	uint64_t id, other;

	CHECK(!open_vm(NULL, &vm));
	c = mapping(0, MIB, memory, 0, &id);
	kvm_memslots_changes_free(c);
	kvm_memslots_changes_free(NULL);
	CHECK_MAPPED(0, 0);
	FAILS(kvm_memslots_region(vm, id, &region), ENOENT, "not mapped");
	FAILS(kvm_memslots_apply(vm, NULL, NULL), EINVAL, "changes is NULL");

	/* Two sets become one. */
	c = mapping(0, MIB, memory, 0, &id);
	more = mapping(MIB, MIB, memory + MIB, 0, &other);
	CHECK(!kvm_memslots_changes_append(c, more));
	CHECK(kvm_memslots_changes_len(c) == 2);
	FAILS(kvm_memslots_changes_append(c, c), EINVAL, "itself");
	FAILS(kvm_memslots_changes_append(c, NULL), EINVAL, "changes is NULL");
	CHECK(!kvm_memslots_apply(vm, c, NULL));
	CHECK_MAPPED(MIB, 1);
	CHECK(!kvm_memslots_close(vm, NULL));
	kvm_memslots_free(NULL);
}

static void count_region(void *opaque, const struct kvm_memslots_region *region)
{
	uint64_t *sum = opaque;

	CHECK(region->size == sizeof(*region));
	*sum += region->len;
}

static void count_slot(void *opaque, const struct kvm_memslots_slot *slot)
{
	uint64_t *sum = opaque;

	CHECK(slot->size == sizeof(*slot) && slot->as_id == 0);
	*sum += slot->len;
}

static void kinds_flags_and_lookups(void)
{
	struct kvm_memslots_backing backing = INIT(kvm_memslots_backing);
	struct kvm_memslots_spec rom = INIT(kvm_memslots_spec);
	struct kvm_memslots_spec bar = INIT(kvm_memslots_spec);
	struct kvm_memslots_region region = INIT(kvm_memslots_region);
	struct kvm_memslots_slot_usage usage = INIT(kvm_memslots_slot_usage);
	struct kvm_memslots_changes *c = kvm_memslots_changes_new();
	struct kvm_memslots_vm *vm;
	uint64_t id, offset, sum = 0;

	backing.hva = memory;
	backing.file = 0;
	backing.file_offset = 3 * PAGE;
	backing.flags = KVM_MEMSLOTS_BACKING_READ_ONLY | KVM_MEMSLOTS_BACKING_FILE;
	rom.gpa = 16 * MIB;
	rom.len = 2 * PAGE;
	rom.kind = KVM_MEMSLOTS_ROM;
	rom.backing = &backing;
	CHECK(!open_vm(NULL, &vm));
	CHECK(!kvm_memslots_map(c, &rom, NULL));

	backing.hva = memory + MIB;
	backing.flags = 0;
	bar.gpa = 32 * MIB;
	bar.len = MIB;
	bar.kind = KVM_MEMSLOTS_DEVICE;
	bar.flags = KVM_MEMSLOTS_LOG_DIRTY | KVM_MEMSLOTS_ALONE |
		    KVM_MEMSLOTS_TAGGED;
	bar.tag = 0x7a9;
	bar.label = "a framebuffer with a name that is longer than there is room for";
	bar.backing = &backing;
	CHECK(!kvm_memslots_map(c, &bar, &id));
	CHECK(!kvm_memslots_apply(vm, c, NULL));

	CHECK(!kvm_memslots_region_at(vm, 0, rom.gpa, &region));
	CHECK(region.kind == KVM_MEMSLOTS_ROM);
	CHECK(region.flags == KVM_MEMSLOTS_READONLY);
	CHECK(region.file == 0 && region.file_offset == 3 * PAGE);
	CHECK(!kvm_memslots_region(vm, id, &region));
	CHECK(region.kind == KVM_MEMSLOTS_DEVICE && region.tag == 0x7a9);
	CHECK(region.flags == bar.flags);
	CHECK(strlen(region.label) == KVM_MEMSLOTS_LABEL_SIZE - 1);
	CHECK(!strncmp(region.label, bar.label, KVM_MEMSLOTS_LABEL_SIZE - 1));

	CHECK(!kvm_memslots_region_at_hva(vm, 0, memory + MIB + 5, &region, &offset));
	CHECK(region.id == id && offset == 5);
	FAILS(kvm_memslots_region_at_hva(vm, 0, 5, &region, &offset), ENOENT, "HVA 0x5");
	FAILS(kvm_memslots_region_at_hva(vm, 1, memory + MIB, &region, &offset),
	      ENOENT, "address space 1");
	CHECK(!kvm_memslots_regions(vm, count_region, &sum));
	CHECK(sum == MIB + 2 * PAGE);
	CHECK(!kvm_memslots_tagged(vm, 0x7a9, count_region, &sum));
	CHECK(!kvm_memslots_tagged(vm, 0, count_region, &sum));
	CHECK(sum == 2 * MIB + 2 * PAGE);
	CHECK(!kvm_memslots_slots(vm, 0, count_slot, &sum));
	CHECK(sum == 3 * MIB + 4 * PAGE);
	CHECK(!kvm_memslots_slot_usage(vm, 0, &usage));
	CHECK(usage.used == 2 && usage.used + usage.available == usage.capacity);
	FAILS(kvm_memslots_slot_usage(vm, 77, &usage), EINVAL, "address space 77");
	CHECK(!kvm_memslots_close(vm, NULL));
}

static void sizes_places_and_memory(void)
{
	struct kvm_memslots_backing backing = INIT(kvm_memslots_backing);
	struct kvm_memslots_spec spec = INIT(kvm_memslots_spec);
	struct kvm_memslots_region region = INIT(kvm_memslots_region);
	struct kvm_memslots_report report = INIT(kvm_memslots_report);
	struct kvm_memslots_changes *c = kvm_memslots_changes_new();
	struct kvm_memslots_vm *vm;
	uint64_t id;

	backing.hva = memory;
	backing.len = 2 * MIB;
	spec.len = MIB;
	spec.backing = &backing;
	CHECK(!open_vm(NULL, &vm));
	CHECK(!kvm_memslots_map(c, &spec, &id));
	CHECK(!kvm_memslots_apply(vm, c, NULL));

	/* What is new when a region grows is a slot of its own, until joined. */
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_resize(c, id, 2 * MIB));
	CHECK(!kvm_memslots_apply(vm, c, &report));
	CHECK(!kvm_memslots_region(vm, id, &region) && region.len == 2 * MIB);
	CHECK_MAPPED(2 * MIB - PAGE, 1);
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_join(c, id));
	CHECK(!kvm_memslots_apply(vm, c, &report));
	CHECK(report.slots == 1);
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_resize(c, id, 2 * MIB + PAGE));
	FAILS(kvm_memslots_apply(vm, c, NULL), EINVAL, "backing is 0x200000 bytes");

	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_move_to(c, id, 64 * MIB));
	CHECK(!kvm_memslots_apply(vm, c, NULL));
	CHECK_MAPPED(0, 0);
	CHECK_MAPPED(64 * MIB, 1);

	c = kvm_memslots_changes_new();
	backing.hva = memory + 2 * MIB;
	CHECK(!kvm_memslots_replace(c, id, &backing));
	CHECK(!kvm_memslots_set_read_only(c, id, 1));
	CHECK(!kvm_memslots_apply(vm, c, NULL));
	CHECK(!kvm_memslots_region(vm, id, &region));
	CHECK(region.hva == memory + 2 * MIB && region.gpa == 64 * MIB);
	CHECK(region.flags == KVM_MEMSLOTS_READONLY);
	CHECK(!kvm_memslots_close(vm, NULL));
}

int main(int argc, char **argv)
{
	struct kvm_enable_cap split = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 } };
	void *mapped;
	int kvm;

	CHECK(argc >= 2);
	CHECK(kvm_memslots_version() == KVM_MEMSLOTS_VERSION);
	CHECK(!strcmp(kvm_memslots_last_error(), ""));
	mapped = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(mapped != MAP_FAILED);
	memory = (uintptr_t)mapped;
	if (!strcmp(argv[1], "kvm")) {
		kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
		vm_fd = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
		if (vm_fd < 0) {
			printf("no VM from /dev/kvm: %s\n", strerror(errno));
			return 77;
		}
	}

	a_vm_is_set_up_and_changed();
	what_is_not_applied_changes_nothing();
	vcpus_are_paused_for_a_hole();
	dirty_logs();
	kinds_flags_and_lookups();
	sizes_places_and_memory();
	bad_input();
	bad_changes();
	errnos_have_one_meaning();
	unknown_flags_are_refused();
	a_slot_behind_the_librarys_back();
	observers();
	memory_is_released();
	the_harvest_comes_first();
	callbacks_may_look_and_not_touch();
	threads();
	begins_nest();
	exits_are_served();
	a_rom_device_flips();
	bars_follow_config_writes();
	bars_with_doorbells();
	a_device_with_zones();
	the_ring_is_drained();
	windows();
	bars_in_windows();
	devices_in_windows();
	ways_to_open();
	system_calls_are_listed();
	handles_are_checked();
	if (argc == 2)
		what_was_freed_is_told();
	/* What watches a program makes calls of its own. */
	if (argc == 2 && vm_fd >= 0)
		filters_let_a_vm_live();
	what_is_in_use_is_told();
	late_in_a_thread();
	in_a_fork();
	if (vm_fd >= 0 && ioctl(vm_fd, KVM_ENABLE_CAP, &split)) {
		printf("no split irqchip for devices: %s\n", strerror(errno));
		return 77;
	}
	devices();
	triggers_hold_back();
	return 0;
}
