//! Watching pages of a guest, over lucos-vmm's control API.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::api::Lucos;

impl Lucos {
    /// Watches `pages` for writes, while the guest runs; nothing else is watched.
    pub(crate) fn arm(&self, pages: &[u64]) -> Result<()> {
        let list: Vec<String> = pages.iter().map(|page| format!("{page:#x}")).collect();
        let report = self.put("vm.arm", json!({"pages": list}).to_string().as_bytes())?;
        let watched = report["pages"].as_array().map_or(0, Vec::len);
        ensure!(watched == pages.len(), "{watched} of {} pages are watched", pages.len());
        Ok(())
    }

    /// Watches none any more.
    pub(crate) fn disarm(&self) -> Result<()> {
        self.put("vm.disarm", &[]).map(drop)
    }

    /// What was done about accesses so far.
    pub(crate) fn trap_counts(&self) -> Result<BTreeMap<String, u64>> {
        let report = self.get("vm.traps")?;
        ensure!(report["lost"].as_array().is_some_and(Vec::is_empty), "pages were given up: {report}");
        numbers(&report["counts"])
    }

    /// Exits from the guest to the VMM so far.
    pub(crate) fn exits(&self) -> Result<BTreeMap<String, u64>> {
        numbers(&self.get("vm.counters")?["exits"])
    }
}

fn numbers(object: &Value) -> Result<BTreeMap<String, u64>> {
    let object = object.as_object().context("the answer has no counts")?;
    object.iter().map(|(name, count)| Ok((name.clone(), count.as_u64().context("no number")?))).collect()
}
