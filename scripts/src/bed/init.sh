#!/bin/busybox sh
# The first process of a KVM host of the test bed, in its initramfs. It loads the modules, puts the host's userland
# together and runs the one command that the host was started for. `MACHINE` and the names of the modules come from
# files beside this one; the command and all that is new in each run come on the scratch disk, so that the
# initramfs is the same in every run.
/bin/busybox mkdir -p /proc /sys /dev /lower /upper /host
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /bin
export PATH=/bin

# KVM is half of the loading: a second processor can do it meanwhile.
MACHINE=$(cat /bed/machine)
load() {
  while read -r module; do
    insmod "/bed/modules/$module" || echo "lucos bed: cannot load $module"
  done < "$1"
}
load /bed/order.kvm & kvm=$!
load /bed/order

# Four channels to the outside. Devices on each machine: /dev/console is the kernel's own; the other three carry the
# command's output, its errors, and what is said about it.
case $MACHINE in
  amd) out=$(echo /dev/vport*p1) err=$(echo /dev/vport*p2) status=$(echo /dev/vport*p3)
       root=/dev/vda scratch=/dev/vdb beat=5 ;;
  intel) out=/dev/ttyS1 err=/dev/ttyS2 status=/dev/ttyS3 root=/dev/sda scratch=/dev/sdb beat=1
       for port in $out $err $status; do stty -F $port raw -echo 115200; done ;;
esac
# Each kind of port refuses or flushes on a second opening: keep them open.
exec 7> "$out" 8> "$err" 9> "$status"
say() { echo "$*" >&9; }
fail() { echo "lucos bed: $*"; say "fail $*"; sleep 1; poweroff -f; }

tries=0
until [ -b $scratch ] && [ -b $root ]; do
  tries=$((tries + 1)); [ $tries -lt 200 ] || fail "the disks $root and $scratch do not appear"
  sleep 0.05
done

# The userland is shared by all hosts and read-only; what a command changes in it lives in memory.
mount -t ext4 -o ro,noload $root /lower || fail "cannot mount the userland"
mount -t tmpfs -o mode=755 tmpfs /upper; mkdir /upper/data /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /host ||
  fail "cannot put a writable layer over the userland"

mkdir -p /host/scratch /host/lucos
mount -t ext4 -o noatime,noinit_itable $scratch /host/scratch || fail "cannot mount the scratch disk"
bed=/host/scratch/.bed

mount -t proc proc /host/proc
mount -t sysfs sysfs /host/sys
mount -t debugfs debugfs /host/sys/kernel/debug
mount -t cgroup2 cgroup2 /host/sys/fs/cgroup
mount -t devtmpfs devtmpfs /host/dev
mkdir -p /host/dev/pts /host/dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /host/dev/pts
mount -t tmpfs tmpfs /host/dev/shm
mount -t tmpfs tmpfs /host/tmp
mount -t tmpfs -o mode=755 tmpfs /host/run
ln -sf /proc/self/fd /host/dev/fd
ln -sf /proc/self/fd/0 /host/dev/stdin; ln -sf /proc/self/fd/1 /host/dev/stdout; ln -sf /proc/self/fd/2 /host/dev/stderr
hostname "lucos-$MACHINE-host"
ip link set lo up

# Folders of the outer machine: by 9p where there is 9p, else copied onto the scratch disk.
share() { # TAG FOLDER OPTIONS
  mkdir -p "$2"
  if [ -d "$bed/$1" ]; then
    mount --bind "$bed/$1" "$2"
  elif grep -qsx "$1" /bed/tags "$bed/tags"; then
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$3" "$1" "$2" || fail "cannot mount the share $1"
  fi
}
share bin /host/lucos/bin ro,cache=loose
share cache /host/lucos/cache ro,cache=loose
share modules /host/lib/modules ro,cache=loose
share with /host/lucos/with ro
share images /host/lucos/images ro
share out /host/lucos/out access=any

wait $kvm
[ -e /dev/kvm ] || fail "there is no /dev/kvm in the host; its kernel found no usable VMX or SVM"

# Pipes stand between the command and the ports, because /dev/stdout of a port cannot be opened again.
mkfifo /run.out /run.err 2>/dev/null
cat /run.out >&7 & outs=$!
cat /run.err >&8 & errs=$!
say "up $(cut -d' ' -f1 /proc/uptime)"
# A host that stands still says nothing any more, and nothing else tells it from a command that is silent.
while say alive; do sleep $beat; done & heart=$!
if [ -e $bed/terminal ]; then
  # The size is forgotten when the last one closes the terminal.
  exec 6<> /dev/hvc0
  stty $(cat $bed/terminal) <&6
  setsid -c chroot /host /bin/sh /scratch/.bed/command <&6 >&6 2>&6 6>&- 7>&- 8>&- 9>&-
  code=$?
  : > /run.out; : > /run.err
else
  input=/dev/null; [ -e $bed/stdin ] && input=$(echo /dev/vport*p4)
  chroot /host /bin/sh /scratch/.bed/command < "$input" > /run.out 2> /run.err 7>&- 8>&- 9>&-
  code=$?
fi
kill $heart
# What the command left running may hold the pipes open for ever; what it has written is out within this time.
tries=0
while { kill -0 $outs || kill -0 $errs; } 2>/dev/null && [ $tries -lt 100 ]; do tries=$((tries + 1)); sleep 0.02; done
if [ "$MACHINE" = intel ]; then
  # The scratch disk is read by the outer machine now; ports must be empty before the machine is ended.
  kill -KILL -1; sync; mount -o remount,ro /host/scratch
  exec 7>&- 8>&-
fi
say "exit $code"
exec 9>&-
sync
sleep 5
poweroff -f
