//! Code that the guest has made for itself: BPF, and what its probes run instead of what they are on.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::sleepers::compare;
use super::tally::Tally;
use crate::deadlines::{BOOT, EXIT, LONG_COMMAND};
use crate::images;
use crate::initramfs::Initramfs;
use crate::vm::Vm;

/// Programs around a function that is called all the time and around one that sleeps, a filter of system calls, and a program
/// that a task runs: that last, as none is attached before every task has once slept. Each says when it is there.
const TOOLS: [&str; 5] = ["fentry vfs_write", "fexit vfs_write", "fexit hrtimer_nanosleep", "seccomp", "run"];
/// What calls them, and what sleeps.
const LOADS: [&str; 3] = [
    "sleep 1000",
    "while :; do dd if=/dev/zero of=/dev/null bs=1 count=5000; done",
    "while :; do dd if=/dev/zero of=/dev/null bs=1 count=5000; done",
];
/// Probes in the middle of functions, which become jumps: on the second instruction behind what ftrace has, and on a return.
const PROBES: &str = "mount -t tracefs tracefs /sys/kernel/tracing; cd /sys/kernel/tracing; \
    echo 'p:lucos_a vfs_read+5' > kprobe_events && echo 'p:lucos_b ksys_write+5' >> kprobe_events && \
    echo 'p:lucos_c __x64_sys_write+5' >> kprobe_events && echo 'r:lucos_d ksys_read' >> kprobe_events && \
    echo 1 > events/kprobes/enable; cd /";
/// How often all stacks are looked at.
const LOOKS: usize = 60;

pub(super) fn made_code(kernel: &str) -> Result<()> {
    let folder = images::folder()?;
    let initramfs = Initramfs::planted(folder.path().join("initramfs"), kernel)?;
    let builder = Vm::builder(&format!("vmlinuz-{kernel}"))?.initrd_file(initramfs.path()).cpus(4);
    let mut vm = builder.start_in(folder)?;
    vm.shell(BOOT)?;
    vm.run("dmesg -n 1")?;
    vm.lucos("symbols schedule")?;
    vm.run_within(PROBES, LONG_COMMAND)?;
    for tool in TOOLS {
        let wait = "for i in $(seq 100); do grep -q bpf: /tmp/said && break; sleep 0.5; done; cat /tmp/said";
        let said = vm.run_within(&format!("bpf {tool} > /tmp/said 2>&1 & {wait}"), LONG_COMMAND)?;
        ensure!(
            ["running", "filtering", "attached"].iter().any(|word| said.contains(word)),
            "{tool}: {said}"
        );
    }
    for load in LOADS {
        vm.type_line(&format!("({load}) > /dev/null 2>&1 &"))?;
    }
    vm.run_within("sleep 3", LONG_COMMAND)?;
    sleeper(&vm)?;
    let tally = Tally::of(&vm, LOOKS)?;
    let made: BTreeSet<&str> =
        tally.names_in_full.iter().map(String::as_str).filter(|name| is_made(name)).collect();
    println!("made by the guest: {made:?}");
    for (what, sign) in [
        ("a program", "bpf_prog_"),
        ("a trampoline", "bpf_trampoline_"),
        ("a classic filter", "bpf_classic_filter"),
        ("a probe", "[kprobe]"),
    ] {
        ensure!(made.iter().any(|name| name.contains(sign)), "{what} was never met: {made:?}");
    }
    let compared = compare(&mut vm)?;
    ensure!(compared.same > 20, "only {compared:?}");
    vm.lucos("shutdown")?;
    vm.expect_exit(0, EXIT)
}

fn is_made(name: &str) -> bool {
    name.starts_with("bpf_prog_")
        || name.starts_with("bpf_trampoline_")
        || name.starts_with("bpf_classic_")
        || name.ends_with("[kprobe]")
}

/// Who sleeps behind a trampoline must have all frames to both sides of it.
fn sleeper(vm: &Vm) -> Result<()> {
    let report = vm.lucos("stacks")?;
    let frames_of = |stack: &Value| -> Vec<String> {
        let frames = stack["frames"].as_array().into_iter().flatten();
        frames.filter_map(|frame| frame["name"].as_str()?.split('+').next().map(str::to_owned)).collect()
    };
    let stacks = report["stacks"].as_array().context("no stacks")?;
    let behind = stacks.iter().find(|stack| {
        let frames = frames_of(stack);
        frames.iter().any(|name| name == "do_nanosleep")
            && frames.iter().any(|name| name.starts_with("bpf_trampoline"))
    });
    let behind = behind.with_context(|| format!("nobody sleeps behind a trampoline: {report}"))?;
    let frames = frames_of(behind);
    let all = ["do_nanosleep", "hrtimer_nanosleep", "bpf_trampoline", "hrtimer_nanosleep", "do_syscall_64"];
    let mut rest = frames.iter();
    let missing = all.iter().find(|wanted| !rest.any(|name| name.starts_with(*wanted)));
    ensure!(missing.is_none(), "{missing:?} is not in {frames:?}");
    ensure!(behind["complete"] == true, "{behind}");
    Ok(())
}
