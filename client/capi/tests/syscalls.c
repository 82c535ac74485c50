/* The lists of system calls, and a filter that is made of them. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>

#include "program.h"

#ifdef __x86_64__
#define ARCH AUDIT_ARCH_X86_64
#else
#define ARCH AUDIT_ARCH_AARCH64
#endif
#define STEPS 512

struct filter {
	struct sock_filter code[STEPS];
	unsigned short len;
};

static void step(struct filter *filter, struct sock_filter step)
{
	CHECK(filter->len < STEPS);
	filter->code[filter->len++] = step;
}

static void load(struct filter *filter, size_t at)
{
	step(filter, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, at));
}

static void allow(void *opaque, const struct kvm_memslots_syscall *call)
{
	struct filter *filter = opaque;
	int request = call->flags & KVM_MEMSLOTS_SYSCALL_REQUEST;

	load(filter, offsetof(struct seccomp_data, nr));
	step(filter, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K,
						  call->number, 0,
						  request ? 3 : 1));
	if (request) {
		/* The low half, as the machine is little-endian. */
		load(filter, offsetof(struct seccomp_data, args[1]));
		step(filter, (struct sock_filter)BPF_JUMP(
				     BPF_JMP | BPF_JEQ | BPF_K, call->request,
				     0, 1));
	}
	step(filter, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K,
						  SECCOMP_RET_ALLOW));
}

/* From here on what these lists have, and the end of the process. */
static int only(uint32_t lists)
{
	struct kvm_memslots_syscall exits = INIT(kvm_memslots_syscall);
	struct filter filter = { .len = 0 };
	struct sock_fprog program;
	uint32_t of;

	load(&filter, offsetof(struct seccomp_data, arch));
	step(&filter, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K,
						   ARCH, 1, 0));
	step(&filter, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K,
						   SECCOMP_RET_KILL_PROCESS));
	exits.number = SYS_exit_group;
	allow(&filter, &exits);
	for (of = 0; of < 32; of++)
		if (lists & (1u << of))
			CHECK(!kvm_memslots_syscalls(of, allow, &filter));
	step(&filter, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K,
						   SECCOMP_RET_KILL_PROCESS));
	program.len = filter.len;
	program.filter = filter.code;
	CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

#define LIST(name) (1u << KVM_MEMSLOTS_SYSCALLS_##name)

/* A VM's life behind a filter; 77 where there are no filters. */
static int lives(uint32_t lists)
{
	struct kvm_memslots_region region = INIT(kvm_memslots_region);
	struct kvm_memslots_vm *vm;
	uint64_t id, words[16];
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int fd = ioctl(kvm, KVM_CREATE_VM, 0);

	CHECK(fd >= 0);
	if (only(lists | LIST(RUNTIME)))
		return 77;
	CHECK(!kvm_memslots_open(fd, NULL, &vm));
	CHECK(!kvm_memslots_apply(
		vm, mapping(0, MIB, memory, KVM_MEMSLOTS_LOG_DIRTY, &id), NULL));
	CHECK(!kvm_memslots_region(vm, id, &region) && region.len == MIB);
	CHECK(!kvm_memslots_dirty_log(vm, id, words, 16));
	kvm_memslots_free(vm);
	return 0;
}

static int in_a_process(uint32_t lists)
{
	const struct rlimit none = { 0, 0 };
	int status;
	pid_t child;

	fflush(NULL);
	child = fork();
	CHECK(child >= 0);
	if (!child) {
		/* A filter's end would leave one. */
		setrlimit(RLIMIT_CORE, &none);
		_exit(lives(lists));
	}
	CHECK(waitpid(child, &status, 0) == child);
	return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

void filters_let_a_vm_live(void)
{
	const uint32_t all = LIST(OPEN) | LIST(APPLY) | LIST(DIRTY_LOG) | LIST(DROP);
	int status = in_a_process(all);

	if (status == 77) {
		printf("SKIPPED filters_let_a_vm_live: no seccomp filters\n");
		return;
	}
	CHECK(status == 0);
	/* Each of them is needed. */
	CHECK(in_a_process(all & ~LIST(OPEN)) == -SIGSYS);
	CHECK(in_a_process(all & ~LIST(APPLY)) == -SIGSYS);
}

/* How many there are, and whether close and KVM_IRQFD were among them. */
struct seen {
	int calls;
	int close;
	int irqfd;
};

static void see(void *opaque, const struct kvm_memslots_syscall *call)
{
	struct seen *seen = opaque;
	int request = call->flags & KVM_MEMSLOTS_SYSCALL_REQUEST;

	CHECK(call->size == sizeof(*call));
	CHECK(request ? call->number == SYS_ioctl : !call->request);
	CHECK(!strncmp(call->name, request ? "KVM_" : "SYS_", 4));
	seen->calls++;
	if (!strcmp(call->name, "SYS_close"))
		seen->close = call->number == SYS_close;
	if (!strcmp(call->name, "KVM_IRQFD"))
		seen->irqfd = call->request == (uint32_t)KVM_IRQFD;
}

void system_calls_are_listed(void)
{
	struct seen seen;
	uint32_t of;

	for (of = 0; of <= KVM_MEMSLOTS_SYSCALLS_RING; of++) {
		memset(&seen, 0, sizeof(seen));
		CHECK(!kvm_memslots_syscalls(of, see, &seen));
		/* The order of the start is x86's. */
		CHECK(seen.calls || of == KVM_MEMSLOTS_SYSCALLS_ORDER_CHECK);
		CHECK(seen.close == (of == KVM_MEMSLOTS_SYSCALLS_OPEN ||
				     of == KVM_MEMSLOTS_SYSCALLS_DROP ||
				     of == KVM_MEMSLOTS_SYSCALLS_SCRATCH_VM ||
				     of == KVM_MEMSLOTS_SYSCALLS_WINDOW));
		CHECK(seen.irqfd == (of == KVM_MEMSLOTS_SYSCALLS_OPEN ||
				     of == KVM_MEMSLOTS_SYSCALLS_APPLY));
	}
	FAILS(kvm_memslots_syscalls(of, see, &seen), EINVAL, "no list 11");
	FAILS(kvm_memslots_syscalls(0, NULL, NULL), EINVAL, "each is NULL");
}
