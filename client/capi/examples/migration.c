/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * A migration in C: memory goes into a file while the guest writes to it, and comes
 * out of it in another VM, where the guest goes on.
 *
 *	cc migration.c $(pkg-config --cflags --libs kvm_memslots_client)
 *
 * What to look at: the log is on before the first page is sent.  Each round sends
 * what was written during the one before; in the last the vCPU stands still.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/kvm.h>

#include <kvm_memslots_client.h>

#define PAGE  0x1000ull
#define PAGES 80
#define WORDS ((PAGES + 63) / 64)
#define END   UINT64_MAX	/* in a page's place: the vCPU comes */
#define FEW   4			/* can be sent while the guest waits */
#define TRY(call)                                                              \
	do {                                                                   \
		if ((call) < 0)                                                \
			errx(1, "%s: %s", #call, kvm_memslots_last_error());   \
	} while (0)

/* 16-bit code at 0x1000: counts, and writes to one page of 64 after another. */
static const unsigned char code[] = {
	0x40,				/* next: inc ax */
	0x89, 0xc3,			/*       mov bx, ax */
	0x81, 0xe3, 0x3f, 0x00,		/*       and bx, 63 */
	0xc1, 0xe3, 0x08,		/*       shl bx, 8 */
	0x81, 0xc3, 0x00, 0x10,		/*       add bx, 0x1000 */
	0x8e, 0xdb,			/*       mov ds, bx */
	0xa3, 0x00, 0x00,		/*       mov [0], ax */
	0xe6, 0x80,			/*       out 0x80, al */
	0xeb, 0xe9,			/*       jmp next */
};

struct machine {
	struct kvm_memslots_vm *vm;
	uint64_t id;
	unsigned char *ram;
	int vcpu;
	struct kvm_run *run;
};

/* A VM with its memory; 0 where there is no KVM. */
static int make(struct machine *m)
{
	struct kvm_memslots_backing ram = { .size = sizeof(ram) };
	struct kvm_memslots_spec spec = {
		.size = sizeof(spec), .len = PAGES * PAGE, .backing = &ram,
		.label = "ram", .flags = KVM_MEMSLOTS_PERMANENT,
	};
	struct kvm_memslots_changes *changes = kvm_memslots_changes_new();
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int fd = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);

	if (fd < 0)
		return 0;
	m->ram = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	m->vcpu = ioctl(fd, KVM_CREATE_VCPU, 0);
	m->run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0),
		      PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
	if (m->ram == MAP_FAILED || m->vcpu < 0 || m->run == MAP_FAILED)
		err(1, "memory and vCPU");
	ram.hva = (uintptr_t)m->ram;
	TRY(kvm_memslots_open(fd, NULL, &m->vm));
	kvm_memslots_map(changes, &spec, &m->id);
	TRY(kvm_memslots_apply(m->vm, changes, NULL));
	return 1;
}

/* Lets the guest count so far. */
static void count(struct machine *m, int times)
{
	while (times) {
		if (!ioctl(m->vcpu, KVM_RUN, 0)) {
			if (m->run->exit_reason != KVM_EXIT_IO)
				errx(1, "exit %u", m->run->exit_reason);
			times--;
		} else if (errno != EINTR) {
			err(1, "KVM_RUN");
		}
	}
	/* KVM ends an instruction that came out when the vCPU goes in again. */
	m->run->immediate_exit = 1;
	if (!ioctl(m->vcpu, KVM_RUN, 0) || errno != EINTR)
		errx(1, "a vCPU that was to end an instruction");
	m->run->immediate_exit = 0;
}

static void set_log(struct machine *m, int on)
{
	struct kvm_memslots_changes *changes = kvm_memslots_changes_new();

	kvm_memslots_set_log_dirty(changes, m->id, on);
	TRY(kvm_memslots_apply(m->vm, changes, NULL));
}

#define PUT(to, data, len)                                                     \
	(fwrite(data, len, 1, to) == 1 ? (void)0 : err(1, "the file"))
#define GET(from, data, len)                                                   \
	(fread(data, len, 1, from) == 1 ? (void)0 : err(1, "the file"))

/* Sends the pages whose bit is set; how many. */
static int send_pages(struct machine *m, const uint64_t *dirty, FILE *to)
{
	int sent = 0;

	for (uint64_t page = 0; page < PAGES; page++) {
		if (!(dirty[page / 64] >> page % 64 & 1))
			continue;
		PUT(to, &page, sizeof(page));
		PUT(to, m->ram + page * PAGE, PAGE);
		sent++;
	}
	return sent;
}

static void send_all(struct machine *m, FILE *to)
{
	uint64_t dirty[WORDS], end = END;
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	int sent, left = 48;

	set_log(m, 1);
	memset(dirty, 0xff, sizeof(dirty));
	do {
		sent = send_pages(m, dirty, to);
		printf("sent: %d pages\n", sent);
		count(m, left /= 2);
		TRY(kvm_memslots_dirty_log(m->vm, m->id, dirty, WORDS));
	} while (sent > FEW && left);
	/* The vCPU stands still. */
	printf("the last: %d pages\n", send_pages(m, dirty, to));
	set_log(m, 0);
	if (ioctl(m->vcpu, KVM_GET_REGS, &regs) || ioctl(m->vcpu, KVM_GET_SREGS, &sregs))
		err(1, "registers");
	PUT(to, &end, sizeof(end));
	PUT(to, &regs, sizeof(regs));
	PUT(to, &sregs, sizeof(sregs));
}

static void receive(struct machine *m, FILE *from)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	uint64_t page;

	for (GET(from, &page, sizeof(page)); page != END; GET(from, &page, sizeof(page)))
		GET(from, m->ram + page * PAGE, PAGE);
	GET(from, &regs, sizeof(regs));
	GET(from, &sregs, sizeof(sregs));
	if (ioctl(m->vcpu, KVM_SET_SREGS, &sregs) || ioctl(m->vcpu, KVM_SET_REGS, &regs))
		err(1, "registers");
}

int main(void)
{
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };
	struct kvm_sregs sregs;
	struct machine from, to;
	FILE *file = tmpfile();

	if (!make(&from) || !make(&to)) {
		printf("no VM from /dev/kvm: %s\n", strerror(errno));
		return 77;
	}
	memcpy(from.ram + PAGE, code, sizeof(code));
	if (!file || ioctl(from.vcpu, KVM_GET_SREGS, &sregs))
		err(1, "a file, registers");
	sregs.cs.base = sregs.cs.selector = 0;
	if (ioctl(from.vcpu, KVM_SET_SREGS, &sregs) || ioctl(from.vcpu, KVM_SET_REGS, &regs))
		err(1, "registers");
	count(&from, 100);
	send_all(&from, file);
	rewind(file);
	receive(&to, file);
	printf("memory: %s\n", memcmp(from.ram, to.ram, PAGES * PAGE) ? "other" : "the same");
	ioctl(to.vcpu, KVM_GET_REGS, &regs);
	printf("counted: %d", (int)regs.rax);
	count(&to, 10);
	ioctl(to.vcpu, KVM_GET_REGS, &regs);
	printf(", there on to %d\n", (int)regs.rax);
	TRY(kvm_memslots_close(from.vm, NULL));
	TRY(kvm_memslots_close(to.vm, NULL));
	return 0;
}
