#!/bin/busybox sh
# Says what both ways take to their first KVM_RUN, in turn: vmm-timed PAIRS
. /bin/vmm-boot
timers= limit=600
export KRUN_RUN_TIMED=1
one() {
	way=$1
	boot </dev/null 2>&1 | sed -n "s/^timed/VMM $way &/p"
}
# Who is first reads the files.
one today >/dev/null
one ours >/dev/null
for nth in $(seq "$1"); do
	if [ $((nth % 2)) = 0 ]; then
		one today
		one ours
	else
		one ours
		one today
	fi
done
