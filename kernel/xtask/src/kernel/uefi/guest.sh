#!/bin/busybox sh
# Boots UEFI to its shell in the guest's own QEMU, and says what that took.
# uefi NAME [VARIABLE=VALUE...]
name=$1
shift
# QEMU may end while it is written to.
trap "" PIPE
dir=/tmp/$name
tracing=/sys/kernel/tracing
mkdir $dir && cd $dir || exit

# Padding was left out of the archive.
cp /vmm/vars.fd vars.fd
truncate -s 64M vars.fd
[ -e /tmp/code.fd ] || { cp /vmm/code.fd /tmp/code.fd && truncate -s 64M /tmp/code.fd; }

# Counted where the kernel waits, whoever calls, whatever is preloaded.
[ -e $tracing/events/lab/grace ] ||
	echo "p:lab/grace synchronize_srcu_expedited" >$tracing/kprobe_events
hits() {
	while read -r event hits missed; do
		[ "$event" = grace ] && echo "$hits"
	done <$tracing/kprobe_profile
}
# Of seconds with two decimals. A number that begins with 0 would be octal.
hundredths() {
	echo $((${1%.*} * 100 + 1${1#*.} - 100))
}
now() {
	read -r up idle </proc/uptime
	hundredths "$up"
}

mkfifo in out
echo 1 >$tracing/events/lab/grace/enable
before=$(hits)
start=$(now)
env "$@" KVM_MEMSLOTS_PRELOAD_STATS=$dir/stats.json /vmm/qemu \
	-M virt,gic-version=host -accel kvm -cpu host -m 256 -nodefaults \
	-display none -serial stdio -monitor none \
	-drive if=pflash,unit=0,format=raw,readonly=on,file=/tmp/code.fd \
	-drive if=pflash,unit=1,format=raw,file=vars.fd \
	<in >out 2>err &
qemu=$!
# Its output would keep the console of the lab open.
(sleep "${UEFI_LIMIT:-900}" && kill $qemu) >/dev/null 2>&1 &
watch=$!
exec 3>in 4<out

# Up to a text that ends with a character. Without a program, the processor is
# the guest's.
await() {
	while read -r -d "$2" text <&4; do
		echo "$text$2" >>console
		case $text in *"$1") return ;; esac
	done
	false
}
# It waits 5 seconds for a script unless a key is pressed.
await startup . && printf '\033' >&3 && await Shell ">" && shell=$(now)
printf 'reset -s\r' >&3
cat <&4 >>console
wait $qemu
status=$?
kill $watch 2>/dev/null
echo 0 >$tracing/events/lab/grace/enable
after=$(hits)
if [ -z "$shell" ] || [ $status != 0 ]; then
	echo "$name: QEMU ended with status $status"
	tail -n 30 console err
	exit 1
fi
sum=$(sha256sum vars.fd)
cat err
echo "UEFI {\"way\":\"$name\",\"gps\":$((after - before))," \
	"\"shell_ms\":$(((shell - start) * 10)),\"vars\":\"${sum%% *}\"," \
	"\"stats\":$(cat stats.json 2>/dev/null || echo null)}"
rm -rf $dir
