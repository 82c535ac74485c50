/*
 * What a VMM in C does, on KVM or on the model: program kvm|model.  Ends with 0
 * if all is well, and with 77 where there is no KVM.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/kvm.h>

#include "kvm_memslots_client.h"

#define PAGE 4096ull
#define MIB (1ull << 20)

#define CHECK(condition)                                                       \
	do {                                                                   \
		if (!(condition)) {                                            \
			printf("%s:%d: %s: last error \"%s\"\n", __FILE__,     \
			       __LINE__, #condition, kvm_memslots_last_error());\
			exit(1);                                               \
		}                                                              \
	} while (0)

/* The call fails with this errno, and the message has these words. */
#define FAILS(call, error, words)                                              \
	do {                                                                   \
		CHECK((call) == -(error));                                     \
		CHECK(strstr(kvm_memslots_last_error(), words));               \
	} while (0)

/* -1 on the model. */
static int vm = -1;
static uint64_t memory;

static int open_space(const struct kvm_memslots_options *options,
		      struct kvm_memslots_space **space)
{
	if (vm < 0)
		return kvm_memslots_open_model(options, space);
	return kvm_memslots_open(vm, options, space);
}

static struct kvm_memslots_region_id map(struct kvm_memslots_space *space,
					 uint64_t gpa, uint64_t size,
					 uint64_t hva, const char *label)
{
	struct kvm_memslots_spec spec = {
		.gpa = gpa, .size = size, .hva = hva, .label = label,
	};
	struct kvm_memslots_region_id id;

	CHECK(!kvm_memslots_map(space, &spec, &id));
	return id;
}

/* Whether KVM itself says that there is memory at gpa. */
static int kvm_has(uint64_t gpa)
{
	struct kvm_userspace_memory_region region = {
		.slot = 500, .guest_phys_addr = gpa, .memory_size = PAGE,
		.userspace_addr = memory,
	};

	if (!ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region)) {
		region.memory_size = 0;
		CHECK(!ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
		return 0;
	}
	CHECK(errno == EEXIST);
	return 1;
}

#define CHECK_MAPPED(gpa, mapped) CHECK(vm < 0 || kvm_has(gpa) == (mapped))

static void a_vm_is_set_up_and_changed(void)
{
	struct kvm_memslots_region_id low, high, middle;
	struct kvm_memslots_preview preview;
	struct kvm_memslots_region region;
	struct kvm_memslots_report report;
	struct kvm_memslots_space *space;
	uint64_t page;

	CHECK(!open_space(NULL, &space));
	CHECK(!kvm_memslots_begin(space));
	low = map(space, 0, MIB, memory, "low");
	high = map(space, MIB, MIB, memory + MIB, "high");
	CHECK(!kvm_memslots_dry_run(space, &preview));
	CHECK(preview.ioctls == 1 && preview.slots == 1 && preview.holes == 0);
	CHECK_MAPPED(0, 0);
	CHECK(!kvm_memslots_commit(space, &report));
	CHECK(report.ioctls == 1 && report.grace_periods == 1);
	CHECK(report.regions_merged == 1 && report.slots == 1);
	CHECK(!report.vcpus_paused);
	CHECK_MAPPED(0, 1);
	CHECK_MAPPED(2 * MIB - PAGE, 1);
	CHECK_MAPPED(2 * MIB, 0);

	/* Merged, and it does not show. */
	CHECK(!kvm_memslots_region_at(space, MIB + PAGE, &region));
	CHECK(!memcmp(&region.id, &high, sizeof(high)));
	CHECK(region.gpa == MIB && region.size == MIB);
	CHECK(region.hva == memory + MIB && region.kind == KVM_MEMSLOTS_RAM);
	CHECK(region.guest_memfd == -1 && !region.flags && !region.alone);
	CHECK(!strcmp(region.label, "high"));
	CHECK(!kvm_memslots_region_at_slot(space, 0, MIB / PAGE + 3, &region, &page));
	CHECK(!memcmp(&region.id, &high, sizeof(high)) && page == 3);

	/* Apart again for whoever changes one of them. */
	CHECK(!kvm_memslots_begin(space));
	CHECK(!kvm_memslots_split(space, low, 4 * PAGE, &middle));
	CHECK(!kvm_memslots_commit(space, &report));
	CHECK(report.ioctls == 0 && report.slots == 1);
	CHECK(!kvm_memslots_region(space, low, &region));
	CHECK(region.size == 4 * PAGE);
	CHECK(!kvm_memslots_region(space, middle, &region));
	CHECK(region.gpa == 4 * PAGE && region.size == MIB - 4 * PAGE);
	CHECK(!strcmp(region.label, "low"));

	CHECK(!kvm_memslots_close(space));
	CHECK_MAPPED(0, 0);
	CHECK_MAPPED(MIB, 0);
}

static void an_abort_changes_nothing(void)
{
	struct kvm_memslots_region_id id;
	struct kvm_memslots_region region;
	struct kvm_memslots_space *space;

	CHECK(!open_space(NULL, &space));
	CHECK(!kvm_memslots_begin(space));
	id = map(space, 0, MIB, memory, NULL);
	FAILS(kvm_memslots_begin(space), EALREADY, "open already");
	FAILS(kvm_memslots_region(space, id, &region), EBUSY, "commit or abort");
	CHECK(!kvm_memslots_abort(space));
	CHECK_MAPPED(0, 0);
	FAILS(kvm_memslots_region(space, id, &region), ESTALE, "not mapped");
	FAILS(kvm_memslots_abort(space), EINVAL, "no transaction");
	FAILS(kvm_memslots_commit(space, NULL), EINVAL, "no transaction");

	/* So does freeing a space with a transaction open. */
	CHECK(!kvm_memslots_begin(space));
	map(space, 0, MIB, memory, NULL);
	kvm_memslots_free(space);
	CHECK_MAPPED(0, 0);
	kvm_memslots_free(NULL);
}

struct gate {
	int paused;
	int resumed;
	int answer;
};

static int pause_vcpus(void *opaque)
{
	struct gate *gate = opaque;

	gate->paused += !gate->answer;
	return gate->answer;
}

static void resume_vcpus(void *opaque)
{
	struct gate *gate = opaque;

	gate->resumed++;
}

/* Two regions in one slot, of which the second goes. */
static int open_a_hole(const struct kvm_memslots_options *options,
		       struct kvm_memslots_report *report)
{
	struct kvm_memslots_region_id high;
	struct kvm_memslots_region region;
	struct kvm_memslots_space *space;
	int ret;

	CHECK(!open_space(options, &space));
	CHECK(!kvm_memslots_begin(space));
	map(space, 0, MIB, memory, NULL);
	high = map(space, MIB, MIB, memory + MIB, NULL);
	CHECK(!kvm_memslots_commit(space, NULL));

	CHECK(!kvm_memslots_begin(space));
	CHECK(!kvm_memslots_unmap(space, high));
	ret = kvm_memslots_commit(space, report);
	CHECK(kvm_memslots_region(space, high, &region) == (ret ? 0 : -ESTALE));
	CHECK_MAPPED(0, 1);
	CHECK_MAPPED(MIB, ret != 0);
	CHECK(!kvm_memslots_region_at(space, 0, NULL));

	/* Nobody cares about holes in what goes. */
	CHECK(!kvm_memslots_close(space));
	return ret;
}

static void vcpus_are_paused_for_a_hole(void)
{
	struct gate gate = { 0 };
	struct kvm_memslots_options options = {
		.executor = KVM_MEMSLOTS_EXECUTOR_PER_REGION,
	};
	struct kvm_memslots_report report;
	struct kvm_memslots_space *space;

	FAILS(open_a_hole(&options, &report), EBUSY, "for a moment");

	options.holes = KVM_MEMSLOTS_HOLES_NO_VCPU_RUNS;
	CHECK(!open_a_hole(&options, &report));
	CHECK(report.ioctls == 2 && report.grace_periods == 3);
	CHECK(report.executor == KVM_MEMSLOTS_EXECUTOR_PER_REGION);

	options.holes = KVM_MEMSLOTS_HOLES_GATE;
	FAILS(open_space(&options, &space), EINVAL, "pause and resume");
	options.gate.pause = pause_vcpus;
	options.gate.resume = resume_vcpus;
	options.gate.opaque = &gate;
	CHECK(!open_a_hole(&options, &report));
	CHECK(report.vcpus_paused);
	CHECK(gate.paused == 1 && gate.resumed == 1);

	gate.answer = -ETIMEDOUT;
	FAILS(open_a_hole(&options, &report), ETIMEDOUT, "pause returned");
	CHECK(gate.paused == 1 && gate.resumed == 1);
}

static void dirty_logs(void)
{
	struct kvm_memslots_region_id low, high;
	struct kvm_memslots_region region;
	struct kvm_memslots_space *space;
	/* 100 pages are two words; a third must stay as it is. */
	uint64_t words[3] = { 1, 2, 3 };

	CHECK(!open_space(NULL, &space));
	CHECK(!kvm_memslots_begin(space));
	low = map(space, 0, 100 * PAGE, memory, NULL);
	high = map(space, MIB, MIB, memory + MIB, NULL);
	CHECK(!kvm_memslots_set_flags(space, low, KVM_MEMSLOTS_LOG_DIRTY));
	FAILS(kvm_memslots_set_flags(space, low, 1U << 7), EINVAL, "0x80");
	CHECK(!kvm_memslots_commit(space, NULL));
	CHECK(!kvm_memslots_region(space, low, &region));
	CHECK(region.flags == KVM_MEMSLOTS_LOG_DIRTY);

	FAILS(kvm_memslots_dirty_log(space, low, words, 1), EINVAL, "needs 2");
	FAILS(kvm_memslots_dirty_log(space, low, NULL, 2), EINVAL, "NULL");
	FAILS(kvm_memslots_dirty_log(space, high, words, 4), ENODATA, "LOG_DIRTY");
	CHECK(words[0] == 1 && words[1] == 2);
	CHECK(!kvm_memslots_dirty_log(space, low, words, 3));
	CHECK(words[0] == 0 && words[1] == 0 && words[2] == 3);
	FAILS(kvm_memslots_clear_dirty_log(space, low, words, 1), EINVAL, "needs 2");
	CHECK(!kvm_memslots_close(space));
}

static void kinds_flags_and_sizes(void)
{
	struct kvm_memslots_spec rom = {
		.gpa = 16 * MIB, .size = 2 * PAGE, .hva = memory,
		.kind = KVM_MEMSLOTS_ROM,
	};
	struct kvm_memslots_spec bar = {
		.gpa = 32 * MIB, .size = MIB, .hva = memory + MIB,
		.kind = KVM_MEMSLOTS_DEVICE, .flags = KVM_MEMSLOTS_LOG_DIRTY,
		.alone = true,
		.label = "a framebuffer with a name that is longer than there is room for",
	};
	struct kvm_memslots_region_id id;
	struct kvm_memslots_region region;
	struct kvm_memslots_space *space;

	CHECK(!open_space(NULL, &space));
	CHECK(!kvm_memslots_begin(space));
	CHECK(!kvm_memslots_map(space, &rom, NULL));
	CHECK(!kvm_memslots_map(space, &bar, &id));
	CHECK(!kvm_memslots_commit(space, NULL));
	CHECK(!kvm_memslots_region_at(space, rom.gpa, &region));
	CHECK(region.kind == KVM_MEMSLOTS_ROM);
	CHECK(region.flags == KVM_MEMSLOTS_READONLY);
	CHECK(!kvm_memslots_region(space, id, &region));
	CHECK(region.kind == KVM_MEMSLOTS_DEVICE && region.alone);
	CHECK(region.flags == KVM_MEMSLOTS_LOG_DIRTY);
	CHECK(strlen(region.label) == KVM_MEMSLOTS_LABEL_SIZE - 1);
	CHECK(!strncmp(region.label, bar.label, KVM_MEMSLOTS_LABEL_SIZE - 1));
	CHECK(!kvm_memslots_close(space));

	/* What is new when a region grows is a slot of its own. */
	CHECK(!open_space(NULL, &space));
	CHECK(!kvm_memslots_begin(space));
	id = map(space, 0, MIB, memory, NULL);
	CHECK(!kvm_memslots_commit(space, NULL));
	CHECK(!kvm_memslots_begin(space));
	CHECK(!kvm_memslots_resize(space, id, 2 * MIB));
	CHECK(!kvm_memslots_commit(space, NULL));
	CHECK(!kvm_memslots_region(space, id, &region) && region.size == 2 * MIB);
	CHECK_MAPPED(2 * MIB - PAGE, 1);
	CHECK(!kvm_memslots_close(space));
}

static void bad_input(void)
{
	const struct kvm_memslots_slot_range reserved = { 0, 2 };
	struct kvm_memslots_options options = {
		.reserved = &reserved, .nr_reserved = 1,
	};
	const struct kvm_memslots_spec good = { .size = PAGE, .hva = memory };
	struct kvm_memslots_spec spec = good;
	struct kvm_memslots_region_id id, none = { 0, 77, 0 };
	struct kvm_memslots_limits limits;
	struct kvm_memslots_region region;
	struct kvm_memslots_space *space, *other;
	uint64_t page;

	FAILS(kvm_memslots_begin(NULL), EINVAL, "space is NULL");
	FAILS(open_space(NULL, NULL), EINVAL, "space is NULL");
	FAILS(kvm_memslots_open(-1, NULL, &space), EBADF, "-1");
	FAILS(kvm_memslots_open(0, NULL, &space), ENOTTY, "KVM_CREATE_VM");
	options.executor = 9;
	FAILS(open_space(&options, &space), EINVAL, "9 is no kvm_memslots_executor");
	options.executor = 0;
	options.holes = 9;
	FAILS(open_space(&options, &space), EINVAL, "9 is no kvm_memslots_holes");
	options.holes = 0;
	options.address_space = 7;
	FAILS(open_space(&options, &space), EINVAL, "address space 7");
	options.address_space = 0;
	options.reserved = NULL;
	FAILS(open_space(&options, &space), EINVAL, "reserved is NULL");
	options.reserved = &reserved;

	CHECK(!open_space(&options, &space));
	CHECK(!kvm_memslots_limits(space, &limits));
	CHECK(limits.page_size == PAGE && limits.slots >= 32);
	CHECK(limits.region_size > (1ull << 40));

	FAILS(kvm_memslots_map(space, &good, &id), EINVAL, "no transaction");
	CHECK(!kvm_memslots_begin(space));
	FAILS(kvm_memslots_map(space, NULL, &id), EINVAL, "spec is NULL");
	spec.size = 0;
	FAILS(kvm_memslots_map(space, &spec, &id), EINVAL, "size is 0");
	spec.size = limits.region_size + PAGE;
	FAILS(kvm_memslots_map(space, &spec, &id), E2BIG, "largest slot");
	spec = good;
	spec.gpa = 0x123;
	FAILS(kvm_memslots_map(space, &spec, &id), EINVAL, "GPA 0x123");
	spec = good;
	spec.kind = 3;
	FAILS(kvm_memslots_map(space, &spec, &id), EINVAL, "3 is no kvm_memslots_kind");
	spec = good;
	spec.flags = 1U << 31;
	FAILS(kvm_memslots_map(space, &spec, &id), EINVAL, "unknown flags");
	spec = good;
	spec.label = "ram\xff";
	CHECK(!kvm_memslots_map(space, &spec, &id));
	FAILS(kvm_memslots_map(space, &good, NULL), EEXIST, "ram");
	FAILS(kvm_memslots_split(space, id, PAGE, NULL), EINVAL, "split");
	FAILS(kvm_memslots_unmap(space, none), EINVAL, "address space");
	none.space = id.space;
	FAILS(kvm_memslots_unmap(space, none), ENOENT, "does not exist");
	CHECK(!kvm_memslots_commit(space, NULL));

	/* The reserved ids are left alone: the first that is not is used. */
	FAILS(kvm_memslots_region_at_slot(space, 2, 0, &region, &page), ENOENT,
	      "slot 2");
	CHECK(!kvm_memslots_region_at_slot(space, 3, 0, &region, &page));
	FAILS(kvm_memslots_region_at_slot(space, 3, 1, &region, &page), ENOENT,
	      "page 0x1");
	FAILS(kvm_memslots_region_at(space, MIB, &region), ENOENT, "GPA 0x100000");

	CHECK(!open_space(&options, &other));
	FAILS(kvm_memslots_region(other, id, &region), EINVAL, "address space");
	CHECK(!kvm_memslots_close(other));
	CHECK(!kvm_memslots_close(space));
}

/* A slot that the library does not know is in the way. */
static void a_slot_behind_the_librarys_back(void)
{
	struct kvm_userspace_memory_region mine = {
		.slot = 300, .guest_phys_addr = MIB, .memory_size = PAGE,
		.userspace_addr = memory,
	};
	struct kvm_memslots_region region;
	struct kvm_memslots_space *space;

	if (vm < 0)
		return;
	CHECK(!ioctl(vm, KVM_SET_USER_MEMORY_REGION, &mine));
	CHECK(!open_space(NULL, &space));
	CHECK(!kvm_memslots_begin(space));
	map(space, 0, 2 * MIB, memory, "ram");
	FAILS(kvm_memslots_commit(space, NULL), EEXIST, "\"ram\"");
	FAILS(kvm_memslots_region_at(space, 0, &region), ENOENT, "no region");
	CHECK(!kvm_memslots_close(space));
	mine.memory_size = 0;
	CHECK(!ioctl(vm, KVM_SET_USER_MEMORY_REGION, &mine));
}

int main(int argc, char **argv)
{
	void *mapped;
	int kvm;

	CHECK(argc == 2);
	CHECK(!strcmp(kvm_memslots_last_error(), ""));
	mapped = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(mapped != MAP_FAILED);
	memory = (uintptr_t)mapped;
	if (!strcmp(argv[1], "kvm")) {
		kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
		vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
		if (vm < 0) {
			printf("no VM from /dev/kvm: %s\n", strerror(errno));
			return 77;
		}
	}

	a_vm_is_set_up_and_changed();
	an_abort_changes_nothing();
	vcpus_are_paused_for_a_hole();
	dirty_logs();
	kinds_flags_and_sizes();
	bad_input();
	a_slot_behind_the_librarys_back();
	return 0;
}
