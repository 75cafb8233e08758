//! Guests in which everything is in motion.

use anyhow::{Result, ensure};

use super::tally::Tally;
use crate::deadlines::{BOOT, EXIT, LONG_COMMAND};
use crate::vm::Vm;

/// What keeps all vCPUs of the guest busy, each in its own way: new processes that end at once, pipes between processes, files,
/// a network connection, memory, and processors that come and go.
const LOADS: [&str; 6] = [
    "while :; do (true); done",
    "yes | tr y z | cat > /dev/null",
    "while :; do dd if=/dev/zero of=/tmp/file bs=4k count=500 2> /dev/null; sync; rm /tmp/file; done",
    "ip link set lo up; (nc -l -p 9 > /dev/null &); sleep 1; yes | nc 127.0.0.1 9",
    "while :; do head -c 200000 /dev/urandom | sha256sum > /dev/null; done",
    "while :; do echo 0 > /sys/devices/system/cpu/cpu3/online; sleep 1; echo 1 > /sys/devices/system/cpu/cpu3/online; sleep 1; done",
];
/// How often all stacks are looked at.
const LOOKS: usize = 40;

pub(super) fn busy(kernel: &str, cmdline: &str) -> Result<()> {
    let mut vm = Vm::builder(kernel)?.initrd("tiny.cpio")?.cpus(4).cmdline(cmdline).start()?;
    vm.shell(BOOT)?;
    // The image is read while there is time.
    vm.lucos("symbols schedule")?;
    for load in LOADS {
        vm.type_line(&format!("({load}) > /dev/null 2>&1 &"))?;
    }
    vm.run_within("sleep 3", LONG_COMMAND)?;
    let tally = Tally::of(&vm, LOOKS)?;
    ensure!(tally.in_interrupt > 0 && tally.in_user_space > 0, "too quiet to tell anything: {tally}");
    // Switching off would wait for all that.
    vm.lucos("shutdown")?;
    vm.expect_exit(0, EXIT)
}
