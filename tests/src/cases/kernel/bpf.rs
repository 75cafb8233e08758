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
/// Probes in the middle of functions, which become jumps: on the instruction behind what ftrace has; and on a return.
fn probes(behind: u32) -> String {
    format!(
        "mount -t tracefs tracefs /sys/kernel/tracing; cd /sys/kernel/tracing; \
         echo 'p:lucos_a vfs_read+{behind}' > kprobe_events && echo 'p:lucos_b ksys_write+{behind}' >> kprobe_events && \
         echo 'p:lucos_c __x64_sys_write+{behind}' >> kprobe_events && echo 'r:lucos_d ksys_read' >> kprobe_events && \
         echo 1 > events/kprobes/enable && cd /"
    )
}
/// How often all stacks are looked at.
const LOOKS: usize = 60;

/// `behind` is where functions go on behind what ftrace has at their beginning.
pub(super) fn made_code(kernel: &str, behind: u32) -> Result<()> {
    let folder = images::folder()?;
    let initramfs = Initramfs::planted(folder.path().join("initramfs"), kernel)?;
    let builder = Vm::builder(&format!("vmlinuz-{kernel}"))?.initrd_file(initramfs.path()).cpus(4);
    let mut vm = builder.start_in(folder)?;
    vm.shell(BOOT)?;
    vm.run("dmesg -n 1")?;
    vm.lucos("symbols schedule")?;
    vm.run_within(&probes(behind), LONG_COMMAND)?;
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
    ensure!(made.iter().any(|name| is_program(name)), "a program was never met: {made:?}");
    for (what, sign) in [
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
    let others = ["bpf_trampoline_", "bpf_classic_filter"].iter().any(|start| name.starts_with(start));
    is_program(name) || others || name.ends_with("[kprobe]")
}

/// Whether it is a program, by the tag that the kernel gives it: 16 digits. Functions of the kernel's begin alike.
fn is_program(name: &str) -> bool {
    let tag = name.strip_prefix("bpf_prog_").and_then(|rest| rest.get(..16));
    tag.is_some_and(|tag| tag.bytes().all(|digit| digit.is_ascii_hexdigit()))
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
