/* What is refused, and what is said about it. */
#define _GNU_SOURCE
#include <sys/ioctl.h>

#include <linux/kvm.h>

#include "program.h"

void bad_input(void)
{
	const struct kvm_memslots_slot_range reserved = { 0, 0, 2 };
	const struct kvm_memslots_gsi_range gsis = { 9, 8 };
	struct kvm_memslots_slot_range used = { 0, 3, 3 };
	struct kvm_memslots_options options = INIT(kvm_memslots_options);
	struct kvm_memslots_limits limits = INIT(kvm_memslots_limits);
	struct kvm_memslots_region region = INIT(kvm_memslots_region);
	struct kvm_memslots_error error = INIT(kvm_memslots_error);
	struct kvm_memslots_changes *c;
	struct kvm_memslots_vm *vm, *other;
	uint64_t id, twice, page;

	FAILS(kvm_memslots_apply(NULL, NULL, NULL), EINVAL, "vm is NULL");
	FAILS(open_vm(NULL, NULL), EINVAL, "vm is NULL");
	FAILS(kvm_memslots_open(-1, NULL, &vm), EBADF, "-1");
	FAILS(kvm_memslots_open(0, NULL, &vm), ENOTTY, "KVM_CREATE_VM");
	options.executor = 9;
	FAILS(open_vm(&options, &vm), EINVAL, "9 is no kvm_memslots_executor");
	options.executor = 0;
	options.holes = 9;
	FAILS(open_vm(&options, &vm), EINVAL, "9 is no kvm_memslots_holes");
	options.holes = 0;
	options.flags = 1U << 31;
	FAILS(open_vm(&options, &vm), EINVAL, "unknown flags 0x80000000");
	options.flags = 0;
	options.nr_reserved_slots = 1;
	FAILS(open_vm(&options, &vm), EINVAL, "reserved_slots is NULL");
	used.as_id = 7;
	options.reserved_slots = &used;
	FAILS(open_vm(&options, &vm), EINVAL, "address space 7");
	used.as_id = 0;
	used.first = used.last + 1;
	FAILS(open_vm(&options, &vm), EINVAL, "is after");
	options.nr_reserved_gsis = 1;
	options.nr_reserved_slots = 0;
	options.reserved_gsis = &gsis;
	FAILS(open_vm(&options, &vm), EINVAL, "reserved_gsis: 9 is after 8");
	options.nr_reserved_gsis = 0;
	options.nr_reserved_slots = 1;
	used.first = used.last;
	options.reserved_slots = &reserved;
	options.size = 0;
	FAILS(open_vm(&options, &vm), EINVAL, "sizeof");
	options.size = sizeof(options);

	CHECK(!open_vm(&options, &vm));
	CHECK(!kvm_memslots_limits(vm, &limits));
	CHECK(limits.page_size == PAGE && limits.slots >= 32);
	CHECK(limits.slot_size > (1ull << 40) && limits.address_spaces);

	/* Addresses and names, when the set is applied. */
	FAILS(kvm_memslots_apply(vm, mapping(0, 0, memory, 0, &id), NULL), EINVAL,
	      "size is 0");
	CHECK(!kvm_memslots_last_error_info(&error));
	CHECK(error.error == EINVAL && error.change == 0 && error.region == id);
	CHECK(!error.flags && !error.part && !strcmp(error.device, ""));
	FAILS(kvm_memslots_apply(vm, mapping(0x123, PAGE, memory, 0, &id), NULL),
	      EINVAL, "GPA 0x123");
	c = mapping(0, PAGE, memory, 0, &id);
	twice = map(c, 0, PAGE, memory, 0, "ram\xff");
	FAILS(kvm_memslots_apply(vm, c, NULL), EEXIST, "\"ram");
	CHECK(!kvm_memslots_last_error_info(&error));
	CHECK(error.change == 1 && error.region == twice);
	c = mapping(0, PAGE, memory, 0, &id);
	CHECK(!kvm_memslots_split(c, id, PAGE, NULL));
	FAILS(kvm_memslots_apply(vm, c, NULL), EINVAL, "split");
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_unmap(c, 0));
	FAILS(kvm_memslots_apply(vm, c, NULL), ENOENT, "not mapped");
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_detach(c, 0));
	FAILS(kvm_memslots_apply(vm, c, NULL), ENOENT, "not attached");
	CHECK(kvm_memslots_last_error_info(NULL) == 0);
	CHECK_MAPPED(0, 0);

	/* The reserved ids are left alone: the first that is not is used. */
	CHECK(!kvm_memslots_apply(vm, mapping(0, PAGE, memory, 0, &id), NULL));
	FAILS(kvm_memslots_region_at_slot(vm, 0, 2, 0, &region, &page), ENOENT,
	      "slot 2");
	CHECK(!kvm_memslots_region_at_slot(vm, 0, 3, 0, &region, &page));
	FAILS(kvm_memslots_region_at_slot(vm, 0, 3, 1, &region, &page), ENOENT,
	      "page 0x1");
	FAILS(kvm_memslots_region_at(vm, 0, MIB, &region), ENOENT, "GPA 0x100000");
	FAILS(kvm_memslots_reserve_slots(vm, &used), EBUSY, "slot 3");

	/* Another VM's region; and a VM is opened once. */
	CHECK(!kvm_memslots_open_model(NULL, NULL, &other));
	FAILS(kvm_memslots_region(other, id, &region), ENOENT, "another VM");
	CHECK(!kvm_memslots_close(other, NULL));
	if (vm_fd >= 0)
		FAILS(open_vm(NULL, &other), EBUSY, "open already");
	CHECK(!kvm_memslots_close(vm, NULL));
}

/* What can't even be a change: the set is not applied then. */
void bad_changes(void)
{
	struct kvm_memslots_backing backing = INIT(kvm_memslots_backing);
	struct {
		struct kvm_memslots_spec spec;
		uint64_t newer;
	} grown = { .spec = { .size = sizeof(grown) } };
	struct kvm_memslots_spec good = INIT(kvm_memslots_spec), spec;
	struct kvm_memslots_changes *c = kvm_memslots_changes_new(), *more;
	struct kvm_memslots_error error = INIT(kvm_memslots_error);
	struct kvm_memslots_vm *vm;
	uint64_t id;

	CHECK(!open_vm(NULL, &vm));
	backing.hva = memory;
	good.len = PAGE;
	good.backing = &backing;
	FAILS(kvm_memslots_map(NULL, &good, &id), EINVAL, "changes is NULL");
	FAILS(kvm_memslots_map(c, NULL, &id), EINVAL, "kvm_memslots_spec is NULL");
	spec = good;
	spec.kind = 3;
	FAILS(kvm_memslots_map(c, &spec, &id), EINVAL, "3 is no kvm_memslots_kind");
	spec = good;
	spec.flags = 1U << 7;
	FAILS(kvm_memslots_map(c, &spec, &id), EINVAL, "unknown flags 0x80");
	spec = good;
	spec.backing = NULL;
	FAILS(kvm_memslots_map(c, &spec, &id), EINVAL, "backing is NULL");
	FAILS(kvm_memslots_replace(c, 1, &backing), EINVAL, "len of the backing");
	backing.flags = 1U << 9;
	FAILS(kvm_memslots_map(c, &good, &id), EINVAL, "unknown flags 0x200");
	backing.flags = KVM_MEMSLOTS_BACKING_FILE;
	backing.file = -1;
	FAILS(kvm_memslots_map(c, &good, &id), EBADF, "file -1");
	backing.flags = 0;
	CHECK(kvm_memslots_changes_len(c) == 0);

	/* The first of these is what applying says, wherever the set is. */
	more = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_map(more, &good, &id));
	CHECK(!kvm_memslots_changes_append(more, c));
	FAILS(kvm_memslots_preview(vm, more, NULL), EINVAL, "_spec is NULL");
	FAILS(kvm_memslots_apply(vm, more, NULL), EINVAL, "change 1: ");
	CHECK(!kvm_memslots_last_error_info(&error));
	CHECK(error.change == 1 && error.error == EINVAL);
	CHECK_MAPPED(0, 0);

	/* A caller that is newer than the library. */
	c = kvm_memslots_changes_new();
	spec = good;
	memcpy((char *)&grown + sizeof(size_t), (char *)&spec + sizeof(size_t),
	       sizeof(spec) - sizeof(size_t));
	CHECK(!kvm_memslots_map(c, &grown.spec, &id));
	grown.newer = 1;
	FAILS(kvm_memslots_map(c, &grown.spec, &id), E2BIG, "does not know");
	kvm_memslots_changes_free(c);
	CHECK(!kvm_memslots_close(vm, NULL));
}

/* Whose errno the last one is: the library's, KVM's, a callback's. */
static uint32_t whose(int error)
{
	struct kvm_memslots_error last = INIT(kvm_memslots_error);

	CHECK(!kvm_memslots_last_error_info(&last) && last.error == error);
	return last.flags;
}

static int refuses(void *opaque, void *committer)
{
	CHECK(!committer);
	return *(int *)opaque;
}

static void resumes(void *opaque)
{
	CHECK(!opaque);
}

/* The same number is the library's, KVM's or a callback's, and it says whose. */
void errnos_have_one_meaning(void)
{
	struct kvm_memslots_options options = INIT(kvm_memslots_options);
	struct kvm_memslots_limits limits = INIT(kvm_memslots_limits);
	struct kvm_memslots_backing backing = INIT(kvm_memslots_backing);
	struct kvm_memslots_spec rom = INIT(kvm_memslots_spec);
	struct kvm_memslots_gate gate = INIT(kvm_memslots_gate);
	struct kvm_memslots_changes *c;
	struct kvm_memslots_vm *vm;
	uint64_t id, hole;
	int answer = -EACCES;

	/* One slot only, read-only memory, no batch. */
	options.executor = KVM_MEMSLOTS_EXECUTOR_BATCH;
	FAILS(kvm_memslots_open_model(&options, &limits, &vm), EOPNOTSUPP,
	      "KVM_SET_USER_MEMORY_REGIONS");
	CHECK(whose(EOPNOTSUPP) == 0);
	options.executor = KVM_MEMSLOTS_EXECUTOR_PER_REGION;
	options.holes = KVM_MEMSLOTS_HOLES_GATE;
	gate.pause = refuses;
	gate.resume = resumes;
	gate.opaque = &answer;
	options.gate = &gate;
	limits.slots = 1;
	CHECK(!kvm_memslots_open_model(&options, &limits, &vm));
	backing.hva = memory;
	backing.flags = KVM_MEMSLOTS_BACKING_READ_ONLY;
	rom.len = 2 * PAGE;
	rom.kind = KVM_MEMSLOTS_ROM;
	rom.backing = &backing;
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_map(c, &rom, &id));
	CHECK(!kvm_memslots_apply(vm, c, NULL));
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_set_read_only(c, id, 0));
	FAILS(kvm_memslots_apply(vm, c, NULL), EACCES, "read-only");
	CHECK(whose(EACCES) == 0);
	FAILS(kvm_memslots_apply(vm, mapping(MIB, PAGE, memory, 0, &hole), NULL),
	      ENOSPC, "slot");
	CHECK(whose(ENOSPC) == 0);

	/* The gate's EACCES is another one. */
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_resize(c, id, PAGE));
	FAILS(kvm_memslots_apply(vm, c, NULL), EACCES, "pause returned");
	CHECK(whose(EACCES) == KVM_MEMSLOTS_ERROR_CALLBACK);
	answer = 7;
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_resize(c, id, PAGE));
	FAILS(kvm_memslots_apply(vm, c, NULL), EPROTO, "neither 0 nor -errno");
	CHECK(!kvm_memslots_set_holes(vm, KVM_MEMSLOTS_HOLES_NO_VCPU_RUNS, NULL));
	CHECK(!kvm_memslots_close(vm, NULL));

	/* As is KVM's. */
	FAILS(kvm_memslots_open(0, NULL, &vm), ENOTTY, "KVM_CREATE_VM");
	CHECK(whose(ENOTTY) == KVM_MEMSLOTS_ERROR_KVM);
}

/* A slot that the library does not know is in the way. */
void a_slot_behind_the_librarys_back(void)
{
	struct kvm_userspace_memory_region mine = {
		.slot = 300, .guest_phys_addr = MIB, .memory_size = PAGE,
		.userspace_addr = memory,
	};
	struct kvm_memslots_region region = INIT(kvm_memslots_region);
	struct kvm_memslots_changes *c = kvm_memslots_changes_new();
	struct kvm_memslots_vm *vm;

	if (vm_fd < 0) {
		kvm_memslots_changes_free(c);
		return;
	}
	CHECK(!ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &mine));
	CHECK(!open_vm(NULL, &vm));
	map(c, 0, 2 * MIB, memory, 0, "ram");
	FAILS(kvm_memslots_apply(vm, c, NULL), EEXIST, "\"ram\"");
	CHECK(strstr(kvm_memslots_last_error(), "kvm_memslots_reserve_slots()"));
	FAILS(kvm_memslots_region_at(vm, 0, 0, &region), ENOENT, "no region");
	CHECK(!kvm_memslots_close(vm, NULL));
	mine.memory_size = 0;
	CHECK(!ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &mine));
}
