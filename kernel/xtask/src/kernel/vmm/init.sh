#!/bin/busybox sh
# The first process of the VMM's guest: has its devices used, says so, and
# powers off.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
echo VMM-GUEST up
for module in $(cat /modules/order); do
	insmod "/modules/$module" || echo "VMM-GUEST no $module"
done
for disk in /dev/vd?; do
	dd if="$disk" of=/dev/null bs=4096 count=4 2>/dev/null && echo "VMM-GUEST read $disk"
done
[ -e /dev/hwrng ] && head -c 64 /dev/hwrng >/dev/null && echo VMM-GUEST read /dev/hwrng
# Unplugged and found again: sized, placed, driven, once more.
for device in /sys/bus/pci/drivers/virtio-pci/0*; do
	[ -e "$device" ] || continue
	echo 1 >"$device/remove"
done
[ -e /sys/bus/pci/rescan ] && echo 1 >/sys/bus/pci/rescan
for disk in /dev/vd?; do
	dd if="$disk" of=/dev/null bs=4096 count=4 2>/dev/null && echo "VMM-GUEST read $disk"
done
echo VMM-GUEST done
# Without ACPI there is no power to switch off, and a reset ends it.
grep -q reboot=k /proc/cmdline && reboot -f
poweroff -f
