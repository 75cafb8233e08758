# The part of the demo that runs on the KVM host: one Debian guest from power-on to power-off, patched while it runs. The
# guest's console goes to standard output, and so does what is done on the host, as a shell shows it; lines of ours,
# `say TEXT` and `fact NAME VALUE`, to standard error.
# Takes the number of vCPUs, the guest's memory, the seconds that a boot may take, and which patch there is: ipc-next-id, or
# version where Debian has no kernel with that hole any more.
cpus=$1 memory=$2 patience=$3 patch=$4
tell() { echo "$*" >&2; }
vmm='' tail=''
give_up() { tell "say $*"; kill $vmm $tail 2> /dev/null; exit 1; }
now() { cut -d' ' -f1 /proc/uptime; }
took() { echo "$1 $(now)" | awk '{ printf "%.1f", $2 - $1 }'; }

# The image belongs to the cache, and the guest writes to its disk.
cp --sparse=always "$LUCOS_IMAGES/debian.img" debian.img && chmod u+w debian.img || give_up "cannot copy the disk"
cp "$LUCOS_IMAGES/$patch.lup" fix.lup || give_up "cannot copy the patch"
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
# Does something on the host, and shows it as a shell would.
host() {
    printf '\r\n\033[1mhost$ %s\033[0m\r\n' "$*"
    "$@" > said 2>&1 7>&-
    status=$?
    cat said
    [ "$status" -eq 0 ] || give_up "$1 ended with status $status"
}

# Whoever signs patches does that elsewhere; hosts have the public key.
host lucos-patch keygen --no-password me
host lucos-patch sign --key me.key fix.lup
host lucos-patch inspect fix.lup

: > console
start=$(now)
export LUCOS_API_SOCKET=vm.sock
lucos-vmm --kernel "$LUCOS_IMAGES/vmlinuz" --disk debian.img --cpus "$cpus" --memory "$memory" \
    --patch-key me.pub --serial tty --api-socket vm.sock < keys > console &
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

# Has the guest show the hole, marked with $1, and leaves what it says in the file `shown`.
show() {
    from=$(wc -l < console)
    case $patch in
    ipc-next-id)
        # Identifiers end at 32767. Who restores a checkpoint may ask for the next one.
        type 'for n in 1 2; do echo 32767 > /proc/sys/kernel/msg_next_id; ipcmk -Q; done; ipcrm --all=msg'
        ;;
    version)
        type 'cat /proc/version'
        ;;
    esac
    type "echo shown $1, th''ere"
    await "shown $1, there" "answer from the shell"
    tail -n "+$((from + 1))" console > shown
}
# Checks it: open, or closed.
expect() {
    case $patch,$1 in
    # The last identifier and one beyond it, or the last one alone.
    ipc-next-id,open) [ "$(grep -c 'Message queue id: ' shown)" -eq 2 ] ;;
    ipc-next-id,closed)
        [ "$(grep -c 'Message queue id: ' shown)" -eq 1 ] && grep -q 'No space left on device' shown
        ;;
    # A line may begin with what the guest's shell tells the terminal.
    version,open) ! grep -q 'patched: Linux' shown ;;
    version,closed) grep -q 'patched: Linux' shown ;;
    esac || give_up "the guest does not show what it should: $1"
    tell "say $2"
}
case $patch in
ipc-next-id) what="CVE-2026-52923" opened="an identifier is given that is beyond the last one" closed="it is refused" ;;
version) what="the old code" opened="nothing is said of a patch" closed="new code runs" ;;
esac

show before
expect open "before: $opened ($what)"
host lucos apply --wait fix.lup
host lucos status
show patched
expect closed "patched while it runs: $closed"
host lucos rollback 1 --wait
show back
expect open "rolled back: $opened again"
host lucos apply --wait fix.lup
tell "fact paused $(lucos --json status 1 | sed -n 's/.*"paused_us": *\([0-9]*\).*/\1/p')"
show again
expect closed "and applied again"

pressed=$(now)
# Not by the power button: an older kernel than the disk was made for has no driver for it there.
type poweroff
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
