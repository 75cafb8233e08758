//! The guest's kernel, looked into from outside.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::deadlines::{BOOT, EXIT, LONG_COMMAND};
use crate::harness::{Test, Tier};
use crate::vm::Vm;

pub(super) const TESTS: &[Test] = &[
    Test::new("kernel::traced_6_1_cloud", Tier::Gate, || sleepers("vmlinuz-6.1-cloud", &TRACERS)),
    Test::new("kernel::traced_6_12_cloud", Tier::Full, || sleepers("vmlinuz-6.12-cloud", &TRACERS)),
    Test::new("kernel::traced_6_1_rt", Tier::Full, || sleepers("vmlinuz-6.1-rt", &TRACERS)),
    Test::new("kernel::busy_6_1_cloud", Tier::Gate, || busy("vmlinuz-6.1-cloud")),
    Test::new("kernel::busy_6_12_cloud", Tier::Full, || busy("vmlinuz-6.12-cloud")),
    Test::new("kernel::busy_6_1_rt", Tier::Full, || busy("vmlinuz-6.1-rt")),
    Test::new("kernel::sleepers_of_6_1_cloud", Tier::Gate, || sleepers("vmlinuz-6.1-cloud", &[])),
    Test::new("kernel::sleepers_of_6_1_generic", Tier::Full, || sleepers("vmlinuz-6.1-generic", &[])),
    Test::new("kernel::sleepers_of_6_1_rt", Tier::Full, || sleepers("vmlinuz-6.1-rt", &[])),
    Test::new("kernel::sleepers_of_6_12_cloud", Tier::Gate, || sleepers("vmlinuz-6.12-cloud", &[])),
    Test::new("kernel::sleepers_of_6_12_generic", Tier::Full, || sleepers("vmlinuz-6.12-generic", &[])),
];

/// For each thread its number, how often it was switched out, and its stack as the kernel prints it.
const DUMP: &str = "for t in /proc/[0-9]*/task/*; do \
    echo \"task ${t##*/} $(grep ctxt_switches $t/status | tr -dc '0-9 \\n\\t' | tr '\\n' ' ')\"; cat $t/stack; done";

/// What the guest says of one thread.
#[derive(Debug, Default)]
struct Seen {
    switches: u64,
    frames: Vec<String>,
}

fn dump(vm: &mut Vm) -> Result<BTreeMap<u64, Seen>> {
    let text = vm.run_any(DUMP, LONG_COMMAND)?.0;
    let mut seen: BTreeMap<u64, Seen> = BTreeMap::new();
    let mut last = None;
    for line in text.lines().map(str::trim) {
        if let Some(words) = line.strip_prefix("task ") {
            let numbers: Vec<u64> = words.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            let (&pid, switches) = numbers.split_first().context("a task without a number")?;
            seen.insert(pid, Seen { switches: switches.iter().sum(), frames: Vec::new() });
            last = Some(pid);
        } else if let Some(frame) = line.strip_prefix("[<0>] ") {
            let pid = last.context("a frame before any task")?;
            seen.entry(pid).or_default().frames.push(frame.to_owned());
        }
    }
    Ok(seen)
}

fn number(text: &Value) -> Option<u64> {
    u64::from_str_radix(text.as_str()?.strip_prefix("0x")?, 16).ok()
}

/// Where a symbol of the guest's kernel is.
fn symbol(vm: &Vm, name: &str) -> Result<u64> {
    let report = vm.lucos(&format!("symbols {name}"))?;
    number(&report["symbols"][0]["address"]).with_context(|| format!("no symbol {name} in {report}"))
}

/// Every byte of the kernel's text that is not the image's must be where one of its tables says that it may change.
fn text(vm: &Vm) -> Result<()> {
    let report = vm.lucos("text-check")?;
    let unexplained = report["unexplained"].as_array().context("no report on the text")?;
    let list: Vec<String> = unexplained.iter().map(ToString::to_string).collect();
    ensure!(list.is_empty(), "{} places of the text differ for no reason:\n{}", list.len(), list.join("\n"));
    println!("text: {}", report["explained"]);
    Ok(())
}

/// Tracers that put themselves between the frames of those who go to sleep behind them: a return probe, the function graph
/// tracer, a probe on the entry of a function that has both.
const TRACERS: [&str; 5] = [
    "mount -t tracefs tracefs /sys/kernel/tracing",
    "echo 'r:lucos_return do_sys_openat2' > /sys/kernel/tracing/kprobe_events",
    "echo 'p:lucos_entry do_wait' >> /sys/kernel/tracing/kprobe_events; echo 1 > /sys/kernel/tracing/events/kprobes/enable",
    "echo 'do_nanosleep hrtimer_nanosleep do_wait' > /sys/kernel/tracing/set_ftrace_filter",
    "echo function_graph > /sys/kernel/tracing/current_tracer",
];

fn sleepers(kernel: &str, before: &[&str]) -> Result<()> {
    let mut vm = Vm::builder(kernel)?.initrd("tiny.cpio")?.cpus(2).start()?;
    vm.shell(BOOT)?;
    for command in before {
        vm.run(command)?;
    }
    vm.run("mkfifo /tmp/pipe; (cat /tmp/pipe &) ; (sleep 1000 &); (tail -f /dev/null &); (sleep 1 | cat &); sleep 2")?;
    let inside = vm.run("grep -w schedule /proc/kallsyms")?;
    let outside = format!("{:016x} T schedule", symbol(&vm, "schedule")?);
    ensure!(inside.trim() == outside, "the guest has {inside}, the host {outside}");

    text(&vm)?;
    let before = dump(&mut vm)?;
    let report = vm.lucos("stacks")?;
    let hidden = symbol(&vm, "__sched_text_start")?..symbol(&vm, "__sched_text_end")?;
    let stacks = report["stacks"].as_array().context("no stacks")?;
    ensure!(report["doubts"].as_array().is_some_and(Vec::is_empty), "doubts: {}", report["doubts"]);
    let (mut same, mut ran, mut wrong) = (0, 0, Vec::new());
    for stack in stacks {
        let Some(seen) = stack["pid"].as_u64().and_then(|pid| before.get(&pid)) else { continue };
        if stack["switches"].as_u64() != Some(seen.switches) || !stack["vcpu"].is_null() {
            ran += 1;
            continue;
        }
        let frames = stack["frames"].as_array().context("no frames")?;
        let shown =
            frames.iter().filter(|frame| number(&frame["address"]).is_some_and(|at| !hidden.contains(&at)));
        let names: Vec<&str> = shown.filter_map(|frame| frame["name"].as_str()).collect();
        if names == seen.frames && stack["complete"] == true {
            same += 1;
        } else {
            wrong.push(format!("{} is {stack}, and for the guest {:?}", stack["comm"], seen.frames));
        }
    }
    ensure!(wrong.is_empty(), "{same} as the guest sees them, {} not:\n{}", wrong.len(), wrong.join("\n"));
    ensure!(same > 20, "only {same} sleepers were compared, {ran} ran meanwhile");
    println!("{same} sleepers as the guest sees them, {ran} ran meanwhile");
    if !before.is_empty() {
        let hidden = stacks.iter().any(|stack| stack.to_string().contains("return_to_handler"));
        ensure!(!hidden, "a tracer's trampoline is taken for a caller");
    }
    vm.power_off()
}

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

/// What was seen in all looks together.
#[derive(Debug, Default)]
struct Tally {
    stacks: usize,
    on_cpu: usize,
    in_user_space: usize,
    in_interrupt: usize,
    new: usize,
    dead: usize,
    /// Looks for which the guest's counts have proven who had to be looked at, and what was then.
    proven: usize,
    checked: u64,
    walked: u64,
    incomplete: BTreeMap<String, usize>,
}

fn busy(kernel: &str) -> Result<()> {
    let mut vm = Vm::builder(kernel)?.initrd("tiny.cpio")?.cpus(4).start()?;
    vm.shell(BOOT)?;
    // The image is read while there is time.
    vm.lucos("symbols schedule")?;
    for load in LOADS {
        vm.type_line(&format!("({load}) > /dev/null 2>&1 &"))?;
    }
    vm.run_within("sleep 3", LONG_COMMAND)?;
    let mut tally = Tally::default();
    for _ in 0..LOOKS {
        // What is kept from look to look must be what a new look finds.
        let report = vm.lucos("stacks --verify")?;
        let effort = &report["effort"];
        tally.proven += usize::from(effort["proven"] == true);
        tally.checked += effort["checked"].as_u64().context("no count")?;
        tally.walked += effort["walked"].as_u64().context("no count")?;
        ensure!(report["doubts"].as_array().is_some_and(Vec::is_empty), "doubts: {}", report["doubts"]);
        for stack in report["stacks"].as_array().context("no stacks")? {
            let frames = stack["frames"].as_array().context("no frames")?;
            let interrupted = frames.iter().skip(1).any(|frame| frame["behind_call"] == false);
            tally.stacks += 1;
            tally.on_cpu += usize::from(!stack["vcpu"].is_null());
            tally.in_user_space += usize::from(!stack["vcpu"].is_null() && frames.is_empty());
            tally.in_interrupt += usize::from(interrupted);
            tally.new += usize::from(stack["has_run"] == false);
            tally.dead += usize::from(stack["state"] == "Z");
            if stack["complete"] != true {
                let names: Vec<_> = frames.iter().filter_map(|frame| frame["name"].as_str()).collect();
                *tally.incomplete.entry(format!("{} {}", stack["doubt"], names.join(" < "))).or_default() +=
                    1;
            }
        }
    }
    println!("{tally:?}");
    ensure!(tally.incomplete.is_empty(), "not proven to be complete: {:#?}", tally.incomplete);
    ensure!(tally.in_interrupt > 0 && tally.in_user_space > 0, "too quiet to tell anything: {tally:?}");
    // Switching off would wait for all that.
    vm.lucos("shutdown")?;
    vm.expect_exit(0, EXIT)
}
