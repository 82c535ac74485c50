/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * A flash chip in C: memory in array mode, registers while a command is under way.
 *
 *	cc flash.c $(pkg-config --cflags --libs kvm_memslots_client)
 *
 * What to look at: kvm_memslots_rom_set_array_mode(), by the trap flag where the
 * kernel has it, else by deferral: then the library answers exits from the array.
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
#define CHIP  0x10000ull
#define SIZE  0x10000ull
#define WORDS 64

#define PROGRAM 0x40		/* commands of Intel's chips */
#define ARRAY	0xff
#define READY	0x80		/* a status: none is under way */

#define TRY(call)                                                              \
	do {                                                                   \
		if ((call) < 0)                                                \
			errx(1, "%s: %s", #call, kvm_memslots_last_error());   \
	} while (0)

/* 16-bit code at 0x1000, with the chip for its data: programs words, reads them. */
static const unsigned char code[] = {
	0x31, 0xf6,				/*       xor si, si */
	0xc6, 0x06, 0x00, 0x00, PROGRAM,	/* next: mov byte [0], PROGRAM */
	0x89, 0x34,				/*       mov [si], si */
	0xa0, 0x00, 0x00,			/* wait: mov al, [0] */
	0xa8, READY,				/*       test al, READY */
	0x74, 0xf9,				/*       jz wait */
	0xc6, 0x06, 0x00, 0x00, ARRAY,		/*       mov byte [0], ARRAY */
	0x8b, 0x04,				/*       mov ax, [si] */
	0xe7, 0x80,				/*       out 0x80, ax */
	0x46, 0x46,				/*       inc si; inc si */
	0xeb, 0xe5,				/*       jmp next */
};

struct chip {
	struct kvm_memslots_vm *vm;
	struct kvm_memslots_rom *rom;
	unsigned char *array;
	enum { IN_ARRAY, IN_PROGRAM, IN_STATUS } mode;
};

static unsigned char *memory(size_t size)
{
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		err(1, "mmap");
	return at;
}

/* What the library does not answer. */
static void chip_read(void *opaque, uint64_t gpa, void *data, size_t len)
{
	struct chip *chip = opaque;

	if (chip->mode == IN_ARRAY)
		memcpy(data, chip->array + (gpa - CHIP), len);
	else
		memset(data, READY, len);
}

static void chip_write(void *opaque, uint64_t gpa, const void *data, size_t len)
{
	const unsigned char *bytes = data;
	struct chip *chip = opaque;

	if (chip->mode == IN_PROGRAM) {
		/* Programming clears bits, and sets none. */
		for (size_t i = 0; i < len; i++)
			chip->array[gpa - CHIP + i] &= bytes[i];
		chip->mode = IN_STATUS;
	} else if (*bytes == PROGRAM) {
		chip->mode = IN_PROGRAM;
	} else {
		chip->mode = *bytes == ARRAY ? IN_ARRAY : IN_STATUS;
	}
	TRY(kvm_memslots_rom_set_array_mode(chip->rom, chip->vm,
					    chip->mode == IN_ARRAY, NULL));
}

static void setup(struct chip *chip, int vm_fd)
{
	struct kvm_memslots_backing backing = { .size = sizeof(backing) };
	struct kvm_memslots_spec spec = {
		.size = sizeof(spec), .len = 2 * PAGE, .backing = &backing, .label = "ram",
	};
	struct kvm_memslots_changes *changes = kvm_memslots_changes_new();
	unsigned char *ram = memory(2 * PAGE);

	memcpy(ram + PAGE, code, sizeof(code));
	backing.hva = (uintptr_t)ram;
	TRY(kvm_memslots_open(vm_fd, NULL, &chip->vm));
	kvm_memslots_map(changes, &spec, NULL);
	TRY(kvm_memslots_apply(chip->vm, changes, NULL));

	chip->array = memory(SIZE);
	memset(chip->array, 0xff, SIZE);	/* erased */
	backing.hva = (uintptr_t)chip->array;
	spec.gpa = CHIP;
	spec.len = SIZE;
	spec.label = "flash";
	TRY(kvm_memslots_rom_new(chip->vm, &spec, KVM_MEMSLOTS_ROM_MODE_AUTO, 0,
				 &chip->rom));
}

/* Runs the guest until it has read all words. */
static void run(struct chip *chip, int vcpu, struct kvm_run *run)
{
	struct kvm_memslots_served served = { .size = sizeof(served) };
	struct kvm_memslots_exits *exits;
	uint16_t word, next = 0;
	int again;

	TRY(kvm_memslots_exits_new(chip->vm, 0, &exits));
	while (next < 2 * WORDS) {
		if (ioctl(vcpu, KVM_RUN, 0) < 0) {
			if (errno != EINTR)
				err(1, "KVM_RUN");
			continue;
		}
		if (run->exit_reason == KVM_EXIT_IO) {
			memcpy(&word, (char *)run + run->io.data_offset, sizeof(word));
			if (word != next)
				errx(1, "read %#x where it wrote %#x", word, next);
			next += 2;
		} else if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR) {
			/* An access to deferred memory that KVM can't describe. */
			TRY(kvm_memslots_undecoded(chip->vm, exits, &again));
			if (!again)
				errx(1, "an instruction that KVM does not know");
		} else if (run->exit_reason != KVM_EXIT_MMIO) {
			errx(1, "exit %u", run->exit_reason);
		} else if (run->mmio.is_write) {
			TRY(kvm_memslots_exits_write(exits, run->mmio.phys_addr,
						     run->mmio.data, run->mmio.len,
						     chip_write, chip, &served));
		} else {
			TRY(kvm_memslots_exits_read(exits, run->mmio.phys_addr,
						    run->mmio.data, run->mmio.len,
						    chip_read, chip, &served));
			if (served.flags & KVM_MEMSLOTS_SERVED_DUE)
				TRY(kvm_memslots_promote_due(chip->vm, NULL));
		}
	}
	kvm_memslots_exits_free(exits);
}

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm_fd = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
	struct kvm_memslots_rom_state state = { .size = sizeof(state) };
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };
	struct chip chip = { .mode = IN_ARRAY };
	struct kvm_sregs sregs;
	struct kvm_run *shared;
	int vcpu;

	if (vm_fd < 0) {
		printf("no VM from /dev/kvm: %s\n", strerror(errno));
		return 77;
	}
	setup(&chip, vm_fd);
	vcpu = ioctl(vm_fd, KVM_CREATE_VCPU, 0);
	shared = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0),
		      PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	ioctl(vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs.base = sregs.cs.selector = 0;
	sregs.ds.base = CHIP;
	sregs.ds.selector = CHIP >> 4;
	if (shared == MAP_FAILED || ioctl(vcpu, KVM_SET_SREGS, &sregs) ||
	    ioctl(vcpu, KVM_SET_REGS, &regs))
		err(1, "vCPU");
	run(&chip, vcpu, shared);

	TRY(kvm_memslots_rom_state(chip.rom, &state));
	printf("%d words programmed and read back, %d flips\n", WORDS, (int)state.flips);
	kvm_memslots_rom_free(chip.rom);
	TRY(kvm_memslots_close(chip.vm, NULL));
	return 0;
}
