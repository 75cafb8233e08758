//! Code that the guest has made for itself: BPF, and what its probes run instead of what they are on.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::sleepers::compare;
use super::tally::Tally;
use crate::deadlines::{BOOT, EXIT, LONG_COMMAND};
use crate::images;
use crate::initramfs::Initramfs;
use crate::vm::Vm;

/// Programs around a function that is called all the time and around one that sleeps, filters, and programs that a task runs:
/// those last, as none is attached before every task has once slept.
const TOOLS: [&str; 7] =
    ["fentry vfs_write", "fexit vfs_write", "fexit hrtimer_nanosleep", "seccomp", "socket", "tail", "run"];
/// What calls them, and what sleeps.
const LOADS: [&str; 3] = [
    "sleep 1000",
    "while :; do dd if=/dev/zero of=/dev/null bs=1 count=5000; done",
    "while :; do dd if=/dev/zero of=/dev/null bs=1 count=5000; done",
];
/// From then on probes stay INT3, and constants in programs are hidden.
const OTHER_WAYS: &str =
    "killall bpf; echo 0 > /proc/sys/debug/kprobes-optimization; echo 2 > /proc/sys/net/core/bpf_jit_harden";
/// Short programs, so that what calls them is met. There is one dispatcher.
const OTHER_TOOLS: [&str; 3] = ["xdp", "xdp", "socket"];
/// How often all stacks are looked at, each way.
const LOOKS: usize = 60;

/// Where probes can be in the middle of functions.
#[derive(Debug, Clone, Copy)]
struct Offsets {
    /// Of what is behind the call that is ftrace's.
    second: u32,
    /// In `vfs_read`: a `push` of one byte.
    push: u32,
}

pub(super) fn made_code(kernel: &str) -> Result<()> {
    let folder = images::folder()?;
    let initramfs = Initramfs::planted(folder.path().join("initramfs"), kernel)?;
    let builder = Vm::builder(&format!("vmlinuz-{kernel}"))?.initrd_file(initramfs.path()).cpus(4);
    let mut vm = builder.start_in(folder)?;
    vm.shell(BOOT)?;
    vm.run("dmesg -n 1")?;
    vm.lucos("symbols schedule")?;
    // Since 6.2 functions begin with a mark for indirect branches.
    let offsets = if kernel.starts_with("6.1-") {
        Offsets { second: 5, push: 0xd }
    } else {
        Offsets { second: 9, push: 0x11 }
    };
    probe(&mut vm, offsets)?;
    start(&mut vm, &TOOLS)?;
    for load in LOADS {
        vm.type_line(&format!("({load}) > /dev/null 2>&1 &"))?;
    }
    vm.run_within("sleep 3", LONG_COMMAND)?;
    sleeper(&vm)?;
    let programs = ["bpf_prog_", "bpf_trampoline_", "bpf_classic_filter", "[kprobe detour]"];
    must_meet(&Tally::of(&vm, LOOKS)?, &programs)?;
    let compared = compare(&mut vm)?;
    ensure!(compared.same > 20, "only {compared:?}");

    vm.run_within(OTHER_WAYS, LONG_COMMAND)?;
    start(&mut vm, &OTHER_TOOLS)?;
    // Its trampoline's program is gone, and nothing leads into it any more.
    sleeper(&vm)?;
    let tally = Tally::of(&vm, LOOKS)?;
    must_meet(&tally, &["bpf_dispatcher_xdp", "[kprobe slot]"])?;
    let behind_push = format!("vfs_read+{:#x}/", offsets.push + 1);
    let is_trapped = tally.names_in_full.iter().any(|name| name.starts_with(&behind_push));
    ensure!(is_trapped, "nobody was met in the handler of the probe on a `push`");
    vm.lucos("shutdown")?;
    vm.expect_exit(0, EXIT)
}

/// Puts probes into functions that are called all the time, which become jumps.
fn probe(vm: &mut Vm, Offsets { second, push }: Offsets) -> Result<()> {
    let probes = [
        format!("p:lucos_a vfs_read+{second}"),
        format!("p:lucos_b vfs_read+{push}"),
        format!("p:lucos_c ksys_write+{second}"),
        format!("p:lucos_d __x64_sys_write+{second}"),
        "r:lucos_e ksys_read".to_owned(),
    ];
    vm.run("mount -t tracefs tracefs /sys/kernel/tracing")?;
    for probe in &probes {
        vm.run_within(&format!("echo '{probe}' >> /sys/kernel/tracing/kprobe_events"), LONG_COMMAND)?;
    }
    vm.run_within("echo 1 > /sys/kernel/tracing/events/kprobes/enable", LONG_COMMAND)?;
    Ok(())
}

/// Starts tools, each when the one before says that it is there.
fn start(vm: &mut Vm, tools: &[&str]) -> Result<()> {
    for tool in tools {
        let wait = "for i in $(seq 100); do grep -q bpf: /tmp/said && break; sleep 0.5; done; cat /tmp/said";
        let said = vm.run_within(&format!("bpf {tool} > /tmp/said 2>&1 & {wait}"), LONG_COMMAND)?;
        let is_there = ["running", "filtering", "attached"].iter().any(|word| said.contains(word));
        ensure!(is_there, "{tool}: {said}");
    }
    Ok(())
}

/// Each of `signs` must be in the name of a frame that is in what the guest has made.
fn must_meet(tally: &Tally, signs: &[&str]) -> Result<()> {
    let made: Vec<&String> = tally.names_in_full.iter().filter(|name| is_made(name)).collect();
    println!("made by the guest: {made:?}");
    let missing = signs.iter().find(|sign| !made.iter().any(|name| name.contains(**sign)));
    ensure!(missing.is_none(), "{missing:?} was never met: {made:?}");
    Ok(())
}

/// Whether a frame is in what the guest has made. Functions of the kernel's have names that begin alike.
fn is_made(name: &str) -> bool {
    let numbered = |prefix, digits: usize| {
        let number = name.strip_prefix(prefix).and_then(|rest: &str| rest.get(..digits));
        number.is_some_and(|number| number.bytes().all(|digit| digit.is_ascii_hexdigit()))
    };
    // A program's tag; a trampoline's key, which is no word.
    numbered("bpf_prog_", 16)
        || numbered("bpf_trampoline_", 5)
        || ["bpf_classic_filter+", "bpf_dispatcher_xdp+"].into_iter().any(|piece| name.starts_with(piece))
        || name.contains("[kprobe ")
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
