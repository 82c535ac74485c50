# Sourced: boots alioth's guest, its console on stdout.
boot() {
	mkdir -p /tmp/share
	# The window of this one is memory in a BAR.
	devices="--entropy --fs dir,path=/tmp/share,tag=share,dax_window=8M"
	for disk in 0 1 2 3 4 5; do
		[ -e /tmp/disk$disk ] || truncate -s 1M /tmp/disk$disk
		devices="$devices --blk file,path=/tmp/disk$disk"
	done
	timeout "$limit" "/bin/alioth-$way" -l warn boot --kernel /vmm/kernel --initramfs /vmm/initrd \
		--cmdline "console=ttyS0 loglevel=4 panic=-1 $timers" \
		--memory size=512M,backend=memfd --cpu count=1 $devices
}
