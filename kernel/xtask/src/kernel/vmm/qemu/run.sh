# Runs QEMU and says what that took: vmm WAY RUN PROGRAM FIRMWARE FOLDER
# Of RUN: resets, SeaBIOS to its prompt, again and again; vga, whose screen is held against its memory;
# virtio, SeaBIOS with disks of four queues, and two resets; flash, a chip that is memory or registers; migrate, a guest
# that writes, to a file and back; ring, the same with a dirty ring; linux, which drives such disks, unplugs them, finds
# them again.
# On this machine VMM_STRACE is set, and strace counts; in the lab probes do.
way=$1 run=$2 program=$3 firmware=$4
mkdir -p "$5" && cd "$5" || exit
# For what a disk's snapshot has changed: QEMU's default is not there in the lab.
export TMPDIR="$PWD"
# What is said to a QEMU that has ended is said to nobody.
trap '' PIPE
name=$way-$run
resets=${VMM_RESETS:-8}
size=67108864
accel=kvm
[ "$run" != ring ] || accel=$accel,dirty-ring-size=4096
guest="-machine pc -accel $accel -m 64M -nodefaults -display none -L $firmware/seabios -L $firmware/qemu"

note() {
	echo "VMM $name note $*"
}
fail() {
	echo "VMM $name failed $*"
	tail -n 5 err dbg qmp 2>/dev/null
	# Killing strace would leave QEMU.
	[ -z "$pid" ] || quit
	[ -n "$VMM_STRACE" ] || counted
	exit 0
}
# The guest's firmware writes to dbg, QEMU's monitor to qmp and reads from fd 3.
start() {
	rm -f monitor
	mkfifo monitor
	: >dbg
	: >qmp
	# shellcheck disable=SC2086
	${VMM_STRACE:+strace -f -X raw -e trace=ioctl -o $VMM_STRACE} "$program" $guest \
		-chardev file,id=dbg,path=dbg -device isa-debugcon,iobase=0x402,chardev=dbg \
		-qmp stdio "$@" <monitor >qmp 2>err &
	pid=$!
	exec 3>monitor
	say '{"execute":"qmp_capabilities"}'
}
say() {
	echo "$*" >&3
}
# await FILE PATTERN TIMES: waits for so many lines, and says what it did not see.
await() {
	end=$(($(now) + ${VMM_LIMIT:-600} * 100))
	while [ "$(grep -a -c "$2" "$1")" -lt "${3:-1}" ]; do
		kill -0 "$pid" 2>/dev/null || fail "QEMU ended before: $2"
		[ "$(now)" -lt $end ] || fail "not seen: $2"
		sleep 0.1
	done
}
quit() {
	say '{"execute":"quit"}'
	exec 3>&-
	wait
	pid=
}
# save FILE [ADDRESS BYTES]: the guest's memory.
save() {
	say "{\"execute\":\"pmemsave\",\"arguments\":{\"val\":${2:-0},\"size\":${3:-$size},\"filename\":\"$PWD/$1\"},\"id\":\"$1\"}"
	await qmp "\"id\": \"$1\""
}
dump() {
	say "{\"execute\":\"screendump\",\"arguments\":{\"filename\":\"$PWD/shot.ppm\"},\"id\":\"shot$shot\"}"
	await qmp "\"id\": \"shot$shot\""
}
# Of the 320 by 200 pixels in the dump, which has each four times, those that have not the colour that others with the
# same byte of memory have.
pixels() {
	od -A n -v -t x1 -w320 vram >vram.hex
	tail -c +16 shot.ppm | od -A n -v -t x1 -w1920 | awk '
		NR % 2 {
			getline row <"vram.hex"
			split(row, memory)
			for (x = 0; x < 320; x++) {
				colour = $(6 * x + 1) $(6 * x + 2) $(6 * x + 3)
				byte = memory[x + 1]
				if (!(byte in colours))
					colours[byte] = colour
				wrong += colours[byte] != colour
			}
		}
		END { print NR == 400 && NF == 1920 ? wrong + 0 : "not 64000" }'
}
# As long as this is so, memory is what it is.
stopped() {
	say '{"execute":"query-status","id":"status"}'
	await qmp '"id": "status"'
	grep '"id": "status"' qmp | grep -q '"running": false' || fail "the guest is not stopped"
}
# disks NUMBER: so many, each with a thread of its own, so that KVM signals its queues' eventfds
# and is signalled by them.
disks() {
	devices=
	for disk in $(seq "$1"); do
		dd if=/dev/zero of=disk$disk bs=1024 count=1024 2>/dev/null
		devices="$devices -object iothread,id=io$disk -drive file=disk$disk,format=raw,if=none,id=d$disk"
		devices="$devices -device virtio-blk-pci,drive=d$disk,iothread=io$disk,num-queues=4"
	done
}
# boots CODE: a disk of 1 MiB whose first sector is this, as printf reads it.
boots() {
	# shellcheck disable=SC2059
	printf "$1" >disk
	dd if=/dev/zero bs=1 count=$((510 - $(wc -c <disk))) 2>/dev/null >>disk
	printf '\125\252' >>disk
	dd if=/dev/zero bs=512 count=2047 2>/dev/null >>disk
}
disk="-drive file=disk,format=raw,if=ide,snapshot=on"
# reset TIMES: to SeaBIOS's prompt each time.
reset() {
	for number in $(seq "$1"); do
		: >dbg
		say '{"execute":"system_reset"}'
		await dbg "$prompt"
	done
	note "$1 resets"
}

if [ -n "$VMM_STRACE" ]; then rm -f "$VMM_STRACE"; else count; fi
prompt='No bootable device'
begin=$(now)
case $run in
resets)
	start -vga none
	await dbg "$prompt"
	echo "VMM $name up $(($(now) - begin))"
	reset "$resets"
	;;
virtio)
	disks 4
	# shellcheck disable=SC2086
	start -vga none $devices
	await dbg "$prompt"
	echo "VMM $name up $(($(now) - begin))"
	reset 2
	;;
linux)
	disks 4
	# Of a guest in a guest of QEMU's on x86, timer interrupts get lost, and it waits
	# for ever: it has the simplest of timers, and does not sleep. Of four processors that could
	# come, each has a queue of each disk.
	timers="idle=poll nohz=off highres=off lapic=notscdeadline"
	: >console
	# shellcheck disable=SC2086
	start -vga none -m 256M -smp 1,maxcpus=4 -no-shutdown $devices -serial file:console -kernel /vmm/kernel \
		-initrd /vmm/initrd -append "console=ttyS0 loglevel=4 panic=-1 $timers"
	await console 'VMM-GUEST up'
	echo "VMM $name up $(($(now) - begin))"
	await console 'VMM-GUEST done'
	read=$(grep -c 'VMM-GUEST read' console)
	# Each of the four, before it was unplugged and after.
	[ "$read" = 8 ] || fail "$read disks read"
	note "$read disks read"
	;;
vga)
	# mov ax,13h; int 10h; mov ax,a000h; mov ds,ax; l: inc byte [bx]; inc bx; jmp l
	boots '\270\023\000\315\020\270\000\240\216\330\376\007\103\353\373'
	# shellcheck disable=SC2086
	start -vga std $disk
	await dbg 'Booting from 0000:7c00'
	sleep 3
	echo "VMM $name up $(($(now) - begin))"
	: >shots
	for shot in 1 2 3 4 5; do
		dump
		tail -c +16 shot.ppm >>shots
	done
	# Some of the colours are black.
	lit=$(tr -d '\000' <shots | wc -c)
	[ "$lit" -gt 0 ] || fail "the screen is black"
	# What is drawn is what the log says, so a page that it has lost has colours of an earlier round.
	say '{"execute":"stop","id":"stop"}'
	await qmp '"id": "stop"'
	stopped
	shot=stopped
	dump
	save vram 655360 64000
	wrong=$(pixels)
	[ "$wrong" = 0 ] || fail "$wrong pixels are not as in memory"
	note "5 dumps, and one that is as in memory"
	;;
flash)
	# A segment of 4 GiB by way of protected mode, and 100 times to the chip that SeaBIOS is in: what it is (it
	# is registers then), and back to memory, and a byte read after each. At last a line to SeaBIOS's port.
	boots '\372\061\300\216\330\146\017\001\026\077\174\017\040\300\014\001\017\042\300\273\010\000\216\333\110\017\042\300\146\276\000\000\374\377\271\144\000\147\306\006\220\147\212'\
'\036\147\306\006\377\147\212\036\342\360\272\002\004\260\106\356\260\012\356\364\017\000\105\174\000\000\000\000\000\000\000\000\000\000\377\377\000\000\000\223\217\000'
	cp "$firmware/seabios/bios-256k.bin" chip
	# shellcheck disable=SC2086
	start -vga none $disk -drive if=pflash,format=raw,file=chip
	await dbg 'Booting from 0000:7c00'
	echo "VMM $name up $(($(now) - begin))"
	await dbg '^F$'
	note "100 times registers and back"
	;;
migrate | ring)
	# mov ax,1000h; l: mov ds,ax; inc word [0]; add ax,100h; cmp ax,9000h; jb l; jmp 0
	boots '\270\000\020\216\330\377\006\000\000\005\000\001\075\000\220\162\362\353\355'
	# KVM's clock is a structure in the guest's memory, found by SeaBIOS, and KVM writes it when the
	# destination sets the vCPU's registers: without it only the guest and devices write.
	machine="-cpu qemu64,kvmclock=off $disk"
	start -vga none $machine
	await dbg 'Booting from 0000:7c00'
	echo "VMM $name up $(($(now) - begin))"
	# So slow that there are several passes, so soon done that it ends.
	say '{"execute":"migrate-set-parameters","arguments":{"max-bandwidth":1000000,"downtime-limit":2000}}'
	say '{"execute":"migrate","arguments":{"uri":"exec:cat >state"}}'
	begun=$(now)
	while ! grep -q '"status": "completed"' qmp; do
		! grep -q '"status": "failed"' qmp || fail "the migration failed"
		kill -0 "$pid" 2>/dev/null || fail "QEMU ended in the migration"
		[ $(($(now) - begun)) -lt 30000 ] || fail "the migration does not end"
		sleep 0.5
		say '{"execute":"query-migrate"}'
	done
	passes=$(sed -n 's/.*"dirty-sync-count": \([0-9]*\).*/\1/p' qmp | tail -n 1)
	stopped
	save before
	quit
	# The file of both is that of one trace.
	[ -z "$VMM_STRACE" ] || mv "$VMM_STRACE" "$VMM_STRACE.source"
	start -vga none $machine -incoming "exec:cat state" -S
	await qmp '"event": "RESUME"\|"status": "paused"\|"return"'
	tries=0
	while ! grep -q '"status": "completed"' qmp; do
		kill -0 "$pid" 2>/dev/null || fail "QEMU ended in the incoming migration"
		[ $tries -lt 200 ] || fail "the incoming migration does not end"
		tries=$((tries + 1))
		sleep 0.5
		say '{"execute":"query-migrate"}'
	done
	stopped
	save after
	cmp -s before after || fail "$(cmp -l before after | wc -l) bytes of memory differ"
	say '{"execute":"cont"}'
	await qmp '"event": "RESUME"'
	sleep 2
	say '{"execute":"stop"}'
	await qmp '"event": "STOP"'
	save later
	! cmp -s after later || fail "the guest does not go on"
	note "$passes passes, memory equal, the guest goes on"
	rm -f before after later state
	;;
esac
quit
[ -z "$VMM_STRACE" ] || [ ! -e "$VMM_STRACE.source" ] || {
	cat "$VMM_STRACE.source" >>"$VMM_STRACE"
	rm "$VMM_STRACE.source"
}
echo "VMM $name done $(($(now) - begin))"
[ -n "$VMM_STRACE" ] || counted
