//! `lucos-vmm doctor`: can this host run stock guests, and what to do about what is missing.
//!
//! `host` and `kvm` look at the host and only write down [`Facts`]; `verdict` judges them and is a pure
//! function, so that what it says of a host nobody has at hand can be tested.

mod facts;
mod host;
mod kvm;
mod report;
mod verdict;

pub use facts::{CpuFacts, Facts, KvmFacts, KvmState, Virtualization, VmError, VmFacts};
pub use report::{Finding, Mark, Report};

/// Whether a KVM that uses the processor's virtualisation is loaded; two looks at /sys, for the way to a boot.
pub fn has_hardware_kvm() -> bool {
    host::has_hardware_kvm()
}

/// Looks at this host.
pub fn examine() -> Report {
    verdict::judge(&observe())
}

/// Writes down what this host is and has.
pub fn observe() -> Facts {
    host::observe()
}

/// Judges what was written down.
pub fn judge(facts: &Facts) -> Report {
    verdict::judge(facts)
}

/// Why a stock guest cannot run on the host of `report`, with what to do; `None` if it can.
///
/// A boot that fails says the same as the doctor: `why_no_guest(&examine())`.
pub fn why_no_guest(report: &Report) -> Option<String> {
    let broken = report.findings.iter().find(|finding| finding.mark == Mark::Broken)?;
    let advice = broken.advice.as_deref().unwrap_or("run `lucos-vmm doctor`");
    Some(format!("this host cannot run stock guests: {}; {advice}", broken.found))
}
