#!/bin/busybox sh
# Boots the VMM's guest and says what that took: vmm WAY
way=$1
# Of a guest in a guest of QEMU's on x86, timer interrupts get lost, and it waits
# for ever: it has the simplest of timers, and does not sleep.
TIMERS="idle=poll nohz=off highres=off lapic=notscdeadline"
tracing=/sys/kernel/tracing
trace=$tracing/instances/vmm
if [ ! -d $trace ]; then
	echo 'p:vmm/ioctl kvm_vm_ioctl request=$arg2:x32' >$tracing/kprobe_events
	echo 'p:vmm/grace synchronize_srcu_expedited' >>$tracing/kprobe_events
	mkdir $trace
	echo 8192 >$trace/buffer_size_kb
fi
mkdir -p /tmp/$way && cd /tmp/$way || exit
mkdir -p /tmp/share
# The window of this one is memory in a BAR.
devices="--entropy --fs dir,path=/tmp/share,tag=share,dax_window=8M"
for disk in 0 1 2 3 4 5; do
	[ -e /tmp/disk$disk ] || truncate -s 1M /tmp/disk$disk
	devices="$devices --blk file,path=/tmp/disk$disk"
done
# Of seconds with two decimals. A number that begins with 0 would be octal.
now() {
	read -r up idle </proc/uptime
	echo $((${up%.*} * 100 + 1${up#*.} - 100))
}
echo >$trace/trace
echo 1 >$trace/events/vmm/enable
start=$(now)
# It wants a terminal.
timeout "${VMM_LIMIT:-400}" /bin/alioth-$way -l warn boot --kernel /vmm/kernel --initramfs /vmm/initrd \
	--cmdline "console=ttyS0 loglevel=4 panic=-1 $TIMERS" \
	--memory size=512M,backend=memfd --cpu count=1 $devices \
	</dev/ttyS0 2>err | while read -r line; do
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
