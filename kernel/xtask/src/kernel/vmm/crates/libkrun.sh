# Sourced: boots libkrun's guest, its console on stdout.
boot() {
	mkdir -p /tmp/share0 /tmp/share1 /tmp/share2 /tmp/share3
	timeout "$limit" "/bin/libkrun-$way" /vmm/kernel /vmm/initrd \
		"console=ttyS0 loglevel=4 panic=-1 reboot=k $timers" \
		/tmp/share0 /tmp/share1 /tmp/share2 /tmp/share3
}
