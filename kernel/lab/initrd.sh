#!/bin/sh
# Make an initramfs of busybox and the given static programs, which run as
# /bin/NAME.  /init runs the command given to boot.sh and powers off.
#
# usage: initrd.sh OUT.gz PROGRAM...
set -eu
out=$(readlink -f "$1")
shift
root=$(mktemp -d "${TMPDIR:-/tmp}/initrd.XXXXXX")
trap 'rm -rf "$root"' EXIT

mkdir -p "$root/bin" "$root/proc" "$root/sys" "$root/dev" "$root/tmp"
cp "${BUSYBOX:-/bin/busybox}" "$root/bin/busybox"
for prog; do
	cp "$prog" "$root/bin/"
done

# The command comes as a file of the second initramfs that boot.sh appends.
cat > "$root/init" <<'INIT'
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
ulimit -l unlimited
sh /cmd
echo "LAB-EXIT $?"
[ -e /sys/kernel/debug/kmemleak ] && echo scan > /sys/kernel/debug/kmemleak &&
	cat /sys/kernel/debug/kmemleak
poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet) | gzip -1 > "$out"
