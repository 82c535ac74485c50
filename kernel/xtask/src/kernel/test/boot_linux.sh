# Run in a guest: the example boots the guest's own kernel, to its end. A guest of a
# guest of QEMU's loses timer interrupts, hence the words. QEMU also lets it set XCR0 by
# itself, and CPUID, which KVM answers, has another size then: 7.2 does not survive that.
boot-linux /kernel - idle=poll nohz=off highres=off lapic=notscdeadline noxsave >console 2>timeline
status=$?
# Not to be taken for what this kernel says.
sed 's/^/| /' console timeline
grep -q "hello from user space" console &&
	grep -q "first byte on the console" timeline &&
	grep -q "set up: .* calls of the library's" timeline &&
	grep -q "the guest switched its power off" timeline && exit $status
echo "Linux has not come to its end: status $status"
exit 1
