//! The guest's kernel, looked into from outside.

mod bpf;
mod busy;
mod loaded;
mod sleepers;
mod tally;

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::harness::{Test, Tier};
use crate::vm::Vm;

use bpf::made_code;
use busy::busy;
use loaded::loaded;
use sleepers::{TRACERS, five_levels, on_a_slow_host, sleepers};

pub(super) const TESTS: &[Test] = &[
    Test::new("kernel::traced_6_1_cloud", Tier::Gate, || sleepers("vmlinuz-6.1-cloud", &TRACERS)),
    Test::new("kernel::traced_6_12_cloud", Tier::Full, || sleepers("vmlinuz-6.12-cloud", &TRACERS)),
    Test::new("kernel::traced_6_1_rt", Tier::Full, || sleepers("vmlinuz-6.1-rt", &TRACERS)),
    Test::new("kernel::busy_6_1_cloud", Tier::Gate, || busy("vmlinuz-6.1-cloud", "")),
    Test::new("kernel::busy_with_isolated_page_tables_6_1_cloud", Tier::Full, || {
        busy("vmlinuz-6.1-cloud", "pti=on")
    }),
    Test::new("kernel::busy_6_12_cloud", Tier::Full, || busy("vmlinuz-6.12-cloud", "")),
    Test::new("kernel::busy_6_1_rt", Tier::Full, || busy("vmlinuz-6.1-rt", "")),
    Test::new("kernel::made_code_6_1_cloud", Tier::Full, || made_code("6.1-cloud")),
    Test::new("kernel::made_code_6_12_cloud", Tier::Full, || made_code("6.12-cloud")),
    Test::new("kernel::sleepers_on_intel_6_1_cloud", Tier::Intel, || on_a_slow_host("vmlinuz-6.1-cloud")),
    Test::new("kernel::five_levels_6_1_cloud", Tier::FiveLevels, || five_levels("vmlinuz-6.1-cloud")),
    Test::new("kernel::five_levels_6_12_cloud", Tier::FiveLevels, || five_levels("vmlinuz-6.12-cloud")),
    Test::new("kernel::loaded_6_1_generic", Tier::Full, || loaded("6.1-generic")),
    Test::new("kernel::loaded_6_1_cloud", Tier::Full, || loaded("6.1-cloud")),
    Test::new("kernel::loaded_6_1_rt", Tier::Full, || loaded("6.1-rt")),
    Test::new("kernel::loaded_6_12_cloud", Tier::Full, || loaded("6.12-cloud")),
    Test::new("kernel::loaded_6_12_generic", Tier::Full, || loaded("6.12-generic")),
    Test::new("kernel::sleepers_of_6_1_cloud", Tier::Gate, || sleepers("vmlinuz-6.1-cloud", &[])),
    Test::new("kernel::sleepers_of_6_1_generic", Tier::Full, || sleepers("vmlinuz-6.1-generic", &[])),
    Test::new("kernel::sleepers_of_6_1_rt", Tier::Full, || sleepers("vmlinuz-6.1-rt", &[])),
    Test::new("kernel::sleepers_of_6_12_cloud", Tier::Full, || sleepers("vmlinuz-6.12-cloud", &[])),
    Test::new("kernel::sleepers_of_6_12_generic", Tier::Full, || sleepers("vmlinuz-6.12-generic", &[])),
];

pub(super) fn number(text: &Value) -> Option<u64> {
    u64::from_str_radix(text.as_str()?.strip_prefix("0x")?, 16).ok()
}

/// Where a symbol of the guest's kernel is.
fn symbol(vm: &Vm, name: &str) -> Result<u64> {
    let report = vm.lucos(&format!("symbols {name}"))?;
    number(&report["symbols"][0]["address"]).with_context(|| format!("no symbol {name} in {report}"))
}

/// Every stack must be proven to be complete, `count` times, and there must be no doubt. Returns the frames, as they are shown.
pub(super) fn every_stack_is_complete(vm: &Vm, count: usize) -> Result<BTreeSet<String>> {
    Ok(tally::Tally::of(vm, count)?.names_in_full)
}

/// Every byte of the kernel's text that is not the image's must be where one of its tables says that it may change.
pub(super) fn text(vm: &Vm) -> Result<()> {
    let report = vm.lucos("text-check")?;
    let unexplained = report["unexplained"].as_array().context("no report on the text")?;
    let list: Vec<String> = unexplained.iter().map(ToString::to_string).collect();
    ensure!(list.is_empty(), "{} places of the text differ for no reason:\n{}", list.len(), list.join("\n"));
    println!("text: {}", report["explained"]);
    Ok(())
}
