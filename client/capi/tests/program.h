/* What the parts of the test program share. */
#ifndef PROGRAM_H
#define PROGRAM_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* A structure that is all defaults. */
#define INIT(type) { .size = sizeof(struct type) }

/* -1 on the model. */
extern int vm_fd;
/* 4 MiB that the guest may have. */
extern uint64_t memory;

int open_vm(const struct kvm_memslots_options *options,
	    struct kvm_memslots_vm **vm);
/* Adds a map to a set. */
uint64_t map(struct kvm_memslots_changes *changes, uint64_t gpa, uint64_t len,
	     uint64_t hva, uint32_t flags, const char *label);
/* A set that maps one region. */
struct kvm_memslots_changes *mapping(uint64_t gpa, uint64_t len, uint64_t hva,
				     uint32_t flags, uint64_t *id);

/* Whether KVM itself says that there is memory at gpa. */
int kvm_has(uint64_t gpa);
#define CHECK_MAPPED(gpa, mapped) CHECK(vm_fd < 0 || kvm_has(gpa) == (mapped))

/* holes.c */
void vcpus_are_paused_for_a_hole(void);
void dirty_logs(void);

/* refused.c */
void bad_input(void);
void bad_changes(void);
void errnos_have_one_meaning(void);
void a_slot_behind_the_librarys_back(void);

/* flags.c */
void unknown_flags_are_refused(void);

/* guest.c */
void begins_nest(void);
void exits_are_served(void);
void a_rom_device_flips(void);
void bars_follow_config_writes(void);

/* misuse.c */
void handles_are_checked(void);
void what_was_freed_is_told(void);
void what_is_in_use_is_told(void);
void late_in_a_thread(void);
void in_a_fork(void);

/* events.c */
void devices(void);
void observers(void);
void memory_is_released(void);
void the_harvest_comes_first(void);
void callbacks_may_look_and_not_touch(void);
void threads(void);

/* zones.c */
void a_device_with_zones(void);
void the_ring_is_drained(void);
void bars_with_doorbells(void);
void triggers_hold_back(void);

/* windows.c */
void windows(void);
void bars_in_windows(void);
void ways_to_open(void);
/* How many bytes are. */
uint64_t placed(struct kvm_memslots_window *window);

/* in_window.c */
void devices_in_windows(void);

/* syscalls.c */
void system_calls_are_listed(void);
void filters_let_a_vm_live(void);

#endif
