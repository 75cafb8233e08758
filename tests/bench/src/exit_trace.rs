//! How often each vCPU leaves guest mode, by KVM's tracepoint: exits that KVM deals with itself are among them, and none can be told
//! apart by vCPU in its counters.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

const EVENT: &str = "/sys/kernel/debug/tracing/events/kvm/kvm_exit";
/// Documentation/trace/histogram.rst.
const TRIGGER: &str = "hist:keys=common_pid";

/// Exits are counted until this is dropped. Each takes longer meanwhile.
#[derive(Debug)]
pub(crate) struct ExitTrace {
    event: PathBuf,
}

impl ExitTrace {
    pub(crate) fn start() -> Result<Self> {
        let trace = Self { event: PathBuf::from(EVENT) };
        trace.write(TRIGGER)?;
        Ok(trace)
    }

    /// Exits so far, by thread.
    pub(crate) fn exits(&self) -> Result<BTreeMap<u32, u64>> {
        let path = self.event.join("hist");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(parse(&text))
    }

    fn write(&self, text: &str) -> Result<()> {
        let path = self.event.join("trigger");
        fs::write(&path, text).with_context(|| format!("cannot write {text} to {}", path.display()))
    }
}

impl Drop for ExitTrace {
    fn drop(&mut self) {
        if let Err(error) = self.write(&format!("!{TRIGGER}")) {
            eprintln!("lucos-bench: exits are still traced: {error:#}");
        }
    }
}

/// Lines of `{ common_pid: 12 } hitcount: 345`.
fn parse(text: &str) -> BTreeMap<u32, u64> {
    let entry = |line: &str| -> Option<(u32, u64)> {
        let rest = line.trim().strip_prefix("{ common_pid:")?;
        let (thread, count) = rest.split_once("} hitcount:")?;
        Some((thread.trim().parse().ok()?, count.trim().parse().ok()?))
    };
    text.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_and_their_counts_are_read() {
        let text = "# event histogram\n#\n# trigger info: hist:keys=common_pid:vals=hitcount [active]\n#\n\n\
                    { common_pid:        812 } hitcount:         17\n\
                    { common_pid:        813 } hitcount:       4021\n\nTotals:\n    Hits: 4038\n";
        assert_eq!(parse(text), BTreeMap::from([(812, 17), (813, 4021)]));
    }
}
