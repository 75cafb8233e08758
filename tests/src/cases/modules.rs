//! The guest's modules, looked at from outside and from inside.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::kernel::number;
use crate::deadlines::{INITRAMFS_BOOT, LONG_COMMAND};
use crate::harness::{Test, Tier};
use crate::images;
use crate::vm::Vm;

pub(super) const TESTS: &[Test] = &[
    Test::new("modules::of_6_1_generic", Tier::Gate, || modules("6.1-generic", 12)),
    Test::new("modules::of_6_12_generic", Tier::Full, || modules("6.12-generic", 14)),
    Test::new("modules::of_6_1_rt", Tier::Full, || modules("6.1-rt", 12)),
];

/// The strictest alignment of a module's sections within a page, in bytes.
const ALIGNMENT: u64 = 64;
const PAGE: u64 = 4096;

/// Compares them in a guest whose kernel has so many bytes in an entry of `.altinstructions`.
fn modules(kernel: &str, alternative: u64) -> Result<()> {
    let folder = images::folder()?;
    let disk = images::copy("tiny.img", folder.path())?;
    let builder = Vm::builder(&format!("vmlinuz-{kernel}"))?.initrd(&format!("initrd-{kernel}"))?;
    let mut vm = builder.disk(&disk).cpus(2).memory("1G").start()?;
    vm.shell(INITRAMFS_BOOT)?;
    // Nothing the kernel says is to be mixed up with what files say.
    vm.run("dmesg -n 1")?;
    let inside = listed(&vm.run("cat /proc/modules")?)?;
    ensure!(inside.len() > 5 && inside.contains_key("nvme"), "the guest has {:?}", inside.keys());
    let outside = vm.lucos("modules")?;
    ensure!(outside["doubts"].as_array().is_some_and(Vec::is_empty), "doubts: {}", outside["doubts"]);
    let outside = outside["modules"].as_array().context("no modules")?;
    let names: BTreeSet<&str> = outside.iter().filter_map(|module| module["name"].as_str()).collect();
    ensure!(
        inside.keys().map(String::as_str).eq(names.iter().copied()),
        "the guest has {:?}, the host {names:?}",
        inside.keys()
    );
    let sections = sections(&vm.run_within("grep -r '' /sys/module/*/sections", LONG_COMMAND)?)?;
    vm.run("mount -t tracefs tracefs /sys/kernel/tracing")?;
    let traced = vm.run_within("grep ']$' /sys/kernel/tracing/available_filter_functions", LONG_COMMAND)?;
    let mut sites = 0;
    for module in outside {
        let name = module["name"].as_str().context("a module without a name")?;
        compare(module, &inside[name], &sections[name], alternative).with_context(|| format!("{module}"))?;
        let mark = format!("[{name}]");
        let traced = traced.lines().filter(|line| line.trim().ends_with(&mark)).count() as u64;
        let calls = module["tables"]["__mcount_loc"]["sites"].as_u64().unwrap_or(0);
        ensure!(traced == calls, "{name}: ftrace has {traced} functions, the host {calls}");
        sites += within(&vm.lucos(&format!("modules {name}"))?)?;
    }
    println!("{} modules with {sites} sites", outside.len());
    ensure!(sites > 5000, "only {sites} sites");
    let none = vm.lucos("modules lucos-none")?;
    ensure!(none["modules"].as_array().is_some_and(Vec::is_empty), "{none}");
    vm.power_off()
}

/// `/proc/modules` (kernel/module/procfs.c): name, size, users, their names, state, address. The last two, by name.
fn listed(text: &str) -> Result<BTreeMap<String, (String, u64)>> {
    let module = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, _, _, _, state, address, ..] = words[..] else { return None };
        Some((name.to_owned(), (state.to_lowercase(), number(&address.into())?)))
    };
    text.lines().map(|line| module(line).with_context(|| format!("{line:?} is no module"))).collect()
}

/// Where each section of each module is, of lines that are `/sys/module/MODULE/sections/SECTION:ADDRESS`.
fn sections(text: &str) -> Result<BTreeMap<String, BTreeMap<String, u64>>> {
    let mut found: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for line in text.lines() {
        let parts = line.trim().strip_prefix("/sys/module/").and_then(|line| line.split_once("/sections/"));
        let (module, section) = parts.with_context(|| format!("{line:?} is no section"))?;
        let (name, address) = section.split_once(':').context("a section without an address")?;
        let address = number(&address.into()).with_context(|| format!("{line:?} has no address"))?;
        found.entry(module.to_owned()).or_default().insert(name.to_owned(), address);
    }
    Ok(found)
}

/// Holds one module against what the guest says of it.
fn compare(
    module: &Value,
    (state, address): &(String, u64),
    sections: &BTreeMap<String, u64>,
    alternative: u64,
) -> Result<()> {
    ensure!(module["state"] == **state && state == "live", "the guest says that it is {state}");
    ensure!(number(&module["text"]["address"]) == Some(*address), "the guest has it at {address:#x}");
    ensure!(module["unread"].as_object().is_some_and(serde_json::Map::is_empty), "not all could be read");
    if let Some(text) = sections.get(".text") {
        let bytes = module["text"]["bytes"].as_u64().context("no size")?;
        ensure!((*address..address + bytes).contains(text), "the guest has .text at {text:#x}");
    }
    let tables = [
        ("__mcount_loc", 8),
        (".altinstructions", alternative),
        ("__jump_table", 16),
        (".static_call_sites", 8),
        (".parainstructions", 16),
        (".retpoline_sites", 4),
        (".return_sites", 4),
        (".call_sites", 4),
        (".ibt_endbr_seal", 4),
        (".smp_locks", 4),
        ("__bug_table", 12),
        (".orc_unwind_ip", 4),
    ];
    for (table, size) in tables {
        let entries = match table {
            ".orc_unwind_ip" => module["orc"].as_u64().context("no unwind entries")?,
            _ => module["tables"][table]["entries"].as_u64().unwrap_or(0),
        };
        let Some(&start) = sections.get(table) else {
            ensure!(entries == 0, "the guest has no {table}");
            continue;
        };
        // The table ends before the next section. Between them is only what aligns that one, or what is left of the last page.
        let end = start + entries * size;
        let next = sections.values().copied().filter(|&next| next > start).min();
        let next = next.unwrap_or_else(|| end.next_multiple_of(PAGE));
        let full = next.checked_sub(end).is_some_and(|room| room < ALIGNMENT || next % PAGE == 0);
        ensure!(
            entries > 0 && full,
            "{table} has {entries} entries from {start:#x} on, and then comes {next:#x}"
        );
    }
    Ok(())
}

/// Every site must be in the module's text; returns how many there are.
fn within(report: &Value) -> Result<usize> {
    let module = &report["modules"][0];
    let start = number(&module["text"]["address"]).context("no text")?;
    let text = start..start + module["text"]["bytes"].as_u64().context("no size")?;
    let sites = module["sites"].as_array().context("no sites")?;
    for site in sites {
        let (at, bytes) = (number(&site["address"]), site["bytes"].as_u64());
        let (at, bytes) = at.zip(bytes).with_context(|| format!("{site} is no site"))?;
        ensure!(text.contains(&at) && at + bytes <= text.end && bytes < 16, "{site} is not in {text:x?}");
    }
    Ok(sites.len())
}
