//! What the host sees of sleeping tasks, held against what the guest's kernel says of them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::{number, symbol, text};
use crate::deadlines::{BOOT, LONG_COMMAND};
use crate::vm::Vm;

/// For each thread how often it was switched out, and then its stack: whoever has the same count afterwards had this stack.
const DUMP: &str = "grep -H ctxt_switches /proc/[0-9]*/task/[0-9]*/status 2> /dev/null; \
    grep -H . /proc/[0-9]*/task/[0-9]*/stack 2> /dev/null";

/// What the guest says of one thread.
#[derive(Debug, Default)]
struct Seen {
    switches: u64,
    frames: Vec<String>,
}

fn dump(vm: &mut Vm) -> Result<BTreeMap<u64, Seen>> {
    let text = vm.run_any(DUMP, LONG_COMMAND)?.0;
    let mut seen: BTreeMap<u64, Seen> = BTreeMap::new();
    for line in text.lines() {
        let Some((path, what)) = line.trim().split_once(':') else { continue };
        let Some(pid) = path.split('/').nth(4).and_then(|pid| pid.parse().ok()) else { continue };
        if let Some(frame) = what.strip_prefix("[<0>] ") {
            seen.entry(pid).or_default().frames.push(frame.to_owned());
        } else if let Some((_, count)) = what.split_once(':') {
            seen.entry(pid).or_default().switches += count.trim().parse::<u64>().context("no count")?;
        }
    }
    Ok(seen)
}

/// How many tasks have the same stack outside and inside, and how many ran meanwhile, which says nothing.
#[derive(Debug)]
pub(super) struct Compared {
    pub(super) same: usize,
    pub(super) ran: usize,
}

/// Compares every task that sleeps; the guest hides the scheduler's frames.
pub(super) fn compare(vm: &mut Vm) -> Result<Compared> {
    let hidden = symbol(vm, "__sched_text_start")?..symbol(vm, "__sched_text_end")?;
    let before = dump(vm)?;
    let report = vm.lucos("stacks")?;
    let stacks = report["stacks"].as_array().context("no stacks")?;
    ensure!(report["doubts"].as_array().is_some_and(Vec::is_empty), "doubts: {}", report["doubts"]);
    let (mut compared, mut wrong) = (Compared { same: 0, ran: 0 }, Vec::new());
    for stack in stacks {
        let Some(seen) = stack["pid"].as_u64().and_then(|pid| before.get(&pid)) else { continue };
        if stack["switches"].as_u64() != Some(seen.switches) || !stack["vcpu"].is_null() {
            compared.ran += 1;
            continue;
        }
        let frames = stack["frames"].as_array().context("no frames")?;
        let shown =
            frames.iter().filter(|frame| number(&frame["address"]).is_some_and(|at| !hidden.contains(&at)));
        let names: Vec<&str> = shown.filter_map(|frame| frame["name"].as_str()).collect();
        if names == seen.frames && stack["complete"] == true {
            compared.same += 1;
        } else {
            wrong.push(format!("{} is {stack}, and for the guest {:?}", stack["comm"], seen.frames));
        }
    }
    ensure!(wrong.is_empty(), "{compared:?}, {} not:\n{}", wrong.len(), wrong.join("\n"));
    println!("{} sleepers as the guest sees them, {} ran meanwhile", compared.same, compared.ran);
    Ok(compared)
}

/// Tracers that put themselves between the frames of those who go to sleep behind them: a return probe, the function graph
/// tracer, a probe on the entry of a function that has both.
pub(super) const TRACERS: [&str; 5] = [
    "mount -t tracefs tracefs /sys/kernel/tracing",
    "echo 'r:lucos_return do_sys_openat2' > /sys/kernel/tracing/kprobe_events",
    "echo 'p:lucos_entry do_wait' >> /sys/kernel/tracing/kprobe_events; echo 1 > /sys/kernel/tracing/events/kprobes/enable",
    "echo 'do_nanosleep hrtimer_nanosleep do_wait' > /sys/kernel/tracing/set_ftrace_filter",
    "echo function_graph > /sys/kernel/tracing/current_tracer",
];

pub(super) fn sleepers(kernel: &str, before: &[&str]) -> Result<()> {
    let mut vm = Vm::builder(kernel)?.initrd("tiny.cpio")?.cpus(2).start()?;
    vm.shell(BOOT)?;
    for command in before {
        vm.run(command)?;
    }
    look(&mut vm)?;
    if !before.is_empty() {
        let report = vm.lucos("stacks")?;
        let hidden = report["stacks"].to_string().contains("return_to_handler");
        ensure!(!hidden, "a tracer's trampoline is taken for a caller");
    }
    vm.power_off()
}

/// The same where page tables have five levels.
pub(super) fn five_levels(kernel: &str) -> Result<()> {
    let mut vm = Vm::builder(kernel)?.initrd("tiny.cpio")?.cpus(2).start()?;
    vm.shell(BOOT)?;
    ensure!(vm.run("grep -c -w la57 /proc/cpuinfo")? == "2", "the guest's kernel does not use five levels");
    look(&mut vm)?;
    vm.power_off()
}

/// The same on a host that interprets every instruction.
pub(super) fn on_a_slow_host(kernel: &str) -> Result<()> {
    let mut vm = Vm::builder(kernel)?.initrd("tiny.cpio")?.on_a_slow_host().start()?;
    vm.shell(BOOT)?;
    look(&mut vm)?;
    let report = vm.lucos("stacks --verify")?;
    ensure!(report["doubts"].as_array().is_some_and(Vec::is_empty), "doubts: {}", report["doubts"]);
    vm.power_off()
}

/// Holds symbols, text and the stacks of some sleepers against what the guest says.
fn look(vm: &mut Vm) -> Result<()> {
    // What the kernel says would be in the middle of what is read here.
    vm.run("dmesg -n 1")?;
    vm.run("mkfifo /tmp/pipe; (cat /tmp/pipe &) ; (sleep 1000 &); (tail -f /dev/null &); (sleep 1 | cat &); sleep 2")?;
    let inside = vm.run("grep -w schedule /proc/kallsyms")?;
    let outside = format!("{:016x} T schedule", symbol(vm, "schedule")?);
    ensure!(inside.trim() == outside, "the guest has {inside}, the host {outside}");
    text(vm)?;
    let compared = compare(vm)?;
    ensure!(compared.same > 20, "only {compared:?}");
    Ok(())
}
