//! One kernel after the other in one guest: reboot, kexec and kdump.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::kernel::text;
use crate::deadlines::{BOOT, LONG_COMMAND};
use crate::harness::{Test, Tier};
use crate::images;
use crate::initramfs::Initramfs;
use crate::vm::{Builder, Vm};

pub(super) const TESTS: &[Test] = &[
    Test::new("generations::reboot_of_6_1_cloud", Tier::Full, || reboot("vmlinuz-6.1-cloud")),
    Test::new("generations::kexec_of_6_1_cloud", Tier::Full, || kexec("6.1-cloud")),
    Test::new("generations::kexec_of_6_12_cloud", Tier::Full, || kexec("6.12-cloud")),
    Test::with_alarms("generations::kdump_of_6_1_cloud", Tier::Gate, || kdump("6.1-cloud")),
    Test::with_alarms("generations::kdump_of_6_12_cloud", Tier::Full, || kdump("6.12-cloud")),
];

/// What each kernel is started with: at the same place each time.
pub(super) const CMDLINE: &str = "console=ttyS0 nokaslr";

fn reboot(kernel: &str) -> Result<()> {
    let mut vm = Vm::builder(kernel)?.initrd("tiny.cpio")?.cpus(2).start()?;
    vm.shell(BOOT)?;
    let first = census(&vm)?;
    ensure!(census(&vm)?.generation == first.generation, "two looks at one kernel are two kernels");
    vm.type_line("reboot -f")?;
    let seen = watch(&vm, first.generation)?;
    ensure!(seen.generation == first.generation + 1, "{seen:?}");
    vm.shell(BOOT)?;
    let second = census(&vm)?;
    ensure!(second.generation == first.generation + 1, "the kernel is number {}", second.generation);
    vm.power_off()
}

/// A guest that has `kexec`, its own kernel as `/vmlinuz`, and as `/base.cpio` an initramfs with `kexec`, a shell and `more`.
pub(super) fn builder(kernel: &str, folder: &tempfile::TempDir, more: &[&Path]) -> Result<Builder> {
    let path = |name| folder.path().join(name);
    let mut base = Initramfs::planted(path("base.cpio"), kernel)?;
    for archive in more {
        base = base.archive(archive)?;
    }
    let all = Initramfs::new(path("all.cpio"))?.archive(base.path())?;
    let all =
        all.file("vmlinuz", &images::image(&format!("vmlinuz-{kernel}"))?)?.file("base.cpio", base.path())?;
    Ok(Vm::builder(&format!("vmlinuz-{kernel}"))?
        .initrd_file(all.path())
        .cpus(2)
        .memory("1G")
        .cmdline("nokaslr"))
}

/// The same kernel at the same place, twice: nothing tells one from the other but what each has made up.
fn kexec(kernel: &str) -> Result<()> {
    let folder = images::folder()?;
    let mut vm = builder(kernel, &folder, &[])?.verbose().start()?;
    vm.shell(BOOT)?;
    let mut last = census(&vm)?;
    for round in 0..2 {
        // All that this one was started with, for the next one.
        let pack = "cd /; (cat base.cpio; printf 'vmlinuz\\nbase.cpio\\n' | cpio -o -H newc) > /tmp/initrd";
        vm.run_within(pack, LONG_COMMAND)?;
        vm.run_within(&format!("kexec /vmlinuz /tmp/initrd '{CMDLINE}'"), LONG_COMMAND)?;
        vm.type_line("kexec -e")?;
        let seen = watch(&vm, last.generation)?;
        ensure!(seen.refusals > 0, "the guest was never seen between two kernels");
        vm.shell(BOOT)?;
        let next = census(&vm)?;
        ensure!(
            next.generation == last.generation + 1,
            "{} comes after {}",
            next.generation,
            last.generation
        );
        ensure!(next.place == last.place, "the kernel was moved from {} to {}", last.place, next.place);
        ensure!(next.vcpus == BTreeSet::from([0, 1]), "these vCPUs run tasks: {:?}", next.vcpus);
        let messages = vm.messages().text();
        let told = messages.lines().find(|line| line.contains(&format!("number {}:", next.generation)));
        let told = told.context("the VMM does not say that there is another kernel")?;
        // The first one was started by another boot loader, which may have put it elsewhere in memory.
        ensure!(round == 0 || told.ends_with(": another stack canary"), "not quite the same: {told}");
        println!("{told}");
        text(&vm)?;
        last = next;
    }
    vm.power_off()
}

/// A crash kernel in the memory of the one that has crashed, which is otherwise left as it was, with one vCPU still in it.
fn kdump(kernel: &str) -> Result<()> {
    let folder = images::folder()?;
    let mut vm = builder(kernel, &folder, &[])?.cmdline("crashkernel=256M").start()?;
    vm.shell(BOOT)?;
    let first = census(&vm)?;
    ensure!(first.vcpus == BTreeSet::from([0, 1]), "these vCPUs run tasks: {:?}", first.vcpus);
    let load = format!("kexec -p /vmlinuz /base.cpio '{CMDLINE} nr_cpus=1 reset_devices'");
    vm.run_within(&load, LONG_COMMAND)?;
    // On the second vCPU, so that the first is the one that is left behind.
    vm.type_line("taskset 2 sh -c 'echo c > /proc/sysrq-trigger'")?;
    let seen = watch(&vm, first.generation)?;
    ensure!(seen.refusals > 0, "the guest was never seen between two kernels");
    vm.shell(BOOT)?;
    let second = census(&vm)?;
    ensure!(
        second.generation == first.generation + 1,
        "{} comes after {}",
        second.generation,
        first.generation
    );
    ensure!(second.vcpus == BTreeSet::from([1]), "these vCPUs run tasks of it: {:?}", second.vcpus);
    let maps = vm.run("cat /proc/cmdline")?;
    ensure!(maps.contains("elfcorehdr="), "this is no crash kernel: {maps}");
    text(&vm)?;
    vm.power_off()
}

/// What one look has found.
#[derive(Debug)]
struct Seen {
    generation: u64,
    /// How far the kernel was moved.
    place: Value,
    /// The vCPUs that run tasks.
    vcpus: BTreeSet<u64>,
}

/// Looks at a guest in which all is well.
fn census(vm: &Vm) -> Result<Seen> {
    let report = vm.lucos("stacks --verify")?;
    ensure!(report["doubts"].as_array().is_some_and(Vec::is_empty), "doubts: {}", report["doubts"]);
    let stacks = report["stacks"].as_array().context("no stacks")?;
    let incomplete: Vec<&Value> = stacks.iter().filter(|stack| stack["complete"] != true).collect();
    ensure!(incomplete.is_empty(), "not proven to be complete: {incomplete:?}");
    let vcpus = stacks.iter().filter_map(|stack| stack["vcpu"].as_u64()).collect();
    let symbols = vm.lucos("symbols schedule")?;
    let generation = report["generation"].as_u64().context("no generation")?;
    ensure!(symbols["generation"] == generation, "{} is not {generation}", symbols["generation"]);
    Ok(Seen { generation, place: symbols["moved_by"].clone(), vcpus })
}

/// How a change of kernels went.
#[derive(Debug)]
struct Change {
    generation: u64,
    /// Looks that were refused meanwhile.
    refusals: usize,
}

/// Looks without a break until there is another kernel than `before`. Each look must end with stacks or with a reason.
fn watch(vm: &Vm, before: u64) -> Result<Change> {
    let begin = Instant::now();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut looks = 0;
    loop {
        let output = vm.try_lucos("stacks")?;
        let answer: Value = serde_json::from_str(&output.out)
            .with_context(|| format!("no answer but {} {} {}", output.code, output.out, output.err))?;
        looks += 1;
        if output.code == 0 {
            let generation = answer["generation"].as_u64().context("no generation")?;
            if generation != before {
                println!("{looks} looks in {:?}, of which were refused: {reasons:#?}", begin.elapsed());
                return Ok(Change { generation, refusals: reasons.values().sum() });
            }
        } else {
            let code = answer["code"].as_str().unwrap_or_default();
            ensure!(["unknown_kernel", "wrong_state"].contains(&code), "refused without a reason: {answer}");
            *reasons.entry(answer["message"].to_string()).or_default() += 1;
        }
        ensure!(
            begin.elapsed() < BOOT,
            "there is no other kernel after {looks} looks, refused were {reasons:#?}"
        );
    }
}
