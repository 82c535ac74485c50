# Boots the VMM's guest and says what that took: vmm WAY
way=$1 name=$1
. /bin/vmm-boot
# Of a guest in a guest of QEMU's on x86, timer interrupts get lost, and it waits
# for ever: it has the simplest of timers, and does not sleep.
timers="idle=poll nohz=off highres=off lapic=notscdeadline"
limit=${VMM_LIMIT:-400}
mkdir -p /tmp/$way && cd /tmp/$way || exit
count
start=$(now)
# It wants a terminal.
boot </dev/ttyS0 2>err | while read -r line; do
	case $line in
	*"VMM-GUEST up"*) echo "$(($(now) - start))" >up ;;
	*"VMM-GUEST done"*) echo "$(($(now) - start))" >done ;;
	esac
	echo "$line"
done >out
end=$(($(now) - start))
stty sane </dev/ttyS0
echo "VMM $way end $end"
[ -e up ] && echo "VMM $way up $(cat up)"
[ -e done ] && echo "VMM $way done $(cat done)"
counted
# Doorbells that KVM did not know when the guest rang them.
echo "VMM $way exits $(grep -c 'notifying queue.* by vm exit' err)"
grep -o 'VMM-GUEST.*' out | sed "s/^/VMM $way said /"
read=$(grep -c 'VMM-GUEST read' out)
[ "$read" = 0 ] || echo "VMM $way note $read devices read"
if [ ! -e done ]; then
	echo "VMM $way failed the guest did not come to its end"
	tail -n 60 out | sed 's/^/out: /'
	tail -n 20 err | sed 's/^/err: /'
fi
true
