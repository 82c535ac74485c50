/* Holes, the gate, and dirty logs. */
#include "program.h"

struct gate {
	void *committer;
	int paused;
	int resumed;
	int answer;
};

static int pause_vcpus(void *opaque, void *committer)
{
	struct gate *gate = opaque;

	CHECK(committer == gate->committer);
	gate->paused += !gate->answer;
	return gate->answer;
}

static void resume_vcpus(void *opaque)
{
	struct gate *gate = opaque;

	gate->resumed++;
}

static void count_hole(void *opaque, uint16_t as_id, uint64_t gpa, uint64_t len)
{
	uint64_t *bytes = opaque;

	CHECK(as_id == 0 && gpa == 0);
	*bytes += len;
}

/* Two regions in one slot, of which the second goes. */
static int open_a_hole(const struct kvm_memslots_options *options,
		       struct kvm_memslots_report *report)
{
	struct kvm_memslots_preview preview = INIT(kvm_memslots_preview);
	struct kvm_memslots_region region = INIT(kvm_memslots_region);
	struct kvm_memslots_changes *c;
	struct kvm_memslots_vm *vm;
	uint64_t high, bytes = 0;
	int ret;

	CHECK(!open_vm(options, &vm));
	c = kvm_memslots_changes_new();
	map(c, 0, MIB, memory, KVM_MEMSLOTS_PERMANENT, NULL);
	high = map(c, MIB, MIB, memory + MIB, KVM_MEMSLOTS_PERMANENT, NULL);
	CHECK(!kvm_memslots_apply(vm, c, NULL));

	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_unmap(c, high));
	preview.hole = count_hole;
	preview.opaque = &bytes;
	if (options->holes == KVM_MEMSLOTS_HOLES_NO_VCPU_RUNS) {
		CHECK(!kvm_memslots_preview(vm, c, &preview));
		CHECK(preview.holes == 1 && bytes == MIB);
	}
	ret = kvm_memslots_apply(vm, c, report);
	CHECK(kvm_memslots_region(vm, high, &region) == (ret ? 0 : -ENOENT));
	CHECK_MAPPED(0, 1);
	CHECK_MAPPED(MIB, ret != 0);
	CHECK(!kvm_memslots_region_at(vm, 0, 0, NULL));

	/* Nobody cares about holes in what goes. */
	CHECK(!kvm_memslots_close(vm, NULL));
	return ret;
}

void vcpus_are_paused_for_a_hole(void)
{
	struct gate state = { 0 };
	struct kvm_memslots_gate gate = INIT(kvm_memslots_gate);
	struct kvm_memslots_options options = INIT(kvm_memslots_options);
	struct kvm_memslots_report report = INIT(kvm_memslots_report);
	struct kvm_memslots_error error = INIT(kvm_memslots_error);
	struct kvm_memslots_vm *vm;

	options.executor = KVM_MEMSLOTS_EXECUTOR_PER_REGION;
	/* The changes don't name the lower one. */
	FAILS(open_a_hole(&options, &report), EPERM, "KVM_MEMSLOTS_HOLES_GATE");
	options.holes = KVM_MEMSLOTS_HOLES_REFUSE;
	FAILS(open_a_hole(&options, &report), EPERM, "for a moment");

	options.holes = KVM_MEMSLOTS_HOLES_NO_VCPU_RUNS;
	CHECK(!open_a_hole(&options, &report));
	CHECK(report.ioctls == 2 && report.grace_periods == 3);
	CHECK(report.executor == KVM_MEMSLOTS_EXECUTOR_PER_REGION);

	options.holes = KVM_MEMSLOTS_HOLES_GATE;
	FAILS(open_vm(&options, &vm), EINVAL, "gate is NULL");
	options.gate = &gate;
	FAILS(open_vm(&options, &vm), EINVAL, "pause and resume");
	gate.pause = pause_vcpus;
	gate.resume = resume_vcpus;
	gate.opaque = &state;
	state.committer = &options;
	report.committer = &options;
	CHECK(!open_a_hole(&options, &report));
	CHECK(report.flags & KVM_MEMSLOTS_REPORT_VCPUS_PAUSED);
	CHECK(state.paused == 1 && state.resumed == 1);

	state.answer = -ETIMEDOUT;
	FAILS(open_a_hole(&options, &report), ETIMEDOUT, "pause returned");
	CHECK(!kvm_memslots_last_error_info(&error));
	CHECK(error.flags == KVM_MEMSLOTS_ERROR_CALLBACK);
	/* Whatever is not 0 is no yes. */
	state.answer = 1;
	FAILS(open_a_hole(&options, &report), EPROTO, "pause returned 1,");
	state.answer = -5000;
	FAILS(open_a_hole(&options, &report), EPROTO, "pause returned -5000");
	CHECK(state.paused == 1 && state.resumed == 1);

	/* The policy can change. */
	CHECK(!open_vm(NULL, &vm));
	CHECK(!kvm_memslots_set_holes(vm, KVM_MEMSLOTS_HOLES_GATE, &gate));
	FAILS(kvm_memslots_set_holes(vm, 9, NULL), EINVAL, "9 is no kvm_memslots_holes");
	CHECK(!kvm_memslots_close(vm, NULL));
}

struct logs {
	uint64_t regions;
	uint64_t pages;
	uint64_t dirty;
};

static void count_log(void *opaque, uint64_t id, const uint64_t *words,
		      uint64_t nr_pages)
{
	struct logs *logs = opaque;
	uint64_t i;

	CHECK(id);
	logs->regions++;
	logs->pages += nr_pages;
	for (i = 0; i < nr_pages; i++)
		logs->dirty += words[i / 64] >> (i % 64) & 1;
}

/* Of a region that is gone: its tag is what the VMM knows it by. */
static void count_last(void *opaque, const struct kvm_memslots_region *region,
		       const uint64_t *words, uint64_t nr_pages)
{
	CHECK(region->size == sizeof(*region));
	CHECK(region->flags == (KVM_MEMSLOTS_LOG_DIRTY | KVM_MEMSLOTS_TAGGED));
	CHECK(region->tag == 0x7a9 && region->gpa == 0);
	CHECK(region->len == nr_pages * PAGE);
	count_log(opaque, region->id, words, nr_pages);
}

void dirty_logs(void)
{
	struct kvm_memslots_changes *c = kvm_memslots_changes_new();
	struct kvm_memslots_backing backing = INIT(kvm_memslots_backing);
	struct kvm_memslots_spec spec = INIT(kvm_memslots_spec);
	struct kvm_memslots_region region = INIT(kvm_memslots_region);
	struct kvm_memslots_report report = INIT(kvm_memslots_report);
	struct logs logs = { 0 };
	struct kvm_memslots_vm *vm;
	uint64_t low, high;
	/* 100 pages are two words; a third must stay as it is. */
	uint64_t words[3] = { 1, 2, 3 };

	CHECK(!open_vm(NULL, &vm));
	backing.hva = memory;
	spec.len = 100 * PAGE;
	spec.backing = &backing;
	spec.flags = KVM_MEMSLOTS_TAGGED;
	spec.tag = 0x7a9;
	CHECK(!kvm_memslots_map(c, &spec, &low));
	high = map(c, MIB, MIB, memory + MIB, 0, NULL);
	CHECK(!kvm_memslots_set_log_dirty(c, low, 1));
	CHECK(!kvm_memslots_apply(vm, c, NULL));
	CHECK(!kvm_memslots_region(vm, low, &region));
	CHECK(region.flags == (KVM_MEMSLOTS_LOG_DIRTY | KVM_MEMSLOTS_TAGGED));

	FAILS(kvm_memslots_dirty_log(vm, low, words, 1), EINVAL, "needs 2");
	FAILS(kvm_memslots_dirty_log(vm, low, NULL, 2), EINVAL, "NULL");
	FAILS(kvm_memslots_dirty_log(vm, high, words, 4), ENODATA,
	      "kvm_memslots_set_log_dirty");
	FAILS(kvm_memslots_dirty_log_of(vm, low, 90, 11, words, 3), EINVAL,
	      "pages 90 to 101");
	CHECK(words[0] == 1 && words[1] == 2);
	CHECK(!kvm_memslots_dirty_log(vm, low, words, 3));
	CHECK(words[0] == 0 && words[1] == 0 && words[2] == 3);
	words[0] = 1;
	CHECK(!kvm_memslots_dirty_log_of(vm, low, 90, 10, words, 1));
	CHECK(words[0] == 0);
	FAILS(kvm_memslots_clear_dirty_log(vm, low, 0, 100, words, 1), EINVAL,
	      "needs 2");

	FAILS(kvm_memslots_dirty_logs(vm, NULL, NULL), EINVAL, "each is NULL");
	CHECK(!kvm_memslots_dirty_logs(vm, count_log, &logs));
	FAILS(kvm_memslots_dirty_logs_in(vm, 0, NULL, NULL), EINVAL, "each is NULL");
	FAILS(kvm_memslots_dirty_logs_in(vm, 77, count_log, &logs), EINVAL,
	      "address space 77");
	CHECK(!kvm_memslots_dirty_logs_in(vm, 0, count_log, &logs));
	/* Nothing is dirty; what is if something is, the model tells Rust. */
	CHECK(logs.regions == 0);

	/* The last pages of what goes come with the report. */
	c = kvm_memslots_changes_new();
	CHECK(!kvm_memslots_unmap(c, low) && !kvm_memslots_unmap(c, high));
	report.last_dirty = count_last;
	report.opaque = &logs;
	CHECK(!kvm_memslots_apply(vm, c, &report));
	CHECK(logs.regions == 1 && logs.pages == 100 && logs.dirty == 0);
	CHECK(report.last_dirty == count_last && report.opaque == &logs);
	CHECK(!kvm_memslots_close(vm, NULL));
}
