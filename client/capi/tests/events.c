/* Devices, and what the library calls. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/eventfd.h>

#include "program.h"

static void count_id(void *opaque, uint64_t id)
{
	uint64_t *ids = opaque;

	CHECK(id);
	ids[0]++;
	ids[1] = id;
}

void devices(void)
{
	struct kvm_memslots_backing backing = INIT(kvm_memslots_backing);
	struct kvm_memslots_spec bar = INIT(kvm_memslots_spec);
	struct kvm_memslots_doorbell doorbell = INIT(kvm_memslots_doorbell);
	struct kvm_memslots_doorbell port = INIT(kvm_memslots_doorbell);
	struct kvm_memslots_msi msi = INIT(kvm_memslots_msi);
	struct kvm_memslots_line line = INIT(kvm_memslots_line);
	struct kvm_memslots_report report = INIT(kvm_memslots_report);
	struct kvm_memslots_region region = INIT(kvm_memslots_region);
	struct kvm_memslots_error error = INIT(kvm_memslots_error);
	struct kvm_memslots_changes *c;
	struct kvm_memslots_device *device;
	struct kvm_memslots_vm *vm;
	uint64_t mem, id, ids[2] = { 0, 0 };
	uint32_t gsi = 0;
	int fd[4], i;

	for (i = 0; i < 4; i++)
		CHECK((fd[i] = eventfd(0, EFD_CLOEXEC)) >= 0);
	backing.hva = memory;
	bar.gpa = 32 * MIB;
	bar.len = 2 * PAGE;
	bar.kind = KVM_MEMSLOTS_DEVICE;
	bar.backing = &backing;
	CHECK(!open_vm(NULL, &vm));

	FAILS(kvm_memslots_device_new(NULL, 0, &device), EINVAL, "name is NULL");
	FAILS(kvm_memslots_device_new("net", 1U << 9, &device), EINVAL, "0x200");
	CHECK(!kvm_memslots_device_new("net", KVM_MEMSLOTS_DEVICE_MAY_BYPASS, &device));
	CHECK(!kvm_memslots_device_region(device, &bar, &mem));
	doorbell.region = mem;
	doorbell.addr = 3 * PAGE;
	doorbell.len = 2;
	doorbell.value = 0;
	doorbell.flags = KVM_MEMSLOTS_DOORBELL_VALUE;
	CHECK(!kvm_memslots_device_ioeventfd(device, &doorbell, fd[0]));
	port.addr = 0x510;
	port.len = 4;
	port.flags = KVM_MEMSLOTS_DOORBELL_PIO;
	CHECK(!kvm_memslots_device_ioeventfd(device, &port, fd[1]));
	msi.address = 0xfee00000;
	msi.data = 0x41;
	CHECK(!kvm_memslots_device_vector(device, fd[2], &msi));
	CHECK(!kvm_memslots_device_vector(device, fd[3], NULL));
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_attach(c, device, &id));
	CHECK(!kvm_memslots_apply(vm, c, &report));
	CHECK(report.ioctls == 1 && report.routing_calls == 1);
	CHECK(report.irqfd_calls == 1 && report.ioeventfd_calls == 2);

	CHECK(!kvm_memslots_region(vm, mem, &region));
	CHECK(!kvm_memslots_devices(vm, count_id, ids));
	CHECK(ids[0] == 1 && ids[1] == id);
	CHECK(!kvm_memslots_device_regions(vm, id, count_id, ids));
	CHECK(ids[0] == 2 && ids[1] == mem);
	CHECK(!kvm_memslots_gsi(vm, id, 0, &gsi) && gsi >= 24);
	FAILS(kvm_memslots_gsi(vm, id, 1, &gsi), ENODATA, "vector 1");
	FAILS(kvm_memslots_gsi(vm, id, 2, &gsi), EINVAL, "2 vectors");

	/* The guest programs the other vector, and masks the first. */
	c = kvm_memslots_changes_new();
	msi.data = 0x42;
	CHECK(!kvm_memslots_set_vector(c, id, 1, &msi));
	CHECK(!kvm_memslots_set_vector(c, id, 0, NULL));
	CHECK(!kvm_memslots_apply(vm, c, &report));
	CHECK(report.ioctls == 0 && report.irqfd_calls == 2);
	CHECK(!kvm_memslots_gsi(vm, id, 1, &gsi));

	/* It gets another eventfd, and back the one that it had. */
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_set_vector_fd(c, id, 1, fd[0]));
	CHECK(!kvm_memslots_set_vector_fd(c, id, 1, fd[3]));
	CHECK(!kvm_memslots_apply(vm, c, &report));
	CHECK(report.irqfd_calls == 0);
	c = kvm_memslots_changes_new();
	FAILS(kvm_memslots_set_vector_fd(c, id, 1, -1), EBADF, "eventfd");
	kvm_memslots_changes_free(c);

	/* Another device at the same port: which part of which is known. */
	CHECK(!kvm_memslots_device_new("blk", 0, &device));
	CHECK(!kvm_memslots_device_ioeventfd(device, &port, fd[0]));
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_attach(c, device, NULL));
	FAILS(kvm_memslots_apply(vm, c, NULL), EEXIST, "device \"net\"");
	CHECK(!kvm_memslots_last_error_info(&error));
	CHECK(!strcmp(error.device, "blk") && error.change == 0);
	CHECK(error.part == KVM_MEMSLOTS_PART_IOEVENTFD && error.index == 0);

	/* A bad description can't be attached. */
	CHECK(!kvm_memslots_device_new("bad", 0, &device));
	port.flags = 1U << 5;
	FAILS(kvm_memslots_device_ioeventfd(device, &port, fd[0]), EINVAL, "0x20");
	FAILS(kvm_memslots_device_vector(device, -1, NULL), EBADF, "eventfd -1");
	line.gsi = 5;
	line.eventfd = fd[0];
	line.flags = 1U << 4;
	FAILS(kvm_memslots_device_line(device, &line), EINVAL, "0x10");
	c = kvm_memslots_changes_new();
	FAILS(kvm_memslots_attach(c, device, NULL), EINVAL, "change 0: unknown flags 0x20");
	FAILS(kvm_memslots_apply(vm, c, NULL), EINVAL, "0x20");
	FAILS(kvm_memslots_attach(NULL, NULL, NULL), EINVAL, "changes is NULL");
	kvm_memslots_device_free(NULL);

	/* ioeventfds may come later. */
	CHECK(!kvm_memslots_device_new("late", KVM_MEMSLOTS_DEVICE_DEFER_IOEVENTFDS,
				       &device));
	port.flags = KVM_MEMSLOTS_DOORBELL_PIO;
	port.addr = 0x520;
	CHECK(!kvm_memslots_device_ioeventfd(device, &port, fd[0]));
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_attach(c, device, NULL));
	CHECK(!kvm_memslots_apply(vm, c, &report));
	CHECK(report.ioeventfd_calls == 0);
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_assign_deferred(c));
	CHECK(!kvm_memslots_apply(vm, c, &report));
	CHECK(report.ioeventfd_calls == 1);

	/* A line to a route of the VMM's, which here is none but said to be. */
	CHECK(!kvm_memslots_device_new("line", 0, &device));
	line.flags = 0;
	CHECK(!kvm_memslots_device_line(device, &line));
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_set_own_routes(c, NULL, 0));
	CHECK(!kvm_memslots_attach(c, device, NULL));
	CHECK(!kvm_memslots_detach(c, id));
	CHECK(!kvm_memslots_apply(vm, c, &report));
	FAILS(kvm_memslots_region(vm, mem, &region), ENOENT, "not mapped");
	CHECK(!kvm_memslots_close(vm, &report));
	CHECK(report.slots == 0 && report.ioeventfd_calls == 1);
}

struct seen {
	int checked;
	int unmapped;
	int mapped;
	int answer;
	uint64_t len;
};

static int check(void *opaque, const struct kvm_memslots_region *const *going,
		 size_t nr_going, const struct kvm_memslots_region *const *coming,
		 size_t nr_coming)
{
	struct seen *seen = opaque;
	size_t i;

	seen->checked++;
	for (i = 0; i < nr_going; i++)
		seen->len -= going[i]->len;
	for (i = 0; i < nr_coming; i++)
		seen->len += coming[i]->len;
	return seen->answer;
}

static void unmapping(void *opaque, const struct kvm_memslots_region *region)
{
	CHECK(region->id);
	((struct seen *)opaque)->unmapped++;
}

static void mapped(void *opaque, const struct kvm_memslots_region *region)
{
	CHECK(region->id);
	((struct seen *)opaque)->mapped++;
}

void observers(void)
{
	struct kvm_memslots_observer quiet = INIT(kvm_memslots_observer);
	struct kvm_memslots_observer observer = INIT(kvm_memslots_observer);
	const struct kvm_memslots_observer *all[2] = { &quiet, &observer };
	struct kvm_memslots_options options = INIT(kvm_memslots_options);
	struct seen seen = { 0 };
	struct kvm_memslots_changes *c;
	struct kvm_memslots_vm *vm;
	uint64_t id;

	observer.check = check;
	observer.unmapping = unmapping;
	observer.mapped = mapped;
	observer.opaque = &seen;
	options.observers = all;
	options.nr_observers = 2;
	CHECK(!open_vm(&options, &vm));
	c = mapping(0, MIB, memory, 0, &id);
	map(c, 2 * MIB, PAGE, memory + MIB, 0, NULL);
	CHECK(!kvm_memslots_apply(vm, c, NULL));
	CHECK(seen.checked == 1 && seen.mapped == 2 && !seen.unmapped);
	CHECK(seen.len == MIB + PAGE);

	seen.answer = -EPERM;
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_unmap(c, id));
	FAILS(kvm_memslots_apply(vm, c, NULL), ECANCELED, "check returned EPERM");
	CHECK(seen.checked == 2 && !seen.unmapped);
	CHECK(!kvm_memslots_region(vm, id, NULL));

	seen.answer = 0;
	CHECK(!kvm_memslots_close(vm, NULL));
	CHECK(seen.checked == 3 && seen.unmapped == 2 && seen.mapped == 2);
	CHECK(seen.len == -MIB);
}

static void release(void *opaque)
{
	++*(int *)opaque;
}

void memory_is_released(void)
{
	struct kvm_memslots_backing backing = INIT(kvm_memslots_backing);
	struct kvm_memslots_spec spec = INIT(kvm_memslots_spec);
	struct kvm_memslots_changes *c = kvm_memslots_changes_new();
	struct kvm_memslots_vm *vm;
	int released = 0;
	uint64_t id;

	backing.hva = memory;
	backing.release = release;
	backing.opaque = &released;
	spec.len = PAGE;
	spec.backing = &backing;
	/* Never applied. */
	CHECK(!kvm_memslots_map(c, &spec, NULL));
	CHECK(!released);
	kvm_memslots_changes_free(c);
	CHECK(released == 1);

	/* Never taken. */
	c = kvm_memslots_changes_new();
	spec.kind = 9;
	FAILS(kvm_memslots_map(c, &spec, NULL), EINVAL, "9 is no");
	spec.kind = 0;
	kvm_memslots_changes_free(c);
	CHECK(released == 1);

	/* Unmapped. */
	CHECK(!open_vm(NULL, &vm));
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_map(c, &spec, &id));
	CHECK(!kvm_memslots_apply(vm, c, NULL));
	CHECK(released == 1);
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_unmap(c, id));
	CHECK(!kvm_memslots_apply(vm, c, NULL));
	CHECK(released == 2);

	/* The VM is freed. */
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_map(c, &spec, NULL));
	CHECK(!kvm_memslots_apply(vm, c, NULL));
	CHECK(released == 2);
	kvm_memslots_free(vm);
	CHECK(released == 3);
}

static void harvest(void *opaque, struct kvm_memslots_vm *vm)
{
	struct kvm_memslots_region region = INIT(kvm_memslots_region);
	uint64_t *last = opaque, page;

	CHECK(!kvm_memslots_region_at_slot(vm, 0, 0, 1, &region, &page));
	CHECK(page == 1);
	*last = region.id;
}

void the_harvest_comes_first(void)
{
	struct kvm_memslots_options options = INIT(kvm_memslots_options);
	struct kvm_memslots_vm *vm;
	uint64_t id, last = 0;

	options.harvest = harvest;
	options.harvest_opaque = &last;
	CHECK(!open_vm(&options, &vm));
	CHECK(!kvm_memslots_apply(vm, mapping(0, MIB, memory,
					      KVM_MEMSLOTS_LOG_DIRTY, &id), NULL));
	CHECK(!last);
	CHECK(!kvm_memslots_close(vm, NULL));
	CHECK(last == id);
}

static struct kvm_memslots_vm *observed;

static void meddle(void *opaque, const struct kvm_memslots_region *region)
{
	struct kvm_memslots_region found = INIT(kvm_memslots_region);

	CHECK(!kvm_memslots_region(observed, region->id, &found));
	FAILS(kvm_memslots_apply(observed, kvm_memslots_changes_new(), NULL),
	      EDEADLK, "callback");
	++*(int *)opaque;
}

void callbacks_may_look_and_not_touch(void)
{
	struct kvm_memslots_observer observer = INIT(kvm_memslots_observer);
	const struct kvm_memslots_observer *all[1] = { &observer };
	struct kvm_memslots_options options = INIT(kvm_memslots_options);
	int meddled = 0;
	uint64_t id;

	observer.mapped = meddle;
	observer.opaque = &meddled;
	options.observers = all;
	options.nr_observers = 1;
	CHECK(!open_vm(&options, &observed));
	CHECK(!kvm_memslots_apply(observed, mapping(0, PAGE, memory, 0, &id), NULL));
	CHECK(meddled == 1);
	CHECK(!kvm_memslots_close(observed, NULL));
}

#define ROUNDS 50

struct worker {
	struct kvm_memslots_vm *vm;
	uint64_t gpa;
};

static void *map_and_unmap(void *opaque)
{
	struct worker *worker = opaque;
	struct kvm_memslots_region region = INIT(kvm_memslots_region);
	struct kvm_memslots_changes *c;
	uint64_t id;
	int i;

	for (i = 0; i < ROUNDS; i++) {
		c = mapping(worker->gpa, PAGE, memory + worker->gpa, 0, &id);
		CHECK(!kvm_memslots_apply(worker->vm, c, NULL));
		CHECK(!kvm_memslots_region_at(worker->vm, 0, worker->gpa, &region));
		CHECK(region.id == id);
		FAILS(kvm_memslots_region_at(worker->vm, 9, 0, &region), ENOENT,
		      "address space 9");
		c = kvm_memslots_changes_new();
		CHECK(!kvm_memslots_unmap(c, id));
		CHECK(!kvm_memslots_apply(worker->vm, c, NULL));
	}
	return NULL;
}

void threads(void)
{
	struct kvm_memslots_slot_usage usage = INIT(kvm_memslots_slot_usage);
	struct worker workers[4];
	struct kvm_memslots_vm *vm;
	pthread_t threads[4];
	int i;

	CHECK(!open_vm(NULL, &vm));
	for (i = 0; i < 4; i++) {
		workers[i].vm = vm;
		workers[i].gpa = i * 0x10000;
		CHECK(!pthread_create(&threads[i], NULL, map_and_unmap, &workers[i]));
	}
	for (i = 0; i < 4; i++)
		CHECK(!pthread_join(threads[i], NULL));
	CHECK(!kvm_memslots_slot_usage(vm, 0, &usage) && usage.used == 0);
	CHECK(!kvm_memslots_close(vm, NULL));
}
