# The part of the demo that runs on the KVM host: one Debian guest from power-on to power-off. The guest's console
# goes to standard output; lines of ours, `say TEXT` and `fact NAME VALUE`, to standard error.
# Takes the number of vCPUs, the guest's memory, and the seconds that a boot may take.
cpus=$1 memory=$2 patience=$3
tell() { echo "$*" >&2; }
give_up() { tell "say $*"; [ -z "$vmm" ] || kill "$vmm" 2> /dev/null; exit 1; }
now() { cut -d' ' -f1 /proc/uptime; }
took() { echo "$1 $(now)" | awk '{ printf "%.1f", $2 - $1 }'; }

# The image belongs to the cache, and the guest writes to its disk.
cp --sparse=always "$LUCOS_IMAGES/debian.img" debian.img && chmod u+w debian.img || give_up "cannot copy the disk"
mkfifo keys

# Waits until the console shows $1, a pattern; $2 says what that is.
await() {
    left=$patience
    until grep -q "$1" console; do
        kill -0 "$vmm" 2> /dev/null || give_up "the VMM ended before there was $2"
        [ "$left" -gt 0 ] || give_up "there is no $2 after $patience s"
        left=$((left - 1))
        sleep 1
    done
}
type() { echo "$1" >&7; }

: > console
start=$(now)
lucos-vmm --kernel "$LUCOS_IMAGES/vmlinuz" --disk debian.img --cpus "$cpus" --memory "$memory" \
    --serial tty --api-socket vm.sock < keys > console &
vmm=$!
# Held open: the guest's keyboard must not end with its first line.
exec 7> keys
tail -n +1 -f console & tail=$!

await 'login: ' 'login prompt'
tell "fact boot $(took "$start")"
type root
await 'lucos-guest:~#' 'shell'
for command in 'uname -a' 'grep PRETTY /etc/os-release' 'lsblk -o NAME,SIZE,MODEL,FSTYPE,MOUNTPOINT' \
    'echo "$(nproc) vCPUs, failed units: $(systemctl --failed --no-legend | wc -l)"' "echo that is a''ll"; do
    type "$command"
done
# The echo of what was typed is not the answer.
await 'that is all' 'answer from the shell'

pressed=$(now)
lucos --api-socket vm.sock power-button > button 2>&1 || give_up "the power button does not work: $(cat button)"
wait "$vmm"
status=$?
vmm=
tell "fact off $(took "$pressed")"
exec 7>&-
# What the guest said last is still on its way to the screen.
sleep 1
kill "$tail"
[ "$status" -eq 0 ] || give_up "the VMM ended with status $status"
grep -q 'Power down' console || give_up "the guest's kernel did not say that it powers down"
check=$(e2fsck -fn debian.img 2>&1) || give_up "the guest left its file system damaged: $check"
