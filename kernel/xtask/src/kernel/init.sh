#!/bin/busybox sh
# The guest's first process: runs /cmd and says how it ended.
export PATH=/bin HOME=/tmp TERM=dumb
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
ulimit -l unlimited
cd /tmp
echo LAB-BEGIN
# A pipe: no programs that draw progress bars on a console.
{ sh /cmd </dev/null; echo $? >/status; } 2>&1 | cat
echo "LAB-EXIT $(cat /status)"
if [ -e /sys/kernel/debug/kmemleak ]; then
	# Refused if kmemleak has given up, for lack of memory for its own use.
	echo scan >/sys/kernel/debug/kmemleak ||
		echo "kmemleak is off, it would report no unreferenced object"
	# An object that is in flight during one scan is found by the next.
	sleep 6
	echo scan >/sys/kernel/debug/kmemleak
	cat /sys/kernel/debug/kmemleak
fi
# QEMU ends, as it has -no-reboot. A kernel without PCI can't power off.
reboot -f
