//! A full Debian under all the load that it can be put under.

use anyhow::{Result, ensure};

use super::sleepers::compare;
use super::tally::Tally;
use crate::deadlines::{COMMAND, EXIT, INITRAMFS_BOOT, LONG_COMMAND};
use crate::images;
use crate::vm::Vm;

/// What is going on: processes, pipes, sockets, futexes, timers, files and memory; modules that come and go; processors
/// that do; tasks with real-time priority and with deadlines; and probes on what all of them call.
const LOADS: [&str; 6] = [
    "stress-ng --fork 1 --pipe 1 --switch 1 --sock 1 --futex 1 --timer 1 --hdd 1 --hdd-bytes 8M --vm 1 --vm-bytes 32M \
     --dir 1 --clone 1 --temp-path /tmp",
    "while :; do for m in dummy veth loop; do modprobe $m; sleep 0.1; modprobe -r $m; done; done",
    "while :; do echo 0 > /sys/devices/system/cpu/cpu3/online; sleep 1; echo 1 > /sys/devices/system/cpu/cpu3/online; \
     sleep 1; done",
    "ping -f 127.0.0.1",
    "chrt -f 5 sh -c 'while :; do sleep 0.01; done'",
    "chrt -d --sched-runtime 2000000 --sched-deadline 50000000 --sched-period 50000000 0 sh -c 'while :; do :; done'",
];
const PROBES: &str = "cd /sys/kernel/tracing && echo 'p:lucos_in vfs_write' > kprobe_events && \
    echo 'r:lucos_out ksys_read' >> kprobe_events && echo 1 > events/kprobes/enable; cd /";
/// How often all stacks are looked at.
const LOOKS: usize = 25;

pub(super) fn loaded(kernel: &str) -> Result<()> {
    let folder = images::folder()?;
    let disk = images::copy("debian.img", folder.path())?;
    let builder = Vm::builder(&format!("vmlinuz-{kernel}"))?.initrd(&format!("initrd-{kernel}"))?;
    let mut vm = builder.disk(&disk).cpus(4).memory("1G").start()?;
    vm.log_in(INITRAMFS_BOOT)?;
    vm.run("dmesg -n 1; bind 'set enable-bracketed-paste off'; stty -echo")?;
    vm.lucos("symbols schedule")?;
    vm.run_within(PROBES, COMMAND)?;
    for load in LOADS {
        vm.type_line(&format!("({load}) > /dev/null 2>&1 &"))?;
    }
    vm.run_within("sleep 5", LONG_COMMAND)?;
    let tally = Tally::of(&vm, LOOKS)?;
    ensure!(tally.in_interrupt > 0 && tally.in_user_space > 0, "too quiet to tell anything: {tally}");
    for name in ["stress-ng", "modprobe", "ping"] {
        ensure!(tally.names.keys().any(|seen| seen.starts_with(name)), "{name} was never seen: {tally}");
    }
    let compared = compare(&mut vm)?;
    ensure!(compared.same > 40, "only {compared:?}");
    // Switching off would wait for all that.
    vm.lucos("shutdown")?;
    vm.expect_exit(0, EXIT)
}
