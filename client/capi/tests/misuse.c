/* What must not be done, and how far that is told; what threads and forks may. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "program.h"

/* A pointer to something else than it should be. */
void handles_are_checked(void)
{
	uint64_t other[64] = { 0 };
	struct kvm_memslots_changes *c = kvm_memslots_changes_new();
	struct kvm_memslots_vm *vm;

	CHECK(!open_vm(NULL, &vm));
	FAILS(kvm_memslots_limits((void *)c, NULL), EBADF, "kvm_memslots_vm is none");
	FAILS(kvm_memslots_unmap((void *)vm, 1), EBADF, "kvm_memslots_changes is none");
	FAILS(kvm_memslots_apply(vm, (void *)vm, NULL), EBADF, "_changes is none");
	FAILS(kvm_memslots_close((void *)other, NULL), EBADF, "_vm is none");
	FAILS(kvm_memslots_close((void *)((char *)vm + 1), NULL), EBADF, "is none");
	FAILS(kvm_memslots_rom_state((void *)other, NULL), EBADF, "_rom is none");
	FAILS(kvm_memslots_pci_sync((void *)c, vm, NULL), EBADF, "_pci is none");
	FAILS(kvm_memslots_exits_read((void *)vm, 0, other, 8, NULL, NULL, NULL),
	      EBADF, "_exits is none");
	FAILS(kvm_memslots_attach(c, (void *)vm, NULL), EBADF, "_device is none");
	/* That was a change that failed. */
	FAILS(kvm_memslots_apply(vm, c, NULL), EBADF, "_device is none");
	kvm_memslots_free((void *)other);
	CHECK(strstr(kvm_memslots_last_error(), "is none"));
	CHECK(!kvm_memslots_close(vm, NULL));
}

/* As long as the allocator has not given the memory to somebody else. */
void what_was_freed_is_told(void)
{
	struct kvm_memslots_changes *c = kvm_memslots_changes_new();
	struct kvm_memslots_device *device;
	struct kvm_memslots_vm *vm;

	CHECK(!kvm_memslots_device_new("twice", 0, &device));
	kvm_memslots_device_free(device);
	kvm_memslots_device_free(device);
	CHECK(strstr(kvm_memslots_last_error(), "_device was freed already"));
	CHECK(!open_vm(NULL, &vm));
	CHECK(!kvm_memslots_apply(vm, c, NULL));
	FAILS(kvm_memslots_apply(vm, c, NULL), EBADF, "_changes was freed already");
	CHECK(!kvm_memslots_close(vm, NULL));
	FAILS(kvm_memslots_close(vm, NULL), EBADF, "_vm was freed already");
	FAILS(kvm_memslots_region(vm, 1, NULL), EBADF, "_vm was freed already");
}

struct meeting {
	pthread_barrier_t inside;
	pthread_barrier_t done;
	struct kvm_memslots_exits *exits;
};

static void wait_inside(void *opaque, uint64_t gpa, void *data, size_t len)
{
	struct meeting *meeting = opaque;

	CHECK(gpa == 5 && data && len == 1);
	pthread_barrier_wait(&meeting->inside);
	pthread_barrier_wait(&meeting->done);
}

static void *read_and_wait(void *opaque)
{
	struct meeting *meeting = opaque;
	uint8_t byte;

	CHECK(!kvm_memslots_exits_read(meeting->exits, 5, &byte, 1, wait_inside,
				       meeting, NULL));
	return NULL;
}

static void free_inside(void *opaque, const struct kvm_memslots_region *region)
{
	CHECK(region->id);
	kvm_memslots_free(opaque);
	CHECK(strstr(kvm_memslots_last_error(), "_vm is in use"));
	FAILS(kvm_memslots_close(opaque, NULL), EBUSY, "_vm is in use");
}

void what_is_in_use_is_told(void)
{
	struct meeting meeting;
	struct kvm_memslots_vm *vm;
	pthread_t thread;
	uint8_t byte;
	uint64_t id;

	CHECK(!open_vm(NULL, &vm));
	CHECK(!kvm_memslots_exits_new(vm, 0, &meeting.exits));
	CHECK(!pthread_barrier_init(&meeting.inside, NULL, 2));
	CHECK(!pthread_barrier_init(&meeting.done, NULL, 2));
	CHECK(!pthread_create(&thread, NULL, read_and_wait, &meeting));
	pthread_barrier_wait(&meeting.inside);
	FAILS(kvm_memslots_exits_read(meeting.exits, 5, &byte, 1, wait_inside,
				      &meeting, NULL),
	      EBUSY, "another thread");
	kvm_memslots_exits_free(meeting.exits);
	CHECK(strstr(kvm_memslots_last_error(), "_exits is in use"));
	pthread_barrier_wait(&meeting.done);
	CHECK(!pthread_join(thread, NULL));
	kvm_memslots_exits_free(meeting.exits);

	/* A callback of a lookup frees nothing. */
	CHECK(!kvm_memslots_apply(vm, mapping(0, PAGE, memory, 0, &id), NULL));
	CHECK(!kvm_memslots_regions(vm, free_inside, vm));
	CHECK(!kvm_memslots_close(vm, NULL));
}

static pthread_key_t key;
static int destroyed;

/* Called again and again, as long as there is a value. */
static void destructor(void *opaque)
{
	struct kvm_memslots_vm *vm = opaque;
	struct kvm_memslots_changes *c;
	uint64_t id;

	CHECK(!kvm_memslots_apply(vm, mapping(0, PAGE, memory, 0, &id), NULL));
	CHECK(kvm_memslots_region(vm, 1ull << 60, NULL) == -ENOENT);
	CHECK(kvm_memslots_last_error());
	CHECK(!kvm_memslots_last_error_info(NULL));
	CHECK(kvm_memslots_map(NULL, NULL, NULL) == -EINVAL);
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_unmap(c, id));
	CHECK(!kvm_memslots_apply(vm, c, NULL));
	if (++destroyed < 3)
		CHECK(!pthread_setspecific(key, vm));
}

static void *ends(void *opaque)
{
	CHECK(kvm_memslots_region(opaque, 1ull << 60, NULL) == -ENOENT);
	CHECK(!pthread_setspecific(key, opaque));
	return NULL;
}

void late_in_a_thread(void)
{
	struct kvm_memslots_vm *vm;
	pthread_t thread;

	CHECK(!open_vm(NULL, &vm));
	CHECK(!pthread_key_create(&key, destructor));
	destroyed = 0;
	CHECK(!pthread_create(&thread, NULL, ends, vm));
	CHECK(!pthread_join(thread, NULL));
	CHECK(destroyed == 3);
	CHECK(!pthread_key_delete(key));
	CHECK(!kvm_memslots_close(vm, NULL));
}

static void count_read(void *opaque, uint64_t gpa, void *data, size_t len)
{
	CHECK(gpa < PAGE && data && len == 1);
	++*(int *)opaque;
}

/* What is of a VM and not the VM. */
static void parts_in_a_fork(struct kvm_memslots_vm *vm,
			    struct kvm_memslots_exits *exits,
			    struct kvm_memslots_pci *pci)
{
	struct kvm_memslots_served served = INIT(kvm_memslots_served);
	struct kvm_memslots_exits *other;
	uint8_t byte;
	int reads = 0;

	FAILS(kvm_memslots_exits_new(vm, 0, &other), EIO, "fork");
	FAILS(kvm_memslots_pci_sync(pci, vm, NULL), EIO, "fork");
	/* Memory that waits is the parent's. */
	CHECK(!kvm_memslots_exits_read(exits, 5, &byte, 1, count_read, &reads,
				       &served));
	CHECK(!reads && !served.bytes && served.flags == KVM_MEMSLOTS_SERVED_FAULT);
	kvm_memslots_exits_free(exits);
	kvm_memslots_pci_free(pci);
}

void in_a_fork(void)
{
	struct kvm_memslots_served served = INIT(kvm_memslots_served);
	struct kvm_memslots_changes *c = kvm_memslots_changes_new();
	struct kvm_memslots_pci *pci = kvm_memslots_pci_new(36);
	struct kvm_memslots_exits *exits;
	struct kvm_memslots_vm *vm;
	uint64_t id;
	pid_t child;
	uint8_t byte;
	int reads = 0, status;

	CHECK(!open_vm(NULL, &vm));
	CHECK(!kvm_memslots_exits_new(vm, 0, &exits));
	CHECK(!kvm_memslots_apply(
		vm, mapping(0, PAGE, memory, KVM_MEMSLOTS_DEFERRABLE, &id), NULL));
	CHECK_MAPPED(0, 0);
	fflush(NULL);
	child = fork();
	CHECK(child >= 0);
	if (!child) {
		FAILS(kvm_memslots_region(vm, id, NULL), EIO, "fork");
		CHECK(!kvm_memslots_unmap(c, id));
		FAILS(kvm_memslots_apply(vm, c, NULL), EIO, "fork");
		FAILS(kvm_memslots_close(vm, NULL), EIO, "fork");
		parts_in_a_fork(vm, exits, pci);
		kvm_memslots_free(vm);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	/* The parent's is what it was. */
	CHECK(!kvm_memslots_region(vm, id, NULL));
	CHECK(!kvm_memslots_exits_read(exits, 5, &byte, 1, count_read, &reads,
				       &served));
	CHECK(!reads && served.bytes == 1);
	CHECK(!kvm_memslots_promote(vm, NULL));
	CHECK_MAPPED(0, 1);
	kvm_memslots_exits_free(exits);
	kvm_memslots_pci_free(pci);
	kvm_memslots_changes_free(c);
	CHECK(!kvm_memslots_close(vm, NULL));
}
