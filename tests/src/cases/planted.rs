//! Stacks in places that no load brings about at will: a module of ours puts tasks and processors there
//! (`scripts/guest/plant`), and the census must find them there.

mod pattern;
mod places;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::deadlines::{BOOT, EXIT};
use crate::harness::{Test, Tier};
use crate::images;
use crate::initramfs::Initramfs;
use crate::vm::Vm;
use places::{Kernel, Plant};

pub(super) const TESTS: &[Test] = &[
    Test::new("planted::places_of_6_1_cloud", Tier::Gate, || all(&places::V6_1_CLOUD)),
    Test::new("planted::places_of_6_12_cloud", Tier::Full, || all(&places::V6_12_CLOUD)),
    Test::new("planted::places_of_6_1_rt", Tier::Full, || all(&places::V6_1_RT)),
];

/// The processor that is held: the last one, kept free of other tasks; where a thread can be preempted in the kernel, so
/// that two can be in one place of one processor; and without the watchdogs that would complain of it.
const CMDLINE: &str = "isolcpus=3 preempt=full nowatchdog rcupdate.rcu_cpu_stall_suppress=1";

fn all(kernel: &Kernel) -> Result<()> {
    let folder = images::folder()?;
    let initramfs = Initramfs::planted(folder.path().join("initramfs"), kernel.kind)?;
    let builder = Vm::builder(&format!("vmlinuz-{}", kernel.kind))?.initrd_file(initramfs.path());
    let mut vm = builder.cpus(4).cmdline(CMDLINE).start_in(folder)?;
    vm.shell(BOOT)?;
    vm.run("insmod /lucos_plant.ko")?;
    // The image is read while there is time.
    vm.lucos("symbols schedule")?;
    let mut wrong = Vec::new();
    for plant in kernel.plants() {
        vm.run(&format!("echo {} > /proc/lucos_plant", plant.place))?;
        let found = look(&mut vm, &plant);
        vm.run("echo release > /proc/lucos_plant")?;
        wrong.extend(found.err().map(|error| format!("{}: {error:#}", plant.place)));
    }
    // 6.12 does not let the processor go that `isolcpus` names.
    vm.run("echo 0 > /sys/devices/system/cpu/cpu2/online")?;
    wrong.extend(look(&mut vm, &kernel.offline()).err().map(|error| format!("offline: {error:#}")));
    ensure!(wrong.is_empty(), "{} places are not as they are:\n{}", wrong.len(), wrong.join("\n"));
    println!("{} places and a processor that is off", kernel.plants().len());
    vm.lucos("shutdown")?;
    vm.expect_exit(0, EXIT)
}

fn look(vm: &mut Vm, plant: &Plant) -> Result<()> {
    let report = vm.lucos("stacks")?;
    ensure!(report["doubts"].as_array().is_some_and(Vec::is_empty), "doubts: {}", report["doubts"]);
    let stacks = report["stacks"].as_array().context("no stacks")?;
    let held: Vec<&Value> = stacks.iter().filter(|stack| stack["comm"] == plant.comm).collect();
    ensure!(held.len() == plant.count, "{} stacks of {}: {held:?}", held.len(), plant.comm);
    for stack in &held {
        check(plant, stack).with_context(|| format!("{stack}"))?;
    }
    // Of those that share a processor, at least one waits for it in the place.
    let waiting = held.iter().filter(|stack| stack["vcpu"].is_null()).count();
    ensure!(plant.count == 1 || waiting > 0, "all run at once: {held:?}");
    if plant.off_the_list {
        for stack in held {
            let pid = &stack["pid"];
            vm.run(&format!("[ ! -e /proc/{pid} ]")).context("it is on the list of tasks")?;
        }
    }
    Ok(())
}

/// Whether one stack is as it must be.
fn check(plant: &Plant, stack: &Value) -> Result<()> {
    let frames = stack["frames"].as_array().context("no frames")?;
    let names: Vec<&str> = frames.iter().filter_map(|frame| frame["name"].as_str()).collect();
    ensure!(pattern::fits(&plant.frames, &names), "not {}", plant.frames);
    if plant.forged {
        ensure!(stack["complete"] == false && stack["doubt"].is_string(), "a forged stack is believed");
    } else {
        ensure!(stack["complete"] == true, "not proven to be complete");
    }
    Ok(())
}
