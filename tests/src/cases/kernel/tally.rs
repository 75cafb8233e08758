//! What is seen in many looks at a guest's stacks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::vm::Vm;

/// What was seen in all looks together.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) stacks: usize,
    pub(super) on_cpu: usize,
    pub(super) in_user_space: usize,
    pub(super) in_interrupt: usize,
    pub(super) new: usize,
    pub(super) dead: usize,
    /// Looks for which the guest's counts have proven who had to be looked at, and what was then.
    pub(super) proven: usize,
    checked: u64,
    walked: u64,
    pub(super) in_module: usize,
    /// Stacks that are not proven to be complete because a tracer was about to take over a return address.
    pub(super) hooking: usize,
    /// The names of the tasks, as far as they have letters only, and how often each was seen.
    pub(super) names: BTreeMap<String, usize>,
    /// The frames as they are shown.
    pub(super) names_in_full: BTreeSet<String>,
    incomplete: BTreeMap<String, usize>,
}

impl Tally {
    /// Looks `count` times. Every stack must be complete, there must be no doubt, and what is kept from look to look must be
    /// what a new look finds.
    pub(super) fn of(vm: &Vm, count: usize) -> Result<Self> {
        let mut tally = Self::default();
        for _ in 0..count {
            let report = vm.lucos("stacks --verify")?;
            ensure!(report["doubts"].as_array().is_some_and(Vec::is_empty), "doubts: {}", report["doubts"]);
            let effort = &report["effort"];
            tally.proven += usize::from(effort["proven"] == true);
            tally.checked += effort["checked"].as_u64().context("no count")?;
            tally.walked += effort["walked"].as_u64().context("no count")?;
            for stack in report["stacks"].as_array().context("no stacks")? {
                tally.add(stack).with_context(|| format!("in {stack}"))?;
            }
        }
        println!("{tally}");
        ensure!(tally.hooking * 100 <= tally.on_cpu, "that many are never in one moment: {tally}");
        ensure!(tally.incomplete.is_empty(), "not proven to be complete: {:#?}", tally.incomplete);
        Ok(tally)
    }

    fn add(&mut self, stack: &Value) -> Result<()> {
        let frames = stack["frames"].as_array().context("no frames")?;
        let interrupted = frames.iter().skip(1).any(|frame| frame["behind_call"] == false);
        self.stacks += 1;
        self.on_cpu += usize::from(!stack["vcpu"].is_null());
        self.in_user_space += usize::from(!stack["vcpu"].is_null() && frames.is_empty());
        self.in_interrupt += usize::from(interrupted);
        self.new += usize::from(stack["has_run"] == false);
        self.dead += usize::from(stack["state"] == "Z");
        if let Some(comm) = stack["comm"].as_str() {
            let word = comm.split(|letter: char| !letter.is_alphabetic() && letter != '-').next();
            *self.names.entry(word.unwrap_or_default().to_owned()).or_default() += 1;
        }
        let names: Vec<_> = frames.iter().filter_map(|frame| frame["name"].as_str()).collect();
        self.names_in_full.extend(names.iter().map(|&name| name.to_owned()));
        self.in_module += usize::from(names.iter().any(|name| name.ends_with(']')));
        // Between taking over a return address and noting it, the tracer's own code knows where it is, and nobody else.
        let hooks = names.iter().any(|name| name.contains("rethook"))
            && stack["doubt"].to_string().contains("a tracer");
        self.hooking += usize::from(hooks);
        if stack["complete"] != true && !hooks {
            let what = format!("{} {}", stack["doubt"], names.join(" < "));
            *self.incomplete.entry(what).or_default() += 1;
        }
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let functions: BTreeSet<_> =
            self.names_in_full.iter().filter_map(|name| name.split('+').next()).collect();
        write!(
            f,
            "{} stacks: {} on a CPU, {} in user space, {} interrupted, {} new, {} dead, {} in modules, {} just being traced; {} functions; {} looks \
             proven, {} tasks looked at and {} walked in the pauses; {:?}",
            self.stacks,
            self.on_cpu,
            self.in_user_space,
            self.in_interrupt,
            self.new,
            self.dead,
            self.in_module,
            self.hooking,
            functions.len(),
            self.proven,
            self.checked,
            self.walked,
            self.names
        )
    }
}
