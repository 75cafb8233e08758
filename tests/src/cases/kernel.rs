//! The guest's kernel, looked into from outside.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::deadlines::{BOOT, LONG_COMMAND};
use crate::harness::{Test, Tier};
use crate::vm::Vm;

pub(super) const TESTS: &[Test] = &[
    Test::new("kernel::sleepers_of_6_1_cloud", Tier::Gate, || sleepers("vmlinuz-6.1-cloud")),
    Test::new("kernel::sleepers_of_6_1_generic", Tier::Full, || sleepers("vmlinuz-6.1-generic")),
    Test::new("kernel::sleepers_of_6_1_rt", Tier::Full, || sleepers("vmlinuz-6.1-rt")),
    Test::new("kernel::sleepers_of_6_12_cloud", Tier::Gate, || sleepers("vmlinuz-6.12-cloud")),
    Test::new("kernel::sleepers_of_6_12_generic", Tier::Full, || sleepers("vmlinuz-6.12-generic")),
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

fn sleepers(kernel: &str) -> Result<()> {
    let mut vm = Vm::builder(kernel)?.initrd("tiny.cpio")?.cpus(2).start()?;
    vm.shell(BOOT)?;
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
    vm.power_off()
}
