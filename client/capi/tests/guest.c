/* What a guest brings about: listeners that nest, exits, flash, BARs. */
#include "program.h"

static struct kvm_memslots_spec bar_spec(struct kvm_memslots_backing *backing,
					 uint64_t gpa, uint64_t len)
{
	struct kvm_memslots_spec spec = INIT(kvm_memslots_spec);

	backing->hva = memory;
	backing->len = len;
	spec.gpa = gpa;
	spec.len = len;
	spec.kind = KVM_MEMSLOTS_DEVICE;
	spec.backing = backing;
	return spec;
}

/* As memory listeners of two address spaces do: begin, begin, commit, commit. */
void begins_nest(void)
{
	struct kvm_memslots_report report = INIT(kvm_memslots_report);
	struct kvm_memslots_changes *c = kvm_memslots_changes_new(), *other;
	struct kvm_memslots_vm *vm;
	uint64_t id;

	CHECK(!open_vm(NULL, &vm));
	FAILS(kvm_memslots_commit(vm, c, NULL), EINVAL, "not begun");
	CHECK(!kvm_memslots_begin(c));
	id = map(c, 0, MIB, memory, 0, NULL);
	CHECK(!kvm_memslots_begin(c));
	map(c, MIB, MIB, memory + MIB, 0, NULL);
	report.ioctls = 99;
	CHECK(!kvm_memslots_commit(vm, c, &report));
	CHECK(report.ioctls == 0 && report.flags == 0);
	FAILS(kvm_memslots_region(vm, id, NULL), ENOENT, "not mapped");
	CHECK(!kvm_memslots_commit(vm, c, &report));
	CHECK(report.ioctls > 0 && report.flags & KVM_MEMSLOTS_REPORT_APPLIED);
	CHECK(!kvm_memslots_region(vm, id, NULL));

	/* The set is empty now, and stays, also after a failure. */
	CHECK(kvm_memslots_changes_len(c) == 0);
	CHECK(!kvm_memslots_begin(c));
	CHECK(!kvm_memslots_unmap(c, 1ull << 60));
	FAILS(kvm_memslots_commit(vm, c, NULL), ENOENT, "change 0");
	CHECK(!kvm_memslots_begin(c));
	FAILS(kvm_memslots_map(c, NULL, NULL), EINVAL, "NULL");
	FAILS(kvm_memslots_commit(vm, c, NULL), EINVAL, "NULL");
	CHECK(!kvm_memslots_begin(c));
	CHECK(!kvm_memslots_unmap(c, id));
	CHECK(!kvm_memslots_commit(vm, c, &report));
	CHECK(report.ioctls == 1);
	CHECK(!kvm_memslots_begin(c) && !kvm_memslots_commit(vm, c, &report));
	CHECK(report.ioctls == 0 && report.flags & KVM_MEMSLOTS_REPORT_APPLIED);

	/* Nobody else applies what was begun. */
	CHECK(!kvm_memslots_begin(c));
	other = kvm_memslots_changes_new();
	FAILS(kvm_memslots_changes_append(other, c), EBUSY, "1 commits");
	kvm_memslots_changes_free(other);
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_begin(c));
	FAILS(kvm_memslots_apply(vm, c, NULL), EBUSY, "begun");
	CHECK(!kvm_memslots_close(vm, NULL));
}

struct seen {
	struct kvm_memslots_exits *exits;
	uint64_t gpa;
	size_t len;
};

static void device_reads(void *opaque, uint64_t gpa, void *data, size_t len)
{
	struct seen *seen = opaque;

	CHECK(*(uint8_t *)data == 0);
	memset(data, 0x77, len);
	seen->gpa = gpa;
	seen->len = len;
}

static void device_writes(void *opaque, uint64_t gpa, const void *data, size_t len)
{
	struct kvm_memslots_served served = INIT(kvm_memslots_served);
	struct seen *seen = opaque;
	uint8_t byte;

	CHECK(*(const uint8_t *)data == 5);
	seen->gpa = gpa;
	seen->len = len;
	/* A callback may use the same exits. */
	CHECK(!kvm_memslots_exits_read(seen->exits, 32 * MIB, &byte, 1,
				       device_reads, seen, &served));
	CHECK(served.bytes == 1);
}

void exits_are_served(void)
{
	struct kvm_memslots_deferral deferral = INIT(kvm_memslots_deferral);
	struct kvm_memslots_deferral_usage usage = INIT(kvm_memslots_deferral_usage);
	struct kvm_memslots_options options = INIT(kvm_memslots_options);
	struct kvm_memslots_served served = INIT(kvm_memslots_served);
	struct kvm_memslots_report report = INIT(kvm_memslots_report);
	struct kvm_memslots_region region = INIT(kvm_memslots_region);
	struct kvm_memslots_backing backing = INIT(kvm_memslots_backing);
	struct kvm_memslots_spec spec = bar_spec(&backing, 32 * MIB, 2 * PAGE);
	struct kvm_memslots_changes *c = kvm_memslots_changes_new();
	struct kvm_memslots_exits *exits;
	struct kvm_memslots_vm *vm;
	struct seen seen = { 0 };
	uint8_t data[4] = { 0 };
	uint64_t id, count;
	int reenter = 9;

	deferral.policy = 7;
	options.deferral = &deferral;
	FAILS(open_vm(&options, &vm), EINVAL, "7 is no kvm_memslots_policy");
	deferral.policy = KVM_MEMSLOTS_POLICY_FIXED;
	deferral.exits = 4;
	deferral.flags = 1U << 31;
	FAILS(open_vm(&options, &vm), EINVAL, "0x80000000");
	deferral.flags = KVM_MEMSLOTS_DEFERRAL_COSTS;
	deferral.map_ns = 10;
	deferral.unmap_ns = 20;
	deferral.exit_ns = 3;
	CHECK(!open_vm(&options, &vm));
	FAILS(kvm_memslots_exits_new(vm, 40, &exits), EINVAL, "address space 40");
	CHECK(!kvm_memslots_exits_new(vm, 0, &exits));
	seen.exits = exits;

	spec.flags = KVM_MEMSLOTS_DEFERRABLE;
	CHECK(!kvm_memslots_map(c, &spec, &id));
	CHECK(!kvm_memslots_apply(vm, c, &report));
	CHECK(report.ioctls == 0 && report.regions_deferred == 1);
	CHECK(!kvm_memslots_region(vm, id, &region));
	CHECK(region.flags == (KVM_MEMSLOTS_DEFERRABLE | KVM_MEMSLOTS_DEFERRED));
	CHECK(!kvm_memslots_deferral_usage(vm, &usage));
	CHECK(usage.waiting == 1 && usage.slot_ns == 30 && usage.exit_ns == 3);
	CHECK_MAPPED(32 * MIB, 0);

	*(uint32_t *)(uintptr_t)(memory + 8) = 0x04030201;
	CHECK(!kvm_memslots_exits_read(exits, 32 * MIB + 8, data, 4,
				       device_reads, &seen, &served));
	CHECK(served.bytes == 4 && !served.flags && !memcmp(data, "\1\2\3\4", 4));
	/* The last two bytes are the device's. */
	CHECK(!kvm_memslots_exits_read(exits, 32 * MIB + 2 * PAGE - 2, data, 4,
				       device_reads, &seen, &served));
	CHECK(served.bytes == 2 && data[3] == 0x77);
	CHECK(seen.gpa == 32 * MIB + 2 * PAGE && seen.len == 2);
	data[0] = 5;
	CHECK(!kvm_memslots_exits_write(exits, MIB, data, 1, device_writes,
					&seen, &served));
	CHECK(served.bytes == 0);
	FAILS(kvm_memslots_exits_write(exits, MIB, data, 1, NULL, NULL, NULL),
	      EINVAL, "device is NULL");
	FAILS(kvm_memslots_exits_read(exits, MIB, NULL, 1, device_reads, NULL, NULL),
	      EINVAL, "data is NULL");
	CHECK(!kvm_memslots_exits_served(vm, id, &count) && count == 3);
	CHECK(!kvm_memslots_promote_due(vm, &report));
	CHECK(report.ioctls == 0);
	CHECK(!kvm_memslots_exits_write(exits, 32 * MIB + PAGE, data, 1,
					device_writes, &seen, &served));
	CHECK(served.bytes == 1 && served.flags == KVM_MEMSLOTS_SERVED_DUE);
	CHECK(*(uint8_t *)(uintptr_t)(memory + PAGE) == 5);
	CHECK(!kvm_memslots_promote_due(vm, &report));
	CHECK(report.ioctls == 1);
	CHECK_MAPPED(32 * MIB, 1);
	CHECK(!kvm_memslots_undecoded(vm, exits, &reenter) && reenter == 1);
	CHECK(!kvm_memslots_undecoded(vm, exits, &reenter) && reenter == 0);
	report.ioctls = 9;
	CHECK(!kvm_memslots_promote(vm, &report) && report.ioctls == 0);

	/* Exits without their VM are the device's. */
	CHECK(!kvm_memslots_close(vm, NULL));
	CHECK(!kvm_memslots_exits_read(exits, 32 * MIB, data, 4, device_reads,
				       &seen, &served));
	CHECK(served.bytes == 0 && data[0] == 0x77);
	kvm_memslots_exits_free(exits);
	kvm_memslots_exits_free(NULL);
}

static void release(void *opaque)
{
	++*(int *)opaque;
}

void a_rom_device_flips(void)
{
	struct kvm_memslots_rom_state state = INIT(kvm_memslots_rom_state);
	struct kvm_memslots_report report = INIT(kvm_memslots_report);
	struct kvm_memslots_backing backing = INIT(kvm_memslots_backing);
	struct kvm_memslots_spec spec = bar_spec(&backing, 64 * MIB, MIB);
	struct kvm_memslots_changes *c = kvm_memslots_changes_new();
	struct kvm_memslots_vm *vm;
	struct kvm_memslots_rom *rom;
	int released = 0;

	CHECK(!open_vm(NULL, &vm));
	backing.release = release;
	backing.opaque = &released;
	FAILS(kvm_memslots_rom_new(vm, &spec, 9, 0, &rom), EINVAL,
	      "9 is no kvm_memslots_rom_mode");
	FAILS(kvm_memslots_rom_new(vm, &spec, KVM_MEMSLOTS_ROM_MODE_TRAP, 3, &rom),
	      EINVAL, "after is for");
	FAILS(kvm_memslots_rom_new(vm, &spec, 0, 0, NULL), EINVAL, "rom is NULL");
	spec.id = 5;
	FAILS(kvm_memslots_rom_new(vm, &spec, 0, 0, &rom), EINVAL, "id has to be 0");
	spec.id = 0;
	spec.gpa = 5;
	FAILS(kvm_memslots_rom_new(vm, &spec, 0, 0, &rom), EINVAL, "GPA 0x5");
	/* What a call that failed was given is the caller's. */
	CHECK(!released);
	spec.gpa = 64 * MIB;
	CHECK(!kvm_memslots_rom_new(vm, &spec, KVM_MEMSLOTS_ROM_MODE_TOGGLE, 0, &rom));
	CHECK_MAPPED(64 * MIB, 1);
	CHECK(!kvm_memslots_rom_set_array_mode(rom, vm, 1, &report));
	CHECK(report.ioctls == 0);
	CHECK(!kvm_memslots_rom_set_array_mode(rom, vm, 0, &report));
	CHECK(report.ioctls == 1);
	CHECK_MAPPED(64 * MIB, 0);
	CHECK(!kvm_memslots_rom_state(rom, &state));
	CHECK(state.region == 0 && state.flips == 1 && state.array_mode == 0);
	CHECK(state.mode == KVM_MEMSLOTS_ROM_MODE_TOGGLE);
	CHECK(!kvm_memslots_rom_set_array_mode(rom, vm, 7, NULL));
	CHECK(!kvm_memslots_rom_state(rom, &state) && state.region);
	CHECK(!kvm_memslots_unmap(c, state.region));
	CHECK(!kvm_memslots_apply(vm, c, NULL));
	CHECK(!released);
	kvm_memslots_rom_free(rom);
	CHECK(released == 1);
	kvm_memslots_rom_free(NULL);
	CHECK(!kvm_memslots_close(vm, NULL));
}

static void see_window(void *opaque, size_t window, uint64_t id)
{
	CHECK(window == 0 && id);
	++*(int *)opaque;
}

void bars_follow_config_writes(void)
{
	struct kvm_memslots_report report = INIT(kvm_memslots_report);
	struct kvm_memslots_backing backing = INIT(kvm_memslots_backing);
	struct kvm_memslots_spec window = bar_spec(&backing, PAGE, 15 * PAGE);
	const struct kvm_memslots_spec *windows[1] = { &window };
	struct kvm_memslots_bar bar = INIT(kvm_memslots_bar), port = bar;
	const struct kvm_memslots_bar *bars[2] = { &bar, &port };
	struct kvm_memslots_function function = INIT(kvm_memslots_function);
	struct kvm_memslots_pci *pci = kvm_memslots_pci_new(36);
	struct kvm_memslots_vm *vm;
	uint64_t id, found, at, base;
	int seen = 0, released = 0;
	uint32_t which, value = 0;

	CHECK(!open_vm(NULL, &vm));
	backing.release = release;
	backing.opaque = &released;
	bar.len = 16 * PAGE;
	bar.kind = KVM_MEMSLOTS_BAR_MEMORY32;
	bar.windows = windows;
	bar.nr_windows = 1;
	port.index = 1;
	port.len = 3;
	port.kind = KVM_MEMSLOTS_BAR_IO;
	function.bars = bars;
	function.nr_bars = 2;
	FAILS(kvm_memslots_pci_add(pci, vm, &function, &id), EINVAL, "0x3 bytes");
	port.len = 32;
	function.flags = 1U << 5;
	FAILS(kvm_memslots_pci_add(pci, vm, &function, &id), EINVAL, "0x20");
	function.flags = 0;
	bar.kind = 9;
	FAILS(kvm_memslots_pci_add(pci, vm, &function, &id), EINVAL,
	      "9 is no kvm_memslots_bar_kind");
	bar.kind = KVM_MEMSLOTS_BAR_MEMORY32;
	CHECK(!released);
	CHECK(!kvm_memslots_pci_add(pci, vm, &function, &id) && id);
	FAILS(kvm_memslots_pci_config_write(pci, vm, id + 1, 4, "\2", 1, NULL),
	      ENOENT, "removed");

	CHECK(!kvm_memslots_pci_config_write(pci, vm, id, 0x10, "\0\0\0\xe0", 4,
					     &report));
	CHECK(report.ioctls == 0);
	FAILS(kvm_memslots_pci_base(pci, id, 0, &base), ENOENT, "BAR 0");
	CHECK(!kvm_memslots_pci_config_read(pci, id, 0x10, &value, 4));
	CHECK(value == 0xe0000000);
	CHECK(!kvm_memslots_pci_config_write(pci, vm, id, 4, "\2", 1, &report));
	CHECK(report.ioctls == 1);
	CHECK_MAPPED(0xe0000000, 0);
	CHECK_MAPPED(0xe0001000, 1);
	CHECK(!kvm_memslots_pci_base(pci, id, 0, &base) && base == 0xe0000000);
	CHECK(!kvm_memslots_pci_decode(pci, 0xe0000004, &found, &which, &at));
	CHECK(found == id && which == 0 && at == 4);
	FAILS(kvm_memslots_pci_decode(pci, 5, NULL, NULL, NULL), ENOENT, "GPA 0x5");
	CHECK(!kvm_memslots_pci_refusal(pci, id, 0));
	CHECK(!kvm_memslots_pci_regions(pci, id, 0, see_window, &seen) && seen == 1);
	CHECK(!kvm_memslots_pci_regions(pci, id, KVM_MEMSLOTS_BAR_ROM, see_window,
					&seen) && seen == 1);

	CHECK(!kvm_memslots_pci_note_write(pci, id, 0x10, "\0\0\0\xd0", 4));
	CHECK_MAPPED(0xe0001000, 1);
	CHECK(!kvm_memslots_pci_sync(pci, vm, &report) && report.ioctls);
	CHECK_MAPPED(0xd0001000, 1);
	CHECK(!kvm_memslots_pci_reset(pci, vm, id, &report) && report.ioctls);
	CHECK_MAPPED(0xd0001000, 0);
	CHECK(!released);
	CHECK(!kvm_memslots_pci_remove(pci, vm, id, NULL));
	CHECK(released == 1);
	kvm_memslots_pci_free(pci);
	kvm_memslots_pci_free(NULL);
	CHECK(!kvm_memslots_close(vm, NULL));
}
