#!/bin/sh
# Before each script of a run: what time it is, and what the kernel counts of the run $name.
tracing=/sys/kernel/tracing
trace=$tracing/instances/vmm
# Of seconds with two decimals. A number that begins with 0 would be octal.
now() {
	read -r up idle </proc/uptime
	echo $((${up%.*} * 100 + 1${up#*.} - 100))
}
count() {
	if [ ! -d $trace ]; then
		echo 'p:vmm/ioctl kvm_vm_ioctl request=$arg2:x32' >$tracing/kprobe_events
		echo 'p:vmm/grace synchronize_srcu_expedited' >>$tracing/kprobe_events
		mkdir $trace
		echo 8192 >$trace/buffer_size_kb
	fi
	echo >$trace/trace
	echo 1 >$trace/events/vmm/enable
}
counted() {
	echo 0 >$trace/events/vmm/enable
	echo "VMM $name grace $(grep -c ' grace: ' $trace/trace)"
	echo "VMM $name lost $(sed -n 's/^overrun: //p' $trace/per_cpu/cpu*/stats | sort -n | tail -n 1)"
	sed -n 's/.* request=\(0x[0-9a-f]*\).*/\1/p' $trace/trace | sort | uniq -c | while read -r times request; do
		echo "VMM $name ioctl $request $times"
	done
}
