#!/bin/busybox sh
# Boots the VMM's guest and says what that took: vmm WAY
way=$1
. /bin/vmm-boot
# Of a guest in a guest of QEMU's on x86, timer interrupts get lost, and it waits
# for ever: it has the simplest of timers, and does not sleep.
timers="idle=poll nohz=off highres=off lapic=notscdeadline"
limit=${VMM_LIMIT:-400}
tracing=/sys/kernel/tracing
trace=$tracing/instances/vmm
if [ ! -d $trace ]; then
	echo 'p:vmm/ioctl kvm_vm_ioctl request=$arg2:x32' >$tracing/kprobe_events
	echo 'p:vmm/grace synchronize_srcu_expedited' >>$tracing/kprobe_events
	mkdir $trace
	echo 8192 >$trace/buffer_size_kb
fi
mkdir -p /tmp/$way && cd /tmp/$way || exit
# Of seconds with two decimals. A number that begins with 0 would be octal.
now() {
	read -r up idle </proc/uptime
	echo $((${up%.*} * 100 + 1${up#*.} - 100))
}
echo >$trace/trace
echo 1 >$trace/events/vmm/enable
start=$(now)
# It wants a terminal.
boot </dev/ttyS0 2>err | while read -r line; do
	case $line in
	*"VMM-GUEST up"*) echo "$(($(now) - start))" >up ;;
	*"VMM-GUEST done"*) echo "$(($(now) - start))" >done ;;
	esac
	echo "$line"
done >out
end=$(($(now) - start))
echo 0 >$trace/events/vmm/enable
stty sane </dev/ttyS0
echo "VMM $way end $end"
[ -e up ] && echo "VMM $way up $(cat up)"
[ -e done ] && echo "VMM $way done $(cat done)"
echo "VMM $way grace $(grep -c ' grace: ' $trace/trace)"
echo "VMM $way lost $(sed -n 's/^overrun: //p' $trace/per_cpu/cpu*/stats | sort -n | tail -n 1)"
sed -n 's/.* request=\(0x[0-9a-f]*\).*/\1/p' $trace/trace | sort | uniq -c | while read -r times request; do
	echo "VMM $way ioctl $request $times"
done
# Doorbells that KVM did not know when the guest rang them.
echo "VMM $way exits $(grep -c 'notifying queue.* by vm exit' err)"
grep -o 'VMM-GUEST.*' out | sed "s/^/VMM $way said /"
if [ ! -e done ]; then
	echo "VMM $way: the guest did not come to its end"
	tail -n 60 out | sed 's/^/out: /'
	tail -n 20 err | sed 's/^/err: /'
fi
true
