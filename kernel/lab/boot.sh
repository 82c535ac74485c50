#!/bin/sh
# Boot a lab kernel in QEMU with nested KVM, run a command, return its status.
#
# usage: boot.sh KERNEL INITRD.gz COMMAND...
#
# A splat on the console, or no end within TIMEOUT seconds (600), is a failure.
# APPEND adds to the kernel's command line, e.g. kvm_amd.npt=0 for shadow
# paging.  ARCH is x86_64 (default) or arm64.
set -u
kernel=$1 initrd=$2
shift 2
tmp=$(mktemp -d "${TMPDIR:-/tmp}/boot.XXXXXX")
trap 'rm -rf "$tmp"' EXIT

echo "$*" > "$tmp/cmd"
(cd "$tmp" && echo cmd | cpio -o -H newc --quiet) | gzip -1 > "$tmp/cmd.gz"
cat "$initrd" "$tmp/cmd.gz" > "$tmp/initrd.gz"

case ${ARCH:-x86_64} in
x86_64) set -- qemu-system-x86_64 -cpu EPYC,+svm -smp 2 -m "${MEM:-2G}"; tty=ttyS0 ;;
arm64) set -- qemu-system-aarch64 -M virt,virtualization=on,gic-version=3 \
	-cpu max,pauth-impdef=on -smp 2 -m "${MEM:-3G}"; tty=ttyAMA0 ;;
esac
timeout "${TIMEOUT:-600}" "$@" -accel tcg,thread=multi -nodefaults -nographic \
	-serial stdio -monitor none -no-reboot -kernel "$kernel" \
	-initrd "$tmp/initrd.gz" \
	-append "console=$tty panic=-1 loglevel=5 ${APPEND:-}" < /dev/null |
	tee "$tmp/log"

if grep -qE 'WARNING:|BUG:|Oops|KASAN|possible recursive|possible circular|rcu.*stall|unreferenced object|Kernel panic' "$tmp/log"; then
	echo "boot.sh: the kernel complained, see above" >&2
	exit 99
fi
status=$(tr -d '\r' < "$tmp/log" | sed -n 's/^LAB-EXIT //p')
[ -n "$status" ] || { echo "boot.sh: no end within time" >&2; exit 98; }
exit "$status"
