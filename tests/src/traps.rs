//! What `lucos arm`, `traps` and `disarm` say of watched pages.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::vm::Vm;

/// Why a page may be given up: what the guest makes of its memory is its own affair.
const ALLOWED: [&str; 2] = ["the guest has made it one of its page tables", "the guest has given it to KVM"];

/// One such report.
#[derive(Debug)]
pub(crate) struct Report(Value);

impl Report {
    /// Watches as many of the pages that the guest writes to most; it must be so many. So many were given up `before`.
    pub(crate) fn of_arming(vm: &Vm, pages: usize, before: usize) -> Result<Self> {
        let report = Self(vm.lucos(&format!("arm --busiest {pages}"))?);
        let armed = report.pages()?;
        // In the time to the answer, the guest may have made page tables of some.
        let (lost, counts) = (report.lost()? - before, report.counts());
        ensure!(armed + lost == pages, "{armed} of {pages} pages are watched, {lost} given up: {counts}");
        Ok(report)
    }

    /// What is known now.
    pub(crate) fn of_now(vm: &Vm) -> Result<Self> {
        Ok(Self(vm.lucos("traps")?))
    }

    /// Watches nothing any more.
    pub(crate) fn of_disarming(vm: &Vm) -> Result<Self> {
        let report = Self(vm.lucos("disarm")?);
        let left = report.pages()?;
        ensure!(left == 0, "{left} pages are watched still: {}", report.0);
        Ok(report)
    }

    /// Watches this page no longer.
    pub(crate) fn of_disarming_one(vm: &Vm, page: &str) -> Result<Self> {
        Ok(Self(vm.lucos(&format!("disarm {page}"))?))
    }

    /// One of the counts.
    pub(crate) fn count(&self, name: &str) -> Result<u64> {
        self.0["counts"][name].as_u64().with_context(|| format!("no {name} in {}", self.0))
    }

    /// All counts, for people.
    pub(crate) fn counts(&self) -> &Value {
        &self.0["counts"]
    }

    /// How many pages are watched.
    pub(crate) fn pages(&self) -> Result<usize> {
        Ok(self.addresses()?.len())
    }

    /// Which ones.
    pub(crate) fn addresses(&self) -> Result<Vec<String>> {
        let pages = self.0["pages"].as_array().with_context(|| format!("no pages in {}", self.0))?;
        Ok(pages.iter().map(|page| page.as_str().unwrap_or_default().to_owned()).collect())
    }

    /// How many pages were given up.
    pub(crate) fn lost(&self) -> Result<usize> {
        Ok(usize::try_from(self.count("lost")?)?)
    }

    /// How many pages are listed as given up for this reason.
    pub(crate) fn lost_because(&self, why: &str) -> Result<usize> {
        let lost = self.0["lost"].as_array().with_context(|| format!("no lost pages in {}", self.0))?;
        Ok(lost.iter().filter(|page| page["why"] == why).count())
    }

    /// Nobody wrote without being seen, and pages were given up only for what the guest has done with them, `most` of them.
    pub(crate) fn ensure_right(&self, most: usize) -> Result<()> {
        ensure!(self.count("unseen")? == 0, "something was written that nobody saw: {}", self.0);
        let lost = self.lost()?;
        ensure!(lost <= most, "{lost} pages were given up, {most} at most were expected: {}", self.0);
        for page in self.0["lost"].as_array().with_context(|| format!("no lost pages in {}", self.0))? {
            let why = page["why"].as_str().unwrap_or_default();
            ensure!(ALLOWED.iter().any(|allowed| why.starts_with(allowed)), "a page was given up: {page}");
        }
        Ok(())
    }
}
